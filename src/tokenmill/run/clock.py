"""Wall clock of work that a device may still be doing."""

from __future__ import annotations

import time

import torch


def clock(device: torch.device) -> float:
    """Seconds, read once the device has done all that it was given; a GPU works on while Python goes ahead."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
