"""How a result was made: its configuration, what of it differs from the defaults, and what to type to have it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ph_l2o.reports.files import leaves, read_mapping, read_yaml
from ph_l2o.reports.parts import Cell, Column, Commands, Facts, Section, Table
from ph_l2o.reports.values import get, text

UNKNOWN = "${unknown}"  # a default that only a run has, such as its folder
_OWN_OF_A_RUN = ("overrides", "git_revision", "run_name", "ckpt_path", "paths.", "hydra.")  # not to be compared


def command_name(config: Mapping[str, Any]) -> str:
    """`train` or `evaluate`, by the keys of a configuration."""
    return "train" if "meta" in config else "evaluate"


def typed(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """What was typed behind the command, of a run or a job of a sweep."""
    found = config.get("overrides")
    if not isinstance(found, list):
        found = read_yaml(folder / ".hydra" / "overrides.yaml")
    return [str(part) for part in found] if isinstance(found, list) else []


def settings_sections(
    folder: Path, config: Mapping[str, Any], found: Mapping[str, Any], defaults: Mapping[str, Any] | None
) -> list[Section]:
    """Differences from the defaults, the whole configuration, and how to reproduce.

    Args:
        folder: Of the results.
        config: What `config.yaml` holds; empty if there is none.
        found: What `comparison.json` or `suite.json` holds; empty if there is none.
        defaults: Values by dotted key; None: they are not known.
    """
    made = []
    values = leaves({k: v for k, v in config.items() if k not in ("overrides", "git_revision")})
    if values and defaults is not None:
        changed = {k: v for k, v in _condensed(config, values, defaults).items() if _is_changed(k, v, defaults)}
        made.append(Section("Configuration: differences from the defaults", [_differences(changed, defaults)]))
    if values:
        columns = [Column("key", numeric=False), Column("value", numeric=False)]
        rows = [[Cell(k, k), _value(v)] for k, v in values.items()]
        made.append(Section("Whole configuration", [Table(f"{len(rows)} keys", columns, rows)], folded=True))
    made.append(_reproduce(folder, config, found))
    return made


def _condensed(config: Mapping[str, Any], values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """With one value in place of a whole group that is null by default, as a suite: the names in it."""
    found = {}
    for key, value in values.items():
        group = key.partition(".")[0]
        if group != key and group in defaults and isinstance(config[group], Mapping):
            found[group] = ", ".join(map(str, config[group]))
        else:
            found[key] = value
    return found


def _is_changed(key: str, value: Any, defaults: Mapping[str, Any]) -> bool:
    return not key.startswith(_OWN_OF_A_RUN) and (key not in defaults or defaults[key] not in (value, UNKNOWN))


def _differences(changed: Mapping[str, Any], defaults: Mapping[str, Any]) -> Table:
    columns = [Column("key", numeric=False), Column("value", numeric=False), Column("default", numeric=False)]
    rows = [[Cell(k, k), _value(v), _value(defaults[k]) if k in defaults else Cell("–", mark="left")]
            for k, v in changed.items()]  # fmt: skip
    rows = rows or [[Cell("none"), Cell("every value is the default", mark="left"), Cell("")]]
    note = "Defaults are those of the version that made this page, without anything typed."
    return Table("Values that differ", columns, rows, note)


def _value(value: Any) -> Cell:
    shown = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return Cell(shown, shown, mark="long" if len(shown) > 40 else "left")


def _reproduce(folder: Path, config: Mapping[str, Any], found: Mapping[str, Any]) -> Section:
    revision = text(found, "git_revision") or text(config, "git_revision")
    lines = [f"git checkout {shlex.quote(revision.removesuffix('-dirty'))}"] if revision else []
    words = typed(folder, config)
    if config:
        lines.append(" ".join([f"python {command_name(config)}.py", *map(shlex.quote, words)]))
    facts = [("git revision", revision or "not known")]
    if revision.endswith("-dirty"):
        facts.append(("beware", "the working folder had changes that are not in this revision"))
    versions = get(found, "versions")
    if isinstance(versions, Mapping):
        facts.append(("versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    if machine := text(found, "machine"):
        facts.append(("machine", machine))
    files = sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    facts.append(("files beside this page", ", ".join(name for name in files if name != "report.html")))
    return Section("How to reproduce", [Commands(lines), Facts(facts)] if lines else [Facts(facts)])


def config_of(folder: Path) -> dict[str, Any]:
    """What `config.yaml` holds; empty if there is none."""
    return read_mapping(folder / "config.yaml")
