"""What may come next, and how it is checked: fn(seen, state, *, knobs) -> (Draft, state)."""

from tokenmill.methods.draft.prompt_lookup import prompt_lookup as prompt_lookup
from tokenmill.methods.draft.token_recycling import token_recycling as token_recycling
