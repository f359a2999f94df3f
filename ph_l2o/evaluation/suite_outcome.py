"""What a comparison on a suite of tasks found: losses, ratios, files of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ph_l2o.evaluation import estimates as stats
from ph_l2o.evaluation.result_files import ResultFiles
from ph_l2o.evaluation.suite_ratios import Ratio, RatioSummary, json_key
from ph_l2o.evaluation.suite_runs import Run
from ph_l2o.evaluation.tuning import Tuned

BASELINE, UNTUNED, LEARNED = "baseline", "untuned", "learned"


@dataclass(frozen=True, eq=False)
class TaskOutcome:
    """What all optimizers reached on a task.

    Attributes:
        horizon: Inner steps.
        runs: By optimizer.
        tuned: Of the baselines, by optimizer.
        best_baseline: The tuned baseline with the lowest mean loss on the test problems; None if there is none.
        ratios: By optimizer: to the reference, to the best baseline, to the best untuned one; `held_out`, that of the
            test loss to the reference; and `speed_up`.
        steps: By optimizer, the steps after which it had the reference's loss at the end; None if it never had.
    """

    horizon: int
    runs: dict[str, Run]
    tuned: dict[str, Tuned]
    best_baseline: str | None
    ratios: dict[str, dict[str, Ratio]]
    steps: dict[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SuiteOutcome(ResultFiles):
    """What `compare_suite` found, or the part of it that is done.

    Attributes:
        name: Of the suite.
        tasks: Outcomes by task, as far as they are done.
        num_tasks: Tasks of the whole suite.
        roles: `learned`, `baseline` (tuned here) or `untuned`, by optimizer.
        summary: Over tasks, by optimizer, of the ratios of `TaskOutcome`.
        settings: How the comparison was made.
    """

    name: str
    tasks: dict[str, TaskOutcome]
    num_tasks: int
    roles: dict[str, str]
    summary: dict[str, dict[str, RatioSummary]]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row for each task and optimizer, with Python's inf and None."""
        return [self._row(task, name) for task, outcome in self.tasks.items() for name in outcome.runs]

    def _row(self, task: str, name: str) -> dict[str, Any]:
        outcome = self.tasks[task]
        run, tuned = outcome.runs[name], outcome.tuned.get(name)
        ratios = {json_key(k): {"ratio": r.value, "ci95": list(r.ci95)} for k, r in outcome.ratios[name].items()}
        accuracy = run.metrics.get("accuracy")
        return {
            "task": task,
            "horizon": outcome.horizon,
            "parameters": run.coordinates,
            "optimizer": name,
            "kind": self.roles[name],
            "loss": stats.mean(run.losses),
            "losses": run.losses.tolist(),
            "starts": run.starts.tolist(),
            "diverged": int(run.diverged.sum()),
            "held_out_loss": None if run.held_out is None else stats.mean(run.held_out),
            "held_out_losses": None if run.held_out is None else run.held_out.tolist(),
            "accuracy": None if accuracy is None else stats.mean(accuracy),
            "best_baseline": outcome.best_baseline,
            **ratios,
            "steps_to_reference": outcome.steps.get(name),
            "step_seconds": run.step_seconds,
            "hyperparameters": tuned and tuned.hyperparameters,
            "schedule": tuned and tuned.schedule,
        }

    def to_dict(self) -> dict[str, Any]:
        """See `ResultFiles`."""
        summary = {n: {json_key(k): s._asdict() for k, s in parts.items()} for n, parts in self.summary.items()}
        complete = len(self.tasks) == self.num_tasks
        return {"suite": self.name, "complete": complete, **self.settings, "summary": summary, "rows": self.rows}

    def flat_rows(self) -> list[dict[str, Any]]:
        """See `ResultFiles`; the parts of a ratio become columns."""
        flat = []
        for row in self.rows:
            line = {k: v for k, v in row.items() if not isinstance(v, dict | list)}
            for key, value in row.items():
                if isinstance(value, dict) and "ci95" in value:
                    line[key] = value["ratio"]
                    line[f"{key}_low"], line[f"{key}_high"] = value["ci95"]
            line["learning_rate"] = (row["hyperparameters"] or {}).get("lr")
            flat.append(line)
        return flat

    def judged(self) -> list[str]:
        """The optimizers that the suite is about: the learned ones, or all where there are none."""
        return [n for n, kind in self.roles.items() if kind == LEARNED] or list(self.roles)
