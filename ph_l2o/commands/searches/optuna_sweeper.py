"""`hparams_search=…`: a sweeper of Hydra that asks Optuna for the settings of each job, and tells it their scores."""

from __future__ import annotations

import logging
import re
import shlex
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from ph_l2o.checks import at_least, number
from ph_l2o.commands.searches.search_space import SearchSpace, read_space, typed_value
from ph_l2o.commands.searches.study import PRUNERS, SAMPLERS, SharedStudy, check_installed, make
from ph_l2o.commands.searches.study_report import report
from ph_l2o.commands.searches.trial_outcome import outcome_of
from ph_l2o.errors import ConfigError, Interrupted, OtherRunError, ProcessError

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

_NAME = "hydra_plugins.ph_l2o.OptunaSweeper"


def register_sweeper() -> None:
    """Make the sweeper known to Hydra, which takes those of its own namespace alone."""
    Plugins.instance().class_name_to_class[_NAME] = OptunaSweeper


class OptunaSweeper(Sweeper):
    """Runs the trials of a study, `n_jobs` at once, until it has `n_trials`.

    Args:
        n_trials: Of the study in all, >= 1.
        n_jobs: Trials that are launched together, >= 1.
        max_failure_rate: Share of the trials launched together that may end by an error, in [0, 1].
        study_name: Of the study, and of the folder that it lies in.
        sampler: A node for a sampler of Optuna.
        pruner: The same for a pruner, or None.
        params: The search space, keys with values as they are typed.
        trial: Set for each job, by the search.
    """

    def __init__(
        self, n_trials: int, n_jobs: int, max_failure_rate: float, study_name: str, sampler: Any, pruner: Any,
        params: Any, trial: int | None = None,
    ):  # fmt: skip
        del trial  # is read by the job
        if not re.fullmatch(r"\w[\w.+-]*", str(study_name or "")):
            raise ConfigError(f"hydra.sweeper.study_name={study_name}: must be a name for a folder")
        self.n_trials = at_least("hydra.sweeper.n_trials", n_trials, 1, "trials in all")
        self.n_jobs = at_least("hydra.sweeper.n_jobs", n_jobs, 1, "trials at once")
        if number("hydra.sweeper.max_failure_rate", max_failure_rate, minimum=0.0) > 1:
            raise ConfigError(f"hydra.sweeper.max_failure_rate={max_failure_rate}: must be in [0, 1]")
        self.max_failure_rate = max_failure_rate
        self.sampler, self.pruner, self.params = (_plain(node) for node in (sampler, pruner, params))

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See Hydra's `Sweeper`.

        Raises:
            ConfigError: If Optuna is not installed, or its sampler or pruner cannot be made.
        """
        check_installed()
        import optuna

        make(self.sampler or {}, "hydra.sweeper.sampler", optuna.samplers, SAMPLERS)
        make(self.pruner, "hydra.sweeper.pruner", optuna.pruners, PRUNERS)
        self.master, self.loader = config, hydra_context.config_loader
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that the study lacks, and tell the best.

        Raises:
            ConfigError: If the search space doesn't fit the configuration, or the study was begun with another one;
                nothing is begun then.
            OtherRunError: If the folder of a trial belongs to a run with other settings.
            ProcessError: If more trials failed than is tolerated, or the launcher lost its jobs.
            Interrupted: After a signal; the study can go on.
        """
        folder = Path(self.master.hydra.sweep.dir)
        space = read_space(self.params or {}, arguments, self.loader)
        self._check_keys(space)
        if self.n_jobs > 1 and self.master.hydra.runtime.choices["hydra/launcher"] == "basic":
            log.warning("hydra.sweeper.n_jobs=%d: hydra/launcher=basic runs them one by one", self.n_jobs)
        folder.mkdir(parents=True, exist_ok=True)
        shared = SharedStudy(folder, space, self.sampler)
        again = shlex.quote(f"hydra.sweeper.study_name={folder.name}")
        go_on = f"the same command with {again} goes on"
        try:
            with shared.joined():
                while trials := shared.claim(self.n_jobs, self.n_trials):
                    self._run(shared, trials, go_on)
                    report(shared)
        except (KeyboardInterrupt, Interrupted) as error:
            signal_number = error.number if isinstance(error, Interrupted) else signal.SIGINT
            raise Interrupted(signal_number, go_on) from error
        report(shared, aloud=True)

    def _check_keys(self, space: SearchSpace) -> None:
        """Compose the configuration with a value of each varied key, and with every option of a group."""
        from optuna.distributions import CategoricalDistribution

        firsts: dict[str, str] = {}
        others: list[tuple[str, str]] = []
        for key, distribution in space.varied.items():
            choices: Sequence[Any] = [getattr(distribution, "low", None)]
            if isinstance(distribution, CategoricalDistribution):
                choices = distribution.choices
            typed = [typed_value(key, choice) for choice in choices]
            firsts[key] = typed[0]
            if self.loader.get_group_options(key.lstrip("+").partition("@")[0]):
                others += [(key, each) for each in typed[1:]]
        for key, override in [("", ""), *others]:
            tried = firsts | {key: override} if key else firsts
            self.loader.load_sweep_config(self.master, [*space.fixed.values(), *tried.values()])

    def _run(self, shared: SharedStudy, trials: list[FrozenTrial], go_on: str) -> None:
        """Run trials, or what is left of them, and tell how they ended."""
        jobs = [self._overrides(shared, trial) for trial in trials]
        try:
            returns = self.launcher.launch(jobs, initial_job_idx=trials[0].number)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ProcessError(f"the launcher lost its jobs ({reason}); {go_on}") from error
        for each in returns:
            if isinstance(each._return_value, OtherRunError):
                raise each._return_value
        ended = {trial.number: outcome_of(shared.folder_of(trial.number)) for trial in trials}
        failed = {n: outcome for n, outcome in ended.items() if outcome.status == "error"}
        tolerated = len(failed) <= self.max_failure_rate * len(ended)
        for n, outcome in ended.items():
            if tolerated or n not in failed:
                shared.tell(n, outcome)
        if not tolerated:
            report(shared)
            n, outcome = next(iter(failed.items()))
            raise ProcessError(
                f"trial {n}: {outcome.error} ({len(failed)} of {len(ended)} trials failed, more than "
                f"hydra.sweeper.max_failure_rate={self.max_failure_rate}; {go_on}, and tries them again)"
            )

    def _overrides(self, shared: SharedStudy, trial: FrozenTrial) -> list[str]:
        values = (typed_value(key, value) for key, value in trial.params.items())
        return [*shared.space.fixed.values(), *values, f"hydra.sweeper.trial={trial.number}"]


def _plain(node: Any) -> Any:
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    assert plain is None or isinstance(plain, Mapping)
    return plain
