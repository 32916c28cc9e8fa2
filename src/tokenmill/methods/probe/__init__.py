"""What tokens, vocabularies and layers are like: fn(ask: Inquiry, ids (T,), *, knobs) -> Findings about one text."""

from tokenmill.methods.probe.fs_gen import fs_gen as fs_gen
from tokenmill.methods.probe.layer_drop import layer_drop as layer_drop
