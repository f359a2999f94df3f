"""One look for each curve, in figures and on pages: colours that readers with any colour vision can tell apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

# Okabe and Ito's colours without their yellow, and further ones for what is emphasized. Each with what takes its place
# on a dark ground. Beyond six, dashes tell curves apart.
_EMPHASIS = (("#D55E00", "#F28A3C"), ("#000000", "#F0E442"), ("#6A3D9A", "#B79CED"), ("#8C564B", "#D9A08F"))
_OTHERS = (
    ("#0072B2", "#4AA8E0"),
    ("#009E73", "#1DBF92"),
    ("#CC79A7", "#E29BC3"),
    ("#56B4E9", "#8CCBF2"),
    ("#E69F00", "#F5B942"),
    ("#7F7F7F", "#A6A6A6"),
)
_DASHES: tuple[tuple[float, ...], ...] = (
    (5, 1.6),
    (1.2, 1.2),
    (6, 1.5, 1.2, 1.5),
    (),
    (3, 1.2, 1.2, 1.2, 1.2, 1.2),
    (9, 2),
)


class Look(NamedTuple):
    """How a curve is drawn.

    Attributes:
        color: On a white ground, `#RRGGBB`.
        dark: On a dark ground.
        dashes: Lengths of dashes and gaps in widths of the line; empty: a solid line.
        strong: Whether it is emphasized.
    """

    color: str
    dark: str
    dashes: tuple[float, ...]
    strong: bool


def looks(names: Iterable[str], emphasized: Sequence[str] = ()) -> dict[str, Look]:
    """The look of each curve, in the order of `names`."""
    found: dict[str, Look] = {}
    strong = weak = 0
    for name in names:
        if name in emphasized:
            dashes = _DASHES[(strong - 1) % len(_DASHES)] if strong else ()
            found[name] = Look(*_EMPHASIS[strong % len(_EMPHASIS)], dashes, True)
            strong += 1
        else:
            dashes = _DASHES[(weak + weak // len(_OTHERS)) % len(_DASHES)]  # another one with each colour's second turn
            found[name] = Look(*_OTHERS[weak % len(_OTHERS)], dashes, False)
            weak += 1
    return found
