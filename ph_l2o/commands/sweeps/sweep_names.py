"""Names of a sweep's jobs, which carry the values that were swept: `3_mnist_lstm_meta.learning_rate-0.01_seed2`."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from ph_l2o.commands.overrides import overrides_of

_LONGEST = 120  # characters; file systems take 255 bytes
_OTHER = re.compile(r"[^\w.+@-]+", re.ASCII)
_IN_RUN_NAME = ("task", "optimizer")  # groups that `run_name` has already


def register_resolvers() -> None:
    """Make `${job_name:…}` and `${job_folder:…}` known, before the configuration is composed."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("job_name", _job_name, replace=True)
    OmegaConf.register_new_resolver("job_folder", _job_folder, replace=True)


def swept_values(overrides: list[str], fixed: list[str]) -> dict[str, str]:
    """Keys and values of a job's overrides, as typed, without those that all jobs of the sweep share.

    Args:
        overrides: Of the job, as `key=value`.
        fixed: Keys that are not swept.
    """
    pairs = [override.partition("=") for override in overrides]
    return {key: value for key, _, value in pairs if key not in fixed}


def legal_name(run_name: str, swept: dict[str, str], seed: int | None = None) -> str:
    """A name of at most 120 characters for folders, W&B, and unquoted values on Hydra's command line.

    So it has no `=`, which Hydra does not take there, nor commas, which mean a sweep. Where that, or the length, makes
    it lose something, it ends with a checksum: different values have different names.

    Args:
        run_name: What it begins with.
        swept: Values by key, in the order in which they are shown.
        seed: Comes last, as in `seed2`; None leaves it out, unless it is swept.

    Example:
        >>> legal_name("mnist_lstm", {"meta.learning_rate": "0.01", "seed": "2"}, 2)
        'mnist_lstm_meta.learning_rate-0.01_seed2'
    """
    shown = {key.lstrip("+~"): value for key, value in swept.items() if key not in _IN_RUN_NAME}
    if seed is None and "seed" in shown:
        seed = int(shown["seed"]) if shown["seed"].isdecimal() else None
    if seed is not None:
        shown.pop("seed", None)
    end = "" if seed is None else f"_seed{seed}"
    words = [f"{key}-{_OTHER.sub('+', value.strip('[]')) or 'null'}" for key, value in shown.items()]
    name = "_".join([_OTHER.sub("+", run_name), *(_OTHER.sub("+", word) for word in words)])
    exact = all(re.fullmatch(r"[\w.+@-]+", value, re.ASCII) for value in shown.values())
    if exact and len(name) + len(end) <= _LONGEST:
        return name + end
    mark = "_" + hashlib.sha256(repr(sorted(shown.items())).encode()).hexdigest()[:6]
    return name[: _LONGEST - len(end) - len(mark)] + mark + end


def _job_name(run_name: str, seed: Any = None) -> str:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    config = HydraConfig.get()
    typed, swept = overrides_of(config), dict[str, str]()
    if config.mode == RunMode.MULTIRUN:
        swept = swept_values(typed, list(config.job.config.override_dirname.exclude_keys))
    elif keys := _keys_of_agent():
        swept = {key: value for key, value in swept_values(typed, []).items() if key.lstrip("+~") in keys}
    return legal_name(str(run_name), swept, seed if isinstance(seed, int) else None)


def _keys_of_agent() -> set[str]:
    """What an agent of W&B has chosen, by the file that it leaves for the run."""
    from omegaconf import OmegaConf

    path = Path(os.environ.get("WANDB_SWEEP_PARAM_PATH", ""))
    return {str(key) for key in OmegaConf.load(path)} if path.is_file() else set()


def _job_folder(number: int, name: str, sweep: str) -> str:
    """The folder of the same values that is there, whatever its number; or a new one."""
    for path in sorted(Path(sweep).glob(f"[0-9]*_{name}")) if os.path.isdir(sweep) else []:
        if re.fullmatch(rf"\d+_{re.escape(name)}", path.name):
            return path.name
    return f"{number}_{name}"
