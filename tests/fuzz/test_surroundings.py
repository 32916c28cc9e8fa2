"""Streams that are closed, full or narrow; names that look like markup; a user whom the system does not know."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from typer.testing import CliRunner

import tokenmill
from tiny import tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill.cli import app
from tokenmill.errors import ModelError
from tokenmill.models.default import cache_folder
from tokenmill.view.terminal import Terminal

SOURCE = Path(tokenmill.__file__).parent
MARKUP = ["a[/b]", "[bold]x", "[red]y[/red]", ":smile:", "[/]", "[link=http://x]z", "a[", "[@click=x]"]


def shell(line, **environment):
    """A line for sh with `tokenmill` in it: (exit code, stdout, stderr)."""
    line = line.replace("tokenmill", f"{sys.executable} -m tokenmill")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"} | environment
    made = subprocess.run(["bash", "-c", line], capture_output=True, timeout=120, env=env)
    return made.returncode, made.stdout.decode(errors="replace"), made.stderr.decode(errors="replace")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


# ---- standard streams ----


@pytest.mark.parametrize("command", ["ls", "ls --json", "show snapkv", "show nosuchmethod"])
@pytest.mark.parametrize(
    ("how", "allowed"),
    [
        (">&-", {0, 2}),
        (">&- 2>&-", {0, 2}),
        ("<&-", {0, 2}),
        (">/dev/full", {2}),
        ("2>/dev/full", {0, 2}),
        ("| true; exit ${PIPESTATUS[0]}", {0, 1, 2}),
    ],
)
def test_streams_that_are_closed_or_full(command, how, allowed):
    code, _, err = shell(f"tokenmill {command} {how}")
    assert code in allowed, err
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    assert len(err.splitlines()) <= 1


@pytest.mark.parametrize("how", [">&-", ">/dev/full 2>/dev/full", "| true; exit ${PIPESTATUS[0]}"])
def test_text_that_cannot_be_written(model, how):
    code, _, err = shell(f"tokenmill run --model {model} --max-new-tokens 2 'w5 w6' {how}")
    assert code in (0, 1, 2), err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 1


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
    ids=["ascii", "C", "latin-1"],
)
def test_an_output_that_cannot_write_every_character(environment):
    for command in ("ls", "show snapkv", "show keyformer", "ls --json"):
        code, out, err = shell(f"tokenmill {command}", **environment)
        assert (code, err) == (0, ""), err
        assert out


@pytest.mark.parametrize("odd", [r"$'\xff\xfe'", r"$'a\xffb'"])
@pytest.mark.parametrize(
    "command", ["show {}", "run --model {} hi", "run --recipe {} hi", "ls {}", "run --input {}", "{}"]
)
def test_arguments_that_are_not_utf8(command, odd):
    code, _, err = shell("tokenmill " + command.format(odd))
    assert code == 2, err
    assert len(err.splitlines()) == 1, err


# ---- mistakes in options ----


@pytest.mark.parametrize(
    "words",
    [
        ["nope"],
        ["run", "--nope"],
        ["run", "--seed", "x", "hi"],
        ["show"],
        ["compare"],
        ["run", "--max-new-tokens", "0", "a"],
    ],
)
def test_options_that_are_none_are_one_line(words):
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 2
    assert len(told.stderr.splitlines()) == 1, told.stderr
    assert told.stderr.startswith("tokenmill: ")


def test_without_a_command_the_help_is_shown():
    assert "reproduce" in CliRunner().invoke(app, []).output


# ---- markup ----


@pytest.mark.parametrize("text", MARKUP)
def test_a_terminal_prints_text_as_it_is(text, capsys):
    console = Terminal(width=80)
    console.print(text)
    table = Table(text, title=text)
    table.add_row(text)
    console.print(table)
    with console.status(text):
        pass
    assert capsys.readouterr().out.count(text) == 4


def test_all_output_goes_through_the_terminal():
    """What a new command would forget."""
    for file in sorted(SOURCE.rglob("*.py")):
        where = str(file.relative_to(SOURCE))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            line = f"{where}:{node.lineno}: {name}"
            assert name != "Console", line
            assert not name.endswith("from_markup"), line
            if name == "TextColumn" and "description" in ast.unparse(node):
                assert any(k.arg == "markup" and ast.unparse(k.value) == "False" for k in node.keywords), line


@pytest.mark.parametrize("name", ["a[/b]", "[red]"])
def test_folders_whose_names_look_like_markup(name, model, tmp_path, monkeypatch):
    """Every command that prints a path, on names that are markup."""
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / name
    odd.parent.mkdir(parents=True, exist_ok=True)
    odd.symlink_to(model) if "/" not in name else odd.mkdir(parents=True)
    where = name if odd.is_symlink() else str(model)
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven eight nine ten. " * 80)
    runs = [
        ["run", "w5", "--model", where, "--max-new-tokens", "1"],
        ["run", "w5", "--model", f"./{name}x"],
        ["run", "--input", name],
        ["run", "w5", "--recipe-file", name],
        ["run", "w5", "--recipe", name],
        ["show", name],
        ["show", "knorm", "--out", name],
        ["probe", "layer_drop", "--model", where, "--texts", "1", "--tokens", "16", "--out", f"{name}.json"],
        ["compare", "cache", "--methods", name],
        ["compare", name],
        ["train", "mor(hidden=32, layers=1)", "--text", str(text), "--steps", "1", "--out", f"{name}out"],
        ["train", "mor", "--text", f"{name}x"],
        ["reproduce", name],
        ["explain", "w5", "--model", where, "--target", name],
        ["ls", name],
    ]
    for words in runs:
        told = CliRunner().invoke(app, words)
        assert told.exit_code in (0, 2), (words, told.exception)
        assert not told.exception or isinstance(told.exception, SystemExit), (words, told.exception)
    assert list(Path(f"{name}out").glob("*.json"))


# ---- who and where ----


def _unknown(monkeypatch):
    import pwd

    def none(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", none)
    for name in ("HOME", "XDG_CACHE_HOME", "TOKENMILL_CACHE"):
        monkeypatch.delenv(name, raising=False)


def test_a_user_without_a_home(monkeypatch, model):
    _unknown(monkeypatch)
    with pytest.raises(ModelError, match=r"no home folder.*set TOKENMILL_CACHE"):
        cache_folder()
    for words, code in (
        (["run", "w5", "--model", str(model), "--max-new-tokens", "1"], 0),
        (["run", "w5", "--model", "~/x"], 2),
        (["run", "w5", "--input", "~/x"], 2),
        (["train", "mor(hidden=32)", "--steps", "1"], 2),
        (["run", "w5"], 2),
    ):
        told = CliRunner().invoke(app, words)
        assert told.exit_code == code, (words, told.output, told.exception)
        assert code == 0 or len(told.stderr.splitlines()) == 1


def test_a_user_who_does_not_exist():
    for words in (["run", "w5", "--model", "~nosuchuser/x"], ["run", "--input", "~nosuchuser/x"]):
        told = CliRunner().invoke(app, words)
        assert told.exit_code == 2, told.exception
        assert len(told.stderr.splitlines()) == 1


def test_paths_are_expanded_by_the_function_that_does_not_raise():
    for file in sorted(SOURCE.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        assert ".expanduser()" not in text, file
        assert "Path.home(" not in text, file


def test_kernels_load_where_nothing_can_be_written():
    pytest.importorskip("numba")
    code = """
import numba.core.caching as caching
def refuse(self):
    raise OSError(30, "Read-only file system")
caching._CacheLocator.ensure_cache_path = refuse
import tokenmill.models.kernels, tokenmill.ops.compiled
assert tokenmill.ops.compiled.CACHE is False
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)
    assert made.returncode == 0, made.stderr
