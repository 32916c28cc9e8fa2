"""Write what is generated from the sources: README's tree and tables, docs/claims.md and docs/methods/*.md.

    python docs/generate.py            # write
    python docs/generate.py --check    # exit 1 and say what is out of date

The tables of methods come from the catalogue, which reads sources without importing them. Verdicts are computed from
the figures in docs/reproductions, and a record that was measured with other code than today's is marked stale.
"""

from __future__ import annotations

import ast
import math
import re
import sys
from functools import cache
from pathlib import Path
from typing import get_args

from tokenmill import catalog
from tokenmill.bench.statistics import FEWEST
from tokenmill.catalog import Entry
from tokenmill.claims.reproduce import current
from tokenmill.claims.verdict import RULE, Check, Reproduction, Verdict
from tokenmill.method import KNOBS, SPENDING
from tokenmill.view.claim import claimed, interval, pair

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "src" / "tokenmill"
WIDTH = 24  # where the comments of the tree begin

# Top-level entries of the house in reading order; what is not listed here is an error, so that none is forgotten.
ORDER = [
    "types.py",
    "method.py",
    "catalog.py",
    "method_files.py",
    "recipe_file.py",
    "errors.py",
    "paths.py",
    "streams.py",
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
one trained from scratch, on two CPU cores. These are smaller than any paper's. Nobody writes a verdict by hand.

- Rule: {rule}.
- **supported**: every check that the paper makes lies on the claimed side.
- **contradicted**: at least one lies wholly on the other side.
- **inconclusive**: neither; there is too little data here.
- **not testable here**: an essential condition of the paper (size, training, domain) is absent; the table says which.
- **stale**: the method or its claim has changed since the measurement; the figures are those of earlier code, and there
  is no verdict until `tokenmill reproduce NAME` has run again.

The figures of a row are those of the check that decides it: the first that is contradicted or inconclusive, else the
one nearest to its margin. *Power* is the smallest distance beyond the margin that so many samples find with 80 % power.
A method's page has all checks. Records of earlier versions hold a bootstrap's percentiles in place of their samples:
the intervals are Student's with the spread that these percentiles stand for."""


def main(check: bool = False) -> int:
    """Number of files that were (or, with `check`, are) out of date."""
    wanted = {file: record.model_dump_json(indent=1) + "\n" for file, record in records().items()}
    wanted[ROOT / "README.md"] = readme((ROOT / "README.md").read_text(encoding="utf-8"))
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


@cache
def records() -> dict[Path, Reproduction]:
    """What `reproduce` found of each claim that was run for these pages, by today's rule and code."""
    files = sorted((ROOT / "docs" / "reproductions").glob("*.json"))
    return {f: current(Reproduction.model_validate_json(f.read_text(encoding="utf-8"))) for f in files}


def _by_name() -> dict[str, Reproduction]:
    found = {record.method: record for record in records().values()}
    return {name: found[name] for name in catalog.entries() if name in found}


def _tally() -> str:
    """How the claims fared."""
    verdicts = [record.verdict for record in _by_name().values()]
    counts = [f"{verdicts.count(v)} {v}" for v in get_args(Verdict) if v in verdicts]
    return f"Of {len(verdicts)} published claims that were run again here: {', '.join(counts)}"


def claims() -> str:
    """Every claim that was run again, by verb, with the check that decides it."""
    found = _by_name()
    made = [
        "<!-- generated by docs/generate.py from docs/reproductions -->",
        "# Which published claims hold here",
        SETTING.format(rule=RULE),
        f"{_tally()}.",
    ]
    head = "| method | claim | paper's figure | measured | n | power | verdict | why |\n" + "| --- " * 8 + "|"
    for verb in catalog.VERBS:
        rows = [_row(found[name]) for name in catalog.methods(verb) if name in found]
        if rows:
            made.append("\n".join([f"## {verb}\n\n{head}", *rows]))
    return "\n\n".join(made) + "\n"


def _row(record: Reproduction) -> str:
    decisive = _decisive(record)
    measured, n, power = "", "0", ""
    if decisive is not None:
        found = decisive.model_dump()
        measured = f"{decisive.what}: {pair(found)}, {claimed(found)}"
        n, power = str(decisive.samples), _power(decisive)
    name = f"[{record.method}](methods/{record.method}.md)"
    cells = [name, record.claim, record.paper_figure, measured, n, power, f"**{record.verdict}**", _reason(record)]
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _decisive(record: Reproduction) -> Check | None:
    """See SETTING."""
    checks = [c for c in record.measured.checks if c.decides and c.difference is not None]
    for outcome in ("contradicted", "inconclusive"):
        if found := next((c for c in checks if c.outcome == outcome), None):
            return found

    def distance(check: Check) -> float:
        error = check.difference.error() if check.difference else None
        return abs(check.difference.mean - check.bound) / error if check.difference and error else math.inf

    return min((c for c in checks if not c.identity), key=distance, default=next(iter(checks), None))


def _power(check: Check) -> str:
    if check.detectable is None:
        return ""
    return f"{check.detectable:.0%} unequal" if check.identity else f"{check.detectable:.2g}"


def _reason(record: Reproduction) -> str:
    """Why, without the figures that the row has already."""
    checks = [c for c in record.measured.checks if c.decides]
    parts = [record.stale, record.missing] if record.stale or record.missing else []
    if not record.stale and checks:
        parts.append(f"{sum(c.outcome == 'supported' for c in checks)} of {len(checks)} checks supported")
    few = [c.samples for c in checks if c.samples < FEWEST]
    if few and record.verdict == "inconclusive":
        parts.append(f"{min(few)} independent samples, and an interval needs {FEWEST}: more --seeds")
    parts += [*dict.fromkeys(c.lacking for c in checks if c.lacking)]
    parts += record.measured.reasons if record.verdict not in ("supported", "stale") else []
    return "; ".join(filter(None, [*parts, record.rerun]))


def _claim(name: str) -> list[str]:
    record = _by_name().get(name)
    if record is None:
        return []
    head = "| check | method | rival | difference, 95 % | claimed | n | power | outcome |\n" + "| --- " * 8 + "|"
    rows = []
    for check in record.measured.checks:
        found = check.model_dump()
        values = ["" if v is None else f" {v:.4g}" for v in (check.value, check.rival_value)]
        beside = "" if check.decides else "; beyond the paper, does not decide"
        cells = [
            check.what, f"`{check.method}`{values[0]}", f"`{check.rival}`{values[1]}", interval(found),
            claimed(found).removeprefix("claimed "), str(check.samples), _power(check),
            "stale" if record.stale else (check.lacking or check.outcome) + beside,
        ]  # fmt: skip
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    parts = [f"Absent here: {record.missing}."] if record.missing else []
    parts += [f"Stale: {record.stale}."] if record.stale else []
    parts += [f"Found in the numbers: {'; '.join(record.measured.reasons)}."] if record.measured.reasons else []
    parts += [f"Left out: {record.beyond}."] if record.beyond else []
    parts += [f"To run it again: {record.rerun}."] if record.rerun else []
    return [
        f"## The claim, run again here: {record.verdict}",
        f"{record.claim} The paper: {record.paper_figure}. ([figures](../reproductions/{name}.json), "
        f"[how a verdict is reached](../claims.md))",
        *(["\n".join([head, *rows])] if rows else []),
        *parts,
    ]


if __name__ == "__main__":
    checking = "--check" in sys.argv[1:]
    sys.exit(1 if main(checking) and checking else 0)
