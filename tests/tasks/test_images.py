import copy
import functools
import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from example_modules import conv_net
from torch import Tensor, nn

from ph_l2o.data import ImageData, load_images
from ph_l2o.inner import run, value_and_gradient
from ph_l2o.keys import ProblemKeys, Purpose, integers
from ph_l2o.optimizers import SGD, PortHamiltonian
from ph_l2o.tasks import ACTIVATIONS, ImageClassification, rescaled
from ph_l2o.tasks.images import ImageProblem

F64 = torch.float64
NUM_TEST = 37


def make_data(channels: int = 1, classes: int = 4) -> ImageData:
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> Tensor:
        return torch.randint(256, (count, channels, 6, 6), generator=generator).to(torch.uint8)

    def labels(count: int) -> Tensor:
        return torch.randint(classes, (count,), generator=generator)

    return ImageData(images(120), labels(120), images(NUM_TEST), labels(NUM_TEST), classes)


@pytest.fixture
def fake(monkeypatch) -> ImageData:
    data = make_data()
    monkeypatch.setattr("ph_l2o.tasks.image_task.load_images", lambda name, root: data)
    return data


def keys(indices=range(3), *, seed=0, split="train", episode=0) -> ProblemKeys:
    return ProblemKeys(seed, split, episode, indices)


def draw(indices=range(3), *, dtype=F64, task: ImageClassification | None = None, **arguments) -> ImageProblem:
    where = {k: arguments.pop(k) for k in ("seed", "split", "episode") if k in arguments}
    task = task or ImageClassification(**{"hidden_sizes": (5,), "batch_size": 8, **arguments})
    return task.sample(keys(indices, **where), dtype=dtype)


def split_rows(data: ImageData, split: str, scheme: str = "default") -> Tensor:
    """Rows of a split, from its definition: a seeded shuffle, then a third, a sixth and a half."""
    n = len(data.train_images)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(10))
    if scheme == "study":
        return order[n // 2 :] if split == "test" else order[: n // 2]
    return {"train": order[: n // 3], "val": order[n // 3 : n // 2], "test": order[n // 2 :]}[split]


def mini_batch(data: ImageData, k: ProblemKeys, step: int, size: int, purpose=Purpose.BATCH, scheme="default"):
    """Inputs `(B, size, C, H, W)` and labels of one step."""
    rows = split_rows(data, k.split, scheme)
    drawn = integers(k.words(purpose, step, 1, size)[0], len(rows))
    chosen = rows[torch.from_numpy(drawn)]
    return data.train_images[chosen].double() / 255, data.train_labels[chosen]


def plain_mlp(tensors: list[Tensor], activation: str, inputs: Tensor) -> Tensor:
    hidden = inputs.flatten(1)
    for k in range(0, len(tensors), 2):
        hidden = hidden @ tensors[k] + tensors[k + 1]
        if k < len(tensors) - 2:
            hidden = ACTIVATIONS[activation](hidden)
    return hidden


def plain_start(index: int, sizes: list[int], k: ProblemKeys) -> list[Tensor]:
    """Weights `(in, out)` and biases, uniform as those of nn.Linear, from the seed of the problem."""
    torch.manual_seed(k.torch_seed(Purpose.MODULE, index))
    tensors: list[Tensor] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        bound = fan_in**-0.5
        tensors += [torch.empty(shape).uniform_(-bound, bound).double() for shape in ((fan_in, fan_out), (fan_out,))]
    return [t.requires_grad_() for t in tensors]


def flat(tensors) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def exact_sgd(lr: float) -> SGD:
    return SGD().double().with_hyperparameters(lr=lr)


@pytest.mark.parametrize("hidden_sizes", [(), (5,), (4, 3)])
@pytest.mark.parametrize("activation", ["sigmoid", ["relu", "tanh"]], ids=str)
def test_start_loss_and_gradient_are_those_of_plain_torch(fake, hidden_sizes, activation):
    k = keys((2, 0, 5), episode=1, seed=3)
    task = ImageClassification(hidden_sizes=hidden_sizes, activation=activation, batch_size=8)
    problem = task.sample(k, dtype=F64)
    inputs, labels = mini_batch(fake, k, 4, 8)
    batch = next(problem.batches(4, 1))
    torch.testing.assert_close(batch.inputs, inputs)
    assert torch.equal(batch.labels, labels)
    loss, gradient, buffers = value_and_gradient(problem, problem.params, problem.buffers, batch)
    assert buffers == {}
    kinds = [activation] if isinstance(activation, str) else activation
    for row, index in enumerate(k.indices):
        tensors = plain_start(index, [36, *hidden_sizes, 4], k)
        assert torch.equal(problem.params.flat[row], flat(tensors))
        logits = plain_mlp(tensors, kinds[(index + 1) % len(kinds)], inputs[row])
        expected = F.cross_entropy(logits, labels[row])
        torch.testing.assert_close(loss[row], expected)
        torch.testing.assert_close(gradient.flat[row], flat(torch.autograd.grad(expected, tensors)))


@pytest.mark.parametrize("scheme", ["default", "study"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_sgd_is_torch_optim_on_the_same_batches(fake, split, scheme):
    k = keys((1, 4), split=split)
    task = ImageClassification(hidden_sizes=(5,), activation=["sigmoid", "elu"], batch_size=7, split=scheme)
    carry, losses = run(exact_sgd(0.5), task.sample(k, dtype=F64), 20)
    for row, index in enumerate(k.indices):
        tensors = plain_start(index, [36, 5, 4], k)
        sgd = torch.optim.SGD(tensors, lr=0.5)
        for step in range(20):
            inputs, labels = mini_batch(fake, k, step, 7, scheme=scheme)
            loss = F.cross_entropy(plain_mlp(tensors, ["sigmoid", "elu"][index % 2], inputs[row]), labels[row])
            torch.testing.assert_close(losses[step, row], loss)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        torch.testing.assert_close(carry.params.flat[row], flat(tensors))


@pytest.mark.parametrize("purpose", [Purpose.BATCH, Purpose.FINAL_BATCH])
def test_draws_depend_on_neither_the_window_nor_the_other_problems(fake, purpose):
    def batches(indices, first, count):
        problem = draw(indices)
        return list(problem.batches(first, count) if purpose is Purpose.BATCH else problem.final_batches(first + count))

    whole = batches(range(6), 0, 9)
    inputs, _ = mini_batch(fake, keys(range(6)), 3, 8, purpose)
    torch.testing.assert_close(whole[3].inputs, inputs)
    for first, count, indices in ((0, 9, [5]), (4, 3, [2, 0]), (8, 1, [3, 3])):
        offset = first if purpose is Purpose.BATCH else 0
        for step, batch in enumerate(batches(indices, first, count), start=offset):
            assert torch.equal(batch.inputs, whole[step].inputs[indices])
            assert torch.equal(batch.labels, whole[step].labels[indices])


def test_final_batches_are_fresh(fake):
    problem = draw()
    steps = torch.stack([b.inputs for b in problem.batches(0, 5)])
    final = torch.stack([b.inputs for b in problem.final_batches(5)])
    assert not any(torch.equal(a, b) for a in steps for b in final)


def test_splits_share_no_image(monkeypatch):
    data = make_data()
    numbered = data._replace(train_labels=torch.arange(120))  # a label tells which image it is
    monkeypatch.setattr("ph_l2o.tasks.image_task.load_images", lambda name, root: numbered)

    def seen(split: str, scheme: str) -> set[int]:
        problem = ImageClassification(batch_size=200, split=scheme).sample(keys(split=split))  # type: ignore[arg-type]
        return {int(x) for b in (*problem.batches(0, 4), *problem.final_batches(2)) for x in b.labels.flatten()}

    train, val, test = (seen(split, "default") for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (40, 20, 60)
    assert train | val | test == set(range(120))
    train, val, test = (seen(split, "study") for split in ("train", "val", "test"))
    assert train == val and len(test) == 60 and train | test == set(range(120))


def test_images_of_every_split(fake):
    task = ImageClassification()
    for split in ("train", "val", "test"):
        rows = split_rows(fake, split)
        images, labels = task.images(split)
        assert torch.equal(images, fake.train_images[rows]) and torch.equal(labels, fake.train_labels[rows])
        assert images.dtype == torch.uint8
    images, labels = task.images("held_out")
    assert torch.equal(images, fake.test_images) and torch.equal(labels, fake.test_labels)


def test_problems_differ_by_seed_split_episode_and_index(fake):
    starts = [
        draw(seed=s, split=split, episode=e).params.flat
        for s in (0, 1)
        for split in ("train", "val", "test")
        for e in (0, 1)
    ]
    assert len(torch.cat(starts).unique(dim=0)) == 36
    whole, part = draw(range(5)), draw([4, 1, 4])
    assert torch.equal(part.params.flat, whole.params.flat[[4, 1, 4]])


@pytest.mark.parametrize("episode", [0, 1, 5])
def test_activations_are_taken_in_turn(fake, episode):
    names = ["sigmoid", "relu", "tanh"]
    k = keys((0, 1, 2, 7), episode=episode)
    mixed = ImageClassification(activation=names, batch_size=8).sample(k, dtype=F64)
    batch = next(mixed.batches(0, 1))
    losses = mixed.loss(mixed.params, {}, batch)[0]
    for row, index in enumerate(k.indices):
        by_itself = ImageClassification(activation=names[(index + episode) % 3], batch_size=8).sample(k, dtype=F64)
        torch.testing.assert_close(losses[row], by_itself.loss(mixed.params, {}, batch)[0][row])
    # a batch that happens to have one activation only
    one = ImageClassification(activation=names, batch_size=8).sample(keys((7, 4), episode=episode), dtype=F64)
    torch.testing.assert_close(one.loss(one.params, {}, next(one.batches(0, 1)))[0][0], losses[3])


@pytest.mark.parametrize("chunk", [36, 1000, 10**6])
@pytest.mark.parametrize("activation", ["tanh", ["relu", "tanh", "sigmoid"]], ids=str)
def test_metrics_are_those_of_all_test_images(fake, monkeypatch, activation, chunk):
    monkeypatch.setattr("ph_l2o.tasks.images._TEST_ELEMENTS", chunk)
    problem = draw(activation=activation)
    metrics = problem.test_metrics(problem.params, problem.buffers)
    assert set(metrics) == {"test_loss", "accuracy"}
    kinds = [activation] if isinstance(activation, str) else activation
    for row in range(3):
        tensors = [t[row] for t in problem.params.tensors().values()]
        logits = plain_mlp(tensors, kinds[row % len(kinds)], fake.test_images.double() / 255)
        torch.testing.assert_close(metrics["test_loss"][row], F.cross_entropy(logits, fake.test_labels))
        right = (logits.argmax(1) == fake.test_labels).sum().item()
        torch.testing.assert_close(metrics["accuracy"][row].item(), right / NUM_TEST)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_users_model(fake, dropout):
    factory = functools.partial(conv_net, 3, dropout=dropout)
    k = keys((4, 1))
    problem = ImageClassification(model=factory, batch_size=8).sample(k, dtype=F64)
    carry, losses = run(exact_sgd(0.1), problem, 6)
    assert losses.isfinite().all() and torch.equal(losses, run(exact_sgd(0.1), problem, 6)[1])
    metrics = problem.test_metrics(carry.params, carry.buffers)
    for row, index in enumerate(k.indices):
        torch.manual_seed(k.torch_seed(Purpose.MODULE, index))
        module = factory().double()
        assert torch.equal(problem.params.flat[row], flat(module.parameters()))
        if dropout == 0:
            sgd = torch.optim.SGD(module.parameters(), lr=0.1)
            for step in range(6):
                inputs, labels = mini_batch(fake, k, step, 8)
                loss = F.cross_entropy(module(inputs[row]), labels[row])
                torch.testing.assert_close(losses[step, row], loss)
                sgd.zero_grad()
                loss.backward()
                sgd.step()
        # The test images are judged in evaluation mode, with the running statistics.
        state = {name: carry.params[name][row] for name, _ in module.named_parameters()}
        state |= {name: carry.buffers[name][row] for name, _ in module.named_buffers()}
        module.load_state_dict(state)
        logits = module.eval()(fake.test_images.double() / 255)
        torch.testing.assert_close(metrics["test_loss"][row], F.cross_entropy(logits, fake.test_labels).detach())
        accuracy = (logits.argmax(1) == fake.test_labels).double().mean()
        torch.testing.assert_close(metrics["accuracy"][row], accuracy)
    assert all((b == 6).all() for name, b in carry.buffers.items() if name.endswith("num_batches_tracked"))


def test_seeds_of_dropout_belong_to_the_step(fake):
    problem = draw(task=ImageClassification(model=functools.partial(conv_net, dropout=0.5), batch_size=8))
    steps = [b.seeds for b in problem.batches(0, 6)]
    assert steps[2:5] == [b.seeds for b in problem.batches(2, 3)]
    everything = [seed for seeds in (*steps, *(b.seeds for b in problem.final_batches(6))) for seed in seeds]
    assert len(everything) == len(set(everything)) == 12 * problem.num_problems
    assert {b.seeds for b in draw().batches(0, 3)} == {()}  # nothing to draw


def test_dropout_depends_on_the_problem_alone(fake):
    """Not on how many processes share the problems out, nor on what else is in the batch."""
    task = ImageClassification(model=functools.partial(conv_net, dropout=0.5), batch_size=8)

    def losses(*indices: int) -> Tensor:
        return run(exact_sgd(0.1), task.sample(keys(indices), dtype=F64), 3)[1]

    whole = losses(0, 1, 2, 3)
    torch.testing.assert_close(torch.cat([losses(0, 1), losses(2, 3)], 1), whole)
    torch.testing.assert_close(losses(3, 1, 3), whole[:, [3, 1, 3]])


def test_port_hamiltonian_and_rescaling(fake):
    torch.manual_seed(0)
    problem = rescaled(draw(dtype=torch.float32, activation=["sigmoid", "relu"]), 0.5)
    carry, losses = run(PortHamiltonian(hidden_size=4), problem, 3)
    metrics = problem.test_metrics(carry.params, carry.buffers)
    assert losses.isfinite().all() and all(m.isfinite().all() for m in metrics.values())
    assert losses.dtype == metrics["test_loss"].dtype == metrics["accuracy"].dtype == torch.float32


def test_data_is_loaded_once_and_late(monkeypatch):
    calls: list[tuple] = []
    data = make_data(3, 10)

    def load(*arguments):
        calls.append(arguments)
        return data

    monkeypatch.setattr("ph_l2o.tasks.image_task.load_images", load)
    task = ImageClassification("cifar10", data_dir="somewhere", hidden_sizes=(5,), batch_size=4)
    json.dumps(task.spec())
    assert calls == []
    task.prepare()
    problem = task.sample(keys())
    assert problem.params["weight0"].shape == (3, 108, 5) and problem.params["weight1"].shape == (3, 5, 10)
    assert next(problem.batches(0, 1)).inputs.shape == (3, 4, 3, 6, 6)
    task.sample(keys(split="val")).test_metrics(problem.params, {})
    assert calls == [("cifar10", "somewhere")]


def test_a_task_can_be_copied(fake):
    task = ImageClassification(hidden_sizes=(5,), batch_size=4)
    first = next(task.sample(keys()).batches(0, 1))
    again = next(copy.deepcopy(task).sample(keys()).batches(0, 1))
    assert torch.equal(first.inputs, again.inputs)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), "(8, 3)"),
        (lambda: nn.Conv2d(1, 4, 3), "(8, 4, 4, 4)"),
        (lambda: nn.Sequential(nn.Flatten(0), nn.Linear(288, 4)), "(4,)"),
    ],
    ids=["classes", "map", "batch"],
)
def test_a_model_with_outputs_of_another_shape(fake, model, shape):
    problem = draw(model=model)
    with pytest.raises(ValueError) as error:
        problem.loss(problem.params, problem.buffers, next(problem.batches(0, 1)))
    assert str(error.value).endswith(
        f"its outputs have shape {shape}; must be (8, 4), logits for each image of the batch"
    )


def test_mnist_starts_and_steps_as_plain_torch(mnist_root):
    data = load_images("mnist", mnist_root)
    k = keys((0, 3), split="test", seed=1)
    task = ImageClassification("mnist", data_dir=mnist_root, batch_size=32)
    problem = task.sample(k, dtype=F64)
    carry, losses = run(exact_sgd(1.0), problem, 20)
    for row, index in enumerate(k.indices):
        tensors = plain_start(index, [784, 20, 10], k)
        for step in range(20):
            inputs, labels = mini_batch(data, k, step, 32)
            loss = F.cross_entropy(plain_mlp(tensors, "sigmoid", inputs[row]), labels[row])
            torch.testing.assert_close(losses[step, row], loss)
            for tensor, g in zip(tensors, torch.autograd.grad(loss, tensors), strict=True):
                tensor.data -= g
        torch.testing.assert_close(carry.params.flat[row], flat(tensors))


def test_mnist_metrics_are_of_the_10000_test_images(mnist_root):
    data = load_images("mnist", mnist_root)
    task = ImageClassification("mnist", data_dir=mnist_root, activation=["sigmoid", "relu"])
    problem = task.sample(keys(range(2)))
    carry, losses = run(SGD(lr=1.0), problem, 30)
    assert losses[-1].mean() < losses[0].mean()
    metrics = problem.test_metrics(carry.params, carry.buffers)
    assert len(data.test_images) == 10_000
    for row in range(2):
        tensors = [t[row] for t in carry.params.tensors().values()]
        logits = plain_mlp(tensors, ["sigmoid", "relu"][row], data.test_images.float() / 255)
        torch.testing.assert_close(metrics["test_loss"][row], F.cross_entropy(logits, data.test_labels))
        right = (logits.argmax(1) == data.test_labels).sum().item()
        assert abs(metrics["accuracy"][row].item() * 10_000 - right) <= 1  # ties of rounding
    assert metrics["accuracy"].max() > 0.3
