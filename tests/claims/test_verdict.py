"""Verdicts follow from numbers by rule."""

import math

import pytest
from pydantic import ValidationError

from tokenmill.claims.verdict import Check, Reproduction, check, judged, overall

GOOD, BAD = [1.0, 1.1, 0.9, 1.05], [2.0, 2.2, 1.9, 2.0]


def compared(values, rivals, better="lower", **knobs):
    return check("loss", ("mine", values), ("rival", rivals), better, **knobs)


def test_wholly_on_the_claimed_side_holds():
    assert compared(GOOD, BAD).outcome == "holds"
    assert compared(BAD, GOOD, "higher").outcome == "holds"


def test_on_the_other_side_fails():
    assert compared(BAD, GOOD).outcome == "fails"
    assert compared(GOOD, BAD, "higher").outcome == "fails"


def test_an_interval_around_zero_fails():
    found = compared([1.0, 2.0, 1.0, 2.0], [2.0, 1.0, 2.0, 1.0])
    assert found.difference.low < 0 < found.difference.high
    assert found.outcome == "fails"


def test_the_difference_is_paired():
    # Samples differ far more among themselves than the methods do on each.
    rivals = [1.0, 5.0, 20.0, 80.0]
    assert compared([r - 0.1 for r in rivals], rivals).outcome == "holds"


def test_a_margin_allows_a_small_loss_and_no_more():
    rivals = [1.0, 2.0, 3.0, 4.0]
    assert compared([r + 0.05 for r in rivals], rivals, margin=0.1).outcome == "holds"
    assert compared([r + 0.15 for r in rivals], rivals, margin=0.1).outcome == "fails"
    assert compared([r - 0.05 for r in rivals], rivals, "higher", margin=0.1).outcome == "holds"
    assert compared([r - 0.15 for r in rivals], rivals, "higher", margin=0.1).outcome == "fails"


def test_equal_columns_are_not_better():
    assert compared(GOOD, GOOD).outcome == "fails"


def test_few_samples_are_out_of_reach():
    found = compared(GOOD[:2], BAD[:2])
    assert found.outcome == "out-of-reach"
    assert "2 samples" in found.told()


def test_what_is_lacking_is_out_of_reach_though_numbers_are_there():
    found = compared(GOOD, BAD, lacking="the untouched model cannot do it")
    assert found.outcome == "out-of-reach"
    assert found.difference is not None
    assert found.told().endswith("cannot do it")


def test_a_method_that_breaks_fails_and_writes_no_nan():
    found = compared([1.0, math.nan, 1.0, 1.0], BAD)
    assert found.outcome == "fails"
    assert found.value is None
    assert "NaN" not in found.model_dump_json()


def test_a_claim_needs_all_its_checks():
    held, failed, beyond = compared(GOOD, BAD), compared(BAD, GOOD), compared(GOOD, BAD, lacking="no GPU")
    assert overall([held, held]) == "holds"
    assert overall([held, failed, beyond]) == "fails"
    assert overall([held, beyond]) == "out-of-reach"
    assert overall([]) == "out-of-reach"


def test_an_outcome_written_by_hand_does_not_count():
    forged = compared(BAD, GOOD).model_copy(update={"outcome": "holds"})
    assert judged(forged) == "fails"
    assert overall([forged]) == "fails"


def test_a_report_refuses_numbers_that_are_not():
    fields = {
        "method": "h2o", "title": "t", "claim": "c", "paper_figure": "p", "measured": {}, "verdict": "holds",
        "why": "w", "environment": {}, "seeds": [0],
    }  # fmt: skip
    Reproduction(**fields, baseline={"full": {"loss": 1.0}})
    with pytest.raises(ValidationError):
        Reproduction(**fields, baseline={"full": {"loss": math.nan}})
    with pytest.raises(ValidationError):
        Reproduction(**{**fields, "verdict": "nearly"}, baseline={})


def test_told_says_both_numbers_and_the_interval():
    told = compared(GOOD, BAD).told()
    assert "mine 1.012" in told
    assert "rival 2.025" in told
    assert told.endswith("claimed below 0: holds")
    assert isinstance(compared(GOOD, BAD), Check)
