"""What may come next, and how it is checked. A card's `role` says which of three things a method is, and they multiply:

source   fn(seen, state, *, knobs) -> (look, state): what may follow a text; `look(tree, nodes) -> Guess`
tree     fn(seen, grow, *, source, knobs) -> Draft: which guesses become the draft; it asks `grow.look`. One with a
         `state` parameter gets back what it returned and returns (Draft, state)
rule     fn(draft, said, *, knobs) -> (accepted nodes, next token); one that learns gets its Learned after `said`
""       fn(seen, state, *, knobs) -> (Draft, state): a draft in one piece

`dyspec(source=token_recycling, nodes=16) + typical_acceptance`; a source alone grows the tree its card names.
"""

from tokenmill.methods.draft.aded import aded as aded
from tokenmill.methods.draft.auto import auto as auto
from tokenmill.methods.draft.both import both as both
from tokenmill.methods.draft.chain import chain as chain
from tokenmill.methods.draft.chimera import chimera as chimera
from tokenmill.methods.draft.clover import clover as clover
from tokenmill.methods.draft.draft_model import draft_model as draft_model
from tokenmill.methods.draft.dyspec import dyspec as dyspec
from tokenmill.methods.draft.exact import exact as exact
from tokenmill.methods.draft.first_layers import first_layers as first_layers
from tokenmill.methods.draft.fixed import fixed as fixed
from tokenmill.methods.draft.hidden_transfer import hidden_transfer as hidden_transfer
from tokenmill.methods.draft.jacobi import jacobi as jacobi
from tokenmill.methods.draft.judge import judge as judge
from tokenmill.methods.draft.lookahead import lookahead as lookahead
from tokenmill.methods.draft.lud import lud as lud
from tokenmill.methods.draft.medusa import medusa as medusa
from tokenmill.methods.draft.pair_recycling import pair_recycling as pair_recycling
from tokenmill.methods.draft.placeholders import placeholders as placeholders
from tokenmill.methods.draft.prompt_lookup import prompt_lookup as prompt_lookup
from tokenmill.methods.draft.rsd import rsd as rsd
from tokenmill.methods.draft.s2d import s2d as s2d
from tokenmill.methods.draft.token_recycling import token_recycling as token_recycling
from tokenmill.methods.draft.trigram import trigram as trigram
from tokenmill.methods.draft.typical_acceptance import typical_acceptance as typical_acceptance
