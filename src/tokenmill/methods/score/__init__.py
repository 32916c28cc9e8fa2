"""How much each token matters: fn(trace, *, knobs) -> (B, K, T), higher = more important."""

from tokenmill.methods.score.h2o import h2o as h2o
from tokenmill.methods.score.knorm import knorm as knorm
from tokenmill.methods.score.snapkv import snapkv as snapkv
