"""`python -m ph_l2o.dashboard`: make a workspace and a report in W&B of a project's runs, or of one sweep's."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ph_l2o.dashboard.panels import sections
from ph_l2o.dashboard.views import Views, check_extra, make_views
from ph_l2o.errors import ConfigError
from ph_l2o.files import json_text, write_atomically

_DESCRIPTION = "Make a workspace and a report in W&B, of the runs of a project or of one sweep."
_PARAMETERS = ("meta.learning_rate", "meta.gradient_clip", "meta.truncation", "seed")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m ph_l2o.dashboard", description=_DESCRIPTION)
    parser.add_argument("project", nargs="?", default="ph_l2o", help="project of the runs (default: %(default)s)")
    parser.add_argument("--entity", default=os.environ.get("WANDB_ENTITY"), help="team or user; default: $WANDB_ENTITY")
    parser.add_argument("--group", help="only runs of this group, such as that of a multirun")
    parser.add_argument("--sweep", help="only runs of this sweep of `wandb sweep`, by its id")
    parser.add_argument("--title", help="of both; default: what is shown")
    parser.add_argument(
        "--optimizer", default="trained", help="whose test/<optimizer>/… is shown (default: %(default)s)"
    )
    parser.add_argument(
        "--by", default="choices.optimizer", help="key of the configuration to compare by (default: %(default)s)"
    )
    parser.add_argument(
        "--parameters", nargs="+", default=list(_PARAMETERS), metavar="KEY", help="of the parallel coordinates"
    )
    parser.add_argument("--json", metavar="FILE", help="write there what is sent")
    parser.add_argument("--dry-run", action="store_true", help="send nothing")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the dashboard as asked for."""
    asked = _parser().parse_args(arguments)
    try:
        views = _made(asked)
        if asked.json:
            write_atomically(asked.json, json_text(views.to_dict()))
            print(f"what is sent is in {asked.json}")
        if asked.dry_run:
            panels = sum(len(section.panels) for section in views.workspace.sections)
            print(f"made a workspace and a report of {panels} panels each; nothing was sent")
            return
        print(*_sent(views), sep="\n")
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {error}")


def _made(asked: argparse.Namespace) -> Views:
    if not asked.entity:
        raise ConfigError("--entity: name your team or user in W&B, or set WANDB_ENTITY")
    check_extra()
    title = asked.title or f"ph_l2o: {asked.group or asked.sweep or asked.project}"
    shown = sections(asked.optimizer, asked.parameters, asked.by)
    return make_views(asked.entity, asked.project, shown, title=title, group=asked.group, sweep=asked.sweep)


def _sent(views: Views) -> tuple[str, str]:
    try:
        return views.save()
    except Exception as error:  # of W&B's client, which has many kinds
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"W&B did not take it ({reason}); `wandb login`, or --dry-run --json FILE") from error


if __name__ == "__main__":
    main()
