"""Graph networks on random graphs with communities."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ph_l2o.keys import ProblemKeys, Purpose
from ph_l2o.params import Params
from ph_l2o.tasks.module import ModuleProblem
from ph_l2o.tasks.suite.rows import at_least, cross_entropy
from ph_l2o.tasks.task import Buffers, Task

_FEATURES = 16
_SIGNAL = 0.3  # of the features: distance of the communities' means from 0, where the noise has 1


class GraphNetwork(nn.Module):
    """Adjacency and features side by side `(nodes, nodes + features)` → logits `(nodes, classes)`, in two rounds.

    Reference: Kipf and Welling 2017; here each layer has a weight of its own for the node itself.
    """

    def __init__(self, nodes: int, width: int, classes: int):
        super().__init__()
        self.nodes = nodes
        self.own1, self.own2 = nn.Linear(_FEATURES, width), nn.Linear(width, width)
        self.others1, self.others2 = nn.Linear(_FEATURES, width, bias=False), nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        mixing, features = x.split([self.nodes, _FEATURES], -1)
        hidden = torch.relu(self.own1(features) + mixing @ self.others1(features))
        return self.head(torch.relu(self.own2(hidden) + mixing @ self.others2(hidden)))


class GraphCommunities(Task):
    """Find the communities of a random graph's nodes from its edges and noisy features: one batch, all nodes.

    Nodes of the same community are linked with probability 8 / nodes · classes, others with a fifth of that (the
    stochastic block model). Every problem has a graph of its own.

    Args:
        nodes: Number of nodes, >= 2.
        width: Units of a node in the network, >= 1.
        classes: Number of communities, >= 2.
        weight_decay: Factor of ½‖θ‖² in the loss, >= 0; without it, the network would learn the noise by heart.
        name: Name in tables.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Holland, Laskey and Leinhardt 1983.
    """

    def __init__(
        self, nodes: int = 128, *, width: int = 16, classes: int = 4, weight_decay: float = 1e-3, name: str = "graph"
    ):
        self.nodes, self.width = at_least("nodes", nodes, 2, "of the graph"), at_least("width", width, 1, "units")
        self.classes = at_least("classes", classes, 2, "communities")
        if weight_decay < 0:
            raise ValueError(f"task.weight_decay={weight_decay}: must be >= 0")
        self.weight_decay, self.name = weight_decay, name

    def sample(
        self, keys: ProblemKeys, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> GraphProblem:
        """Draw graphs and networks; see `Task.sample`."""
        return GraphProblem(self, keys, device=device, dtype=dtype)


class GraphProblem(ModuleProblem):
    """B graphs."""

    def __init__(self, task: GraphCommunities, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        super().__init__(keys, lambda: GraphNetwork(task.nodes, task.width, task.classes), device=device, dtype=dtype)
        drawn = {i: _drawn(task, keys.generator(Purpose.PROBLEM, i)) for i in set(keys.indices)}
        inputs, labels = (torch.from_numpy(np.stack([drawn[i][k] for i in keys.indices])) for k in (0, 1))
        self._inputs, self._labels = inputs.to(device=device, dtype=dtype), labels.to(device)
        self._weight_decay = task.weight_decay

    def loss(self, params: Params, buffers: Buffers, batch: None) -> tuple[Tensor, Buffers]:
        logits, buffers = self.outputs(params, buffers, self._inputs)
        decay = 0.5 * self._weight_decay * params.flat.square().sum(1)
        return cross_entropy(logits, self._labels) + decay, buffers


def _drawn(task: GraphCommunities, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = generator.integers(0, task.classes, task.nodes)
    same = labels[:, None] == labels
    probability = np.minimum(1.0, 8 * task.classes / task.nodes * np.where(same, 1.0, 0.2))
    upper = np.triu(generator.random((task.nodes, task.nodes)) < probability, 1)
    links = (upper | upper.T).astype(np.float64)
    mixing = links / np.maximum(links.sum(1, keepdims=True), 1.0)
    means = _SIGNAL * generator.standard_normal((task.classes, _FEATURES))
    features = means[labels] + generator.standard_normal((task.nodes, _FEATURES))
    return np.concatenate([mixing, features], 1), labels
