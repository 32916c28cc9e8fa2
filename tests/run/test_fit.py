"""Training a learned part: the contract, on two heads over a tiny frozen model, kills, wrong files, messages."""

import errno
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tiny import VOCAB, tiny
from tokenmill import catalog
from tokenmill.errors import InputError, ModelError, RecipeError, SpecError, StoreError
from tokenmill.method import Recipe, get, method, parse
from tokenmill.models.trained import about, alone, build, digest, place, save, shaping, source, trained
from tokenmill.ops.text import around_message
from tokenmill.run.corpus import Corpus, corpus, documents, split
from tokenmill.run.fit import fit, schedule
from tokenmill.run.frozen import Reader, read
from tokenmill.run.own import written

# ---- a method with a learned part: heads that guess the tokens after the next one -----------------------------------


class Heads(nn.Module):
    def __init__(self, size, heads):
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(size, size) for _ in range(heads))
        for linear in self.linear:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, hidden):
        return [hidden + nn.functional.silu(linear(hidden)) for linear in self.linear]


def parts(config, *, heads=2):
    return Heads(config.hidden_size, heads)


def layers(config, *, heads=2):
    return (0, config.num_hidden_layers - 2)


def objective(parts, batch):
    assert len(batch.states) == 2
    assert not batch.hidden.requires_grad
    return sum(
        cross_entropy(batch.head(h)[:, : -k - 2].flatten(0, 1), batch.ids[:, k + 2 :].flatten())
        for k, h in enumerate(parts(batch.hidden))
    )


def figure(parts, batch):
    return {
        f"hits at {k + 2}": (batch.head(h).argmax(-1)[:, : -k - 2] == batch.ids[:, k + 2 :]).float().mean().item()
        for k, h in enumerate(parts(batch.hidden))
    }


@method(verb="draft", title="", trains="part")
def guesses(verified, *, heads: int = 2, top: int = 4, weights: str | None = None):
    """Guesses: an example."""


def long():
    return Corpus(torch.zeros(9000, dtype=torch.long) + 5, torch.zeros(9000, dtype=torch.long) + 6)


def text(seed=0):
    """A walk that a head can learn: each token is the one before plus one, mostly."""
    draw = torch.Generator().manual_seed(seed)
    steps = torch.where(torch.rand(4000, generator=draw) < 0.9, 1, 7)
    ids = 3 + steps.cumsum(0) % 12
    return Corpus(ids[:3000], ids[3000:])


medusa = get("medusa")
QUICK = {"text": text(), "rows": 4, "length": 24, "lr": 1e-2}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Killed(BaseException):
    pass


def killer(at):
    def on_step(step):
        if step == at:
            raise Killed

    return on_step


def test_a_part_learns_is_stored_and_is_found_again():
    before = digest(tiny())
    made = fit(guesses, tiny(), steps=120, name="tiny", **QUICK)
    untrained = fit(guesses, tiny(), steps=1, out=made.path.parent / "other", **{**QUICK, "lr": 1e-9})
    assert made.held_out["hits at 2"] > untrained.held_out["hits at 2"] + 0.1
    assert digest(tiny()) == before
    assert all(p.grad is None for p in tiny().parameters())
    found = trained(guesses, tiny())
    assert not found.training
    for (name, one), other in zip(found.state_dict().items(), made.parts.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    told = about(made.path)
    assert (told["method"], told["base"]["name"], told["base"]["vocabulary"]) == ("guesses", "tiny", VOCAB)
    assert told["held_out"] == made.held_out
    log = json.loads(made.path.with_suffix(".json").read_text())
    assert [h["step"] for h in log["history"]] == list(range(120))
    assert log["plan"]["seed"] == 0
    assert log["environment"]["versions"]["torch"]
    assert not made.path.with_suffix(".checkpoint").exists()


def test_a_killed_run_goes_on_as_if_it_had_not_been_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("tokenmill.run.fit.SAVE_SECONDS", 0.0)  # a checkpoint after every step
    whole = fit(guesses, tiny(), steps=12, out=tmp_path / "whole", **QUICK)
    with pytest.raises(Killed):
        fit(guesses, tiny(), steps=12, out=tmp_path / "killed", on_step=killer(7), **QUICK)
    with pytest.raises(StoreError, match="--resume"):
        fit(guesses, tiny(), steps=12, out=tmp_path / "killed", **QUICK)
    with pytest.raises(StoreError, match="another seed"):
        fit(guesses, tiny(), steps=12, out=tmp_path / "killed", resume=True, seed=1, **QUICK)
    asked = []
    resumed = fit(guesses, tiny(), out=tmp_path / "killed", resume=True, on_step=asked.append, **QUICK)
    assert asked == [7, 8, 9, 10, 11]  # step 7 had run, but died before its checkpoint
    assert [h["loss"] for h in resumed.history] == pytest.approx([h["loss"] for h in whole.history], rel=1e-5)
    for one, other in zip(resumed.parts.parameters(), whole.parts.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert resumed.held_out == pytest.approx(whole.held_out)
    again = fit(guesses, tiny(), out=tmp_path / "killed", resume=True, on_step=asked.append, **QUICK)
    assert again.held_out == resumed.held_out  # finished already: nothing is trained
    assert len(asked) == 5
    other = fit(guesses, tiny(), steps=2, seed=1, out=tmp_path / "killed", resume=True, **QUICK)
    assert [h["step"] for h in other.history] == [0, 1]  # what is finished was another training


def test_an_interrupt_leaves_only_whole_steps(tmp_path, monkeypatch):
    """In the middle of a step, buffers and some of the weights may have moved already."""
    monkeypatch.setattr("tokenmill.run.fit.SAVE_SECONDS", 0.0)
    whole = fit(guesses, tiny(), steps=6, out=tmp_path / "whole", **QUICK)
    real, count = torch.optim.AdamW.step, []

    def interrupted(self, *args, **kwargs):
        real(self, *args, **kwargs)
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(guesses, tiny(), steps=6, out=tmp_path / "stopped", **QUICK)
    resumed = fit(guesses, tiny(), out=tmp_path / "stopped", resume=True, **QUICK)
    assert resumed.history == whole.history


def _stopped(tmp_path, monkeypatch, at=3, method=guesses, model=None, **more):
    """A training that was killed after a step; the folder and the checkpoint."""
    monkeypatch.setattr("tokenmill.run.fit.SAVE_SECONDS", 0.0)
    with pytest.raises(Killed):
        fit(method, model or tiny(), steps=8, out=tmp_path / "killed", on_step=killer(at), **QUICK, **more)
    (work,) = (tmp_path / "killed").glob("*.checkpoint")
    return tmp_path / "killed", work


@pytest.mark.parametrize("at", [0, 5, 31, 32, 40, 1000, -1000, -1])
def test_a_flipped_bit_in_a_checkpoint_is_noticed(tmp_path, monkeypatch, at):
    out, work = _stopped(tmp_path, monkeypatch)
    raw = bytearray(work.read_bytes())
    raw[at] ^= 4
    work.write_bytes(raw)
    with pytest.raises(StoreError, match="damaged; remove it"):
        fit(guesses, tiny(), out=out, resume=True, **QUICK)
    work.write_bytes(raw[:at])
    with pytest.raises(StoreError, match="damaged; remove it"):
        fit(guesses, tiny(), out=out, resume=True, **QUICK)


def test_the_figure_does_not_depend_on_an_interruption(tmp_path, monkeypatch):
    """medusa judges at places that it draws."""
    whole = fit(medusa, tiny(), steps=8, out=tmp_path / "whole", **QUICK)
    out, _ = _stopped(tmp_path, monkeypatch, method=medusa)
    resumed = fit(medusa, tiny(), out=out, resume=True, **QUICK)
    assert resumed.held_out == whole.held_out
    assert resumed.path.read_bytes() == whole.path.read_bytes()


def test_what_a_killed_run_left_is_swept_and_nothing_else(tmp_path):
    path = place(guesses, tiny(), tmp_path)
    left = [tmp_path / f".{path.stem}.{end}.4711.part" for end in ("safetensors", "checkpoint", "json")]
    other = tmp_path / ".other.4711.part"
    for file in (*left, other):
        file.write_bytes(b"half")
    fit(guesses, tiny(), steps=1, out=tmp_path, **QUICK)
    assert {f.name for f in tmp_path.iterdir()} == {path.name, path.with_suffix(".json").name, other.name}


def test_files_have_the_usual_rights(tmp_path, monkeypatch):
    before = os.umask(0o027)
    try:
        out, work = _stopped(tmp_path, monkeypatch)
        assert work.stat().st_mode & 0o777 == 0o640
        made = fit(guesses, tiny(), out=out, resume=True, **QUICK)
    finally:
        os.umask(before)
    assert made.path.stat().st_mode & 0o777 == 0o640
    assert made.path.with_suffix(".json").stat().st_mode & 0o777 == 0o640


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_read(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("tokenmill.run.fit.Reader", None)
    monkeypatch.setattr("tokenmill.run.fit._data", None)
    with pytest.raises(StoreError, match=r"cannot write into .*choose another --out"):
        fit(guesses, tiny(), steps=1, out=tmp_path / "file" / "out", **QUICK)


@pytest.mark.parametrize("at", [1, 3, 8, 9, 10])
def test_a_full_disk_is_one_line_and_resumed(tmp_path, monkeypatch, at):
    """The write of the trial file, of a checkpoint, of the log, of the weights."""
    whole = fit(guesses, tiny(), steps=7, out=tmp_path / "whole", **QUICK)
    monkeypatch.setattr("tokenmill.run.fit.SAVE_SECONDS", 0.0)
    real, writes = os.fsync, []

    def full(handle):
        writes.append(1)
        if len(writes) >= at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device; choose another --out") as caught:
        fit(guesses, tiny(), steps=7, out=tmp_path / "full", **QUICK)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "full").glob(".*.part"))
    monkeypatch.setattr(os, "fsync", real)
    resumed = fit(guesses, tiny(), steps=7, out=tmp_path / "full", resume=True, **QUICK)
    assert resumed.path.read_bytes() == whole.path.read_bytes()


@pytest.fixture
def interruptible():
    """A shell starts background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_saves_and_names_resume(tmp_path, which):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    whole = fit(guesses, tiny(), steps=8, out=tmp_path / "whole", **QUICK)

    def interrupt(step):
        if step == 4:
            os.kill(os.getpid(), which)

    with pytest.raises(KeyboardInterrupt, match="stopped after step 5 of 8; go on with --resume"):
        fit(guesses, tiny(), steps=8, out=tmp_path / "stopped", on_step=interrupt, **QUICK)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    asked = []
    resumed = fit(guesses, tiny(), out=tmp_path / "stopped", resume=True, on_step=asked.append, **QUICK)
    assert asked == [5, 6, 7]
    assert resumed.path.read_bytes() == whole.path.read_bytes()


def test_two_trainings_of_one_part_do_not_mix(tmp_path):
    path = place(guesses, tiny(), tmp_path)
    with alone(path), pytest.raises(StoreError, match="another training writes"):
        fit(guesses, tiny(), steps=1, out=tmp_path, **QUICK)
    fit(guesses, tiny(), steps=1, out=tmp_path, **QUICK)


def test_a_finished_training_that_was_damaged_is_not_taken_for_finished(tmp_path):
    made = fit(guesses, tiny(), steps=1, out=tmp_path, **QUICK)
    raw = bytearray(made.path.read_bytes())
    raw[-3] ^= 1
    made.path.write_bytes(raw)
    with pytest.raises(ModelError, match="damaged: its numbers"):
        fit(guesses, tiny(), steps=1, out=tmp_path, resume=True, **QUICK)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("mor(hidden=33)", "hidden=33 does not divide into attention heads of 32"),
        ("skip_middle(hidden=100)", "does not divide"),
        ("mixture_of_tokens(hidden=31)", "does not divide"),
        ("duo_llm(hidden=31)", "does not divide"),
        ("chimera(heads=7)", "heads=7 does not divide the model's 48; give one of 1, 2, 3"),
        ("clover(heads=9)", "heads=9 does not divide the model's 48"),
        ("mor(hidden=320000000000)", "too large to train in this machine's memory"),
        ("medusa(heads=999999999)", "too large to train in this machine's memory"),
        ("token_lora(rank=1000000000)", "too large to train in this machine's memory"),
    ],
)
def test_shapes_are_checked_before_anything_is_built(tmp_path, spec, says):
    method = parse(spec)
    model = tiny() if method.card.trains == "part" else None
    with pytest.raises(SpecError, match=says):
        build(method, model)


def test_every_learned_part_is_built_as_before_the_check():
    """The trial on the meta device neither refuses nor draws."""
    for name in catalog.methods():
        method = get(name)
        if not method.card.trains or name == "s2d":  # whose exits a tiny model does not have
            continue
        chosen = (
            method(heads=6) if "heads" in method.defaults else method(layers=2) if name == "hidden_transfer" else method
        )
        torch.manual_seed(0)
        made = build(chosen, tiny() if method.card.trains == "part" else None)
        torch.manual_seed(0)
        config = (tiny().config,) if method.card.trains == "part" else ()
        plain = source(chosen).parts(*config, **shaping(chosen))
        for (key, one), other in zip(made.state_dict().items(), plain.state_dict().values(), strict=True):
            assert one.device.type == "cpu"
            assert torch.equal(one, other), (name, key)


def test_a_damaged_checkpoint_is_told(tmp_path):
    path = place(guesses, tiny(), tmp_path).with_suffix(".checkpoint")
    path.write_bytes(b"no checkpoint")
    with pytest.raises(StoreError, match="damaged"):
        fit(guesses, tiny(), steps=2, out=tmp_path, resume=True, **QUICK)


def test_the_seed_decides_and_the_global_one_is_left_alone(tmp_path):
    state = torch.get_rng_state()
    runs = [
        fit(guesses, tiny(), steps=3, seed=s, out=tmp_path / str(i), **QUICK).history for i, s in enumerate((0, 0, 1))
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert runs[0] == runs[1] != runs[2]


def test_minutes_choose_the_steps(tmp_path):
    made = fit(guesses, tiny(), minutes=0.01, out=tmp_path, **QUICK)
    assert 1 <= len(made.history) < 2000
    with pytest.raises(InputError, match="contradict"):
        fit(guesses, tiny(), minutes=1, steps=3, **QUICK)


def test_knobs_that_do_not_shape_the_part_share_its_weights():
    fit(guesses(top=9), tiny(), steps=1, **QUICK)
    trained(guesses(top=2), tiny())
    with pytest.raises(ModelError, match=r"no trained weights of guesses\(heads=3\).*there are weights for guesses"):
        trained(guesses(heads=3), tiny())


def test_wrong_files_are_told_in_one_line(tmp_path):
    with pytest.raises(ModelError, match="run: tokenmill train guesses --model here/it"):
        trained(guesses, tiny(), name="here/it")
    path = str(fit(guesses, tiny(), steps=1, name="tiny", **QUICK).path)
    with pytest.raises(ModelError, match="trained on 'tiny', whose weights are not this model's"):
        trained(guesses(weights=path), tiny("qwen2"))
    with pytest.raises(ModelError, match="other shapes"):
        trained(guesses(weights=path, heads=3), tiny())
    with pytest.raises(ModelError, match="no file"):
        trained(guesses(weights=str(tmp_path / "none")), tiny())
    raw = bytearray(Path(path).read_bytes())
    raw[-3] ^= 1
    (tmp_path / "bit").write_bytes(raw)
    with pytest.raises(ModelError, match="damaged: its numbers"):
        trained(guesses(weights=str(tmp_path / "bit")), tiny())
    (tmp_path / "short").write_bytes(raw[:-9])
    with pytest.raises(ModelError, match="damaged"):
        trained(guesses(weights=str(tmp_path / "short")), tiny())
    other = tmp_path / "other.safetensors"
    save(other, Heads(48, 2), get("mor"), None, {"model": ""})
    with pytest.raises(ModelError, match="weights of mor"):
        trained(guesses(weights=str(other)), tiny())


def test_another_vocabulary_is_told(monkeypatch):
    path = str(fit(guesses, tiny(), steps=1, **QUICK).path)
    monkeypatch.setattr("tokenmill.models.trained._vocabulary", lambda model: 98)
    with pytest.raises(ModelError, match="97 tokens, this model has 98"):
        trained(guesses(weights=path), tiny())


def test_the_digest_names_weights_not_their_precision():
    assert digest(tiny()) == digest(tiny("llama", torch.bfloat16))
    assert digest(tiny()) != digest(tiny("qwen2"))


def test_methods_without_a_learned_part_and_models_in_recipes_are_refused():
    with pytest.raises(SpecError, match="knorm has nothing to train"):
        fit("knorm", tiny())
    with pytest.raises(RecipeError, match="run: tokenmill train mor"):
        Recipe((get("mor"),))
    with pytest.raises(InputError, match="on top of a model"):
        fit(guesses)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2"])
def test_a_batch_says_what_the_model_says(name):
    ids = text().batch(2, 9, 0, 0)
    batch = read(tiny(name), guesses, ids)
    with torch.no_grad():
        told = tiny(name)(ids, output_hidden_states=True)
    assert torch.allclose(batch.logits, told.logits, atol=1e-4)
    assert torch.equal(batch.states[0], told.hidden_states[1])
    hidden = batch.hidden.clone().requires_grad_()
    batch.head(hidden).sum().backward()
    assert hidden.grad.abs().sum() > 0
    assert all(p.grad is None for p in tiny(name).parameters())


def test_a_row_is_read_once(monkeypatch):
    rows, counted = [], Reader.row
    monkeypatch.setattr(Reader, "row", lambda self, n: rows.append((n, n in self._known)) or counted(self, n))
    fit(guesses, tiny(), steps=40, **QUICK)  # 160 rows of the 125 that there are
    assert len({n for n, _ in rows}) == 125
    assert sorted(n for n, known in rows if not known) == list(range(125))
    assert sum(known for _, known in rows) == 35


def test_what_is_remembered_is_what_the_model_says():
    reader = Reader(guesses, tiny(), text(), 2, 24, 0)
    first, again = reader.batch(0, 0.0), reader.batch(0, 0.5)
    told = read(tiny(), guesses, first.ids)
    assert torch.allclose(first.hidden, told.hidden, atol=2e-3)
    assert torch.equal(first.likeliest, told.likeliest)
    assert all(torch.allclose(first.states[layer], told.states[layer], atol=2e-2) for layer in told.states)
    assert torch.equal(first.hidden, again.hidden)
    assert again.progress == 0.5


def test_every_row_comes_once_a_round():
    data = text()
    of = lambda count, seed=0, steps=10: [n for step in range(steps) for n in data.in_turn(5, 30, seed, step, count)]
    assert sorted(of(100, steps=20)) == list(range(100))
    assert len({*of(25)}) == 25
    assert sorted(of(25, steps=5)) == sorted(of(25)[25:]) != of(25)[25:]
    assert of(25) == of(25)
    assert {*of(25)} != {*of(25, seed=1)}
    assert torch.equal(data.row(3, 30), data.train[90:120])


def test_what_is_remembered_has_a_limit(monkeypatch):
    monkeypatch.setattr("tokenmill.run.frozen.ROOM", 10 * 24 * 64 * 2)
    reader = Reader(guesses, tiny(), text(), 2, 24, 0)
    assert 2 <= reader.count < 10  # two layers are watched besides


def test_held_out_text_is_of_other_files(tmp_path):
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"file {i} " * 40)
    (tmp_path / "copy.txt").write_text("file 3 " * 40)
    found = documents(tmp_path)
    train, held_out = split(found)
    assert len(train) + len(held_out) == 20  # the copy counts once
    assert not {*train} & {*held_out}
    assert len(held_out) == 2
    data = corpus(tmp_path, None, 16)
    assert data.train.max() < 256
    assert torch.equal(data.batch(3, 16, 5, 7), data.batch(3, 16, 5, 7))
    assert not torch.equal(data.batch(3, 16, 5, 7), data.batch(3, 16, 5, 8))
    with pytest.raises(InputError, match="fewer than a row"):
        corpus(tmp_path / "1.txt", None, 200)
    with pytest.raises(InputError, match="cannot read"):
        documents(tmp_path / "none")


def test_the_default_text_is_real_and_cut_by_file():
    data = corpus(None, None, 64)
    assert len(data.train) > 1_000_000
    assert len(data.held_out) > 50_000
    assert data.judged(8, 64).shape == (8, 64)


def test_the_models_own_words_are_written_once_and_never_read(monkeypatch):
    from tiny_tokenizer import tiny_tokenizer

    calls = []
    monkeypatch.setattr("tokenmill.run.own.written", lambda *a: calls.append(1) or written(*a))
    one = fit(medusa, tiny(), tiny_tokenizer(), steps=1, own=200, **QUICK)
    first = len(calls)
    assert first > 0
    monkeypatch.setattr("tokenmill.run.frozen.read", None)
    other = fit(medusa, tiny(), tiny_tokenizer(), steps=1, own=200, **QUICK)
    assert len(calls) == first
    assert one.history == other.history
    with pytest.raises(InputError, match=r"the model wrote \d+ tokens, fewer than a row of 9000; raise --own"):
        fit(medusa, tiny(), tiny_tokenizer(), steps=1, own=200, **QUICK | {"text": long(), "length": 9000})
    with pytest.raises(TypeError, match="not callable"):  # who wants other states than the last has them read
        fit(guesses, tiny(), tiny_tokenizer(), steps=1, own=200, **QUICK)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_what_is_written_comes_with_the_models_states(name):
    prompts, model = [[5, 6, 7], list(range(10, 50))], tiny(name)
    together = written(model, prompts, 12, 0.7, [0, 1], frozenset())
    alone = [written(model, [prompt], 12, 0.7, [seed], frozenset())[0] for seed, prompt in enumerate(prompts)]
    for (text, states, likeliest), (own, *_), prompt in zip(together, alone, prompts, strict=True):
        assert text == own
        assert text[: len(prompt)] == prompt
        assert len(text) == len(states) == len(likeliest) == len(prompt) + 12
        with torch.no_grad():
            told = model(torch.tensor([text]), output_hidden_states=True)
        assert torch.allclose(states.float(), told.hidden_states[-1][0], atol=5e-3)
        assert torch.equal(likeliest, told.logits[0].argmax(-1))
    end = alone[1][0][45]
    cut, states, _ = written(model, prompts, 12, 0.7, [0, 1], frozenset([end]))[1]
    assert cut == alone[1][0][: 41 + alone[1][0][40:].index(end)]
    assert len(states) == len(cut)


def test_a_model_that_chats_writes_the_questions_too(monkeypatch):
    from tiny_tokenizer import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}w5 {{ m['content'] }} w6 {% endfor %}w7"
    assert around_message(tokenizer) == ("w5 ", " w6 w7")
    asked, answered = [], []

    def counted(model, prompts, tokens, temperature, seeds, ends):
        out = written(model, prompts, tokens, temperature, seeds, ends)
        (asked if temperature == 1.0 else answered).append((prompts, seeds, out))
        return out

    monkeypatch.setattr("tokenmill.run.own.written", counted)
    monkeypatch.setattr("tokenmill.run.fit.corpus", lambda *given: text())
    fit(medusa, tiny(), tokenizer, steps=1, own=200, **{k: v for k, v in QUICK.items() if k != "text"})
    assert all(prompt == [5] for prompts, _, _ in asked for prompt in prompts)
    assert len({tuple(ids) for ids, *_ in asked[0][2]}) > 1
    assert all(ids[0] == 5 and ids[-2:] == [6, 7] for prompts, _, _ in answered for ids in prompts)
    seeds = [seed for _, own, _ in asked for seed in own]
    assert len({*seeds}) == len(seeds), "no question is in what is trained on and in what is held out"


def test_the_learning_rate_rises_and_falls():
    rates = [schedule(i, 100) for i in range(100)]
    assert rates[0] < rates[4] == 1.0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0.1 <= rates[-1] < 0.11
