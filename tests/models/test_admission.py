"""What is proven about a model before the engine runs it, and texts that reach a model's limits."""

from dataclasses import replace

import pytest
import torch
from transformers import CohereConfig, CohereForCausalLM, LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

import families
import tokenmill as tm
from default_model import needs_the_default_model
from tiny import VOCAB, ids, tiny
from tokenmill.errors import ModelError, RecipeError
from tokenmill.method import recipe as as_recipe
from tokenmill.models import admission
from tokenmill.models.architectures import decoder_of
from tokenmill.models.engine import Pass
from tokenmill.models.plan import Plan
from tokenmill.run.session import Session

SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip


def _made(model_class, config):
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(4)
    return model


def _llama(**more):
    return _made(LlamaForCausalLM, LlamaConfig(**{**SHAPE, "max_position_embeddings": 512, **more}))


class _Forgetful(LlamaForCausalLM):
    """A prompt is read right; what comes later does not see it."""

    def forward(self, input_ids=None, **given):
        return super().forward(input_ids, **{**given, "past_key_values": None})


def test_a_model_that_is_right_for_the_prompt_alone_is_refused():
    model = _made(_Forgetful, LlamaConfig(**SHAPE))
    with pytest.raises(ModelError, match=r"'llama'.*(tokens after the prompt|stored)"), tm.applied(model, None):
        pass


def test_a_layer_that_does_not_attend_through_the_library_is_refused():
    model = families.tiny("GPTNeoForCausalLM")
    with pytest.raises(ModelError, match=r"'gpt_neo'.*stored 0 of 11 tokens"), tm.applied(model, None):
        pass


def test_attention_in_a_pass_that_the_engine_did_not_ask_for_is_an_error():
    """Plain attention there would be wrong in silence."""
    model = tiny("llama")
    hidden = torch.zeros(1, 3, 48)
    angles = model.model.rotary_emb(hidden, torch.arange(3)[None])
    own = model.model.layers[0](hidden, position_embeddings=angles)
    with tm.applied(model, None):
        pass
    handle = model.model.norm.register_forward_pre_hook(
        lambda *_: model.model.layers[0](hidden, position_embeddings=angles)
    )
    with handle, tm.applied(model, None):
        with pytest.raises(ModelError, match="outside of the engine's pass"):
            model(ids(1, 8))
        assert torch.equal(model.model.layers[0](hidden, position_embeddings=angles), own), "between two passes"


def test_the_proof_is_made_once_for_a_configuration(monkeypatch):
    calls = []
    prove = admission._prove
    monkeypatch.setattr(admission, "_prove", lambda *given: calls.append(1) or prove(*given))
    config = {**SHAPE, "rms_norm_eps": 3e-6}  # a configuration that no other test has
    for _ in range(2):
        model = _made(LlamaForCausalLM, LlamaConfig(**config))
        for spec in (None, "h2o(budget=0.5)"):
            with tm.applied(model, spec):
                model(ids(1, 8))
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["CohereForCausalLM", "GlmForCausalLM", "SmolLM3ForCausalLM", "DeepseekV3ForCausalLM"])
def test_renumbered_keys_are_those_of_the_kept_text(name):
    """Layer 0's keys depend on a token and its position alone."""
    model = families.tiny(name)
    text = ids(1, 30)
    kept = torch.cat([text[:, :4], text[:, -8:]], 1)
    session, again = Session(model, "streaming_llm(slots=12)"), Session(model)
    session.read(text)
    again.read(kept)
    got, expected = (s.cache.stores[0].view()[0][:, :, :12] for s in (session, again))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_an_exit_reads_the_model_s_own_logits():
    """Cohere scales the logits behind its head."""
    model = _made(CohereForCausalLM, CohereConfig(**SHAPE, logit_scale=0.05))
    session = Session(model)
    with session.engaged() as engine:
        logits = session.read(ids(1, 12))
        assert torch.allclose(engine.decoder.logits(session.hidden()[:, -1]), logits, atol=1e-5)
        assert not torch.allclose(model.lm_head(session.hidden()[:, -1]), logits, atol=1e-2)


@pytest.mark.parametrize("name", ["MistralForCausalLM", "Gemma3ForCausalLM"])
def test_sinks_survive_in_layers_with_a_window(name):
    """Distances are counted in the cache, so a first token is inside the window as long as few are kept."""
    model = families.tiny(name, sliding_window=24)
    session = Session(model, "streaming_llm(slots=16)")
    for seed in range(6):
        session.read(ids(1, 20, seed))
    for layer in session.kept():
        assert layer[0][0] == [0, 1, 2, 3, *range(108, 120)]
    fresh = Session(model)  # the same tokens, read anew at the positions they have in the cache: layer 0 alone is equal
    text = torch.cat([ids(1, 20, seed) for seed in range(6)], 1)
    fresh.read(text[:, session.kept()[0][0][0]])
    got, expected = (s.cache.stores[0].view()[0] for s in (session, fresh))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_with_slots_for_the_whole_window_a_windowed_layer_is_as_the_model_s():
    model = families.tiny("MistralForCausalLM", sliding_window=24)
    text = ids(1, 60)
    with torch.no_grad(), tm.applied(model, "streaming_llm(slots=24)"):
        got = model(text).logits
    assert torch.allclose(got, model(text).logits, atol=1e-4)


def test_a_prompt_beyond_the_context_is_read_in_pieces(monkeypatch):
    model = _llama(max_position_embeddings=64)
    highest = []
    start = Pass.__init__

    def spy(self, decoder, plan, cache, positions, tree=None):
        start(self, decoder, plan, cache, positions, tree)
        shift = cache.shift[0][:, None] if cache.shift else 0
        highest.append(int((positions - shift).max()))

    monkeypatch.setattr(Pass, "__init__", spy)
    prompt = ids(1, 200)
    out = tm.generate(model, None, prompt.tolist(), "streaming_llm(slots=32)", max_new_tokens=6, ignore_eos=True)[0]
    assert max(highest) < 64
    assert len(out.ids) == 6
    # The same by hand: pieces of what fits beside the kept tokens, counted from the end.
    session = Session(model, "streaming_llm(slots=32)")
    session.read(prompt[:, :8])
    logits = session.read(prompt[:, 8:], chunk=32)
    assert int(logits.argmax()) == out.ids[0]


def test_a_cache_that_fills_the_context_is_refused():
    model = _llama(max_position_embeddings=64)
    with pytest.raises(RecipeError, match="slots"):
        Session(model, "streaming_llm(slots=64)").read(ids(1, 200))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_keys_in_half_precision_do_not_drift(dtype):
    """Hundreds of turns are as exact as one."""
    model, text = tiny("llama", dtype), ids(1, 600)
    session, once = Session(model, "streaming_llm(slots=64)"), Session(model)
    with session.engaged():
        for piece in text.split(2, 1):
            session.read(piece)
    kept = text[:, session.kept()[0][0][0]]
    once.read(kept)
    exact = Session(tiny("llama"))
    exact.read(kept)
    turned, rounded, true = (s.cache.stores[0].view()[0].float() for s in (session, once, exact))
    assert (turned - true).norm() < 1.2 * (rounded - true).norm()


@pytest.fixture
def phi3():
    """Phi-3 whose rotary frequencies change after 32 tokens."""
    scaling = {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    return _made(Phi3ForCausalLM, Phi3Config(
        **SHAPE, max_position_embeddings=256, original_max_position_embeddings=32, sliding_window=None,
        rope_parameters=scaling,
    ))  # fmt: skip


@torch.no_grad()
def test_a_text_that_grows_over_the_switch_of_longrope_is_read_again(phi3):
    prompt = ids(2, 28)
    text = prompt
    for _ in range(12):
        text = torch.cat([text, phi3(text, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    out = tm.generate(phi3, None, prompt.tolist(), max_new_tokens=12, ignore_eos=True)
    assert [each.ids for each in out] == text[:, 28:].tolist()
    with tm.applied(phi3, None):
        assert torch.equal(phi3.generate(prompt, max_new_tokens=12, do_sample=False), text)


def test_what_cannot_cross_the_switch_is_refused(phi3):
    with pytest.raises(RecipeError, match="more than 32"):
        tm.generate(phi3, None, ids(1, 28).tolist(), "prompt_lookup", max_new_tokens=12)
    session = Session(phi3, "lazy_llm(budget=0.5)")
    session.read(ids(1, 30))
    with pytest.raises(RecipeError, match="crosses 32"):
        session.read(ids(1, 8))


def test_streaming_keeps_below_the_switch(phi3):
    """Keys of both frequencies cannot be renumbered together, so a long prompt is read in pieces."""
    session, again, text = Session(phi3, "streaming_llm(slots=12)"), Session(phi3), ids(1, 60)
    session.read(text)
    again.read(text[:, session.kept()[0][0][0]])
    got, expected = (s.cache.stores[0].view()[0] for s in (session, again))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def _dynamic():
    return _llama(
        max_position_embeddings=32, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    )


@torch.no_grad()
def test_dynamic_ntk_is_as_the_library_does_it():
    model, prompt = _dynamic(), ids(1, 28)
    library = model.generate(prompt, max_new_tokens=20, do_sample=False)[0, 28:].tolist()
    assert tm.generate(model, None, prompt.tolist(), max_new_tokens=20, ignore_eos=True)[0].ids == library


@needs_the_default_model
@pytest.mark.parametrize("packing", ["int8", "int4", "float16"])
def test_packed_weights_are_admitted(packing):
    """Their products round the states that go in, so two ways to sum differ more than two of float32 do."""
    model, _ = tm.load("smollm2", weights=packing)
    assert len(tm.generate(model, None, [[504, 2240]], max_new_tokens=2, ignore_eos=True)[0].ids) == 2


@torch.no_grad()
def test_a_long_text_leaves_no_frequencies_of_its_own():
    model, text = _dynamic(), ids(1, 32)
    before = model(text).logits
    with tm.applied(model, None):
        model(ids(1, 60))
        assert torch.allclose(model(text).logits, before, atol=1e-5)
    assert torch.equal(model(text).logits, before)


def _uneven(phi3, spec=None):
    """A batch whose first row is beyond the switch, and its second, of 20 tokens, is not."""
    session = Session(phi3, spec)
    session.read([ids(1, 40)[0].tolist(), ids(1, 20)[0].tolist()])
    return session


@torch.no_grad()
def test_a_row_taken_out_of_a_batch_beyond_the_switch_is_as_if_alone(phi3):
    row = Session(phi3)
    row.cache = _uneven(phi3).cache.row(1)
    text = torch.cat([ids(1, 20), ids(1, 3, 1)], 1)
    torch.testing.assert_close(row.read(text[:, 20:]), Session(phi3).read(text), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_tokens_taken_back_behind_the_switch(phi3):
    text = ids(1, 40)
    with tm.applied(phi3, None):
        cache = phi3(text, use_cache=True).past_key_values
        cache.crop(-20)
        got = phi3(text[:, 20:22], past_key_values=cache).logits
    torch.testing.assert_close(got, phi3(text[:, :22]).logits[:, 20:], rtol=1e-4, atol=1e-4)


def test_accepted_tokens_are_read_again_too(phi3):
    session, prompt, draft, more = Session(phi3), ids(1, 20), ids(1, 4, 1), ids(1, 12, 2)
    session.read(prompt)
    with session.engaged():
        session.verify(draft[0], torch.arange(4), torch.ones(4, 4, dtype=torch.bool).tril())
        session.accept([0, 1])
    whole = torch.cat([prompt, draft[:, :2], more], 1)
    torch.testing.assert_close(session.read(more), Session(phi3).read(whole), rtol=1e-4, atol=1e-4)


def test_rows_that_walk_alone_cross_the_switch_one_by_one(phi3):
    session = _uneven(phi3, "lazy_llm(budget=1.0)")
    session.read(ids(2, 12))
    with pytest.raises(RecipeError, match="crosses 32"):
        session.read(ids(2, 1))


@torch.no_grad()
def test_a_row_that_leaves_early_turns_its_keys_as_its_batch_does(phi3):
    """All of it in the layers before the exit, where nothing that the exit changes has come in."""
    plain, leaving = _uneven(phi3), _uneven(phi3, "early_exit(threshold=0, stride=1, start=0)")
    token = ids(2, 1, 3)
    plain.read(token)
    leaving.read(token)
    keys = [s.cache.stores[0].view()[0] for s in (plain, leaving)]
    torch.testing.assert_close(*keys)
    angles = []
    decoder = replace(decoder_of(phi3), angles=lambda hidden, at, layer: angles.append(int(at.max())) or None)
    one = Pass(decoder, Plan(as_recipe(None)), leaving.cache, torch.tensor([[41], [21]]))
    one.positions = one.whole[1:]
    one._angles({}, torch.zeros(1, 1, 48), 0, torch.tensor([1]))
    assert angles == [41]


def test_streaming_goes_on_with_a_text_beyond_the_switch(phi3):
    session = Session(phi3, "streaming_llm(slots=12)")
    session.read(ids(1, 20))
    session.read(ids(1, 60))
    assert len(session.kept()[0][0][0]) == 12


def test_a_cache_whose_text_could_not_be_read_again_is_broken(phi3):
    with tm.applied(phi3, None):
        cache = phi3(ids(1, 30)).past_key_values
        handle = phi3.model.layers[1].mlp.register_forward_hook(lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            phi3(ids(1, 5), past_key_values=cache)
        handle.remove()
        with pytest.raises(RecipeError, match="incomplete"):
            phi3(ids(1, 5), past_key_values=cache)


def _odd(**more):
    """A model of a configuration that no other test has."""
    return _llama(rms_norm_eps=7e-6, **more)


@torch.no_grad()
def test_a_model_whose_decoder_was_patched_is_proven_itself():
    with tm.applied(_odd(), None):
        pass
    model = _odd()
    forward = model.model.forward

    def louder(*given, **named):
        out = forward(*given, **named)
        out.last_hidden_state = out.last_hidden_state * 2 + 1
        return out

    model.model.forward = louder
    with pytest.raises(ModelError, match="logits differ"), tm.applied(model, None):
        pass
    del model.model.forward
    with tm.applied(model, None), tm.applied(model, "h2o(budget=0.5)"):
        pass


@torch.no_grad()
def test_broken_weights_are_named_and_say_nothing_about_another_model():
    broken = _odd(rope_theta=9e3)
    broken.model.layers[0].mlp.down_proj.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="NaN or infinite"), tm.applied(broken, None):
        pass
    with tm.applied(_odd(rope_theta=9e3), None):
        pass


@torch.no_grad()
def test_a_configuration_may_hold_what_is_not_json():
    model = _odd()
    model.config.remark = {1, 2}
    with tm.applied(model, None):
        model(ids(1, 8))


@torch.no_grad()
def test_a_token_that_rounding_sends_to_another_expert_is_no_reason_to_refuse():
    for seed in range(8):
        model = families.tiny("GptOssForCausalLM", rms_norm_eps=1e-5 + seed * 1e-7).to(torch.bfloat16)
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.06)
        with tm.applied(model, None):
            pass


def test_a_norm_before_attention_by_another_name():
    model = families.tiny("ApertusForCausalLM")
    with tm.applied(model, "constant_skip") as engine:
        assert engine.decoder.skippable


@pytest.mark.parametrize("slots", [20, 60, 63])
def test_a_text_goes_on_in_a_context_that_the_slots_nearly_fill(slots):
    model, farthest = _llama(max_position_embeddings=64), []
    model.model.rotary_emb.register_forward_pre_hook(lambda module, given: farthest.append(int(given[1].max())))
    session = Session(model, f"streaming_llm(slots={slots})")
    session.read(ids(1, 100))
    for _ in range(70):
        session.read(ids(1, 1))
    session.read(ids(1, 30))
    assert max(farthest) < 64
    assert len(session.kept()[0][0][0]) == slots


def test_rows_of_a_batch_beyond_the_context_are_read_as_alone():
    model, spec = _llama(max_position_embeddings=64), "streaming_llm(slots=20)"
    rows = [ids(1, 200, 1)[0].tolist(), ids(1, 190, 2)[0].tolist()]
    together = tm.generate(model, None, rows, spec, max_new_tokens=12, ignore_eos=True)
    alone = [tm.generate(model, None, [row], spec, max_new_tokens=12, ignore_eos=True)[0] for row in rows]
    assert [one.ids for one in together] == [one.ids for one in alone]


@torch.no_grad()
def test_a_model_is_proven_by_its_own_forward_while_its_decoder_is_under_a_recipe():
    class Wrapped(LlamaForCausalLM):
        """Another model to the proof, of the same decoder."""

    model = _odd()
    other = Wrapped(model.config).eval()
    other.model, other.lm_head = model.model, model.lm_head
    with tm.applied(model, "streaming_llm(slots=2)"), tm.applied(other, None):
        pass
