"""What is proven about a model before the engine runs it, and texts that reach a model's limits."""

import pytest
import torch
from transformers import CohereConfig, CohereForCausalLM, LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

import families
import tokenmill as tm
from default_model import needs_the_default_model
from tiny import VOCAB, ids, tiny
from tokenmill.errors import ModelError, RecipeError
from tokenmill.models import admission
from tokenmill.models.engine import Pass
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
    with pytest.raises(ModelError, match=r"'llama'.*(token 1 after the prompt|stored)"), tm.applied(model, None):
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
    # The same by hand: pieces no longer than what fits beside the kept tokens.
    session = Session(model, "streaming_llm(slots=32)")
    logits = session.read(prompt, chunk=29)  # 200 tokens in the 7 pieces that 32 free places make of them
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
    with pytest.raises(RecipeError, match="beyond 32"):
        session.read(ids(1, 8))


def test_streaming_keeps_below_the_switch(phi3):
    """Keys of both frequencies cannot be renumbered together, so a long prompt is read in pieces."""
    session, again, text = Session(phi3, "streaming_llm(slots=12)"), Session(phi3), ids(1, 60)
    session.read(text)
    again.read(text[:, session.kept()[0][0][0]])
    got, expected = (s.cache.stores[0].view()[0] for s in (session, again))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_dynamic_ntk_is_as_the_library_does_it():
    model = _llama(
        max_position_embeddings=32, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    )
    prompt = ids(1, 28)
    library = model.generate(prompt, max_new_tokens=20, do_sample=False)[0, 28:].tolist()
    assert tm.generate(model, None, prompt.tolist(), max_new_tokens=20, ignore_eos=True)[0].ids == library


@needs_the_default_model
@pytest.mark.parametrize("packing", ["int8", "int4", "float16"])
def test_packed_weights_are_admitted(packing):
    """Their products round the states that go in, so two ways to sum differ more than two of float32 do."""
    model, _ = tm.load("smollm2", weights=packing)
    assert len(tm.generate(model, None, [[504, 2240]], max_new_tokens=2, ignore_eos=True)[0].ids) == 2
