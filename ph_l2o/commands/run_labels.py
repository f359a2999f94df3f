"""What a job is called in W&B beside its name: its kind, its sweep, its options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ph_l2o.commands.searches.search_space import is_search


def register_labels() -> None:
    """Make `${sweep_name:}`, `${job_type:}` and `${choices:}` known to Hydra."""
    from omegaconf import OmegaConf

    for name, resolver in {"sweep_name": _sweep_name, "job_type": _job_type, "choices": _choices}.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def _sweep_name() -> str | None:
    """Date and name of a multirun's folder, or the study of a search; None for a single run."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    config = HydraConfig.get()
    if config.mode != RunMode.MULTIRUN:
        return None
    return "_".join(Path(config.sweep.dir).parts[-1 if is_search(config) else -2 :])


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
