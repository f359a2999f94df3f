"""Graph networks on random graphs with communities."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ph_l2o.checks import at_least, number
from ph_l2o.keys import ProblemKeys
from ph_l2o.params import Params
from ph_l2o.tasks.losses import cross_entropy
from ph_l2o.tasks.module import ModuleProblem
from ph_l2o.tasks.task import Buffers, Task, stacked

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


class GraphProblem(ModuleProblem):
    """B graphs."""

    def __init__(self, task: GraphCommunities, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        super().__init__(keys, lambda: GraphNetwork(task.nodes, task.width, task.classes), device=device, dtype=dtype)
        self._inputs, self._labels = stacked(keys, task.graph, device=device, dtype=dtype)
        self._weight_decay = task.weight_decay

    def loss(self, params: Params, buffers: Buffers, batch: None) -> tuple[Tensor, Buffers]:
        logits, buffers = self.outputs(params, buffers, self._inputs)
        decay = 0.5 * self._weight_decay * params.flat.square().sum(1)
        return cross_entropy(logits, self._labels) + decay, buffers


class GraphCommunities(Task):
    """Find the communities of a random graph's nodes from its edges and noisy features: one batch, all nodes.

    Nodes of the same community are linked with probability 8 / nodes · classes, others with a fifth of that (the
    stochastic block model). Every problem has a graph of its own.

    Args:
        nodes: Number of nodes, >= 2.
        width: Units of a node in the network, >= 1.
        classes: Number of communities, >= 2.
        weight_decay: Factor of ½‖θ‖² in the loss, >= 0; without it, the network would memorise the noise.
        name: Name in tables.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Holland, Laskey and Leinhardt 1983.
    """

    problem_type = GraphProblem

    def __init__(
        self, nodes: int = 128, *, width: int = 16, classes: int = 4, weight_decay: float = 1e-3, name: str = "graph"
    ):
        self.nodes = at_least("task.nodes", nodes, 2, "of the graph")
        self.width = at_least("task.width", width, 1, "units of a node")
        self.classes = at_least("task.classes", classes, 2, "communities")
        self.weight_decay, self.name = number("task.weight_decay", weight_decay, minimum=0), name

    def graph(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The network's input for one problem, `(nodes, nodes + features)`, and the communities `(nodes,)`."""
        labels = generator.integers(0, self.classes, self.nodes)
        same = labels[:, None] == labels
        probability = np.minimum(1.0, 8 * self.classes / self.nodes * np.where(same, 1.0, 0.2))
        upper = np.triu(generator.random((self.nodes, self.nodes)) < probability, 1)
        links = (upper | upper.T).astype(np.float64)
        mixing = links / np.maximum(links.sum(1, keepdims=True), 1.0)
        means = _SIGNAL * generator.standard_normal((self.classes, _FEATURES))
        features = means[labels] + generator.standard_normal((self.nodes, _FEATURES))
        return np.concatenate([mixing, features], 1), labels
