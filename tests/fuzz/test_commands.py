"""Every command, every option, every file a command opens: success, or one line and exit code 2. In bounded time.

Commands and options are found in the command line itself, so a new one is tried without a word here. An option is drawn
by its type, and a string from odd ones and from the words of its help. TOKENMILL_FUZZ=N tries N times as much, with
other draws each time.
"""

import json
import os
import re
import shutil
from functools import cache
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
import typer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fuzz.child import run
from tiny import tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill import catalog
from tokenmill.cli import app

TIMES = int(os.environ.get("TOKENMILL_FUZZ", "0"))
EXAMPLES = 8 * max(1, TIMES)  # of a command, or of a kind of file
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not TIMES,
    database=None,
    phases=(Phase.generate,),  # what fails is short already, and each try costs a process
    suppress_health_check=list(HealthCheck),
)

COMMANDS = typer.main.get_command(app).commands
LONG = {"int8", "int4", "auto"}  # compiled for a minute where nothing is cached; they have tests of their own
MINUTES = {"reproduce"}  # what is accepted measures a claim
CHEAP = {  # so that what is accepted ends soon
    "max_new_tokens": "2",
    "texts": "1",
    "tokens": "16",
    "steps": "1",
    "quick": True,
    "methods": "snapkv(budget=0.5)",
    "seeds": "1",
    "rows": "1",
    "own": "0",
    "weights": "float32",
}
NUMBERS = [
    "0",
    "1",
    "2",
    "-1",
    "-0",
    "0.5",
    "1.5",
    "1e-300",
    "1e300",
    "nan",
    "inf",
    "-inf",
    "",
    " ",
    "x",
    "0x10",
    "1_0",
    "٣",
    str(2**31),
    str(2**63 - 1),
    str(2**63),
    str(2**64),
    "9" * 30,
    "9" * 400,
    "1" + "0" * 5000,
    "1e400",
]
TEXTS = [
    "",
    " ",
    "-",
    "--",
    "\n",
    "a b",
    "é",
    "\ud800",
    "\x7f\x1b[31m",
    "[/b]",
    "[red]",
    ":x:",
    "../..",
    "/",
    "~",
    "~nobody/x",
    "a" * 5000,
    "(" * 300,
    "[" * 3000,
    "nan",
    "None",
    "5",
    "0" * 5000,
    "'",
    '"',
    "{}",
    "%s",
    "$HOME",
    "a\\b",
    ",",
    ",,",
    "+",
]
SPECS = [
    "full",
    "snapkv",
    "snapkv(budget=0.5)",
    "snapkv(budget=nan)",
    "snapkv(budget=1e400)",
    "h2o(budget=-1)",
    "tova(slots=1)",
    "snapkv(budget=0.5) + token_recycling",
    "token_recycling(nodes=99999999999999999999)",
    "adaptive(score=adaptive)",
    "prompt_lookup(ngram=10000000000)",
    "streaming_llm(slots=4)",
    "snapkv(window=10**9)",
    "draft_model(model='')",
    "draft_model(model='~nobody/x')",
    "medusa(weights='/dev/null')",
    "lookahead",
    "a.b",
    "__import__('os')",
    "snapkv(**{})",
    "snapkv(budget=" + "9" * 500 + ")",
    "snapkv(budget=0." + "0" * 400 + "1)",
    "+".join(["full"] * 300),
    "x" * 9999,
    "contrastive",
    "top_p(top_p=0)",
    "min_p",
    "typical",
    "-snapkv",
    "snapkv()()",
    "lambda: 0",
    "snapkv(budget=0.5j)",
    "mor",
    "mor(hidden=7)",
    "medusa",
    "chimera(heads=7)",
    "fs_gen",
    "layer_drop",
    "reagent",
    "occlusion",
    "all",
    "score",
    "keep",
]


@cache
def _models(root: Path) -> dict[str, Path]:
    """A good model, and ones that are not."""
    good = root / "good"
    tiny("llama").save_pretrained(good)
    tiny_tokenizer().save_pretrained(good)
    made = {"good": good}
    for name, (file, content) in {
        "no-config": ("config.json", None),
        "no-weights": ("model.safetensors", None),
        "cut": ("model.safetensors", (good / "model.safetensors").read_bytes()[:900]),
        "no-tokenizer": ("tokenizer.json", None),
        "loops": (
            "chat_template.jinja",
            b"{% for a in range(99999) %}{% for b in range(99999) %}a{% endfor %}{% endfor %}",
        ),
        "raises": ("chat_template.jinja", b"{{ raise_exception('no') }}"),
    }.items():
        made[name] = root / name
        shutil.copytree(good, made[name])
        (made[name] / file).unlink(missing_ok=True)
        if content is not None:
            (made[name] / file).write_bytes(content)
    return made


DEEP = "[" * 5000 + "]" * 5000
FILES = {
    "empty": b"",
    "space": b" \n\n",
    "text.txt": b"w5 w6 w7 w8. " * 200,
    "latin.txt": b"\xff\xfe\x00a",
    "bom.txt": b"\xef\xbb\xbfw5",
    "surrogate.txt": "a\ud800".encode("utf-8", "surrogatepass"),
    "nul.txt": b"\0" * 99,
    "line.txt": b"w5 " * 400_000,
    "list.json": b"[1, 2]",
    "deep.json": DEEP.encode(),
    "deep.jsonl": DEEP.encode() + b"\n",
    "number.json": b"9" * 5000,
    "rows.jsonl": b'{"prompt": "w5 w6"}\n{"text": "w7"}\n',
    "rows.csv": b"prompt\nw5\n",
    "bad.jsonl": b'{"prompt": 5}\n{]\n',
    "messages.jsonl": b'{"messages": [{"role": "user", "content": "w5"}]}\n',
    "roles.jsonl": b'{"messages": [5, {"role": []}]}\n',
    "recipe.toml": b"recipe = 'snapkv(budget=0.5)'\n",
    "evil.toml": b"recipe = 5\n",
    "deep.toml": b"a = " + DEEP.encode(),
    "number.toml": b"recipe = " + b"9" * 5000,
    "none.toml": b"recipe = 'nope('\nmodel = 5\n",
    "keys.toml": b".".join([b"a"] * 5000) + b" = 1",
    "inline.toml": b"a = " + b"{a = " * 3000 + b"1" + b"}" * 3000,
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    root = tmp_path_factory.mktemp("zoo")
    files = root / "files"
    files.mkdir()
    for name, content in FILES.items():
        (files / name).write_bytes(content)
    (files / "loop").symlink_to("loop")
    return root


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(1)


def _paths(zoo: Path) -> list[str]:
    odd = [
        "nowhere",
        "/",
        "/dev/null",
        "/proc/self/mem",
        "a" * 300,
        "a/" * 3000,
        "\udcff",
        "~nobody/x",
        "",
        "text.txt/x",
    ]
    return [str(zoo / "files" / name) for name in (*FILES, "loop")] + [str(zoo / "files"), *odd]


def _kinds(name: str) -> dict[str, set[type]]:
    """Parameter -> the types it takes, by the command's own annotations."""
    made = {c.name or c.callback.__name__: c.callback for c in app.registered_commands}[name]
    kinds = {}
    for parameter, kind in get_type_hints(made).items():
        kinds[parameter] = set(get_args(kind)) or {kind}
    return kinds


def _values(param, kinds: set[type], zoo: Path):
    """What an option or argument may be given."""
    words = re.findall(r"[a-z_0-9:.]{2,}", getattr(param, "help", None) or "")
    if "model" in param.name:
        folders = [str(folder) for folder in _models(zoo).values()]
        return st.sampled_from(folders + TEXTS + _paths(zoo)[-10:])
    if kinds & {int, float}:
        return st.sampled_from(NUMBERS)
    if Path in kinds or "file" in param.name or param.name in ("input", "text", "out"):
        return st.sampled_from(_paths(zoo))
    pool = [*TEXTS, *SPECS, *(word for word in words if word not in LONG), *COMMANDS, "cache", "decode", "depth"]
    return st.sampled_from(pool) | st.text(max_size=20)


@st.composite
def lines(draw, name: str, zoo: Path) -> list[str]:
    """A command with its required arguments, what keeps it short, and a few options."""
    # --verbose is for whoever wants the traceback.
    left_out = ("help", "install_completion", "show_completion", "verbose")
    params = [p for p in COMMANDS[name].params if p.name not in left_out]
    options, kinds = [p for p in params if p.param_type_name == "option"], _kinds(name)
    chosen = draw(st.lists(st.sampled_from(options), max_size=3, unique_by=lambda p: p.name)) if options else []
    words = [name]
    for param in options:
        if param in chosen:
            value = True if param.is_flag else draw(_values(param, kinds.get(param.name, {str}), zoo))
        elif "model" in param.name:
            value = str(_models(zoo)["good"]) if param.name == "model" else None
        else:
            value = CHEAP.get(param.name)
        if value is True:
            words.append(param.opts[0])
        elif value is not None:
            words.append(f"{param.opts[0]}={value}" if value.startswith("-") else param.opts[0])
            words += [] if value.startswith("-") else [value]
    arguments = [p for p in params if p.param_type_name == "argument"]
    given = [draw(_values(p, kinds.get(p.name, {str}), zoo)) for p in arguments if p.required or draw(st.booleans())]
    return [*words, "--", *given]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_options(name, zoo):
    @SETTINGS
    @given(lines(name, zoo), st.sampled_from([b"", b"w5 w6", b"\xff\xfe", b"yes\n" * 9]))
    def check(words, stdin):
        shutil.rmtree("tokenmill-runs", ignore_errors=True)
        made = run(words, stdin, seconds=3 if name in MINUTES else 30)
        if name in MINUTES and made.code is None:
            return  # what it began is right
        assert made.fault is None, (words, made.fault)

    check()


def _call(zoo, *words):
    made = run([*words, "--model", str(_models(zoo)["good"])])
    assert made.fault is None, (words, made.fault)
    return made


@pytest.mark.parametrize("command", ["run", "explain", "probe", "compare", "train"])
def test_bytes_of_an_input_file(command, zoo, tmp_path):
    option = "--text" if command == "train" else "--input"
    more = {
        "run": ["--max-new-tokens", "1"],
        "explain": ["--method", "occlusion"],
        "probe": ["layer_drop", "--texts", "1"],
        "compare": ["cache", "--quick", "--methods", "snapkv", "--budgets", "0.5"],
        "train": ["medusa", "--steps", "1", "--rows", "1"],
    }[command]
    end = st.sampled_from([".txt", ".jsonl", ".json", ".csv", ".JSONL", ""])
    shape = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["prompt", "text", "messages", "turns", "answer", "role", "content"]), inner
            )
        ),
        max_leaves=9,
    )
    content = st.binary(max_size=99) | st.text(max_size=99).map(lambda t: t.encode("utf-8", "surrogatepass"))
    content |= st.lists(shape, max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())

    @settings(SETTINGS, max_examples=max(3, EXAMPLES // 2))
    @given(content, end)
    def check(data, suffix):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        file = tmp_path / f"data{suffix}"
        file.write_bytes(data)
        _call(zoo, command, *more, option, str(file), *(["--out", "out"] if command in ("compare", "train") else []))

    check()


def test_text_of_a_recipe_file(zoo, tmp_path):
    value = st.sampled_from(
        [f'"{spec}"' for spec in SPECS if '"' not in spec] + ["5", "[]", "{}", "true", "nan", "9" * 999]
    )
    line = st.tuples(st.sampled_from(["recipe", "model", "weights", "device", "seed", "x.y", ""]), value).map(
        " = ".join
    )
    text = st.lists(line, max_size=4).map("\n".join) | st.text(max_size=50)

    @SETTINGS
    @given(text)
    def check(content):
        (tmp_path / "recipe.toml").write_text(content, encoding="utf-8", errors="surrogatepass")
        _call(zoo, "run", "w5", "--recipe-file", "recipe.toml", "--max-new-tokens", "1")

    check()


def test_fields_of_a_model_folder(zoo, tmp_path):
    good = _models(zoo)["good"]
    config = json.loads((good / "config.json").read_text())
    odd = st.sampled_from(
        [None, True, 0, 1, -1, 7, 2**31, 2**63, 10**30, 0.5, float("nan"), float("inf"), "", "x", [], {}, [1], {"a": 1}]
    )
    files = st.sampled_from(["config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"])

    @settings(SETTINGS, max_examples=2 * EXAMPLES)
    @given(files, st.data())
    def check(file, data):
        folder = tmp_path / "m"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        content = json.loads((good / file).read_text())
        keys = sorted(content) + (
            ["layer_types", "sliding_window", "quantization_config", "rope_scaling"] if content == config else []
        )
        change = data.draw(st.dictionaries(st.sampled_from(keys), odd, min_size=1, max_size=2))
        (folder / file).write_text(json.dumps(content | change))
        made = run(["run", "w5", "--model", str(folder), "--max-new-tokens", "1"])
        assert made.fault is None, (file, change, made.fault)

    check()


@pytest.fixture(scope="module")
def finished(zoo, tmp_path_factory):
    """A folder of a finished comparison, and one of a training."""
    root = tmp_path_factory.mktemp("finished")
    (root / "text.txt").write_text("w5 w6 w7 w8. " * 900)
    model = ["--model", str(_models(zoo)["good"])]
    runs = {
        "compare": ["compare", "cache", "--quick", "--methods", "snapkv", "--budgets", "0.5", *model],
        "train": ["train", "medusa", "--steps", "1", "--rows", "1", "--text", str(root / "text.txt"), *model],
    }
    for name, words in runs.items():
        made = run([*words, "--out", str(root / name)], seconds=120)
        assert (made.code, made.exception) == (0, ""), made
    return root, runs


@pytest.mark.parametrize("name", ["compare", "train"])
def test_a_folder_of_results_that_is_damaged(name, finished, tmp_path):
    root, runs = finished
    files = sorted(f.name for f in (root / name).iterdir() if f.is_file() and f.name != "lock")

    @settings(SETTINGS, max_examples=max(3, EXAMPLES // 2))
    @given(
        st.sampled_from(files), st.integers(0, 10**9), st.binary(max_size=40), st.sampled_from(["cut", "write", "gone"])
    )
    def check(file, at, data, how):
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(root / name, out)
        content = (out / file).read_bytes()
        at %= max(1, len(content))
        (out / file).unlink()
        if how != "gone":
            (out / file).write_bytes(content[:at] if how == "cut" else content[:at] + data + content[at + len(data) :])
        made = run([*runs[name], "--out", str(out), "--resume"], seconds=120)
        assert made.fault is None, (file, at, how, made.fault)

    check()


def test_the_harness_notices_what_it_is_for(monkeypatch):
    """A traceback, several lines, a run without end, too much memory, another exit code."""
    import time

    from tokenmill import cli

    def fault(show, seconds=30):
        monkeypatch.setattr(cli.catalog, "as_json", show)
        return run(["ls", "--json"], seconds=seconds).fault

    def broken(verb):
        raise AssertionError("a bug")

    def endless(verb):
        while True:
            pass

    def exits(verb):
        raise typer.Exit(7)

    def loud(verb):
        typer.echo("a", err=True)
        raise cli.InputError("b")

    def large(verb):
        return str(len(bytearray(5 << 30)))

    assert fault(lambda verb: "{}") is None
    assert "a bug" in fault(broken)
    assert fault(endless, seconds=1) == "took too long"
    assert "exit code 7" in fault(exits)
    assert "not one line" in fault(loud)
    assert fault(large) is None  # memory that is not there is one line
    assert catalog.methods()
    assert time.monotonic() > 0
