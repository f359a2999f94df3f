"""Verdicts, from results made by hand of every outcome."""

import math

import pytest

from ph_l2o.claims.verdicts import CONDITIONAL, FAILS, HOLDS, MIXED, NOT, OPEN, REPRODUCED, number, outcome, sentence
from ph_l2o.claims.verdicts import verdict as verdict_of

INF = math.inf


def contrast(*estimates, side="below", says="It is better", against="other"):
    """Of (of, value, low, high, threshold)."""
    found = [{"of": of, "value": v, "ci95": [low, high], "threshold": t} for of, v, low, high, t in estimates]
    return {"says": says, "side": side, "against": against, "estimates": found, "recipe": "fair"}


BETTER = ("mean", -0.2, -0.3, -0.1, 0.0)
WORSE = ("mean", 0.2, 0.1, 0.3, 0.0)
EITHER = ("mean", 0.0, -0.1, 0.1, 0.0)
BETTER_RATIO = ("geometric_mean", 0.5, 0.4, 0.6, 1.0)
WORSE_RATIO = ("geometric_mean", 2.0, 1.5, 3.0, 1.0)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (contrast(BETTER), HOLDS),
        (contrast(WORSE), FAILS),
        (contrast(EITHER), OPEN),
        (contrast(BETTER, BETTER_RATIO), HOLDS),
        (contrast(WORSE, WORSE_RATIO), FAILS),
        (contrast(WORSE, BETTER_RATIO), MIXED),
        (contrast(BETTER, EITHER), OPEN),
        (contrast(WORSE, BETTER_RATIO, EITHER), OPEN),
        (contrast(("mean", 0.9, 0.85, 0.95, 0.8), side="above"), HOLDS),
        (contrast(("mean", 0.7, 0.65, 0.75, 0.8), side="above"), FAILS),
        (contrast(("mean", INF, INF, INF, 0.0)), FAILS),  # it diverged
        (contrast(("mean", INF, -1.0, INF, 0.0)), FAILS),
        (contrast(("mean", -INF, -INF, -INF, 0.0)), HOLDS),  # the other one did
        (contrast(("mean", "inf", "inf", "inf", 0.0)), FAILS),  # as it stands in a file
        (contrast(("mean", math.nan, -INF, INF, 0.0)), OPEN),
        (contrast(("mean", 0.0, 0.0, 0.0, 0.0)), OPEN),  # a tie
    ],
)
def test_a_sentence(made, expected):
    assert outcome(made) == expected


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ([BETTER, BETTER], REPRODUCED),
        ([BETTER, WORSE], CONDITIONAL),
        ([BETTER, EITHER], CONDITIONAL),
        ([WORSE, EITHER], NOT),
        ([WORSE, WORSE], NOT),
        ([], NOT),
    ],
)
def test_a_verdict(made, expected):
    assert verdict_of([contrast(estimate) for estimate in made]) == expected


def test_words():
    said = sentence(contrast(WORSE, BETTER_RATIO, says="It is better."), {"other": "Adam (at its best)"})
    assert said == (
        "It is better: **depends on the mean that is taken** (difference to Adam (at its best) 0.2 [0.1, 0.3]; "
        "ratio 0.5 [0.4, 0.6])"
    )
    alone = sentence(contrast(("median", 0.1, 0.05, 0.2, 0.16), against=None), {})
    assert alone == "It is better: **cannot be told** (median 0.1 [0.05, 0.2], against 0.16)"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.12345, "0.123"), (-2, "−2"), (INF, "∞"), ("-inf", "−∞"), (None, "–"), (123456.0, "1.2e+05"), (0, "0")],
)
def test_numbers(value, shown):
    assert number(value) == shown


def test_bars_are_not_counted():
    """That an optimizer is no straw man bears nothing out."""
    failed, cleared = contrast(WORSE), contrast(BETTER) | {"bar": True}
    assert verdict_of([failed, cleared]) == NOT
    assert verdict_of([contrast(BETTER), contrast(WORSE) | {"bar": True}]) == REPRODUCED
