"""Regression of a random network, the teacher, by another one."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import stack_module_state

from ph_l2o.checks import at_least, number, one_of
from ph_l2o.keys import ProblemKeys, Purpose, normals
from ph_l2o.params import Params
from ph_l2o.tasks.batched import checked_norm
from ph_l2o.tasks.factory import seeded
from ph_l2o.tasks.mlp import ACTIVATIONS, MLP, checked_sizes
from ph_l2o.tasks.module import ModuleProblem, checked_init_scale
from ph_l2o.tasks.task import Buffers, StochasticProblem, Task

Batch = tuple[Tensor, Tensor]  # inputs (B, batch, inputs), targets (B, batch, outputs)


class TeacherProblem(StochasticProblem, ModuleProblem):
    """B students, each with a teacher of its own."""

    def __init__(self, task: TeacherRegression, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        sizes = [task.inputs, *task.hidden_sizes, task.outputs]
        super().__init__(keys, lambda: MLP(sizes, task.activation, task.norm), device=device, dtype=dtype)
        self.scale_weights(task.init_scale)
        self._task = task
        make = functools.partial(MLP, [task.inputs, *task.teacher_sizes, task.outputs], "tanh")
        # Step 1 of the module's purpose: step 0 is the student.
        teachers = [seeded(make, keys.torch_seed(Purpose.MODULE, i, 1)) for i in keys.indices]
        tensors, _ = stack_module_state(teachers)
        self._teacher = teachers[0]
        self._tensors = {name: (task.teacher_scale * t.detach()).to(device, dtype) for name, t in tensors.items()}

    def draw(self, purpose: Purpose, first: int, count: int) -> Iterator[Batch]:
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

    problem_type = TeacherProblem

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
        self.inputs = at_least("task.inputs", inputs, 1, "numbers")
        self.outputs = at_least("task.outputs", outputs, 1, "numbers")
        self.batch_size = at_least("task.batch_size", batch_size, 1, "points of a mini-batch")
        self.activation, self.norm = one_of("task.activation", activation, ACTIVATIONS), checked_norm(norm)
        self.hidden_sizes = checked_sizes(hidden_sizes)
        self.teacher_sizes = checked_sizes(teacher_sizes, "teacher_sizes")
        self.teacher_scale = number("task.teacher_scale", teacher_scale, above=0)
        self.noise, self.name = number("task.noise", noise, minimum=0, meaning="standard deviation"), name
        self.init_scale = checked_init_scale(init_scale)
