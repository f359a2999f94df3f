"""Logistic regression, teachers, autoencoders, sequences: what they share, and what each one is."""

import functools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ph_l2o.inner import run, value_and_gradient
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import Adam
from ph_l2o.tasks import Autoencoder, CausalAttention, LogisticRegression, RecurrentNet, Sequences, TeacherRegression
from ph_l2o.tasks.autoencoder import AutoencoderProblem
from ph_l2o.tasks.logistic import LogisticProblem
from ph_l2o.tasks.sequences import KINDS

F64 = torch.float64
TINY = functools.partial(RecurrentNet, hidden_size=4)
CASES = {
    "logistic": lambda: LogisticRegression(5, 3, examples=20, batch_size=4),
    "logistic full": lambda: LogisticRegression(5, 3, examples=20, batch_size=None),
    "teacher": lambda: TeacherRegression(3, 2, hidden_sizes=(4,), batch_size=5, init_scale=(0.5, 2)),
    "teacher odd": lambda: TeacherRegression(2, 1, hidden_sizes=(), norm="layer", batch_size=3),
    **{kind: (lambda kind=kind: Sequences(kind, model=TINY, symbols=3, length=6, batch_size=4)) for kind in KINDS},
    "attention": lambda: Sequences("copy", model=functools.partial(CausalAttention, width=4), symbols=3, length=6),
}


def keys(indices=range(3), *, seed=0, split="train", episode=0) -> ProblemKeys:
    return ProblemKeys(seed, split, episode, indices)


def flat(batch) -> Tensor:
    return torch.cat([part.double().flatten(1) for part in batch], 1)


@pytest.mark.parametrize("name", CASES)
def test_draws_depend_on_the_key_alone(name):
    task = CASES[name]()
    whole, part = task.sample(keys(range(6)), dtype=F64), task.sample(keys([5, 1, 5]), dtype=F64)
    rows = [5, 1, 5]
    assert torch.equal(part.params.flat, whole.params.flat[rows])
    steps = [flat(b) for b in whole.batches(0, 6)]
    for step, batch in enumerate(part.batches(4, 2), start=4):
        assert torch.equal(flat(batch), steps[step][rows])
    for ours, theirs in zip(part.final_batches(2), whole.final_batches(2), strict=True):
        assert torch.equal(flat(ours), flat(theirs)[rows])
    losses = run(Adam(lr=0.01).double(), whole, 3)[1]
    torch.testing.assert_close(run(Adam(lr=0.01).double(), part, 3)[1], losses[:, rows])
    if whole.stochastic:
        everything = torch.cat([*steps, *(flat(b) for b in whole.final_batches(6))])
        assert len(everything.unique(dim=0)) == 72


@pytest.mark.parametrize("name", CASES)
def test_problems_differ_by_seed_split_episode_and_index(name):
    wheres = [{}, {"seed": 1}, {"split": "val"}, {"split": "test"}, {"episode": 1}]
    problems = [CASES[name]().sample(keys(**w)) for w in wheres]
    assert len(torch.cat([p.params.flat for p in problems]).unique(dim=0)) == 15
    assert len(torch.cat([flat(next(p.batches(0, 1))) for p in problems]).unique(dim=0)) == 15


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", CASES)
def test_losses_are_not_negative_and_fall(name, dtype):
    torch.manual_seed(0)
    problem = CASES[name]().sample(keys(range(4)), dtype=dtype)
    losses = run(Adam(lr=0.03).to(dtype), problem, 60)[1]
    assert losses.dtype == dtype and losses.shape == (61, 4)
    assert (losses >= 0).all() and losses.isfinite().all()
    assert losses[-10:].mean() < losses[:3].mean()


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_finite_differences(name):
    problem = CASES[name]().sample(keys(range(2)), dtype=F64)
    batch = next(problem.batches(0, 1))
    _, gradient, _ = value_and_gradient(problem, problem.params, problem.buffers, batch)
    direction = torch.randn(problem.params.flat.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    eps = 1e-6
    up, down = (
        problem.loss(problem.params.like(problem.params.flat + s * eps * direction), {}, batch)[0] for s in (1, -1)
    )
    torch.testing.assert_close((gradient.flat * direction).sum(1), (up - down) / (2 * eps), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_spec_is_plain_and_the_same_elsewhere(name):
    text = json.dumps(CASES[name]().spec(), sort_keys=True)
    assert text == json.dumps(CASES[name]().spec(), sort_keys=True) and " at 0x" not in text


def test_logistic_regression_is_torchs():
    problem = CASES["logistic"]().sample(keys(), dtype=F64)
    features, labels = next(problem.batches(2, 1))
    assert features.shape == (3, 4, 5) and labels.shape == (3, 4)
    losses = problem.loss(problem.params, {}, (features, labels))[0]
    for row in range(3):
        logits = features[row] @ problem.params["weight"][row] + problem.params["bias"][row]
        torch.testing.assert_close(losses[row], F.cross_entropy(logits, labels[row]))


def test_features_have_the_condition_number():
    task = LogisticRegression(6, 2, examples=20000, condition_number=100.0)
    problem = task.sample(keys(range(2)), dtype=F64)
    assert isinstance(problem, LogisticProblem)
    for x in problem.features:
        values = torch.linalg.eigvalsh(x.T @ x / len(x))
        assert abs(values[-1] / values[0] - 100) < 10 and abs(values.mean() - 1) < 0.05
        assert (x.T @ x / len(x)).diag().max() < 0.95 * values[-1]  # rotated


def test_a_sharp_teacher_makes_classes_separable():
    def final(sharpness: float) -> float:
        task = LogisticRegression(3, 2, examples=200, batch_size=None, condition_number=1.0, sharpness=sharpness)
        return float(run(Adam(lr=0.1), task.sample(keys()), 200)[1][-1].mean())

    assert final(100.0) < 0.1 and abs(final(0.0) - math.log(2)) < 0.03


def test_teachers_are_noise_away_from_their_targets():
    quiet = TeacherRegression(3, 2, noise=0.0, batch_size=4000).sample(keys(), dtype=F64)
    noisy = TeacherRegression(3, 2, noise=0.3, batch_size=4000).sample(keys(), dtype=F64)
    (x, y), (same, z) = next(quiet.batches(0, 1)), next(noisy.batches(0, 1))
    assert torch.equal(x, same) and x.shape == (3, 4000, 3) and y.shape == (3, 4000, 2)
    assert abs(x.mean()) < 0.03 and abs(x.std() - 1) < 0.02
    assert abs((z - y).std() - 0.3) < 0.01 and abs((z - y).mean()) < 0.02
    assert (y.std(1) > 0.2).all()
    assert len(y[:, 0, 0].unique()) == 3


def sequences(kind: str, **arguments) -> tuple[Tensor, Tensor]:
    task = Sequences(kind, model=TINY, **{"symbols": 4, "length": 9, "batch_size": 300, **arguments})
    return next(task.sample(keys(), dtype=F64).batches(0, 1))


def test_copies_are_of_delay_times_ago():
    inputs, targets = sequences("copy", delay=4)
    assert inputs.shape == (3, 300, 9, 4) and (inputs.sum(-1) == 1).all()
    symbols = inputs.argmax(-1)
    assert torch.equal(targets[:, :, 4:], symbols[:, :, :-4]) and (targets[:, :, :4] == -1).all()
    assert (symbols.flatten().bincount() / symbols.numel() - 0.25).abs().max() < 0.03


def test_modular_sums():
    inputs, targets = sequences("modular")
    assert torch.equal(targets, inputs.argmax(-1).cumsum(-1) % 4)


def test_sums_of_two_marked_numbers():
    inputs, targets = sequences("adding")
    assert inputs.shape == (3, 300, 9, 2)
    numbers, marks = inputs.unbind(-1)
    assert (marks.sum(-1) == 2).all() and ((numbers >= 0) & (numbers < 1)).all()
    assert (marks.mean((0, 1)) - 2 / 9).abs().max() < 0.06
    torch.testing.assert_close(targets[:, :, -1], (numbers * marks).sum(-1))


def test_chains_have_one_transition_matrix_each_and_go_on():
    inputs, targets = sequences("markov", batch_size=3000, symbols=3)
    symbols = inputs.argmax(-1)
    assert torch.equal(targets[:, :, :-1], symbols[:, :, 1:])
    counts = np.zeros((3, 2, 3, 3))
    for problem in range(3):
        for half in range(2):
            part = slice(None, 4) if half == 0 else slice(4, None)
            np.add.at(counts[problem, half], (symbols[problem, :, part], targets[problem, :, part]), 1)
    transitions = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    often = counts.sum(-1).min(1) > 500
    difference = np.abs(transitions[:, 0] - transitions[:, 1]).max(-1)
    assert often.sum() >= 4 and difference[often].max() < 0.08  # the same at all times
    assert np.abs(transitions[0] - transitions[1]).max() > 0.2  # another for each problem


def test_the_loss_of_copies_counts_what_can_be_known():
    task = Sequences("copy", model=TINY, symbols=3, length=6, delay=2, batch_size=4)
    problem = task.sample(keys(), dtype=F64)
    inputs, targets = next(problem.batches(0, 1))
    outputs, _ = problem.outputs(problem.params, {}, inputs)
    expected = [
        F.cross_entropy(o.flatten(0, 1), t.flatten()) for o, t in zip(outputs[:, :, 2:], targets[:, :, 2:], strict=True)
    ]
    torch.testing.assert_close(problem.loss(problem.params, {}, (inputs, targets))[0], torch.stack(expected))


def test_a_users_recurrent_module():
    class Own(nn.Module):
        def __init__(self, inputs: int, outputs: int, length: int):
            super().__init__()
            self.layer, self.last = nn.GRU(inputs, 3, batch_first=True), nn.Linear(3, outputs)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.layer(x)[0])

    losses = run(Adam(lr=0.03), Sequences("modular", model=Own, symbols=2, length=4).sample(keys()), 3)[1]
    assert losses.isfinite().all()
    flat_net = Sequences("modular", model=lambda i, o, n: nn.Sequential(nn.Flatten(), nn.Linear(i * n, o)), length=4)
    with pytest.raises(
        ValueError, match=r"task.model=Sequential: its outputs have shape \(16, 8\); must be \(16, 4, 8\)"
    ):
        run(Adam(), flat_net.sample(keys()), 1)


@pytest.mark.parametrize("loss", ["mse", "bce"])
@pytest.mark.parametrize("size", [None, 7])
def test_autoencoders(mnist_root, loss, size):
    task = Autoencoder(hidden_sizes=(6, 3), loss=loss, image_size=size, batch_size=5, norm="layer", data_dir=mnist_root)
    problem = task.sample(keys(range(2)), dtype=F64)
    assert isinstance(problem, AutoencoderProblem)
    pixels = (size or 28) ** 2
    shapes = [tuple(t.shape[1:]) for name, t in problem.params.tensors().items() if name.startswith("weight")]
    assert shapes == [(pixels, 6), (6, 3), (3, 6), (6, pixels)]
    batch = next(problem.batches(0, 1))
    outputs, _ = problem.outputs(problem.params, {}, batch.inputs)
    function = F.mse_loss if loss == "mse" else F.binary_cross_entropy_with_logits
    expected = [function(o, x.flatten(1)) for o, x in zip(outputs, batch.inputs, strict=True)]
    losses = problem.loss(problem.params, {}, batch)[0]
    torch.testing.assert_close(losses, torch.stack(expected))
    after = run(Adam(lr=0.01).double(), problem, 15)[1]
    assert (after >= 0).all() and (after[-1] < after[0]).all()
    assert json.dumps(task.spec()) and str(mnist_root) not in json.dumps(task.spec())


LOGISTIC, TEACHER = LogisticRegression, TeacherRegression


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (LOGISTIC, {"features": 0}, "task.features=0: must be >= 1 (of a point)"),
        (LOGISTIC, {"classes": 1}, "task.classes=1: must be >= 2 (of the points)"),
        (LOGISTIC, {"examples": 1.5}, "task.examples=1.5: must be a whole number >= 1 (points of a problem)"),
        (LOGISTIC, {"batch_size": 0}, "task.batch_size=0: must be >= 1 (points of a mini-batch; null takes all)"),
        (LOGISTIC, {"condition_number": 0.5}, "task.condition_number=0.5: must be >= 1 and finite"),
        (LOGISTIC, {"sharpness": math.nan}, "task.sharpness=nan: must be >= 0 and finite"),
        (TEACHER, {"inputs": 0}, "task.inputs=0: must be >= 1 (numbers)"),
        (TEACHER, {"hidden_sizes": [0]}, "task.hidden_sizes=[0]: must be a list of whole numbers >= 1 (units)"),
        (TEACHER, {"teacher_sizes": 3}, "task.teacher_sizes=3: must be a list of whole numbers >= 1 (units)"),
        (TEACHER, {"norm": "group"}, "task.norm=group: must be layer, batch or null"),
        (TEACHER, {"teacher_scale": 0}, "task.teacher_scale=0: must be > 0 and finite"),
        (TEACHER, {"noise": -1}, "task.noise=-1: must be >= 0 and finite (standard deviation)"),
        (TEACHER, {"init_scale": 0}, "task.init_scale=0: must be a number > 0, or two of them, low and high"),
        (TEACHER, {"init_scale": [2, 1]}, "task.init_scale=[2, 1]: must be a number > 0, or two of them, low and high"),
        (Autoencoder, {"loss": "mae"}, "task.loss=mae: must be one of mse, bce; did you mean mse?"),
        (Autoencoder, {"hidden_sizes": []}, "task.hidden_sizes=[]: must have at least one layer, the code"),
        (Autoencoder, {"norm": "group"}, "task.norm=group: must be layer, batch or null"),
        (
            Autoencoder,
            {"image_size": 0},
            "task.image_size=0: must be >= 1 (pixels; null keeps those of the data)",
        ),
        (Sequences, {"kind": "coppy"}, f"task.kind=coppy: must be one of {', '.join(KINDS)}; did you mean copy?"),
        (Sequences, {"symbols": 1}, "task.symbols=1: must be >= 2 (different ones)"),
        (Sequences, {"length": 1}, "task.length=1: must be >= 2 (times of a sequence)"),
        (
            Sequences,
            {"kind": "copy", "delay": 10},
            "task.delay=10: must be a whole number in [1, 9], below the length",
        ),
        (Sequences, {"concentration": 0}, "task.concentration=0: must be > 0 and finite"),
        (
            Sequences,
            {"model": nn.Linear(2, 2)},
            "task.model=Linear: must be a function that makes a module, such as a class or a functools.partial; "
            "in a configuration, a node with _partial_: true",
        ),
    ],
)
def test_bad_arguments(make, arguments, message):
    with pytest.raises(ValueError) as error:
        make(**arguments)
    assert str(error.value) == message
