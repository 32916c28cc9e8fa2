"""Tasks: deterministic, of the length they say, and answerable from their own prompt; input files and their faults."""

import hashlib
import sys

import pytest

from bench.fakes import Characters
from tokenmill.bench import prompts, report, tasks
from tokenmill.bench.tasks import Reader, Task, build
from tokenmill.errors import InputError

READER = Reader(Characters())
NEEDLE = Task("n", "needle_after", "needle", 3, 400)


def text(ids):
    return Characters().decode(ids)


def test_the_text_is_real_and_long_enough():
    paragraphs = tasks.paragraphs()
    assert len(set(paragraphs)) == len(paragraphs) > 300
    assert sum(map(len, paragraphs)) > 100_000
    assert not any(">>>" in p or "::=" in p for p in paragraphs)
    lines = tasks.sentences("x")
    assert [next(lines) for _ in range(5)] == [next(s) for s in [tasks.sentences("x")] for _ in range(5)]


def test_the_text_does_not_depend_on_the_python(tmp_path, monkeypatch):
    for name, digest in tasks.SHA256.items():
        assert hashlib.sha256((tasks.CORPUS / name).read_bytes()).hexdigest() == digest
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in (tasks.CORPUS / "LICENSE.txt").read_text()
    tasks.paragraphs.cache_clear()
    for module in ("pydoc_data.topics", "colorsys", "statistics", "ast"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    made = [p.text for p in prompts.default_prompts(4, 0)]
    assert len(made) == len(set(made)) == 16
    digest = hashlib.sha256("\n".join([*tasks.paragraphs(), *made]).encode()).hexdigest()
    assert digest[:16] == "5a0433a721d8d27a"
    (tmp_path / "english.txt").write_bytes((tasks.CORPUS / "english.txt").read_bytes()[:-2])
    monkeypatch.setattr(tasks, "CORPUS", tmp_path)
    with pytest.raises(InputError, match=r"english.txt is not the text this version measures on .*install Tokenmill"):
        tasks.corpus("english.txt")
    with pytest.raises(InputError, match=r"cannot read .*functions.json: .*install Tokenmill again"):
        tasks.corpus("functions.json")


@pytest.mark.parametrize("kind", ["needle", "recall", "continuation", "drift"])
def test_samples_are_deterministic_and_differ_by_seed_and_index(kind):
    task = Task("t", "f", kind, 2, 600, tail=40)
    one = build(task, 0, 0, READER)
    assert one == build(task, 0, 0, Reader(Characters()))
    assert one != build(task, 1, 0, READER)
    assert one != build(task, 0, 1, READER)
    assert one.scored == [] or min(one.scored) >= 1
    assert kind == "drift" or max(one.scored) == len(one.tail) - 1 or kind == "recall"


@pytest.mark.parametrize("needles", [1, 3])
@pytest.mark.parametrize("seen", [False, True])
def test_needles_are_in_the_prompt_and_their_answer_is_scored(needles, seen):
    task = Task("n", "f", "needle", 8, 700, needles=needles, question_seen=seen)
    for index in range(8):
        sample = build(task, index, 0, READER)
        prompt, tail = text(sample.prompt), text(sample.tail)
        answer = text([sample.tail[i] for i in sample.scored]).strip()
        word = tail.rsplit("The access code for ", 1)[1].split()[0]
        asked = f"What is the access code for {word}?"
        assert prompt.count(" The access code for ") == needles
        assert f" The access code for {word} is {answer}. " in prompt  # another sentence follows
        assert tail.endswith(f" The access code for {word} is {answer}")
        assert (asked in prompt, asked in tail) == (seen, not seen)
        assert len(sample.prompt) == 700 + seen * len(READER.ids(f"\n\nQuestion: {asked}\nAnswer:"))
        assert answer not in tail[: -len(answer)]


def test_both_settings_ask_about_the_same_text():
    after, seen = (build(Task("n", "f", "needle", 1, 500, question_seen=s), 0, 0, READER) for s in (False, True))
    assert after.prompt == seen.prompt[:500]
    assert after.prompt + after.tail == seen.prompt + seen.tail


def test_recall_scores_the_items_and_nothing_else():
    sample = build(Task("r", "recall", "recall", 1, 900, measure="share"), 0, 0, READER)
    items = "".join(text([sample.tail[i]]) for i in sample.scored).split()
    assert len(items) == 16
    assert all(item in tasks.ITEMS for item in items)
    listed = text(sample.prompt)
    assert all(f"{n}. {item}" in listed for n, item in enumerate(items, 1))


def test_continuation_is_what_follows():
    sample = build(Task("c", "continuation", "continuation", 1, 300, tail=50), 0, 0, READER)
    assert len(sample.prompt) + len(sample.tail) == 350
    assert len(sample.scored) == 50
    assert sample.scored[0] == 1
    longer = build(Task("c", "continuation", "continuation", 1, 300, tail=50), 0, 0, READER)
    assert longer.prompt + longer.tail == sample.prompt + sample.tail


def test_plans_fit_a_shorter_context():
    for quick in (False, True):
        plan = tasks.plan(quick)
        assert plan.scaled(8192).tasks == plan.tasks
        short = plan.scaled(512)
        assert {t.kind for t in short.tasks} >= {"continuation", "drift"}
        assert all(t.length + t.tail <= 512 for t in short.tasks)
        assert short.speed.decode_context < 512
        assert {t.family for t in plan.tasks} <= set(report.FAMILIES)


# ---- the user's own text


def test_a_huge_text_is_read_in_stretches(monkeypatch):
    plan = tasks.plan(quick=True, own_text=True)
    text = "".join(f"sentence number {i}\n" for i in range(400_000))  # 9 MB
    read = []

    class Counting(tasks.Reader):
        def ids(self, text):
            read.append(text)
            return super().ids(text)

    reader = Counting(Characters())
    for _ in range(2):
        pieces, notes = tasks.own_pieces([text, "short"], "x", reader, plan, 600, 0)
        assert any("chosen by the seed, are read" in note for note in notes)
    assert sum(map(len, read)) < 2.2 * tasks.MOST_CHARACTERS
    assert all(part in text for part in read[-60:] if part != "short")
    assert pieces != tasks.own_pieces([text], "x", reader, plan, 600, 1)[0]


def test_special_tokens_that_a_chat_format_wrote_are_not_doubled():
    class Chat(Characters):
        def __call__(self, text, add_special_tokens=True):
            return super().__call__(text.removeprefix("<s>"), add_special_tokens or text.startswith("<s>"))

    plan, reader = tasks.plan(quick=True, own_text=True), tasks.Reader(Chat())
    assert len(reader.prefix) == 1
    pieces, _ = tasks.own_pieces(["<s>" + "a" * 200, "a" * 200], "x", reader, plan, 600, 0)
    assert pieces[0] == pieces[1] == reader.ids("a" * 200)


def test_own_pieces_are_cut_noted_and_do_not_overlap():
    plan = tasks.plan(quick=True, own_text=True)
    with pytest.raises(InputError, match=r"notes.txt is too short: its longest text has 5 tokens"):
        tasks.own_pieces(["short"], "notes.txt", READER, plan, 8192, 0)
    size = max(t.length + t.tail for t in plan.tasks if t.own_text) - 1
    whole = "".join(chr(33 + i % 90) for i in range(2 * size + 214))
    pieces, notes = tasks.own_pieces([whole, "short"], "x", READER, plan, 600, 0)
    assert sorted(map(len, pieces)) == [214, size, size]
    assert "left out" in notes[0]
    assert "model reads 600 at most" in notes[1]
    assert len(tasks.with_own(plan, 1).tasks[-1:]) == 1
    assert tasks.with_own(plan, 1).tasks[-1].samples == 1
    few = plan.tasks[-2].tail
    sample = build(plan.tasks[-2], 0, 0, READER, [READER.ids("a" * few)])
    assert len(sample.prompt) + len(sample.tail) == few + 1  # the prefix, and all there is
    assert len(sample.scored) == few // 2
