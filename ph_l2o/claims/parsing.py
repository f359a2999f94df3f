"""Claims from plain values, such as a configuration's; what is wrong with them is told in one line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ph_l2o.checkpoints import SHIPPED
from ph_l2o.checks import did_you_mean, nearest
from ph_l2o.claims import trajectories  # noqa: F401  # makes its kinds known
from ph_l2o.claims.kinds import KINDS
from ph_l2o.claims.spec import (
    DRAWN,
    OF_KIND,
    RECIPES,
    SLOPE,
    STATISTICS,
    Claim,
    Contrast,
    Measurement,
    Panel,
    Row,
    Training,
)
from ph_l2o.errors import ConfigError
from ph_l2o.evaluation.baselines import unknown

_WORD = re.compile(r"[a-z][a-z0-9_]*")


def parse_claims(node: Mapping[str, Any]) -> dict[str, Claim]:
    """Claims by name, of the configuration's `claims`.

    Raises:
        ConfigError: Naming key, value and what is allowed.
    """
    claims = {str(name): _claim(str(name), content) for name, content in node.items()}
    needed: dict[str, Training] = {}
    for claim in claims.values():
        for name, training in claim.trainings.items():
            if needed.setdefault(name, training) != training:
                raise ConfigError(
                    f"claims.{claim.name}.trainings.{name}={list(training.overrides)}: another claim has a training of "
                    f"this name with {list(needed[name].overrides)}; give one of them another name"
                )
    return claims


_CLAIM = {"title": str, "claimed": str, "summary": str, "trainings": dict, "measurements": dict, "contrasts": list}


def _claim(name: str, node: Any) -> Claim:
    key = f"claims.{name}"
    node = _checked(node, key, _CLAIM, {"notes": str, "figure": dict})
    known = _trainings(node["trainings"], f"{key}.trainings")
    measurements = {
        str(n): _measurement(str(n), content, f"{key}.measurements.{n}", known)
        for n, content in node["measurements"].items()
    }
    if not measurements:
        raise ConfigError(f"{key}.measurements={{}}: must have at least one")
    contrasts = tuple(
        _contrast(content, f"{key}.contrasts[{number}]", measurements)
        for number, content in enumerate(node["contrasts"])
    )
    used = {t for m in measurements.values() for row in m.rows.values() for t in row.trainings}
    every = {t.name: t for group in known.values() for t in group}
    used |= {t.after for t in every.values() if t.name in used and t.after is not None}
    trainings = {t: every[t] for t in every if t in used}
    texts = {k: " ".join(node.get(k, "").split()) for k in ("title", "claimed", "summary", "notes")}
    figure = _checked(
        node.get("figure", {"says": "", "panels": []}), f"{key}.figure", {"says": str, "panels": list}, {}
    )
    panels = tuple(
        _panel(content, f"{key}.figure.panels[{number}]", measurements)
        for number, content in enumerate(figure["panels"])
    )
    says = " ".join(figure["says"].split())
    return Claim(
        name, **texts, trainings=trainings, measurements=measurements, contrasts=contrasts, panels=panels, says=says
    )


def _trainings(node: Mapping[str, Any], key: str) -> dict[str, tuple[Training, ...]]:
    """Trainings by name; several where there are seeds. One that starts with another's weights comes after it."""
    found: dict[str, tuple[Training, ...]] = {}
    for name, content in node.items():
        where = f"{key}.{name}"
        if not _WORD.fullmatch(str(name)):
            raise ConfigError(f"{where}: must be a word of a-z, 0-9 and _, as it is the name of a folder")
        if isinstance(content, list):
            content = {"overrides": content}
        content = _checked(content, where, {"overrides": list}, {"seeds": list, "after": str})
        overrides = tuple(map(str, content["overrides"]))
        seeds, after = content.get("seeds"), content.get("after")
        first = [n for n, group in found.items() if len(group) == 1 and group[0].name == n and group[0].after is None]
        if after is not None and (after not in first or seeds is not None):
            raise ConfigError(
                f"{where}.after={after}: must be a training above it without seeds and after, and it itself has no "
                f"seeds; {nearest(after, first)}"
            )
        if seeds is None:
            found[str(name)] = (Training(str(name), overrides, after),)
        else:
            found[str(name)] = tuple(Training(f"{name}_seed{s}", (*overrides, f"seed={s}")) for s in seeds)
    return found


_MEASUREMENT = {"task": list, "horizon": int, "num_problems": int, "rows": dict}
_MORE = {
    "kind": str, "title": str, "tuning_problems": int, "measure": str, "reference": str, "options": dict,
    "published": dict,
}  # fmt: skip


def _measurement(name: str, node: Any, key: str, trainings: Mapping[str, tuple[Training, ...]]) -> Measurement:
    node = _checked(node, key, _MEASUREMENT, _MORE)
    kind = node.get("kind", "comparison")
    if kind not in KINDS:
        raise ConfigError(f"{key}.kind={kind}: {nearest(kind, KINDS)}")
    for size, least in (("horizon", 1), ("num_problems", 2), ("tuning_problems", 2)):
        if node.get(size) is not None and node[size] < least:
            raise ConfigError(f"{key}.{size}={node[size]}: must be a whole number >= {least}")
    rows = {str(n): _row(str(n), content, f"{key}.rows.{n}", trainings) for n, content in node["rows"].items()}
    if not rows:
        raise ConfigError(f"{key}.rows={{}}: must have at least one")
    reference = node.get("reference")
    if reference is not None and reference not in rows:
        raise ConfigError(f"{key}.reference={reference}: {nearest(reference, rows)}")
    return Measurement(
        name, kind, " ".join(node.get("title", name).split()), tuple(map(str, node["task"])), node["horizon"],
        node["num_problems"], node.get("tuning_problems"), node.get("measure", KINDS[kind].measure), rows, reference,
        node.get("options", {}), _numbers(node.get("published", {}), f"{key}.published"),
    )  # fmt: skip


_ROW = {
    "training": str, "shipped": str, "baseline": str, "label": str, "recipe": str, "set": dict, "tuned_on": list,
    "published": float, "again": float,
}  # fmt: skip
_WHAT = ("training", "shipped", "baseline")


def _row(name: str, node: Any, key: str, trainings: Mapping[str, tuple[Training, ...]]) -> Row:
    node = _checked(node, key, {}, _ROW)
    named = [what for what in _WHAT if node.get(what) is not None]
    if len(named) != 1:
        raise ConfigError(f"{key}={dict(node)}: must have one of the keys {', '.join(_WHAT)}")
    (what,) = named
    entry = node[what]
    if what == "training" and entry not in trainings:
        raise ConfigError(f"{key}.training={entry}: {nearest(entry, trainings)}")
    if what == "shipped" and entry.partition("+")[0] not in SHIPPED:
        raise ConfigError(f"{key}.shipped={entry}: {nearest(entry, SHIPPED)}")
    if what == "baseline" and (problem := unknown(entry)):
        raise ConfigError(f"{key}.baseline={entry}: {problem}")
    for option, only in (("set", "training"), ("tuned_on", "baseline")):
        if node.get(option) and what != only:
            raise ConfigError(f"{key}.{option}={node[option]}: is for a {only}")
    recipe = node.get("recipe", "shipped" if what == "shipped" else "fair")
    if recipe not in RECIPES:
        raise ConfigError(f"{key}.recipe={recipe}: {nearest(recipe, RECIPES)}")
    return Row(
        name, tuple(t.name for t in trainings[entry]) if what == "training" else (),
        None if what == "training" else entry, node.get("label", name), recipe, node.get("set") or {},
        tuple(map(str, node.get("tuned_on") or ())), node.get("published"), node.get("again"),
    )  # fmt: skip


def _contrast(node: Any, key: str, measurements: Mapping[str, Measurement]) -> Contrast:
    node = _checked(
        node, key, {"says": str, "measurement": str, "row": str},
        {"below": None, "above": None, "recipe": str, "measure": str, "of": list, "headline": bool, "across": dict,
         "bar": bool, "ours": bool},
    )  # fmt: skip
    name = node["measurement"]
    if name not in measurements:
        raise ConfigError(f"{key}.measurement={name}: {nearest(name, measurements)}")
    rows = measurements[name].rows
    sides = [side for side in ("below", "above") if side in node]
    if len(sides) != 1:
        raise ConfigError(f"{key}: must have one of the keys below and above")
    (side,) = sides
    against = node[side]
    is_number = isinstance(against, int | float) and not isinstance(against, bool)
    others = () if is_number else tuple(against) if isinstance(against, list) else (str(against),)
    for row in (node["row"], *others):
        if row not in rows:
            raise ConfigError(f"{key}: {row} is no row of {name}; {nearest(str(row), rows)}")
    recipe = node.get("recipe", "fair")
    if recipe not in RECIPES:
        raise ConfigError(f"{key}.recipe={recipe}: {nearest(recipe, RECIPES)}")
    of = tuple(node.get("of") or (("mean",) if is_number else ("mean", "geometric_mean")))
    for statistic in of:
        if statistic not in STATISTICS:
            raise ConfigError(f"{key}.of=[…, {statistic}]: {nearest(str(statistic), STATISTICS)}")
    across = _numbers(node.get("across", {}), f"{key}.across")
    for other in across:
        if other not in measurements or node["row"] not in measurements[other].rows:
            raise ConfigError(f"{key}.across.{other}: must be a measurement that has the row {node['row']}")
    if (SLOPE in of) != (len(across) > 1) or (across and not is_number):
        raise ConfigError(f"{key}: of=[slope] is for two or more measurements in across, and a number in {side}")
    return Contrast(
        " ".join(node["says"].split()), name, node["row"], side, others or float(str(against)), recipe,
        node.get("measure"), of, node.get("headline", False), across, node.get("bar", False),
        node.get("ours", False),
    )  # fmt: skip


def _numbers(node: Mapping[str, Any], key: str) -> dict[str, float]:
    for name, x in node.items():
        if isinstance(x, bool) or not isinstance(x, int | float) or x <= 0:
            raise ConfigError(f"{key}.{name}={x}: must be a number > 0")
    return {str(name): float(x) for name, x in node.items()}


def _panel(node: Any, key: str, measurements: Mapping[str, Measurement]) -> Panel:
    texts = {"draw": str, "title": str, "of": str, "axis": str}
    node = _checked(node, key, {"measurement": str}, {**texts, "rows": list, "strong": list, "across": dict})
    name, draw = node["measurement"], node.get("draw", "curves")
    if name not in measurements:
        raise ConfigError(f"{key}.measurement={name}: {nearest(name, measurements)}")
    if draw not in DRAWN:
        raise ConfigError(f"{key}.draw={draw}: {nearest(draw, DRAWN)}")
    kind = measurements[name].kind
    if draw != kind and (draw in OF_KIND or kind in OF_KIND):
        raise ConfigError(f"{key}.draw={draw}: {name} is of kind={kind}; {', '.join(OF_KIND)} are drawn by themselves")
    known, across = measurements[name].rows, _numbers(node.get("across", {}), f"{key}.across")
    for row in (*node.get("rows", ()), *node.get("strong", ())):
        if row not in known:
            raise ConfigError(f"{key}: {row} is no row of {name}; {nearest(str(row), known)}")
    for other in across:
        if other not in measurements or not set(node.get("rows") or known) <= set(measurements[other].rows):
            raise ConfigError(f"{key}.across.{other}: must be a measurement that has the rows")
    if (draw == "scaling") != bool(across):
        raise ConfigError(f"{key}.across={dict(across)}: is for draw=scaling, which needs it")
    return Panel(
        draw, name, tuple(node.get("rows", ())), tuple(node.get("strong", ())),
        node.get("title", measurements[name].title), node.get("of"), across, node.get("axis", ""),
    )  # fmt: skip


def _checked(node: Any, key: str, required: Mapping[str, Any], optional: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with these keys, of these kinds."""
    known = {**required, **optional}
    if not isinstance(node, Mapping):
        raise ConfigError(f"{key}={node}: must have the keys {', '.join(required or known)}")
    for name, value in node.items():
        if name not in known:
            raise ConfigError(f"{key}.{name}=…: no such key{did_you_mean(str(name), known)}")
        kind = known[name]
        allowed = (int, float) if kind is float else kind
        is_right = kind is None or (isinstance(value, allowed) and (kind is bool or not isinstance(value, bool)))
        if not is_right and not (value is None and name in optional):
            raise ConfigError(f"{key}.{name}={value}: must be {_WORDS[kind]}")
    if missing := [name for name in required if name not in node]:
        raise ConfigError(f"{key}: lacks the key {missing[0]}")
    return {name: value for name, value in node.items() if value is not None}


_WORDS: dict[Any, str] = {
    str: "a text", list: "a list", dict: "a mapping", int: "a whole number", float: "a number", bool: "true or false",
}  # fmt: skip
