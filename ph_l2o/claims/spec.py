"""What a claim is: trainings, measurements with their rows, and contrasts between rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

RECIPES = ("study", "fair", "shipped")  # by the study's own settings; searched on validation; the package's weights
SLOPE = "slope"
STATISTICS = ("mean", "geometric_mean", "median", SLOPE)
DRAWN = ("curves", "intervals", "scaling", "paths", "energies")
OF_KIND = ("paths", "energies")  # of these, what measurements of the kind of this name are drawn as, and no others


@dataclass(frozen=True)
class Training:
    """A run of `train.py`.

    Attributes:
        name: Of its folder.
        overrides: That are typed for it.
        after: Name of the training whose weights it starts with; None: it starts with none.
    """

    name: str
    overrides: tuple[str, ...]
    after: str | None = None


@dataclass(frozen=True)
class Row:
    """An optimizer of a measurement.

    Attributes:
        name: Of the row.
        trainings: Whose weights it has, one for each seed; empty for others.
        other: The name of shipped weights or of a baseline; None for a training.
        label: For people.
        recipe: One of `RECIPES`.
        changed: Constructor arguments of a trained optimizer that are others than in its training.
        tuned_on: Overrides that choose the task on which a baseline is tuned, where it is another one.
        published: The study's figure, if it has one.
        again: The same measured again with the study's code.
    """

    name: str
    trainings: tuple[str, ...]
    other: str | None
    label: str
    recipe: str
    changed: Mapping[str, Any] = field(default_factory=dict)
    tuned_on: tuple[str, ...] = ()
    published: float | None = None
    again: float | None = None


@dataclass(frozen=True)
class Measurement:
    """Rows on the same problems of a task.

    Attributes:
        name: Of the measurement.
        kind: One of `KINDS`.
        title: For people.
        task: Overrides that choose the task, as for `evaluate.py`.
        horizon: Inner steps.
        num_problems: Test problems.
        tuning_problems: Validation problems for tuning the baselines; None: chosen by their number.
        measure: The value of a problem that tables show and contrasts compare, as `final`.
        rows: By name.
        reference: The row that all are compared with in the table; None: none is.
        options: More arguments of the kind.
        published: Figures of others on such a task, by whose they are; for the page.
    """

    name: str
    kind: str
    title: str
    task: tuple[str, ...]
    horizon: int
    num_problems: int
    tuning_problems: int | None
    measure: str
    rows: Mapping[str, Row]
    reference: str | None
    options: Mapping[str, Any]
    published: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Contrast:
    """A sentence that a measurement can bear out.

    Attributes:
        says: The sentence.
        measurement: Its name.
        row: The row that it is about.
        side: `below` or `above`.
        against: Names of rows, of which the best one counts; or a number.
        recipe: One of `RECIPES`: under whose conditions it is said.
        measure: Of a problem; None: that of the measurement.
        of: What is compared, of `STATISTICS`: differences of means, geometric means of ratios, ratios of medians; of a
            single row, its own.
        headline: Whether README shows it.
        across: With `slope`, of which log median against log x is meant: x by measurement.
        bar: Whether it is one that an optimizer has to clear, as no straw man would, and no part of the claim: then the
            verdict does not count it.
        ours: Whether it is about an optimizer of ours that the study does not have: that is told beside the verdict.
    """

    says: str
    measurement: str
    row: str
    side: str
    against: tuple[str, ...] | float
    recipe: str
    measure: str | None
    of: tuple[str, ...]
    headline: bool
    across: Mapping[str, float]
    bar: bool = False
    ours: bool = False


@dataclass(frozen=True)
class Panel:
    """A part of a claim's figure.

    Attributes:
        draw: One of `DRAWN`.
        measurement: Its name.
        rows: Names of rows; empty: all.
        strong: Those of them that are emphasized.
        title: Above it.
        of: The curve or measure that is drawn.
        across: Of `scaling`: what is on the horizontal axis, by measurement.
        axis: Its name.
    """

    draw: str
    measurement: str
    rows: tuple[str, ...]
    strong: tuple[str, ...]
    title: str
    of: str | None
    across: Mapping[str, float]
    axis: str


@dataclass(frozen=True)
class Claim:
    """A claim of the published study.

    Attributes:
        name: Of the claim.
        title: Heading.
        claimed: What the study says, in a sentence.
        summary: The row of README's table that it belongs to.
        trainings: By name, those that its rows need.
        measurements: By name.
        contrasts: Of which its verdict is made.
        panels: Of its figure.
        says: What the figure shows.
        notes: For the page: how to read it.
    """

    name: str
    title: str
    claimed: str
    summary: str
    trainings: Mapping[str, Training]
    measurements: Mapping[str, Measurement]
    contrasts: tuple[Contrast, ...]
    panels: tuple[Panel, ...]
    says: str
    notes: str


def needed_trainings(claims: Iterable[Claim]) -> dict[str, Training]:
    """The trainings of several claims, each once."""
    return {name: training for claim in claims for name, training in claim.trainings.items()}
