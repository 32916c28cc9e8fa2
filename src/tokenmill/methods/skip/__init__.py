"""How deep each token goes: fn(step, *, knobs) -> Depth before a pass; with acts="exit", fn(midway) -> Exit in it."""

from tokenmill.methods.skip.constant_skip import constant_skip as constant_skip
from tokenmill.methods.skip.d3 import d3 as d3
from tokenmill.methods.skip.duo_llm import duo_llm as duo_llm
from tokenmill.methods.skip.early_exit import early_exit as early_exit
from tokenmill.methods.skip.mixture_of_tokens import mixture_of_tokens as mixture_of_tokens
from tokenmill.methods.skip.mor import mor as mor
from tokenmill.methods.skip.random_depth import random_depth as random_depth
from tokenmill.methods.skip.skip_decode import skip_decode as skip_decode
from tokenmill.methods.skip.skip_middle import skip_middle as skip_middle
