"""How each published claim is run again here: `papers/` has one small file a method, the verdict is arithmetic."""

from tokenmill.claims.reproduce import reproduce as reproduce

__all__ = ["reproduce"]
