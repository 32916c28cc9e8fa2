"""How deep each token goes: fn(step, *, knobs) -> Depth."""

from tokenmill.methods.skip.d3 import d3 as d3
from tokenmill.methods.skip.mor import mor as mor
from tokenmill.methods.skip.skip_middle import skip_middle as skip_middle
