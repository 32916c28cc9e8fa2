"""A model under a recipe, with a cache: what generate, compare and reproduce are built of. (stub: being written)

    session = Session(model, recipe)
    logits = session.read(ids)                    # (B, V) after the last token of each row; evicts, packs, drops as the recipe says
    logits = session.read(ids, all_logits=True)   # (B, Q, V)
    session.read(rows, valid=mask)                # padded rows: valid (B, Q) bool, any side
    session.fork()                                # the same cache, copied: two continuations of one prompt
    session.stats                                 # Stats: cache_bytes, forward_calls, prefill_seconds, decode_seconds, token_layers ...
    session.kept()                                # [layer][row][head] -> sorted absolute positions

    reading = read_once(model, ids, recipes)      # one forward pass; every recipe's decision taken on it
    reading.session(recipe)                       # Session whose cache is what that recipe keeps of the prompt
    reading.logits                                # (B, V): the untouched model's logits after the prompt

Both are inference only (no_grad). `with Session(...)`: the model is under the engine inside the block and
bit-identical afterwards; read() outside a block enters one for the call.
"""
