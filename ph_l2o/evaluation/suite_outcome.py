"""What a comparison on a suite of tasks found: losses, ratios, files of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ph_l2o.evaluation import estimates as stats
from ph_l2o.evaluation.suite_ratios import Ratio, Summary
from ph_l2o.evaluation.suite_runs import Run
from ph_l2o.evaluation.tuning import Tuned
from ph_l2o.files import json_text, write_atomically

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class TaskOutcome:
    """What all optimizers reached on a task.

    Attributes:
        horizon: Inner steps.
        runs: By optimizer.
        tuned: Of the baselines, by optimizer.
        best_baseline: The tuned baseline with the lowest mean loss on the test problems; None if there is none.
        ratios: By optimizer: to the tuned Adam, and to the best baseline.
    """

    horizon: int
    runs: dict[str, Run]
    tuned: dict[str, Tuned]
    best_baseline: str | None
    ratios: dict[str, dict[str, Ratio]]


@dataclass(frozen=True, eq=False)
class SuiteOutcome:
    """What `compare_suite` found, or the part of it that is done.

    Attributes:
        name: Of the suite.
        tasks: Outcomes by task, as far as they are done.
        num_tasks: Tasks of the whole suite.
        roles: `learned` or `baseline`, by optimizer.
        summary: Over tasks, by optimizer: of the ratios to Adam, and to the best baseline.
        settings: How the comparison was made.
    """

    name: str
    tasks: dict[str, TaskOutcome]
    num_tasks: int
    roles: dict[str, str]
    summary: dict[str, dict[str, Summary]]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row for each task and optimizer, with Python's inf and None."""
        return [self._row(task, name) for task, outcome in self.tasks.items() for name in outcome.runs]

    def _row(self, task: str, name: str) -> dict[str, Any]:
        outcome = self.tasks[task]
        run, tuned = outcome.runs[name], outcome.tuned.get(name)
        ratios = {f"ratio_to_{k}": {"ratio": r.value, "ci95": list(r.ci95)} for k, r in outcome.ratios[name].items()}
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
            "best_baseline": outcome.best_baseline,
            **ratios,
            "step_seconds": run.step_seconds,
            "hyperparameters": tuned and tuned.hyperparameters,
            "schedule": tuned and tuned.schedule,
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """The comparison as JSON, infinity as the string "inf"; with a path, it is also written there."""
        summary = {n: {f"ratio_to_{k}": s._asdict() for k, s in parts.items()} for n, parts in self.summary.items()}
        complete = len(self.tasks) == self.num_tasks
        content = {"suite": self.name, "complete": complete, **self.settings, "summary": summary, "rows": self.rows}
        text = json_text(content)
        if path is not None:
            write_atomically(path, text)
        return text

    def to_frame(self) -> DataFrame:
        """One line for each task and optimizer; the parts of a ratio become columns."""
        import pandas as pd

        flat = []
        for row in self.rows:
            line = {k: v for k, v in row.items() if not isinstance(v, dict | list)}
            for key in ("ratio_to_adam", "ratio_to_best_baseline"):
                if key in row:
                    line[key] = row[key]["ratio"]
                    line[f"{key}_low"], line[f"{key}_high"] = row[key]["ci95"]
            line["learning_rate"] = (row["hyperparameters"] or {}).get("lr")
            flat.append(line)
        return pd.DataFrame(flat)

    def to_csv(self, path: str | Path) -> Path:
        """Write `to_frame` as a CSV file."""
        return write_atomically(path, self.to_frame().to_csv(index=False))

    def judged(self) -> list[str]:
        """The optimizers that the suite is about: those not tuned here, or all where all were."""
        return [n for n, kind in self.roles.items() if kind != "baseline"] or list(self.roles)
