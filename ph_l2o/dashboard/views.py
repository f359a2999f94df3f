"""The workspace and the report that hold the panels, as the package `wandb-workspaces` makes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ph_l2o.errors import ConfigError

_INTRODUCTION = (
    "Learning curves are medians over test problems. A ratio is the best tuned baseline's loss over the optimizer's, "
    "a geometric mean over problems: above 1 is better. Where runs are averaged, bands and bars show the lowest and "
    "the highest of them."
)


class Views(NamedTuple):
    """A workspace and a report of the same runs."""

    workspace: Any
    report: Any

    def to_dict(self) -> dict[str, Any]:
        """What is sent to W&B, in its own form."""
        made = {"workspace": self.workspace._to_model(), "report": self.report._to_model()}
        return {
            name: json.loads(model.model_dump_json(by_alias=True, exclude_none=True)) for name, model in made.items()
        }

    def save(self) -> tuple[str, str]:
        """Send both; their addresses."""
        self.workspace.save()
        self.report.save()
        return self.workspace.url, self.report.url


def check_extra() -> None:
    """Raise ConfigError without the package that makes workspaces."""
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise ConfigError("the dashboard needs the package wandb-workspaces: pip install -e '.[dashboards]'") from error


def make_views(
    entity: str, project: str, sections: Mapping[str, list[Any]], *, title: str, group: str | None, sweep: str | None
) -> Views:
    """The workspace and the report.

    Args:
        entity: Team or user.
        project: Of the runs.
        sections: Panels by section.
        title: Of both.
        group: Only runs of this group, such as a multirun; None: all.
        sweep: Only runs of this sweep of W&B's; None: all.
    """
    from wandb_workspaces import expr
    from wandb_workspaces import workspaces as ws
    from wandb_workspaces.reports import v2 as wr

    conditions = [expr.Metric(name) == value for name, value in (("Group", group), ("Sweep", sweep)) if value]
    filters: Any = expr.And(*conditions) if conditions else ""
    workspace = ws.Workspace(
        entity=entity,
        project=project,
        name=title,
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        settings=ws.WorkspaceSettings(x_axis="outer_step", max_runs=50),
        runset_settings=ws.RunsetSettings(filters=filters),
    )
    blocks: list[Any] = [wr.P(_INTRODUCTION), wr.TableOfContents()]
    for name, panels in sections.items():
        # A set of runs without a project is that of the report's, and needs no server to be made.
        runs = wr.Runset(name=group or sweep or "All runs", filters=filters)  # type: ignore[attr-defined]
        blocks += [wr.H1(name), wr.PanelGrid(runsets=[runs], panels=panels)]
    made: Any = wr.Report  # type: ignore[attr-defined]
    report = made(project=project, entity=entity, title=title, blocks=blocks, width="fluid")
    return Views(workspace, report)
