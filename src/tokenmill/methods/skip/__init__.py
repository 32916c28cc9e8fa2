"""How deep each token goes: fn(step, *, knobs) -> Depth."""

from tokenmill.methods.skip.d3 import d3 as d3
