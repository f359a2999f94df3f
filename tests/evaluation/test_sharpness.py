"""The largest eigenvalue of a Hessian, against dense Hessians and known spectra."""

import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from ph_l2o.data import ImageData
from ph_l2o.evaluation.sharpness import eigenvalues, sharpness
from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import Adam
from ph_l2o.tasks import ImageClassification, Quadratic

F64 = torch.float64


def matrices(*spectra: list[float]) -> torch.Tensor:
    generator, made = torch.Generator().manual_seed(0), []
    for spectrum in spectra:
        basis = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=generator, dtype=F64))[0]
        made.append(basis @ torch.diag(torch.tensor(spectrum, dtype=F64)) @ basis.mT)
    return torch.stack(made)


def of(matrix: torch.Tensor, **arguments):
    return eigenvalues(lambda v: (matrix @ v[..., None])[..., 0], matrix[:, 0], **arguments)


def test_known_spectra_of_either_sign():
    rows = 40
    spectra = [
        list(np.linspace(0, 10, rows)),
        [-20.0, *np.linspace(-1, 7, rows - 1)],  # the largest one in absolute value is negative
        [-3.0] * (rows - 1) + [-1.0],  # all are negative
        [0.0] * (rows - 1) + [2.5],  # exhausted after two steps
        [4.0] * rows,  # after one
        [0.0] * rows,
    ]
    found = of(matrices(*spectra), tolerance=1e-6)
    assert found.converged.all()
    np.testing.assert_allclose(found.largest, [max(s) for s in spectra], atol=1e-4)
    np.testing.assert_allclose(found.dominant, [max(s, key=abs) for s in spectra], atol=1e-4)
    np.testing.assert_allclose(found.smallest[1], -20, rtol=1e-5)


def test_what_did_not_converge_is_said(caplog):
    matrix = matrices(list(np.linspace(1, 2, 60)), [0.0] * 59 + [3.0])
    with caplog.at_level(logging.WARNING):
        found = of(matrix, tolerance=1e-8, max_iterations=5)
    assert found.converged.tolist() == [False, True] and found.iterations == 5
    assert "1 of 2 problems are not within 1e-08 of an eigenvalue after 5 products" in caplog.text
    assert found.largest[0] < 2
    caplog.clear()
    assert of(matrix, tolerance=1e-8).converged.all() and not caplog.records


def test_it_stops_as_soon_as_the_tolerance_allows():
    spectrum = [*np.linspace(0, 1, 99), 10.0]
    few, many = (of(matrices(spectrum), tolerance=t).iterations for t in (1e-1, 1e-10))
    assert few < many < 40


def test_a_hessian_that_is_not_finite_is_nan_and_leaves_the_others():
    matrix = matrices([1.0, 2.0, 3.0], [1.0, 2.0, 5.0])
    matrix[0, 0, 0] = torch.nan
    found = of(matrix)
    assert np.isnan(found.largest[0]) and found.converged.tolist() == [False, True]
    np.testing.assert_allclose(found.largest[1], 5)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("steps", [1, 60])
def test_a_small_network_against_its_dense_hessian(monkeypatch, activation, steps):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (120, 1, 3, 3), generator=generator).to(torch.uint8)
    labels = torch.randint(3, (120,), generator=generator)
    data = ImageData(images, labels, images[:9], labels[:9], 3)
    monkeypatch.setattr("ph_l2o.tasks.image_task.load_images", lambda name, root: data)
    monkeypatch.setattr("ph_l2o.tasks.image_task._CHUNK", 7)  # the last chunk is smaller
    task = ImageClassification(hidden_sizes=(4,), activation=activation, batch_size=8, train_images=18, label_noise=0.2)
    problem = task.sample(ProblemKeys(0, "train", 0, range(2)), dtype=F64)
    params = run(Adam(lr=0.1).double(), problem, steps)[0].params
    found = sharpness(problem, params, {}, problem.training_sample(100), tolerance=1e-8)
    assert found.converged.all()
    ((batch, count),) = whole_training_set(problem)
    assert count == 18
    module = nn.Sequential(nn.Linear(9, 4), {"tanh": nn.Tanh(), "sigmoid": nn.Sigmoid()}[activation], nn.Linear(4, 3))
    for k in range(2):
        tensors = {name: x[k] for name, x in params.tensors().items()}
        sizes = [x.numel() for x in tensors.values()]

        def loss(flat, k=k, tensors=tensors, sizes=sizes):
            weight0, bias0, weight1, bias1 = (
                part.view(x.shape) for part, x in zip(flat.split(sizes), tensors.values(), strict=True)
            )
            own = {"0.weight": weight0.mT, "0.bias": bias0, "2.weight": weight1.mT, "2.bias": bias1}
            return nn.functional.cross_entropy(
                functional_call(module, own, batch.inputs[k].flatten(1)), batch.labels[k]
            )

        dense = torch.autograd.functional.hessian(loss, params.flat[k])
        exact = torch.linalg.eigvalsh(dense).numpy()
        np.testing.assert_allclose(found.largest[k], exact[-1], rtol=1e-6)
        np.testing.assert_allclose(found.dominant[k], exact[np.abs(exact).argmax()], rtol=1e-6)


def whole_training_set(problem):
    """The training set as one batch."""
    parts = list(problem.training_sample(100))
    inputs, labels = (torch.cat([getattr(b, name) for b, _ in parts], 1) for name in ("inputs", "labels"))
    return [(parts[0][0]._replace(inputs=inputs, labels=labels), sum(n for _, n in parts))]


def test_a_quadratic_task():
    problem = Quadratic(5).sample(ProblemKeys(0, "val", 0, range(3)), dtype=F64)
    found = sharpness(problem, problem.params, {}, problem.training_sample(1), tolerance=1e-9)

    def loss(flat, k):
        return problem.loss(problem.params.like(flat.expand(3, -1)), {}, None)[0][k]

    for k in range(3):
        dense = torch.autograd.functional.hessian(lambda x, k=k: loss(x, k), problem.params.flat[k])
        np.testing.assert_allclose(found.largest[k], torch.linalg.eigvalsh(dense)[-1].item(), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": 0}, "tolerance=0: must be > 0"),
        ({"max_iterations": 0}, "max_iterations=0: must be >= 1"),
        ({"seed": -1}, "seed=-1: must be >= 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        of(matrices([1.0, 2.0]), **arguments)
    problem = Quadratic(2).sample(ProblemKeys(0, "val", 0, range(1)))
    with pytest.raises(ValueError, match="batches="):
        sharpness(problem, problem.params, {}, [])
