"""What a search varies and what it holds fixed, from overrides such as `meta.learning_rate=interval(0.001, 0.1)`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from ph_l2o.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


class SearchSpace(NamedTuple):
    """Keys as they are typed, so also groups, and keys with a `+`."""

    fixed: dict[str, str]  # key: the whole override
    varied: dict[str, BaseDistribution]


def is_search(hydra: Any) -> bool:
    """Whether Hydra's part of a configuration is that of a search, whose jobs are trials of a study."""
    return "trial" in hydra.sweeper


def read_space(params: Mapping[str, Any], typed: Iterable[str], config_loader: Any) -> SearchSpace:
    """The space of a search; what is typed wins over `params`.

    Args:
        params: Of `hydra.sweeper.params`, values as they are typed.
        typed: Overrides of the command line.
        config_loader: Hydra's, for `glob(…)`.

    Raises:
        ConfigError: If there is nothing to vary, or a distribution is empty.
        OverrideParseException: If an override isn't understood.
    """
    parser = OverridesParser.create(config_loader=config_loader)
    overrides = parser.parse_overrides([*(f"{key}={value}" for key, value in params.items()), *typed])
    space = SearchSpace({}, {})
    for override in overrides:
        key = override.get_key_element()
        space.fixed.pop(key, None)
        space.varied.pop(key, None)
        if override.is_sweep_override():
            space.varied[key] = _distribution(override)
        else:
            space.fixed[key] = str(override.input_line)
    if not space.varied:
        raise ConfigError(
            "hydra.sweeper.params: nothing is varied; type a key such as 'optimizer.init_lr=interval(0.01, 1)'"
        )
    return space


def _distribution(override: Override) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value, shown = override.value(), override.input_line
    if isinstance(value, IntervalSweep):
        low, high, more = value.start, value.end, {"log": "log" in value.tags}
        whole = isinstance(low, int) and isinstance(high, int)
        if more["log"] and isinstance(low, int | float) and low <= 0:
            raise ConfigError(f"{shown}: on a log scale, the lower end must be > 0")
    elif isinstance(value, RangeSweep) and not value.shuffle:
        low, high, more = value.start, value.stop, {"step": value.step}
        whole = all(isinstance(v, int) for v in (low, high, value.step))
        if not isinstance(value.step, int | float) or value.step <= 0:
            raise ConfigError(f"{shown}: the step must be > 0")
    else:
        choices = [_choice(x) for x in override.sweep_iterator()]
        if len(set(map(str, choices))) < len(choices):
            raise ConfigError(f"{shown}: names a choice twice")
        return CategoricalDistribution(choices)
    if low is None or high is None or not low < high:
        raise ConfigError(f"{shown}: the lower end must be below the upper one")
    return IntDistribution(low, high, **more) if whole else FloatDistribution(low, high, **more)  # type: ignore[arg-type]


def _choice(value: Any) -> bool | int | float | str:
    """Numbers as they are, and anything else as it is typed."""
    return value if isinstance(value, bool | int | float) else Override._get_value_element_as_str(value)


def typed_value(key: str, value: Any) -> str:
    """A value of a varied key as an override."""
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"
