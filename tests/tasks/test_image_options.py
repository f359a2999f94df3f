"""Smaller images, normalised networks and random initial scales, on the real MNIST."""

import pytest
import torch
from torch import Tensor

from ph_l2o.data import load_images, split_indices
from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import SGD
from ph_l2o.tasks import Autoencoder, ConvNet, ImageClassification

F64 = torch.float64
KEYS = ProblemKeys(0, "train", 0, range(3))


def plain_average(images: Tensor, size: int) -> Tensor:
    """`(N, C, H, W)` in uint8 → `(N, C, size, size)`, the mean of each block, rounded to the even."""
    n, c, h, _ = images.shape
    blocks = images.double().reshape(n, c, size, h // size, size, h // size)
    return blocks.mean((3, 5)).round().to(torch.uint8)


@pytest.mark.parametrize("size", [7, 14, 28])
def test_images_are_averaged_down(mnist_root, size):
    data = load_images("mnist", mnist_root)
    task = ImageClassification(image_size=size, data_dir=mnist_root)
    for split, images in (
        ("val", data.train_images[split_indices(60_000, "val")]),
        ("held_out", data.test_images),
    ):
        small, labels = task.images(split)
        assert small.shape == (10_000, 1, size, size) and small.dtype == torch.uint8
        assert torch.equal(small[:500], plain_average(images[:500], size))
        assert len(labels) == 10_000
    problem = task.sample(KEYS, dtype=F64)
    assert problem.params["weight0"].shape == (3, size * size, 20)
    assert next(problem.batches(0, 1)).inputs.shape == (3, 128, 1, size, size)
    assert problem.test_metrics(problem.params, {})["accuracy"].shape == (3,)


def test_tasks_on_the_same_images_share_them(mnist_root):
    one, two = (t(image_size=14, data_dir=mnist_root) for t in (ImageClassification, Autoencoder))
    assert one.images("val")[0].data_ptr() == two.images("val")[0].data_ptr()


def test_a_size_that_does_not_divide_is_said_before_any_work(mnist_root):
    with pytest.raises(ValueError) as error:
        ImageClassification(image_size=10, data_dir=mnist_root).prepare()
    assert str(error.value) == "task.image_size=10: must be a divisor of 28, that of the data"


@pytest.mark.parametrize("scale", [2.0, (0.5, 2.0)], ids=str)
@pytest.mark.parametrize("model", [None, lambda: ConvNet((4, 4), norm="batch")], ids=["mlp", "conv"])
def test_initial_scale(mnist_root, scale, model):
    arguments = {"image_size": 7, "hidden_sizes": (5, 4), "norm": "layer", "model": model, "data_dir": mnist_root}
    keys = ProblemKeys(0, "train", 0, range(40))
    plain = ImageClassification(**arguments).sample(keys, dtype=F64).params
    scaled = ImageClassification(**arguments, init_scale=scale).sample(keys, dtype=F64).params
    factors = []
    for name, tensor in plain.tensors().items():
        if tensor.dim() == 2:  # biases, gains, shifts
            assert torch.equal(scaled[name], tensor)
        else:
            ratio = scaled[name] / tensor
            torch.testing.assert_close(ratio, ratio.flatten(1)[:, :1].view(-1, 1, 1).expand_as(ratio))
            factors.append(ratio[:, 0, 0])
    assert all(torch.allclose(f, factors[0]) for f in factors)
    if scale == 2.0:
        torch.testing.assert_close(factors[0], torch.full((40,), 2.0, dtype=F64))
    else:
        assert factors[0].min() >= 0.5 and factors[0].max() <= 2 and len(factors[0].unique()) == 40
        assert abs(factors[0].log().mean()) < 0.25
    part = ImageClassification(**arguments, init_scale=scale).sample(ProblemKeys(0, "train", 0, [7, 3]), dtype=F64)
    assert torch.equal(part.params.flat, scaled.flat[[7, 3]])


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_normalised_networks_with_mixed_activations(mnist_root, norm):
    arguments = {"image_size": 7, "hidden_sizes": (6, 5), "norm": norm, "batch_size": 16, "data_dir": mnist_root}
    mixed = ImageClassification(activation=["relu", "tanh"], **arguments).sample(KEYS, dtype=F64)
    batch = next(mixed.batches(0, 1))
    losses = mixed.loss(mixed.params, {}, batch)[0]
    for row, activation in enumerate(["relu", "tanh", "relu"]):
        alone = ImageClassification(activation=activation, **arguments).sample(KEYS, dtype=F64)
        torch.testing.assert_close(losses[row], alone.loss(mixed.params, {}, batch)[0][row])
    sgd = SGD().double().with_hyperparameters(lr=0.3)
    carry, losses = run(sgd, mixed, 60)
    assert losses[-1].mean() < losses[0].mean()
    assert (mixed.test_metrics(carry.params, {})["accuracy"] > 0.2).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "group"}, "task.norm=group: must be layer, batch or null"),
        ({"image_size": 0}, "task.image_size=0: must be >= 1 (pixels; null keeps those of the data)"),
        (
            {"image_size": 14.0},
            "task.image_size=14.0: must be a whole number >= 1 (pixels; null keeps those of the data)",
        ),
        ({"init_scale": -1}, "task.init_scale=-1: must be a number > 0, or two of them, low and high"),
        ({"init_scale": [1, 2, 3]}, "task.init_scale=[1, 2, 3]: must be a number > 0, or two of them, low and high"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError) as error:
        ImageClassification(**arguments)
    assert str(error.value) == message
