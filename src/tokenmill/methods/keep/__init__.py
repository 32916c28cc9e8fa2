"""Which tokens stay: fn(trace[, scores], *, budget, slots, knobs) -> Keep."""

from tokenmill.methods.keep.adaptive import adaptive as adaptive
from tokenmill.methods.keep.full import full as full
from tokenmill.methods.keep.lazy_llm import lazy_llm as lazy_llm
from tokenmill.methods.keep.pyramid import pyramid as pyramid
from tokenmill.methods.keep.recent_window import recent_window as recent_window
from tokenmill.methods.keep.streaming_llm import streaming_llm as streaming_llm
from tokenmill.methods.keep.token_select import token_select as token_select
from tokenmill.methods.keep.top import top as top
