"""Regression of a random network, the teacher, by another one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ph_l2o.keys import ProblemKeys, Purpose, normals
from ph_l2o.params import Params
from ph_l2o.tasks.batched import NORMS
from ph_l2o.tasks.mlp import MLP, checked_activations, checked_sizes
from ph_l2o.tasks.module import ModuleProblem, checked_init_scale, seeded
from ph_l2o.tasks.task import Buffers, Task

Batch = tuple[Tensor, Tensor]  # inputs (B, batch, inputs), targets (B, batch, outputs)


class TeacherRegression(Task):
    """Mean squared error to a random tanh network with noise, on fresh inputs N(0, I) in each step.

    Args:
        inputs: Number of inputs, >= 1.
        outputs: Number of outputs, >= 1.
        hidden_sizes: Units of the student's hidden layers, each >= 1; none for a linear student.
        activation: Of the student, a name of `ph_l2o.tasks.ACTIVATIONS`.
        norm: Of the student: `layer` or `batch` before each activation, or None.
        teacher_sizes: Units of the teacher's hidden layers, each >= 1.
        teacher_scale: Factor of the teacher's weights as they start in `MLP`, > 0: the larger, the rougher.
        noise: Standard deviation of normal noise in the targets, >= 0.
        batch_size: Points of a mini-batch, >= 1.
        init_scale: Factor of the student's initial weights, or (low, high) for a log-uniform draw; > 0.
        name: Name in tables and folders.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        inputs: int = 8,
        outputs: int = 1,
        *,
        hidden_sizes: Sequence[int] = (16,),
        activation: str = "tanh",
        norm: str | None = None,
        teacher_sizes: Sequence[int] = (16,),
        teacher_scale: float = 3.0,
        noise: float = 0.05,
        batch_size: int = 32,
        init_scale: float | Sequence[float] = 1.0,
        name: str = "teacher",
    ):
        for key, value in (("inputs", inputs), ("outputs", outputs), ("batch_size", batch_size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"task.{key}={value}: must be a whole number >= 1")
        if norm not in (None, *NORMS):
            raise ValueError(f"task.norm={norm}: must be {', '.join(NORMS)} or null")
        if not 0 < teacher_scale < math.inf:
            raise ValueError(f"task.teacher_scale={teacher_scale}: must be > 0 and finite")
        if not 0 <= noise < math.inf:
            raise ValueError(f"task.noise={noise}: must be >= 0 and finite (standard deviation)")
        (self.activation,) = checked_activations(activation)[:1]
        self.inputs, self.outputs, self.norm, self.batch_size = inputs, outputs, norm, batch_size
        self.hidden_sizes = checked_sizes(hidden_sizes)
        self.teacher_sizes = checked_sizes(teacher_sizes, "teacher_sizes")
        self.teacher_scale, self.noise, self.name = teacher_scale, noise, name
        self.init_scale = checked_init_scale(init_scale)

    def sample(
        self, keys: ProblemKeys, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> TeacherProblem:
        """Draw teachers and students; see `Task.sample`."""
        return TeacherProblem(self, keys, device=device, dtype=dtype)


class TeacherProblem(ModuleProblem):
    """B students, each with a teacher of its own."""

    stochastic = True

    def __init__(self, task: TeacherRegression, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        def student() -> MLP:
            return MLP([task.inputs, *task.hidden_sizes, task.outputs], task.activation, task.norm)

        super().__init__(keys, student, device=device, dtype=dtype)
        self.scale_weights(task.init_scale)
        self._task, self._dtype = task, dtype

        def made() -> MLP:
            return MLP([task.inputs, *task.teacher_sizes, task.outputs], "tanh")

        # Step 1 of the module's purpose: step 0 is the student.
        teachers = [dict(seeded(made, keys.torch_seed(Purpose.MODULE, i, 1)).named_parameters()) for i in keys.indices]
        self._teacher = made()
        self._tensors = {
            name: (task.teacher_scale * torch.stack([t[name].detach() for t in teachers])).to(device, dtype)
            for name in teachers[0]
        }

    def batches(self, first: int, count: int) -> Iterator[Batch]:
        return self._draw(Purpose.BATCH, first, count)

    def final_batches(self, count: int) -> Iterator[Batch]:
        return self._draw(Purpose.FINAL_BATCH, 0, count)

    def _draw(self, purpose: Purpose, first: int, count: int) -> Iterator[Batch]:
        each, size = self._task.inputs + self._task.outputs, self._task.batch_size
        words = self.keys.words(purpose, first, count, size * each + size * each % 2)
        drawn = normals(words)[..., : size * each].reshape(count, self.num_problems, size, each)
        for numbers in torch.from_numpy(np.ascontiguousarray(drawn)).to(self._device, self._dtype):
            inputs = numbers[..., : self._task.inputs]
            with torch.no_grad():
                targets = self._teacher.batched_forward(self._tensors, inputs)
            yield inputs, targets + self._task.noise * numbers[..., self._task.inputs :]

    def loss(self, params: Params, buffers: Buffers, batch: Batch) -> tuple[Tensor, Buffers]:
        outputs, buffers = self.outputs(params, buffers, batch[0])
        return (outputs - batch[1]).square().mean((1, 2)), buffers
