"""What the dashboard shows, by subject."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_WIDTH, _HEIGHT, _COLUMNS = 12, 8, 2  # of a panel in a grid of 24 columns
_TRAINING = ("val/score", "train/outer_loss")
_ENERGIES = ("energy", "kinetic", "spring", "tank")
_SETTINGS = ("lr", "damping", "trust")


def sections(optimizer: str, parameters: Sequence[str], group_by: str) -> dict[str, list[Any]]:
    """Panels by the section that they belong to.

    Args:
        optimizer: Whose results on test problems are shown, as in the key `test/<optimizer>/final`.
        parameters: Keys of the configuration, for the parallel coordinates.
        group_by: The key of the configuration whose values are compared; runs that share one are averaged.
    """
    made = {
        "Results on test problems": _results(f"test/{optimizer}", optimizer, group_by),
        "Training": _training(group_by),
        "Parameters": _parameters(f"test/{optimizer}", parameters),
        "What the optimizer does": _diagnostics(group_by),
    }
    for panels in made.values():
        _lay_out(panels)
    return made


def _lay_out(panels: list[Any]) -> None:
    from wandb_workspaces.reports import v2 as wr

    for k, panel in enumerate(panels):
        row, column = divmod(k, _COLUMNS)
        panel.layout = wr.Layout(x=column * _WIDTH, y=row * _HEIGHT, w=_WIDTH, h=_HEIGHT)  # type: ignore[attr-defined]


def _results(test: str, optimizer: str, group_by: str) -> list[Any]:
    from wandb_workspaces.reports import v2 as wr

    grouped: dict[str, Any] = {
        "groupby": wr.Config(group_by), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"
    }  # fmt: skip
    ratio = f"{test}/ratio_to_best_baseline"
    ends: list[Any] = [f"{ratio}_low", ratio, f"{ratio}_high"]
    return [
        wr.LinePlot(
            title="Loss on test problems against inner steps, median", x="inner_step", y=[f"curves/{optimizer}"],
            log_y=True, title_x="inner step", **grouped,
        ),
        wr.LinePlot(
            title="The same, with all optimizers of each run", x="inner_step", metric_regex="^curves/.*", log_y=True,
            title_x="inner step",
        ),
        wr.BarPlot(title="Final loss, and its range over runs", metrics=[f"{test}/final"], **grouped),
        wr.BarPlot(
            title="The best baseline's loss / its own, and the range over runs: above 1 is better",
            metrics=[ratio], **grouped,
        ),
        wr.BarPlot(title="The same of each run, with the ends of its 95 % interval", metrics=ends),
        wr.ScatterPlot(
            title="The best baseline's loss / its own against the horizon", x=wr.SummaryMetric("test/horizon"),
            y=wr.SummaryMetric(ratio), log_x=True,
        ),
        wr.MediaBrowser(title="Curves with quartiles", media_keys=["test/curves"]),
    ]  # fmt: skip


def _training(group_by: str) -> list[Any]:
    from wandb_workspaces.reports import v2 as wr

    return [
        wr.LinePlot(
            title=f"{key}, by {group_by}", x="outer_step", y=[key], groupby=wr.Config(group_by),
            groupby_aggfunc="mean", groupby_rangefunc="minmax",
        )
        for key in _TRAINING
    ] + [wr.LinePlot(title="train/gradient_norm", x="outer_step", y=["train/gradient_norm"], log_y=True)]  # fmt: skip


def _parameters(test: str, parameters: Sequence[str]) -> list[Any]:
    from wandb_workspaces.reports import v2 as wr

    metrics = [wr.Config(name) for name in parameters]
    scores = [wr.SummaryMetric("val/score.min"), wr.SummaryMetric(f"{test}/ratio_to_best_baseline")]
    column: Any = wr.ParallelCoordinatesPlotColumn  # type: ignore[attr-defined]
    columns = [column(metric=metric) for metric in (*metrics, *scores)]
    return [
        wr.ParallelCoordinatesPlot(title="Parameters and scores", columns=columns),
        wr.ParameterImportancePlot(with_respect_to="val/score.min"),
    ]


def _diagnostics(group_by: str) -> list[Any]:
    from wandb_workspaces.reports import v2 as wr

    during = [
        wr.LinePlot(
            title=f"{name} at the end of an episode, during training", x="outer_step", y=[f"diagnostics/{name}_end"],
            groupby=wr.Config(group_by), groupby_aggfunc="mean", groupby_rangefunc="minmax",
        )
        for name in (*_ENERGIES, *_SETTINGS)
    ]  # fmt: skip
    within = [
        wr.LinePlot(title=title, x="inner_step", metric_regex=f"^inner/.*/({'|'.join(names)})(/.*)?$", log_y=True)
        for title, names in (("Energies over an episode", _ENERGIES), ("lr, damping, trust over an episode", _SETTINGS))
    ]
    return within + during
