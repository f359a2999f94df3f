"""Every task of `conf/suite/`: a new one is tested without touching this file."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ph_l2o import cli
from ph_l2o.commands.instantiate import build
from ph_l2o.inner import value_and_gradient
from ph_l2o.keys import SPLITS, ProblemKeys
from ph_l2o.tasks.image_task import ImageTask
from ph_l2o.tasks.losses import cross_entropy, hinge, huber, ranking, smoothed
from ph_l2o.tasks.rows import RowProblem
from ph_l2o.tasks.suite import Burgers, CharacterText, Contrastive, ImageFit, MatrixFactorisation, Poisson, Tabular
from ph_l2o.tasks.suite.attention import Block
from ph_l2o.tasks.suite.image_fit import PLACES

FILES = {path.stem: OmegaConf.load(path) for path in (Path(cli.conf_dir()) / "suite").glob("*.yaml")}
FILE = OmegaConf.merge(*FILES.values())
SYNTHETIC = {"poisson", "matrix_factorisation", "graph_communities", "deep_linear"}  # no finite data
SYNTHETIC |= {"burgers", "matrix_completion"}
BIG = {"mnist_residual_mlp", "text_transformer"}


@pytest.fixture(scope="session")
def tasks(mnist_root):
    made = {}

    def get(name):
        if name not in made:
            config = OmegaConf.merge(FILE, {"paths": {"data": str(mnist_root)}})
            made[name] = build(config.suite[name].task, name)
            made[name].prepare()
        return made[name]

    return get


def at_start(task, split="test", indices=range(2), step=0):
    problem = task.sample(ProblemKeys(0, split, 0, indices))
    batch = next(iter(problem.batches(step, 1)))
    loss, gradient, _ = value_and_gradient(problem, problem.params, problem.buffers, batch)
    return problem, loss, gradient.flat


def test_there_are_enough_and_some_are_large(tasks):
    entries = FILES["generalise"].suite
    assert len(entries) >= 14
    for name in BIG:
        assert tasks(name).sample(ProblemKeys(0, "val", 0, range(1))).params.layout.numel >= 1e6
    assert all(100 <= entry.horizon <= 1000 for entry in entries.values())


@pytest.mark.parametrize("name", FILE.suite)
def test_losses_and_gradients_are_finite_and_the_problems_repeat(name, tasks):
    problem, loss, gradient = at_start(tasks(name))
    assert loss.shape == (2,) and torch.isfinite(loss).all() and (loss > 0).all()
    assert torch.isfinite(gradient).all() and (gradient.abs().sum(1) > 0).all()
    assert (loss[0] != loss[1]) and not tasks(name).can_be_negative
    _, same, slope = at_start(tasks(name))
    assert torch.equal(loss, same) and torch.equal(gradient, slope)
    _, other, _ = at_start(tasks(name), split="val")
    assert not torch.equal(loss, other), "splits share no problem"
    last = next(iter(problem.final_batches(1)))
    assert torch.isfinite(problem.loss(problem.params, problem.buffers, last)[0]).all()


@pytest.mark.parametrize("name", [n for n in FILE.suite if n not in BIG])
def test_a_problem_does_not_depend_on_those_beside_it(name, tasks):
    _, both, _ = at_start(tasks(name), indices=range(2), step=3)
    _, alone, _ = at_start(tasks(name), indices=[1], step=3)
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(FILE.suite) - SYNTHETIC))
def test_splits_share_no_data(name, tasks):
    task = tasks(name)
    if isinstance(task, ImageTask):
        parts = [{image.numpy().tobytes() for image in task.images(split)[0][:500]} for split in SPLITS]
        assert task.split == "default"
        assert all(len(a & b) <= 1 for a in parts for b in parts if a is not b)  # a few images occur twice
    else:
        if isinstance(task, ImageFit):
            columns = [(number, range(left, right)) for number, left, right in (PLACES[split] for split in SPLITS)]
            parts = [{(number, column) for column in span} for number, span in columns]
        else:
            parts = [set(task.rows(split).tolist()) for split in SPLITS]
        assert all(parts) and not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


@pytest.mark.parametrize(
    "name", ["digits_mlp", "text_lstm", "image_siren", "matrix_factorisation", "digits_contrastive"]
)
def test_a_step_does_not_depend_on_the_window(name, tasks):
    problem = tasks(name).sample(ProblemKeys(0, "val", 0, range(2)))

    def loss(batch):
        return problem.loss(problem.params, problem.buffers, batch)[0]

    window = [loss(batch) for batch in problem.batches(2, 3)]
    assert torch.equal(window[2], loss(next(iter(problem.batches(4, 1)))))
    assert not torch.equal(window[2], loss(next(iter(problem.final_batches(1)))))


def test_losses_by_hand():
    outputs = torch.tensor([[[0.5], [3.0]]])
    assert huber(outputs, torch.zeros(1, 2)).tolist() == [(0.125 + 2.5) / 2]
    logits, labels = torch.tensor([[[2.0, 0.5, 3.0]]]), torch.tensor([[0]])
    assert hinge(logits, labels).tolist() == [4.0]  # margins of -0.5, which counts as 0, and 2
    pair = ranking(outputs, torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(pair, torch.nn.functional.softplus(torch.tensor([-2.5])))
    smooth = cross_entropy(logits, labels, 0.1)
    expected = torch.nn.functional.cross_entropy(logits[0], labels[0], label_smoothing=0.1)
    torch.testing.assert_close(smooth[0], expected)
    best = torch.tensor([[[0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3]]]).log()
    torch.testing.assert_close(smoothed(best, labels), torch.zeros(1), rtol=0, atol=1e-6)


def test_derivatives_of_the_physics_are_those_of_the_network():
    problem = Poisson(8).sample(ProblemKeys(0, "val", 0, [0]), dtype=torch.float64)
    x = torch.linspace(0, 1, 5, dtype=torch.float64)[None, :, None].requires_grad_()
    outputs, _ = problem.outputs(problem.params, {}, x)
    u, slope, bend = outputs.unbind(-1)
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(slope, first[..., 0])
    torch.testing.assert_close(bend, second[..., 0])


JOBS = {half: FILES[f"jobs_{half}"].suite for half in ("validation", "test")}
OTHERS = ("jobs", "jobs_validation", "jobs_test")


def test_jobs_are_whole_trainings_of_both_halves():
    steps = {half: [entry.horizon for entry in entries.values()] for half, entries in JOBS.items()}
    assert len(steps["validation"]) == len(steps["test"]) == 10
    names = [name for file in FILES.values() for name in file.get("suite", ())]
    assert len(names) == len(set(names)), "each task of each suite is tested here"
    assert all(500 <= k <= 10_000 for half in steps.values() for k in half)
    assert max(steps["test"]) == 10_000 and max(steps["validation"]) == 5000


def test_no_job_is_a_task_of_the_mixture_or_of_the_other_suite():
    mixture = OmegaConf.load(Path(cli.conf_dir()) / "task" / "pretrain.yaml").tasks.values()
    others = [entry.task for name, file in FILES.items() if name not in OTHERS for entry in file.suite.values()]
    tasks = [entry.task for entries in JOBS.values() for entry in entries.values()]
    assert len(others) >= 18 and not [task for task in tasks if task in [*others, *mixture] or tasks.count(task) > 1]


@pytest.mark.parametrize("name", [name for entries in JOBS.values() for name in entries])
def test_every_job_has_a_held_out_loss_that_no_step_sees(name, tasks):
    problem = tasks(name).sample(ProblemKeys(0, "test", 0, range(2)))
    first = problem.test_metrics(problem.params, problem.buffers)["test_loss"]
    assert first.shape == (2,) and torch.isfinite(first).all()
    if isinstance(problem, RowProblem) and len(problem._held_out):
        trained = set(range(problem._trained))
        length = getattr(tasks(name), "length", 0)  # a window of text reaches as far
        assert not trained & {int(row) - length + k for row in problem._held_out for k in (0, length)}
    again = problem.test_metrics(problem.params, problem.buffers)["test_loss"]
    assert torch.equal(first, again), "neither mode nor draws are left behind"


def test_held_out_losses_are_of_the_network_in_evaluation_mode():
    """Of BatchNorm and dropout, by the modules themselves; without the weight decay."""
    task = Tabular("digits", hidden_sizes=[8], batch_norm=True, dropout=0.5, weight_decay=0.1, held_out=70)
    problem = task.sample(ProblemKeys(0, "val", 0, range(2)), dtype=torch.float64)
    buffers = problem.buffers
    for batch in problem.batches(0, 20):
        _, buffers = problem.loss(problem.params, buffers, batch)
    found = problem.test_metrics(problem.params, buffers)["test_loss"]
    x, y = (part[task.rows("val")[-70:]] for part in task._table)
    for k in range(2):
        module = task.make_module([64, 8, 10]).double().eval()
        module.load_state_dict({n: t[k] for n, t in {**problem.params.tensors(), **buffers}.items()})
        expected = torch.nn.functional.cross_entropy(module(x[:64]), y[:64])  # two whole mini-batches
        torch.testing.assert_close(found[k], expected)
    assert not torch.allclose(found, problem.test_metrics(problem.params, problem.buffers)["test_loss"])


def test_held_out_pixels_and_entries_are_not_drawn():
    fit = ImageFit(size=4, held_out=6, batch_size=64).sample(ProblemKeys(0, "val", 0, range(1)))
    drawn = {tuple(place.tolist()) for places, _ in fit.batches(0, 20) for place in places[0]}
    held_out = {tuple(place.tolist()) for place in fit._places[fit._held_out]}
    assert len(drawn) == 10 and len(held_out) == 6 and not drawn & held_out
    keys = ProblemKeys(0, "val", 0, range(2))
    completion, plain = (MatrixFactorisation(observed=50, held_out=k).sample(keys) for k in (30, 0))
    assert completion._observed.values.shape == (2, 50) and completion._held_out.values.shape == (2, 30)
    assert plain.test_metrics(plain.params, {}) == {}
    assert set(next(completion.batches(0, 1)).values[0].tolist()) <= set(completion._observed.values[0].tolist())


def test_a_front_solves_the_equation_of_burgers():
    problem = Burgers(8).sample(ProblemKeys(0, "val", 0, range(3)), dtype=torch.float64)
    points = torch.rand(3, 20, 2, dtype=torch.float64).requires_grad_()
    u = problem.solution(points)
    (slopes,) = torch.autograd.grad(u.sum(), points, create_graph=True)
    (bends,) = torch.autograd.grad(slopes[..., 0].sum(), points)
    residual = slopes[..., 1] + u * slopes[..., 0] - problem._viscosity * bends[..., 0]
    assert slopes.abs().max() > 0.1 and residual.abs().max() < 1e-10


def test_derivatives_in_place_and_time_are_those_of_the_network():
    problem = Burgers(8).sample(ProblemKeys(0, "val", 0, range(2)), dtype=torch.float64)
    x = torch.rand(2, 5, 2, dtype=torch.float64).requires_grad_()
    u, by_x, by_t, bend = problem.outputs(problem.params, {}, x)[0].unbind(-1)
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first[..., 0].sum(), x)
    torch.testing.assert_close(torch.stack([by_x, by_t], -1), first)
    torch.testing.assert_close(bend, second[..., 0])


def test_the_border_of_burgers_is_the_start_and_both_ends():
    problem = Burgers(8, batch_size=30).sample(ProblemKeys(0, "val", 0, range(1)), dtype=torch.float64)
    seen = []
    problem.solution = lambda points: seen.append(points) or torch.zeros(points.shape[:2], dtype=torch.float64)
    batch = next(problem.batches(0, 1))
    problem.loss(problem.params, {}, batch)
    assert batch[..., 0].min() < -0.5 and batch[..., 0].max() > 0.5 and batch[..., 1].min() >= 0
    x, t = seen[0][0].unbind(-1)
    assert (t[:10] == 0).all() and (x[10:20] == -1).all() and (x[20:] == 1).all()


def test_blocks_that_begin_with_zeros_are_the_identity():
    x = torch.randn(2, 5, 8)
    assert torch.equal(Block(8, 2, causal=True, zero_branches=True)(x), x)
    plain, post = Block(8, 2, causal=False), Block(8, 2, causal=True, post_norm=True)
    assert not torch.equal(plain(x), x)
    torch.testing.assert_close(post(x).mean(-1), torch.zeros(2, 5), rtol=0, atol=1e-6)
    later = torch.cat([x[:, :3], torch.randn(2, 2, 8)], 1)
    torch.testing.assert_close(post(later)[:, :3], post(x)[:, :3])
    assert not torch.allclose(plain(later)[:, :3], plain(x)[:, :3]), "each place sees all"


def test_unscaled_columns_are_as_they_came():
    task, other = Tabular("breast_cancer", scaled=False), Tabular("breast_cancer")
    assert task._table[0].max() > 1000 and other._table[0].abs().max() <= 5
    assert Tabular("diabetes", loss="huber", scaled=False)._table[0].max() > 100


def test_the_texts_differ():
    assert CharacterText(text="source").spec()["digest"] != CharacterText().spec()["digest"]
    assert len(CharacterText(text="source")._codes) > 5e5


def test_the_text_is_part_of_the_identity():
    task = CharacterText()
    assert len(task.spec()["digest"]) == 16 and task._codes.min() >= 0 and task._codes.max() < 96


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tabular("digit"), "task.dataset=digit: .*did you mean digits"),
        (lambda: Tabular("diabetes", loss="hinge"), "task.loss=hinge: .*huber, ranking"),
        (lambda: Tabular("wine", loss="huber"), "task.loss=huber: .*cross_entropy"),
        (lambda: Tabular("diabetes", loss="ranking", batch_size=1), "task.batch_size=1: must be >= 2"),
        (lambda: Tabular(batch_norm=True, batch_size=1), "task.batch_size=1: must be >= 2"),
        (lambda: Tabular(dropout=1), r"task.dropout=1: must be in \[0, 1\)"),
        (lambda: Tabular("wine", held_out=59).prepare(), "task.held_out=59: must be < 59"),
        (lambda: CharacterText("rnn"), "task.model=rnn: must be one of transformer"),
        (lambda: CharacterText(text="latin"), "task.text=latin: must be one of topics, source"),
        (lambda: CharacterText(held_out=10**6).prepare(), "task.held_out=1000000: must be < "),
        (lambda: ImageFit(size=2, held_out=4), "task.held_out=4: must be < 4"),
        (lambda: CharacterText(width=30), "task.width=30: must be a multiple of 4"),
        (lambda: ImageFit(size=61), "task.size=61: must be <= 60"),
        (lambda: Contrastive(temperature=0), "task.temperature=0: must be > 0"),
    ],
)
def test_bad_arguments_are_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"task.dataset=wine: .*pip install scikit-learn") as error:
        Tabular("wine").prepare()
    assert "\n" not in str(error.value)
