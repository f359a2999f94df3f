"""From contrasts to verdicts, by rules that the page states."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"
MIXED = "depends on the mean that is taken"
REPRODUCED, NOT, CONDITIONAL = "reproduced", "not reproduced", "only under conditions"
RULES = (
    "A sentence **holds** if all of its intervals lie on its side, **does not hold** if all lie on the other side, and "
    "else **cannot be told**, or **depends on the mean that is taken**: where a few problems make the mean, mean and "
    "geometric mean can disagree beyond noise. A claim is **reproduced** if all of its sentences hold, **not "
    "reproduced** if none does, and else holds **only under conditions**: those of the sentences that hold. A mean "
    "that is infinite, as where a problem diverged, is on the worse side. Bars, which tell whether an optimizer is as "
    "good as it can be, are no part of a claim, and its verdict does not count them. Nor does it count what is said of "
    "our optimizer, which the study does not have; that stands beside it."
)


def outcome(contrast: Mapping[str, Any]) -> str:
    """`HOLDS`, `FAILS`, `MIXED` or `OPEN`."""
    sides = {_side(estimate, contrast["side"]) for estimate in contrast["estimates"]}
    return sides.pop() if len(sides) == 1 else MIXED if sides == {HOLDS, FAILS} else OPEN


def _side(estimate: Mapping[str, Any], side: str) -> str:
    low, high = (float(end) for end in estimate["ci95"])
    value, threshold = float(estimate["value"]), float(estimate["threshold"])
    if side == "above":
        low, high, value, threshold = -high, -low, -value, -threshold
    if math.isnan(value) or math.isnan(low) or math.isnan(high):
        return OPEN
    if math.isinf(value):
        return HOLDS if value < 0 else FAILS
    return HOLDS if high < threshold else FAILS if low > threshold else OPEN


def verdict(contrasts: Sequence[Mapping[str, Any]]) -> str:
    """`REPRODUCED`, `NOT` or `CONDITIONAL`."""
    outcomes = [outcome(contrast) for contrast in counted(contrasts)]
    if outcomes and all(found == HOLDS for found in outcomes):
        return REPRODUCED
    return CONDITIONAL if HOLDS in outcomes else NOT


def counted(contrasts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that a verdict counts."""
    return [contrast for contrast in contrasts if not is_bar(contrast) and not is_ours(contrast)]


def about_ours(contrasts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that are told beside a verdict."""
    return [contrast for contrast in contrasts if is_ours(contrast) and not is_bar(contrast)]


def is_ours(contrast: Mapping[str, Any]) -> bool:
    """Whether it is about an optimizer that the study does not have."""
    return bool(contrast.get("ours"))


def is_bar(contrast: Mapping[str, Any]) -> bool:
    """Whether it is no part of the claim."""
    return bool(contrast.get("bar"))


def sentence(contrast: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """A contrast in words: what it says, its figures, and what comes of it."""
    return f"{contrast['says'].rstrip('.')}: **{outcome(contrast)}** ({figures(contrast, labels)})"


def figures(contrast: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """The estimates of a contrast with their intervals."""
    against = contrast["against"]
    to = "" if against is None else f" to {labels.get(against, against)}"
    texts = []
    for estimate in contrast["estimates"]:
        shown = f"{number(estimate['value'])} [{', '.join(number(end) for end in estimate['ci95'])}]"
        if against is None:
            texts.append(f"{estimate['of'].replace('_', ' ')} {shown}, against {number(estimate['threshold'])}")
        else:
            texts.append(f"{_PAIRED[estimate['of']]}{to} {shown}")
        to = ""
    return "; ".join(texts)


_PAIRED = {"mean": "difference", "geometric_mean": "ratio", "median": "ratio of medians"}


def number(value: Any) -> str:
    """Three digits; ∞ in words of mathematics."""
    x = float(value) if value is not None else math.nan
    if math.isnan(x):
        return "–"
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    return f"{x:.3g}".replace("-", "−") if 1e-4 <= abs(x) < 1e5 or x == 0 else f"{x:.1e}".replace("-", "−")
