"""What Hydra needs to know before it composes `conf/`: presets, resolvers, and the sweeper of searches."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from ph_l2o.commands import folders
from ph_l2o.commands.folders import conf_dir
from ph_l2o.commands.run_labels import register_labels
from ph_l2o.commands.searches.optuna_sweeper import register_sweeper
from ph_l2o.commands.sweeps import sweep_names


def register() -> None:
    """Make options of `conf/presets.yaml` and `conf/launchers.yaml`, resolvers and the sweeper known to Hydra."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins
    from omegaconf import OmegaConf

    folders.register_resolvers()
    sweep_names.register_resolvers()
    register_labels()
    register_sweeper()
    OmegaConf.register_new_resolver("options", _list_options, replace=True)
    OmegaConf.register_new_resolver("values", _list_values, replace=True)
    store = ConfigStore.instance()
    store.__deepcopy__ = lambda memo: store  # type: ignore[attr-defined]  # Hydra would copy it hundreds of times
    presets: Any = OmegaConf.to_container(OmegaConf.load(Path(conf_dir()) / "presets.yaml"))
    for group, options in presets.items():
        for name, keys in options.items():
            store.store(name, keys or {}, group, package=None if keys else "_global_")  # an empty one leaves no node
    Plugins.instance()  # launchers' packages store options of the same names, which ours take the place of
    launchers: Any = OmegaConf.to_container(OmegaConf.load(Path(conf_dir()) / "launchers.yaml"))
    for name, keys in launchers.items():
        store.store(name, keys, "hydra/launcher")


def applied_presets() -> list[str]:
    """The presets that this job's configuration was made with, as `group=option`."""
    from hydra.core.hydra_config import HydraConfig

    choices = ((key.partition("@")[0], option) for key, option in HydraConfig.get().runtime.choices.items())
    refined = ((group, option) for group, option in choices if group.rpartition("/")[2].startswith("for_"))
    return [f"{group}={option}" for group, option in refined if option in _options(group)]


def _options(group: str) -> list[str]:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.object_type import ObjectType

    sources = GlobalHydra.instance().config_loader().get_sources()
    found = (source.list(group, ObjectType.CONFIG) for source in sources if source.is_group(group))
    return sorted({option for options in found for option in options})


def _list_options(*groups: str) -> str:
    """For `--help`: the options of groups, a line for each."""
    lines = (f"{group}: {', '.join(_options(group))}" for group in groups)
    return "\n".join(textwrap.fill(line, 118, initial_indent="  ", subsequent_indent="    ") for line in lines)


def _list_values(*keys: str, _root_: Any) -> str:
    """For `--help`: values as composed, `key=value` as one types them."""
    from omegaconf import OmegaConf

    def typed(value: Any) -> str:
        plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":")).replace('"', "")

    return "  ".join(f"{key}={typed(OmegaConf.select(_root_, key))}" for key in keys)
