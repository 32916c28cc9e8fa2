"""Write what is generated from the sources: README's tree and tables, docs/claims.md and docs/methods/*.md.

    python docs/generate.py            # write
    python docs/generate.py --check    # exit 1 and say what is out of date

Everything comes from the catalogue, which reads sources without importing them.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

from tokenmill import catalog
from tokenmill.catalog import Entry
from tokenmill.method import KNOBS, SPENDING

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "src" / "tokenmill"
WIDTH = 24  # where the comments of the tree begin

# Top-level entries of the house in reading order; what is not listed here is an error, so that none is forgotten.
ORDER = [
    "types.py",
    "method.py",
    "catalog.py",
    "errors.py",
    "ops",
    "methods",
    "models",
    "weights",
    "run",
    "bench",
    "claims",
    "view",
    "cli.py",
]
AROUND = {
    "tests/": "what must hold: per verb over every method, the engine exact against the model, every error message",
    "bench/": "the engine's own speed, as ratios measured interleaved",
    "docs/": "how it works, how to add a method, why things are as they are, a page a method",
}


SETTING = """\
Each was run by `tokenmill reproduce NAME`, three seeds where chance has a part, on the default model or on a small
one trained from scratch, on two CPU cores. These are smaller than any paper's: a claim that fails here may hold where
it was made. Nobody writes a verdict by hand: {rule}. A method's page has all checks, and what was not asked here;
behind a verdict here stands the first check that failed."""


def main(check: bool = False) -> int:
    """Number of files that were (or, with `check`, are) out of date."""
    wanted = {ROOT / "README.md": readme((ROOT / "README.md").read_text(encoding="utf-8"))}
    wanted[ROOT / "docs" / "claims.md"] = claims()
    pages = ROOT / "docs" / "methods"
    wanted |= {pages / f"{entry.name}.md": page(entry) for entry in catalog.entries().values()}
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    gone = sorted(set(pages.glob("*.md")) - set(wanted))
    for path in stale + gone:
        print(f"{path.relative_to(ROOT)} is out of date; run: python docs/generate.py" if check else path.name)
    if not check:
        pages.mkdir(exist_ok=True)
        for path in stale:
            path.write_text(wanted[path], encoding="utf-8")
        for path in gone:
            path.unlink()
    return len(stale + gone)


def readme(text: str) -> str:
    """README with the parts between its markers made anew."""
    for name, made in (
        ("tree", tree()),
        ("claims", f"{_tally()}: [docs/claims.md](docs/claims.md).\n"),
        ("methods", table()),
    ):
        text, found = re.subn(
            rf"(<!-- {name}: .*?-->\n).*?(<!-- /{name} -->)", lambda m, made=made: m[1] + made + m[2], text, flags=re.S
        )
        if found != 1:
            raise SystemExit(f"README.md needs one pair of markers <!-- {name}: … --> and <!-- /{name} -->")
    return text


def tree() -> str:
    """The house, a line an entry; the comment is the first sentence of its docstring."""
    entries = {p.name for p in HOUSE.iterdir() if not p.name.startswith(("_", "."))} - {"py.typed"}
    if left_out := entries - set(ORDER):
        raise SystemExit(f"say in docs/generate.py where {', '.join(sorted(left_out))} stands in the tree")
    lines = ["src/tokenmill/"]
    for name in ORDER:
        path = HOUSE / name
        folder = path.is_dir()
        said = "one paper is one file, in the folder of what it does" if name == "methods" else _first_sentence(path)
        lines.append(_line(f"  {name}{'/' if folder else ''}", said))
        if name == "methods":
            lines += [_line(f"    {v}/", catalog.VERBS[v]) for v in catalog.VERBS if catalog.methods(v)]
    lines += [_line(name, said) for name, said in AROUND.items()]
    return "```\n" + "\n".join(lines) + "\n```\n"


def _line(name: str, said: str) -> str:
    return f"{name:<{WIDTH}}{said}"


def _first_sentence(path: Path) -> str:
    file = path / "__init__.py" if path.is_dir() else path
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    if not doc:
        raise SystemExit(f"{file.relative_to(ROOT)} has no docstring; its first line is the tree's comment")
    return re.split(r"(?<=\.)\s", doc.split("\n\n")[0].replace("\n", " "))[0].rstrip(".")


def table() -> str:
    """Every method, by verb."""
    made = []
    for verb, meaning in catalog.VERBS.items():
        if names := catalog.methods(verb):
            made += [f"\n**{verb}**: {meaning}\n\n| method | what it does | paper |\n| --- | --- | --- |\n"]
            for entry in map(catalog.find, names):
                made.append(f"| [{entry.name}](docs/methods/{entry.name}.md) | {entry.summary} | {_paper(entry)} |\n")
    return "".join(made) + "\n"


def _paper(entry: Entry) -> str:
    if not entry.paper:
        return "baseline" if not entry.title else str(entry.year or "")
    number = entry.paper.removeprefix("arXiv:")
    link = f"[{entry.paper}](https://arxiv.org/abs/{number})" if number != entry.paper else entry.paper
    return f"{link}, {entry.year}" if entry.year else link


def page(entry: Entry) -> str:
    """One method's page."""
    source = entry.path.relative_to(ROOT).as_posix()
    knobs = entry.knobs | ({k: repr(v) for k, v in SPENDING.items()} if entry.verb == "score" else {})
    rows = [f"| `{k}` | `{v}` | {KNOBS[k][3] if k in KNOBS else ''} |" for k, v in knobs.items()]
    parts = [
        f"<!-- generated by docs/generate.py from {source} -->",
        f"# {entry.name}",
        f"{entry.summary[:1].upper()}{entry.summary[1:]}.",
        f"*{entry.title}*, {_paper(entry)}" if entry.title else "A baseline, without a paper.",
        f"- verb: **{entry.verb}**, {catalog.VERBS[entry.verb]}\n- source: [{source}](../../{source})"
        + (f"\n- needs: {', '.join(entry.needs)}" if entry.needs else ""),
        "```text\n" + entry.doc.strip() + "\n```",
        "| knob | default | meaning |\n| --- | --- | --- |\n" + "\n".join(rows) if rows else "No knobs.",
    ]
    return "\n\n".join(parts + _claim(entry.name)) + "\n"


def _told(name: str) -> dict[str, Any] | None:
    """What `reproduce` found of a method's claim, if it was run for these pages."""
    file = ROOT / "docs" / "reproductions" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _all_told() -> dict[str, dict[str, Any]]:
    """What was found of every method's claim that was run."""
    return {name: told for name in catalog.entries() if (told := _told(name))}


def _tally() -> str:
    """How many claims hold."""
    verdicts = [told["verdict"] for told in _all_told().values()]
    return f"{verdicts.count('holds')} of the {len(verdicts)} claims that were run again here hold"


def claims() -> str:
    """Every claim that was run again, by verb, with what failed first."""
    found = _all_told()
    (rule,) = {told["measured"]["rule"] for told in found.values()}
    made = [
        "<!-- generated by docs/generate.py from docs/reproductions -->",
        "# Which published claims hold here",
        SETTING.format(rule=rule),
        f"{_tally()}.",
    ]
    for verb in catalog.VERBS:
        rows = [_verdict(name, found[name]) for name in catalog.methods(verb) if name in found]
        if rows:
            made.append("\n".join([f"## {verb}\n\n| method | claim | here |\n| --- | --- | --- |", *rows]))
    return "\n\n".join(made) + "\n"


def _verdict(name: str, told: dict[str, Any]) -> str:
    checks = told["measured"]["checks"]
    failed = [check for check in checks if check["outcome"] != "holds"]
    said = f"**{told['verdict']}**, {len(checks) - len(failed)} of {len(checks)}"
    if failed:
        first = failed[0]
        said += f"; {first['what']}: {first['method']} {_short(first['value'])}, {first['rival']} "
        said += _short(first["rival_value"])
    return f"| [{name}](methods/{name}.md) | {told['claim']} | {said} |".replace("\n", " ")


def _short(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3g}"


def _claim(name: str) -> list[str]:
    told = _told(name)
    if told is None:
        return []
    why = f" {told['why']}" if told.get("why") else ""
    return [
        f"## The claim, run again here: {told['verdict']}",
        f"{told['claim']}{why} ([figures](../reproductions/{name}.json))",
    ]


if __name__ == "__main__":
    checking = "--check" in sys.argv[1:]
    sys.exit(1 if main(checking) and checking else 0)
