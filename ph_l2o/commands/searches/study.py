"""A study of Optuna in the folder of a search: several processes work on it, and it outlives each of them.

`study.journal` has what was asked and told. A process holds `.process_<id>.lock` while it lives, so that others know
whose trials were stopped; `.claims.lock` is held while trials are claimed.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ph_l2o.commands.searches.search_space import SearchSpace
from ph_l2o.errors import ConfigError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

JOURNAL = "study.journal"
_NAME, _SETTINGS, _PROCESS = "search", "settings", "process"
SAMPLERS = ("TPESampler", "RandomSampler", "GPSampler")
PRUNERS = ("MedianPruner", "PercentilePruner", "SuccessiveHalvingPruner", "ThresholdPruner", "PatientPruner")


def check_installed() -> None:
    """Raise ConfigError where Optuna is missing."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(f"hparams_search: needs Optuna ({error}); pip install 'ph-l2o[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def make(node: Mapping[str, Any] | None, key: str, module: Any, names: tuple[str, ...], **more: Any) -> Any:
    """A sampler or pruner of Optuna; None for None.

    Args:
        node: Its `_target_` and arguments, among which there may be others.
        key: Where it stands in the configuration.
        module: Of Optuna.
        names: Of the classes in it that are allowed.
        more: Arguments that win over those of the node.

    Raises:
        ConfigError: If it is none of these, or has other arguments.
    """
    if node is None:
        return None
    target = str(node.get("_target_"))
    allowed = [f"{module.__name__}.{name}" for name in names]
    if target not in allowed:
        raise ConfigError(f"{key}._target_={target}: must be one of {', '.join(allowed)}")
    values = {k: v for k, v in node.items() if k != "_target_"}
    made = {k: make(v, f"{key}.{k}", module, names) if isinstance(v, Mapping) else v for k, v in values.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a class is experimental
            return getattr(module, target.rpartition(".")[2])(**made | more)
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"{key}: {target.rpartition('.')[2]}: {str(error).splitlines()[0]}") from error


def open_study(folder: Path, *, pruner: Any = None) -> Study:
    """The study of a folder, which is made where there is none.

    Raises:
        ConfigError: If its file can't be read.
    """
    import optuna
    from filelock import FileLock
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = folder / JOURNAL
    lock: Any = FileLock(folder / ".journal.lock")  # of the system, so it ends with its process; Optuna's do not
    with lock:
        _cut_half_line(path)
    try:
        storage = JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
        begin = optuna.create_study
        more: dict[str, Any] = {"direction": "minimize", "load_if_exists": True}
        if _NAME in optuna.get_all_study_names(storage):  # else it would be noted in the file at each start
            begin, more = optuna.load_study, {}
        return begin(
            storage=storage,
            sampler=optuna.samplers.RandomSampler(),
            pruner=pruner or optuna.pruners.NopPruner(),
            study_name=_NAME,
            **more,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{os.path.relpath(path)}: is no study of a search, or damaged ({type(error).__name__}: {error}); put a "
            "good copy in its place, or choose another hydra.sweeper.study_name"
        ) from error


def _cut_half_line(path: Path) -> None:
    """Drop what a full disk, or a crash of the machine, left of a last line: it was never told to anybody."""
    if path.is_file() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


class SharedStudy:
    """A study of which this process claims trials.

    Args:
        folder: Of the search.
        space: What is varied and what is fixed.
        sampler: A node for `make`, with a `seed` or without.

    Raises:
        ConfigError: If the study was begun with other settings.
    """

    def __init__(self, folder: Path, space: SearchSpace, sampler: Mapping[str, Any]):
        self.folder, self.space, self.sampler = folder, space, sampler
        self._id = uuid.uuid4().hex
        self.study = open_study(folder)

    @contextlib.contextmanager
    def joined(self) -> Iterator[SharedStudy]:
        """Hold the lock that tells others that this process is alive."""
        from filelock import FileLock

        with self._claiming():
            self._check_settings()
        own = self.folder / f".process_{self._id}.lock"
        try:
            with FileLock(own):
                yield self
        finally:
            own.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _claiming(self) -> Iterator[None]:
        from filelock import FileLock

        try:
            with FileLock(self.folder / ".claims.lock"):
                yield
        except NotImplementedError as error:
            raise ConfigError(f"{self.folder}: the file system has no locks, which a search needs") from error

    def _check_settings(self) -> None:
        from optuna.distributions import distribution_to_json

        varied = {key: json.loads(distribution_to_json(d)) for key, d in sorted(self.space.varied.items())}
        fixed = sorted(o for key, o in self.space.fixed.items() if key.partition(".")[0] != "paths")
        settings = {"fixed": fixed, "varied": varied}
        before = self.study.user_attrs.get(_SETTINGS)
        if before is None:
            self.study.set_user_attr(_SETTINGS, settings)
        elif problem := _difference(before, settings):
            raise ConfigError(
                f"hydra.sweeper.study_name={self.folder.name}: {problem}; type what it was begun with, or another name"
            )

    def claim(self, count: int, total: int) -> list[FrozenTrial]:
        """Up to `count` trials to run: first those whose process has ended without telling, then new ones.

        Args:
            count: At most, >= 1.
            total: Trials that the study is to have in all.
        """
        from optuna.trial import Trial, TrialState

        with self._claiming():
            trials = self.study.get_trials(deepcopy=False)
            open_ones = (t for t in trials if t.state == TrialState.RUNNING)
            claimed = [t.number for t in open_ones if not self._is_alive(t)][:count]
            more = min(count - len(claimed), total - len(trials))
            claimed += [self._ask(len(trials) + k) for k in range(more)]
            trials = self.study.get_trials(deepcopy=False)
            for number in claimed:
                Trial(self.study, trials[number]._trial_id).set_user_attr(_PROCESS, self._id)
            return [self.study.get_trials()[number] for number in claimed]

    def _ask(self, number: int) -> int:
        """A new trial. What is proposed depends on the study's trials alone, not on which process asks."""
        import numpy as np
        import optuna

        seed = self.sampler.get("seed")
        more = {} if seed is None else {"seed": int(np.random.SeedSequence([seed, number]).generate_state(1)[0])}
        self.study.sampler = make(self.sampler, "hydra.sweeper.sampler", optuna.samplers, SAMPLERS, **more)
        return self.study.ask(self.space.varied).number

    def _is_alive(self, trial: FrozenTrial) -> bool:
        """Whether the process that claimed a trial lives. A job that has outlived it is waited for by its successor."""
        owner = trial.user_attrs.get(_PROCESS)
        return owner != self._id and _is_held(self.folder / f".process_{owner}.lock")

    def tell(self, number: int, outcome: Any) -> None:
        """Tell Optuna how a trial ended, by an `Outcome`."""
        from optuna.trial import Trial, TrialState

        trial = Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)
        trial.set_user_attr("status", outcome.status)
        if outcome.error:
            trial.set_user_attr("error", outcome.error)
        states = {"pruned": TrialState.PRUNED, "error": TrialState.FAIL}
        self.study.tell(number, outcome.score, state=states.get(outcome.status, TrialState.COMPLETE))

    def folder_of(self, number: int) -> Path | None:
        """Where a trial's job has been at work."""
        return next(iter(self.folder.glob(f"{number}_*")), None)


def _is_held(path: Path) -> bool:
    from filelock import FileLock, Timeout

    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def _difference(before: Any, now: Any) -> str:
    """What differs first between the settings of a study, in words; nothing if they are the same."""
    for key in {**before["varied"], **now["varied"]}:
        old, new = before["varied"].get(key), now["varied"].get(key)
        if old != new:
            return f"{key} was {_words(old)}, and is now {_words(new)}"
    lost, added = ([o for o in a["fixed"] if o not in b["fixed"]] for a, b in ((before, now), (now, before)))
    if not lost and not added:
        return ""
    told = [f"was begun with {' '.join(lost)}"] * bool(lost) + [f"was begun without {' '.join(added)}"] * bool(added)
    return ", ".join(told)


def _words(distribution: Any) -> str:
    if distribution is None:
        return "not varied"
    values = {k: v for k, v in distribution["attributes"].items() if v is not None}
    return "varied by " + json.dumps(values).replace('"', "")
