from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from ph_l2o.keys import ProblemKeys, Purpose, normals
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.params import Params
from ph_l2o.tasks.task import Problem, Task


class Descent(LearnedOptimizer):
    """Gradient descent with the interface of the classical optimizers, from outside the package."""

    grid: ClassVar[dict[str, tuple[float, ...]]] = {"lr": (0.001, 0.01, 0.1, 1.0)}
    runs: ClassVar[int] = 0

    def __init__(self, lr: float = 0.1, decay: float = 0.0):
        super().__init__()
        self.register_buffer("lr", torch.tensor(lr, dtype=torch.float64))
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float64))

    @property
    def hyperparameters(self) -> dict[str, Tensor]:
        return {"lr": self.get_buffer("lr"), "decay": self.get_buffer("decay")}

    def with_hyperparameters(self, **values: float | Tensor) -> Descent:
        new = copy.deepcopy(self)
        for name, value in values.items():
            setattr(new, name, torch.as_tensor(value, dtype=self.get_buffer(name).dtype))
        return new

    def init(self, params: Params) -> tuple:
        Descent.runs += 1
        return ()

    def update(self, params: Params, grads: Params, loss: Tensor | None, state: Any) -> tuple[Params, Any]:
        lr, decay = (value[:, None] if value.dim() else value for value in self.hyperparameters.values())
        return params.like((1 - lr * decay) * params.flat - lr * grads.flat), state


class Bowl(Task):
    """f(θ) = ½ a θ² - b, with a = 1, 2, … and θ₀ = 1; with noise, plus a normal number in each step."""

    def __init__(self, shift: float = 0.0, noise: float = 0.0, name: str = "bowl"):
        self.shift, self.noise, self.name = shift, noise, name

    def sample(self, keys: ProblemKeys, *, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> Problem:
        return BowlProblem(keys, self.shift, self.noise, dtype)


class BowlProblem(Problem):
    def __init__(self, keys: ProblemKeys, shift: float, noise: float, dtype: torch.dtype):
        self.keys, self.shift, self.noise = keys, shift, noise
        self.curvature = torch.tensor([1.0 + i for i in keys.indices], dtype=dtype)
        self.params = Params.from_tensors({"theta": torch.ones(len(keys), dtype=dtype)})
        self.stochastic = noise > 0

    def batches(self, first: int, count: int) -> Any:
        return self._draws(Purpose.NOISE, first, count) if self.noise else super().batches(first, count)

    def final_batches(self, count: int) -> Any:
        return self._draws(Purpose.FINAL_BATCH, 0, count) if self.noise else super().batches(0, count)

    def _draws(self, purpose: Purpose, first: int, count: int) -> Any:
        return iter(torch.from_numpy(self.noise * normals(self.keys.words(purpose, first, count, 2))[..., 0]))

    def loss(self, params: Params, buffers: Any, batch: Any) -> tuple[Tensor, Any]:
        value = 0.5 * self.curvature * params["theta"].square() - self.shift
        return (value if batch is None else value + batch.to(value)), buffers

    def test_metrics(self, params: Params, buffers: Any) -> dict[str, Tensor]:
        return {"accuracy": (params["theta"].abs() < 0.5).double(), "test_loss": params["theta"].square()}


@pytest.fixture
def descent() -> type[Descent]:
    Descent.runs = 0
    return Descent


@pytest.fixture
def bowl() -> type[Bowl]:
    return Bowl
