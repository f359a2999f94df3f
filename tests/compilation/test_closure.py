import pytest
import torch

from ph_l2o.compilation.closure import Closure
from ph_l2o.keys import ProblemKeys
from ph_l2o.tasks import ImageClassification, Quadratic, rescaled


def keys(episode: int = 0, num_problems: int = 2) -> ProblemKeys:
    return ProblemKeys(0, "train", episode, range(num_problems))


def test_the_copy_computes_with_other_tensors():
    first, second = Quadratic(3).sample(keys(0)), Quadratic(3).sample(keys(1))
    here, there = Closure(first), Closure(second)
    copy = here.rebuilt(there.tensors)
    expected, _ = second.loss(second.params, {}, None)
    found, _ = copy.loss(second.params, {}, None)
    assert torch.equal(found, expected)
    untouched, _ = first.loss(first.params, {}, None)
    assert torch.equal(untouched, Quadratic(3).sample(keys(0)).loss(first.params, {}, None)[0])


def test_problems_inside_problems():
    first, second = (rescaled(Quadratic(3).sample(keys(e)), 0.5) for e in range(2))
    copy = Closure(first).rebuilt(Closure(second).tensors)
    assert torch.equal(copy.loss(second.params, {}, None)[0], second.loss(second.params, {}, None)[0])


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (Quadratic(3).sample(keys(1)), True),
        (Quadratic(4).sample(keys(0)), False),
        (Quadratic(3).sample(keys(0, 3)), False),
        (Quadratic(3, noise=0.1).sample(keys(0)), False),
        (Quadratic(3).sample(keys(0), dtype=torch.float64), False),
        (rescaled(Quadratic(3).sample(keys(0)), 0.5), False),
    ],
)
def test_the_kind_tells_what_needs_another_graph(other, same):
    assert (Closure(Quadratic(3).sample(keys())).kind == Closure(other).kind) is same


def test_networks_of_two_activations_differ_and_of_one_do_not(mnist_root):
    tasks = [ImageClassification(activation=a, hidden_sizes=(3,), data_dir=mnist_root) for a in ("relu", "tanh")]
    relu = [Closure(tasks[0].sample(keys(e))).kind for e in range(2)]
    assert relu[0] == relu[1] != Closure(tasks[1].sample(keys())).kind
