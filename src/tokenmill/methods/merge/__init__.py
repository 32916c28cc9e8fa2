"""Several tokens into fewer, across tokens or layers: fn(lower, upper, *, knobs) -> Merge | None."""

from tokenmill.methods.merge.mini_cache import mini_cache as mini_cache
