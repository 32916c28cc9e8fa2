"""The records in docs/reproductions: newer than their code or marked, and judged by rule."""

import ast
import dataclasses
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

from tokenmill import catalog
from tokenmill.claims import source
from tokenmill.claims.reproduce import current
from tokenmill.claims.verdict import Reproduction, verdict_of, why_of
from tokenmill.view.claim import lines

ROOT = Path(__file__).parents[2]
RECORDS = sorted((ROOT / "docs" / "reproductions").glob("*.json"))


def read(path):
    return Reproduction.model_validate_json(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_a_record_is_of_todays_code_or_says_that_it_is_not(path):
    record = read(path)
    assert record.code.digests, "no digest of what was measured"
    assert record.stale == source.changed(path.stem, record.code.digests), (
        f"{path.name} is older than its code: tokenmill reproduce {path.stem} --out docs/reproductions, or mark it "
        "stale with python docs/generate.py"
    )
    assert (record.verdict == "stale") == bool(record.stale)


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_a_verdict_is_computed_from_the_figures(path):
    record = read(path)
    assert record.verdict == verdict_of(record)
    assert record.why == why_of(record)
    assert current(record) == record


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_a_record_says_n_and_power(path):
    for check in read(path).measured.checks:
        if check.difference is not None and check.samples > 1:
            assert check.difference.n == check.samples
            assert check.detectable is not None


def test_every_verdict_of_the_table_is_one_of_four_or_stale():
    table = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("| [")]
    assert len(rows) == len(RECORDS)
    for row in rows:
        cells = row.strip("| ").split(" | ")
        assert cells[6] in {
            f"**{v}**" for v in ("supported", "contradicted", "inconclusive", "not testable here", "stale")
        }
        assert cells[4].isdigit()


# ---- what a digest sees ----

CLAIM = '''
"""A claim."""
from tokenmill.claims.drafting import drafted
CLAIM = "better"
LIMIT = 3


def measure(lab):
    """Words."""
    return [LIMIT]  # a comment
'''


def test_words_leave_the_digest_alone():
    other = CLAIM.replace("better", "much better").replace("Words", "Other words").replace("  # a comment", "")
    assert source.file_digest(CLAIM) == source.file_digest(other)


@pytest.mark.parametrize(
    ("old", "new"), [("LIMIT = 3", "LIMIT = 4"), ("[LIMIT]", "[LIMIT, 1]"), ("drafted", "recalled")]
)
def test_what_is_done_changes_it(old, new):
    assert source.file_digest(CLAIM) != source.file_digest(CLAIM.replace(old, new))


def test_a_constant_that_is_zero_or_empty_counts():
    assert source.file_digest("x = f(0)") != source.file_digest("x = f(1)")
    assert source.file_digest("x = f('')") != source.file_digest("x = f(None)")
    assert source.file_digest("x = []") != source.file_digest("x = ()")


HELPERS = ast.parse(
    textwrap.dedent("""
    LEAST = 3
    OTHER = 4
    def inner(): return LEAST
    def used(): return inner()
    def unused(): return OTHER
    """)
)


def test_of_shared_modules_only_what_a_claim_reaches_counts():
    def with_line(old, new):
        return ast.parse(ast.unparse(HELPERS).replace(old, new))

    before = source._reached(HELPERS, {"used"})
    assert source._reached(with_line("OTHER = 4", "OTHER = 5"), {"used"}) == before
    assert source._reached(with_line("LEAST = 3", "LEAST = 4"), {"used"}) != before
    assert source._reached(with_line("return inner()", "return inner() + 1"), {"used"}) != before


def test_a_claim_rests_on_its_method_its_file_and_what_it_reaches():
    found = source.digests("token_recycling")
    assert set(found) == {
        "methods/draft/token_recycling.py",
        "claims/papers/token_recycling.py",
        "claims/drafting.py",
    }
    assert source.digests("lud")["claims/drafting.py"] != found["claims/drafting.py"]  # lud reaches `recalled` too


def test_a_changed_method_is_noticed(monkeypatch, tmp_path):
    recorded, entry = source.digests("h2o"), catalog.find("h2o")
    method = tmp_path / entry.path.relative_to(source.HOUSE)
    method.parent.mkdir(parents=True)
    shutil.copytree(source.PAPERS, tmp_path / "claims" / "papers")
    monkeypatch.setattr(source, "HOUSE", tmp_path)
    monkeypatch.setattr(source, "PAPERS", tmp_path / "claims" / "papers")
    monkeypatch.setattr(source.catalog, "find", lambda _: dataclasses.replace(entry, path=method))
    method.write_text(entry.path.read_text() + "\n# a comment\n")
    assert source.changed("h2o", recorded) == ""
    method.write_text(entry.path.read_text() + "\nEXTRA = 1\n")
    assert source.changed("h2o", recorded) == "changed since it was measured: methods/score/h2o.py"


def test_what_cannot_be_run_again_is_said():
    assert "tokenmill train judge" in source.needs_training("judge")
    assert "tokenmill train s2d" in source.needs_training("h2o", ["chain(source=s2d, nodes=3)", "greedy"])
    assert source.needs_training("placeholders") == ""  # the claim tunes its model
    assert source.needs_training("medusa") == ""  # shipped
    assert source.needs_training("r2r") == ""  # trained by the claim
    assert source.needs_training("h2o") == ""


def test_the_commit_is_gits():
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        assert source.commit() == ""
    else:
        assert head.startswith(source.commit().removesuffix("-dirty"))


def test_a_stale_record_keeps_the_words_it_was_measured_under():
    record = read(ROOT / "docs" / "reproductions" / "h2o.json").model_copy(update={"claim": "as it was"})
    assert current(record).claim != "as it was"
    old = record.model_copy(update={"code": record.code.model_copy(update={"digests": {"methods/score/h2o.py": "0"}})})
    found = current(old)
    assert (found.verdict, found.claim) == ("stale", "as it was")
    told = "\n".join(lines(found.model_dump()))
    assert told.startswith("stale: as it was")
    assert "supported" not in told
