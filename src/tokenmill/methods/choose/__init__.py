"""Which token is emitted. A card's `role` says which of five things a method is:

warp     fn(logits (N, V), *, knobs) -> logits (N, V): -inf for what may not be drawn; several compose in order
final    fn(logits (N, V), *, knobs) -> logits (N, V): one token is left
heal     fn(logits (N, V), rest, vocabulary, *, knobs) -> logits (N, V): while the prompt's dropped end is written again
search   fn(writing, *, knobs) -> iterator of token lists: drives the writing of one text by itself; where its card says
         so it is also given what it learned (`trains`) and then the larger model (`needs=("larger",)`)
adapt    fn(coming, state, learned, *, knobs) -> (weights (B, A), state): how much of each adapter is added to the model
         for the tokens that come; one in a recipe

`temperature(temperature=0.8) + top_p(share=0.9)`; a recipe has any number of warpers and at most one final or search.
"""

from tokenmill.methods.choose.beam import beam as beam
from tokenmill.methods.choose.cntp import cntp as cntp
from tokenmill.methods.choose.contrastive import contrastive as contrastive
from tokenmill.methods.choose.greedy import greedy as greedy
from tokenmill.methods.choose.icn import icn as icn
from tokenmill.methods.choose.latent_seek import latent_seek as latent_seek
from tokenmill.methods.choose.min_p import min_p as min_p
from tokenmill.methods.choose.r2r import r2r as r2r
from tokenmill.methods.choose.temperature import temperature as temperature
from tokenmill.methods.choose.token_alignment import token_alignment as token_alignment
from tokenmill.methods.choose.token_lora import token_lora as token_lora
from tokenmill.methods.choose.top_k import top_k as top_k
from tokenmill.methods.choose.top_p import top_p as top_p
from tokenmill.methods.choose.typical import typical as typical
