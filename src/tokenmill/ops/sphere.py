"""Directions: length and direction apart, and the way between two directions along the sphere."""

from __future__ import annotations

from torch import Tensor

__all__ = ["angle", "slerp", "unit"]
