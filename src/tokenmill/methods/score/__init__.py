"""How much each token matters: fn(trace, *, knobs) -> (B, K, T), higher = more important."""

from tokenmill.methods.score.expected_attention import expected_attention as expected_attention
from tokenmill.methods.score.h2o import h2o as h2o
from tokenmill.methods.score.keydiff import keydiff as keydiff
from tokenmill.methods.score.keyformer import keyformer as keyformer
from tokenmill.methods.score.knorm import knorm as knorm
from tokenmill.methods.score.random_tokens import random_tokens as random_tokens
from tokenmill.methods.score.snapkv import snapkv as snapkv
from tokenmill.methods.score.tova import tova as tova
from tokenmill.methods.score.vatp import vatp as vatp
