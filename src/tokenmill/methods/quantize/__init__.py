"""How many bits each token gets: fn(trace, *, knobs) -> Bits. The trace holds the tokens not packed yet."""

from tokenmill.methods.quantize.zip_cache import zip_cache as zip_cache
