"""The same small trainings by any number of processes; run as a script, one of them: `python sharing.py FOLDER`.

The environment says which process it is (`NODE_RANK`, as on several machines with one process each).
"""

import os
import sys
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch import distributed as dist

from ph_l2o.estimators import ES, NRES, PES, ESSingle, Estimator, Full, Truncated
from ph_l2o.estimators.estimator import Estimate
from ph_l2o.meta import MetaLearner, MetaSettings, ProcessError, fit
from ph_l2o.optimizers import PortHamiltonian
from ph_l2o.tasks import Quadratic

K, OUTER_STEPS = 4, 8
NOISY = {"num_pairs": 2, "sigma": 0.05}
SCALARS: dict[str, Estimator] = {
    f"{cls.__name__}, {noise}": cls(noise=noise, **NOISY)
    for cls in (ES, PES, ESSingle, NRES)
    for noise in ("per_problem", "shared")
} | {"NRES, two draws": NRES(reuse=2 * K, **NOISY)}
GRADIENTS: dict[str, Estimator] = {
    "Truncated 2": Truncated(),
    "Truncated 1": Truncated(order=1),
    "Full": Full(),
    "PES, gradient": PES(exchange="gradient", **NOISY),
    "ES, gradient": ES(exchange="gradient", **NOISY),
}
RESUMED, DRIFTS = "PES, resumed", "ES, drifts"
BREAKS = {"Truncated, breaks": Truncated(), "PES, breaks": PES(**NOISY)}


class Breaks(Quadratic):
    """The fourth problem of the second episode is not finite."""

    def sample(self, keys, **where):
        problem = super().sample(keys, **where)
        if keys.split == "train" and keys.episode == 1 and 3 in keys.indices:
            problem.params.flat[list(keys.indices).index(3)] = torch.nan
        return problem


class Drifts(ES):
    """Another gradient in each process, as from processors that round differently."""

    def __call__(self, *arguments) -> Estimate:
        estimate = super().__call__(*arguments)
        return estimate._replace(gradient={k: g + dist.get_rank() for k, g in estimate.gradient.items()})


class Weights(pl.Callback):
    """Keeps the weights after every outer step."""

    def __init__(self):
        self.after: list[Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.after.append(torch.nn.utils.parameters_to_vector(pl_module.optimizer.parameters()).detach().clone())


def train(name: str, folder: Path, outer_steps: int = OUTER_STEPS, **trainer) -> dict:
    """Train from a fixed start; the weights after each step, the checkpoint and the metrics are in the result."""
    estimator = (SCALARS | GRADIENTS | BREAKS | {RESUMED: PES(**NOISY), DRIFTS: Drifts()})[name]
    torch.manual_seed(0)
    optimizer = PortHamiltonian(hidden_size=4).double()
    task = Breaks(3, noise=0.1) if name in BREAKS else Quadratic(3, noise=0.1)
    meta = MetaSettings(
        outer_steps=outer_steps, num_problems=4, horizons=(2 * K, 3 * K), truncation=K, val_every=5, val_problems=4,
        val_horizon=5, learning_rate=0.01,
    )  # fmt: skip
    learner, weights = MetaLearner(optimizer, task, estimator, meta, seed=3), Weights()
    fit(learner, folder / name, callbacks=[weights], precision="64-true", **trainer)
    return {"weights": torch.stack(weights.after), "skipped": learner.skipped_steps}


def resume(folder: Path, **trainer) -> dict:
    """One outer step more, of what `train(RESUMED, folder)` left."""
    last = folder / RESUMED / "checkpoints" / "last.ckpt"
    return train(RESUMED, folder, OUTER_STEPS + 1, ckpt_path=last, **trainer)


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    rank, folder = os.environ["NODE_RANK"], Path(sys.argv[1])
    found = {n: train(n, folder, strategy="ddp", num_nodes=2) for n in SCALARS | GRADIENTS | BREAKS}
    train(RESUMED, folder, strategy="ddp", num_nodes=2)
    found[RESUMED] = resume(folder, strategy="ddp", num_nodes=2)
    try:
        train(DRIFTS, folder, strategy="ddp", num_nodes=2)
    except ProcessError as error:
        found[DRIFTS] = str(error)
    torch.save(found, folder / f"{rank}.pt")
