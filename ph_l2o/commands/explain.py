"""One line for each error that a user can make."""

from __future__ import annotations

import errno
import re

from ph_l2o.checks import did_you_mean
from ph_l2o.commands.folders import conf_dir
from ph_l2o.errors import (
    CheckpointError,
    CompileError,
    CompilerError,
    ConfigError,
    DataError,
    NonFiniteError,
    ProcessError,
    ReportError,
    WeightsError,
)

_OWN = (
    CheckpointError, CompileError, CompilerError, ConfigError, DataError, NonFiniteError, ProcessError, ReportError,
    WeightsError,
)  # fmt: skip

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_MOVED = {"estimator.truncation": "meta.truncation"}

_OTHER = {"train": "evaluate", "evaluate": "train"}  # commands that share experiments


def explain(error: BaseException, config_name: str) -> str | None:
    """The one line, or None for an error that only a traceback explains."""
    chain = _chain(error)
    # The errors that were raised for the user come first, then what Hydra made of others.
    for message in (*map(_explain_own, chain), *(_explain_hydra(link, config_name) for link in chain)):
        if message is not None:
            return " ".join(message.split())
    return None


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _explain_own(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, _OWN):
        return text
    if isinstance(error, ValueError | TypeError | FileNotFoundError) and _names_a_key(text):
        return text
    return None


def _explain_hydra(error: BaseException, config_name: str) -> str | None:
    from hydra.errors import (
        ConfigCompositionException,
        HydraException,
        MissingConfigException,
        OverrideParseException,
    )
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = sorted(error.options)
        return f"{group}={name}: no such option; there are {', '.join(options)}{did_you_mean(name, options)}"
    if isinstance(error, ConfigCompositionException):
        return _explain_override(error, config_name)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not understood; write key=value, and quote lists: 'key=[a, b]'"
    if isinstance(error, OSError):
        return _explain_file(error)
    if isinstance(error, ValueError) and "Config group override must be" in str(error):
        return "a group has no option null; leave the group away, or choose an option that `--help` prints"
    if isinstance(error, OmegaConfBaseException | HydraException):
        return str(error).splitlines()[0]
    return None


def _explain_file(error: OSError) -> str:
    what = error.filename or "a file can't be read or written"
    hint = "make room, or choose" if error.errno in _FULL else "choose"
    return f"{what}: {error.strerror or error}; {hint} another folder with paths.runs=…"


def _names_a_key(text: str) -> bool:
    """Whether an error follows the convention `key=value: what is allowed`."""
    return re.match(r"[\w.]+=.*: ", text) is not None


def _explain_override(error: BaseException, config_name: str) -> str | None:
    text = str(error)
    match = re.search(r"Could not override '([^']+)'", text)
    if match and match.group(1) in _MOVED:
        return f"{match.group(1)}: no such key; it is {_MOVED[match.group(1)]}"
    match = re.search(r"In 'experiment/([^']+)': Could not override '([^']+)'", text)
    if match and config_name in _OTHER:
        return (
            f"experiment={match.group(1)}: sets {match.group(2)}=, which {config_name}.py lacks; this experiment is "
            f"for {_OTHER[config_name]}.py"
        )
    match = re.match(r"Ambiguous value for argument '(([^=]+)=([^']*))'", text)
    if match:
        argument, key, values = match.groups()
        return f"{argument}: several values are a sweep, with --multirun; a list is '{key}=[{values}]'"
    match = re.search(r"Could not override '([^']+)'", text)
    if match:
        key = match.group(1)
        return f"{key}: no such key{did_you_mean(key, _keys(config_name))} (`--cfg job` prints all)"
    match = re.search(r"Could not append to config\. An item is already at '([^']+)'", text)
    if match:
        return f"+{match.group(1)}: the key exists; write it without the +"
    return text.splitlines()[0]


def _keys(config_name: str) -> list[str]:
    """Every key and group of the configuration with the groups that the user chose."""
    import sys

    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import DictConfig

    groups = [a for a in sys.argv[1:] if re.match(r"^[a-z_]+=[\w,]+$", a)]
    GlobalHydra.instance().clear()
    config: DictConfig | None = None
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        for overrides in (groups, []):
            try:
                config = compose(config_name, overrides=[g.split(",")[0] for g in overrides])
                break
            except Exception:  # the user's own overrides may be what is wrong
                continue
    keys: list[str] = []

    def walk(node: DictConfig, prefix: str) -> None:
        for key in node:
            keys.append(prefix + str(key))
            value = node._get_node(key)
            if isinstance(value, DictConfig) and not value._is_none():
                walk(value, f"{prefix}{key}.")

    if config is not None:
        walk(config, "")
    return keys
