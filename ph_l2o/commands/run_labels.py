"""What a job is called beside its folder, in W&B: its kind, its options, what was swept."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

_IN_RUN_NAME = ("task", "optimizer", "seed")


def register_labels() -> None:
    """Make `${sweep_name:}`, `${swept:}`, `${job_type:}` and `${choices:}` known to Hydra."""
    from omegaconf import OmegaConf

    for name, resolver in {
        "sweep_name": _sweep_name, "swept": _swept, "job_type": _job_type, "choices": _choices,
    }.items():  # fmt: skip
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def _is_multirun() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.get().mode == RunMode.MULTIRUN


def _sweep_name() -> str | None:
    """Date and name of a multirun's folder; None for a single run."""
    from hydra.core.hydra_config import HydraConfig

    return "_".join(Path(HydraConfig.get().sweep.dir).parts[-2:]) if _is_multirun() else None


def _swept() -> str:
    """What a job of a multirun, or of an agent of W&B, has for itself, ready to be added to a name."""
    from hydra.core.hydra_config import HydraConfig

    if not (_is_multirun() or "WANDB_SWEEP_ID" in os.environ):
        return ""
    keys, label = _typed_sweeps() | set(HydraConfig.get().sweeper.get("params") or ()) | _keys_of_agent(), ""
    for override in HydraConfig.get().overrides.task:
        key, _, value = override.lstrip("+~").partition("=")
        # Where nothing says what is swept, as in a worker of a parallel launcher, it is all that was typed.
        if key not in _IN_RUN_NAME and (key in keys or not keys):
            label += f"_{key}={_short(value)}"
    return label


def _typed_sweeps() -> set[str]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    typed = [a for a in sys.argv[1:] if "=" in a and not a.startswith("-")]
    return {str(o.key_or_group) for o in OverridesParser.create().parse_overrides(typed) if o.is_sweep_override()}


def _keys_of_agent() -> set[str]:
    """What an agent of W&B has chosen, by the file that it leaves for the run."""
    from omegaconf import OmegaConf

    path = Path(os.environ.get("WANDB_SWEEP_PARAM_PATH", ""))
    return {str(key) for key in OmegaConf.load(path)} if path.is_file() else set()


def _short(value: str) -> str:
    try:
        return value if value.lstrip("-").isdecimal() else f"{float(value):.4g}"
    except ValueError:
        return value


def _job_type() -> str:
    from hydra.core.hydra_config import HydraConfig

    config = HydraConfig.get()
    is_suite = config.runtime.choices.get("suite") not in (None, "null")
    return "suite" if is_suite else str(config.job.config_name)


def _choices() -> dict[str, Any]:
    """Options by group, without Hydra's own and without groups of which none is chosen."""
    from hydra.core.hydra_config import HydraConfig

    chosen = HydraConfig.get().runtime.choices.items()
    return {g: o for g, o in chosen if o not in (None, "null") and "/" not in g and "@" not in g}
