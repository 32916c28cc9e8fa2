"""Files of the user's: what is written in any format is read back, and what cannot be read is named in one line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.errors import InputError
from tokenmill.run import inputs
from tokenmill.run.corpus import documents
from tokenmill.run.inputs import records

# Every character of a text but NUL, lone surrogates, and those that plain text normalizes.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXT = st.text(CHARACTERS, min_size=1).filter(lambda t: t.strip() and not t.startswith("\ufeff"))
ODD = "one \u2028 two\u2029\x85\x0b\x0c\x1c\x1d\x1e three\t\\\"'"


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(values, **how):
    return "".join(json.dumps(value, ensure_ascii=False) + how.get("end", "\n") for value in values)


def table(texts, names=("prompt",), **how):
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL, **how).writerows([names, *([text] * len(names) for text in texts)])
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("inputs")


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=5), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
def test_records_of_every_format_read_back_equal(folder, texts, form):
    shapes = [{"prompt": t} for t in texts]
    for name, content in (
        ("a.jsonl", lines(texts)), ("b.NDJSON", lines(shapes, end="\r\n")),
        ("c.JSONL", lines({"turns": [t]} for t in texts)), ("d.json", json.dumps(shapes)),
        ("e.json", json.dumps(texts, ensure_ascii=False, indent=1)), ("f.json", lines(shapes)),
        ("g.csv", table(texts)), ("h.TSV", table(texts, ("category", "text"), delimiter="\t")),
        ("i.csv", table(texts, ("question", "answer"), delimiter=";")),
        ("j.jsonl", lines({"messages": [{"role": "user", "content": t}]} for t in texts)),
    ):  # fmt: skip
        raw = content.encode(form)
        assert [r.text for r in records(write(folder, name, raw))] == texts, name
        assert [r.text for r in records(write(folder, name + ".gz", gzip.compress(raw)))] == texts, name
    whole = texts[0].replace("\r\n", "\n").replace("\r", "\n")
    assert [r.text for r in records(write(folder, "k.txt", texts[0].encode(form)))] == [whole]


def test_only_a_newline_ends_a_line(tmp_path):
    assert [r.text for r in records(write(tmp_path, "a.jsonl", lines([ODD, {"prompt": ODD}])))] == [ODD, ODD]


def test_shapes_of_a_record(tmp_path):
    hi, hello = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    found = records(
        write(
            tmp_path, "a.jsonl",
            lines([
                "a", {"text": "b", "answer": 4}, {"turns": [" ", "c", "d"], "category": "qa"},
                {"messages": [hi, hello]},
                {"prompt": [hi], "answer": "Ho"}, {"question": "e"}, {"prompt": None, "text": "f", "x": [1]},
                {"text": " "}, {"messages": [{"role": "user", "content": [{"text": "p"}, {"text": "q"}]}]},
            ]),
        )
    )  # fmt: skip
    assert [r.prompt for r in found[:3]] == ["a", "b", "c"]
    assert [r.text for r in found[:3]] == ["a", "b", "c\n\nd"]
    assert [r.answer for r in found[:5]] == [None, "4", None, "Hello", "Ho"]
    assert found[3].prompt == found[4].prompt == [hi]
    assert found[3].text == "Hi\n\nHello"
    assert [r.prompt for r in found[5:7]] == ["e", "f"]  # the blank one is left out
    assert found[7].prompt == [{"role": "user", "content": "pq"}]
    assert (found[2].category, found[2].place) == ("qa", f"{tmp_path / 'a.jsonl'}, line 3")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"\xef\xbb\xbf \n", "is empty"),
        ("a.txt", b"ab\ncaf\xe9\n", r"a.txt, line 2 is not UTF-8 text \(byte 6, 0xe9\)"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-16"),
        ("a.txt", "ab".encode("utf-16-le"), "line 1 has a NUL"),
        ("a.jsonl", '{"text": "x"}\n{oops\n', "line 2 is not JSON"),
        ("a.jsonl", '{"text": "x"}\n{"text": "y"} {"text": "z"}\n', "line 2 is not JSON"),
        ("a.jsonl", '{"text": "x"}\n\n[1]\n', "line 3 has a list; a record is a text"),
        ("a.jsonl", '{"body": "x"}\n', 'has body; a record is a text, or an object with "prompt"'),
        ("a.jsonl", "{}\n", "has nothing"),
        ("a.jsonl", '{"text": 3}\n', '"text" of another shape'),
        ("a.jsonl", '{"turns": ["a", 3]}\n', '"turns" of another shape'),
        ("a.jsonl", '{"turns": []}\n', '"turns" of another shape'),
        ("a.jsonl", '{"messages": [{"role": "user"}]}\n', "line 1: message 1 is not"),
        ("a.jsonl", '{"messages": []}\n', "line 1 has no messages"),
        ("a.jsonl", '{"messages": [{"role": "assistant", "content": "x"}]}\n', "no message before it"),
        ("a.jsonl", '{"text": "x", "answer": []}\n', '"answer" that is no text'),
        ("a.jsonl", '{"text": " "}\n', "holds no text"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b\\ud83d"}\n', r"line 2 has half of a .* \(\\ud83d at character 1\)"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "\\udc00"}]}\n', "line 1 has half of a surrogate"),
        ("a.jsonl", '{"text": "x"}\n' + "[" * 200_000 + "\n", "line 2 is nested too deep"),
        ("a.jsonl", '{"text": ' + "9" * 5000 + "}\n", "line 1 is not JSON that can be read"),
        ("a.jsonl", '{"text": ' + "9" * 400 + "}\n", '"text" of another shape'),
        ("a.json", "[" * 200_000, "nested too deep"),
        ("a.json", '[{"text": "a"}, 3]', "record 2 has a int"),
        ("a.json", '{"data": []}', "has data"),
        ("a.csv", "name,size\nx,3\n", "names no column prompt, text or question \\(it has name, size\\)"),
        ("a.csv", "text,size\nx\n", "line 2 has 1 cells, and the first line names 2"),
        ("a.csv", 'text\n"x\n', "line 2 is not CSV"),
        ("a.jsonl.gz", b"\x1f\x8bnot", "not compressed with gzip, or damaged"),
        ("a.txt.gz", gzip.compress(b"x" * 999)[:-9], "not compressed with gzip, or damaged"),
    ],
)  # fmt: skip
def test_faults_name_the_file_and_the_line_in_one_line(tmp_path, name, content, words):
    path = write(tmp_path, name, content)
    with pytest.raises(InputError, match=words) as error:
        records(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_not_there(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path / ("x" * 300), "\0"):
        with pytest.raises(InputError, match="cannot read"):
            records(path)
    with pytest.raises(InputError, match="holds no text"):
        records(tmp_path)


def test_a_folder_is_read_by_name_and_passes_over_what_holds_no_text(tmp_path):
    write(tmp_path, "b.txt", "second")
    write(tmp_path, "a.jsonl", lines(["first"]))
    write(tmp_path, ".hidden", "no")
    write(tmp_path, "picture.png", b"\x89PNG\xff")
    write(tmp_path, "package.json", '{"name": "x"}')
    write(tmp_path, "sizes.csv", "a,b\n1,2\n")
    (tmp_path / ".git").mkdir()
    write(tmp_path / ".git", "config", "no")
    (tmp_path / "c").mkdir()
    write(tmp_path / "c", "d.md", "third")
    assert [r.text for r in records(tmp_path)] == ["first", "second", "third"]
    assert list(documents(tmp_path).values()) == ["first", "second", "third"]
    write(tmp_path, "a.jsonl", lines(["first", 3]))
    with pytest.raises(InputError, match=r"a.jsonl, line 2"):  # data of ours, with a mistake
        records(tmp_path)


def test_paragraphs(tmp_path):
    path = write(tmp_path, "a.txt", "one\r\ntwo\r\n\r\nthree\n \t\nfour\n\n\n")
    assert [r.text for r in records(path, paragraphs=True)] == ["one\ntwo", "three", "four"]
    assert len(records(path)) == 1


def test_a_file_without_end_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "LIMIT", 1 << 20)
    bomb = write(tmp_path, "bomb.txt.gz", gzip.compress(b"x" * (1 << 24)))
    for path in (bomb, "/dev/zero"):
        tracemalloc.start()
        with pytest.raises(InputError, match="more than 1 MiB"):
            records(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()


def test_a_long_line_is_read_in_little_time(tmp_path):
    path = write(tmp_path, "a.jsonl", json.dumps({"text": "word " * 10_000_000}))  # 50 MB
    began = time.process_time()
    assert len(records(path)[0].text) == 50_000_000
    assert time.process_time() - began < 10
