"""`compile=` of meta-training."""

import logging

import pytest
import torch
from torch import Tensor, nn

from ph_l2o import meta_train
from ph_l2o.compilation import Compiled, choose
from ph_l2o.errors import CompileError
from ph_l2o.estimators import Forward, Truncated
from ph_l2o.inner import EAGER
from ph_l2o.optimizers import SGD, SOAP, PortHamiltonian, PortHamiltonianKronecker
from ph_l2o.tasks import ImageClassification, Quadratic
from tests.compilation.traced import as_a_graph

SMALL = {
    "outer_steps": 4,
    "num_problems": 2,
    "horizons": (6,),
    "truncation": 3,
    "val_every": 4,
    "val_problems": 2,
    "val_horizon": 2,
}


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_auto_says_what_it_does_and_why_not(caplog, monkeypatch, mnist_root):
    task = ImageClassification(model=Dropping, batch_size=2, data_dir=mnist_root)
    monkeypatch.setattr("ph_l2o.compilation.functions.ahead_of_time", as_a_graph)
    with caplog.at_level(logging.INFO, "ph_l2o"):
        meta_train(SGD(), task, **SMALL)
        assert "not compiled" in caplog.text
        monkeypatch.setattr("ph_l2o.compilation.modes._MILLISECONDS_WORTH_IT", 0.0)
        meta_train(SGD(), task, **SMALL)

        class Unreadable(SGD):
            def update(self, params, grads, loss, state):
                if float(grads.flat[0, 0].detach()) > 0:
                    return super().update(params, grads, loss, state)
                return super().update(params, grads, loss, state)

        meta_train(Unreadable(), Quadratic(3), **SMALL)
    assert (
        "the optimizer's update looks at the values of tensors" in caplog.text and "nothing is compiled" in caplog.text
    )
    assert "compile=auto: the inner step draws random numbers" in caplog.text
    assert "the optimizer's update is compiled alone" in caplog.text


@pytest.mark.parametrize(
    ("architectures", "inner_steps", "mode"),
    [(1, 40_000, "step"), (20, 40_000, "update"), (1, 20_000, "step"), (1, 10_000, False)],
)
def test_auto_decides_by_the_length_of_the_run_and_the_number_of_architectures(
    architectures, inner_steps, mode, caplog
):
    with caplog.at_level(logging.INFO, "ph_l2o"):
        found = choose(inner_steps=inner_steps, coordinates=100, architectures=architectures)
    assert found == mode
    words = {
        "step": "compiled whole, each architecture",
        "update": "update for all architectures",
        False: "not compiled",
    }
    assert words[mode] in caplog.text and f"{architectures} architecture" in caplog.text


@pytest.mark.parametrize("mode", ["step", "update"])
def test_compiled_training_like_eager_training(mode, monkeypatch):
    monkeypatch.setattr("ph_l2o.compilation.functions.ahead_of_time", as_a_graph)
    torch.manual_seed(0)
    optimizer = PortHamiltonian(hidden_size=4).double()
    eager = meta_train(optimizer, Quadratic(3), compile=False, **SMALL)
    compiled = meta_train(optimizer, Quadratic(3), compile=mode, **SMALL)
    for x, y in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-10)


def test_an_estimator_does_not_stay_compiled(monkeypatch):
    monkeypatch.setattr("ph_l2o.compilation.functions.ahead_of_time", as_a_graph)
    asked: list[int] = []
    monkeypatch.setattr(Compiled, "tape", lambda self, window, **how: asked.append(1) or EAGER.tape(window, **how))
    estimator = Truncated()
    meta_train(SGD(), Quadratic(3), estimator=estimator, compile="step", **SMALL)
    assert asked
    asked.clear()
    meta_train(SGD(), Quadratic(3), estimator=estimator, compile=False, **SMALL)
    assert not asked


def test_auto_counts_all_windows(caplog):
    with caplog.at_level(logging.INFO, "ph_l2o"):
        meta_train(SGD(), Quadratic(3), windows=2, episodes=2, **SMALL)
    assert "(24 of them on 6 coordinates" in caplog.text  # 4 outer steps of 2 windows of 3


@pytest.mark.parametrize("make", [PortHamiltonianKronecker, SOAP])
def test_auto_does_not_compile_what_is_slower_compiled(make, caplog, monkeypatch):
    monkeypatch.setattr("ph_l2o.compilation.modes._MILLISECONDS_WORTH_IT", 0.0)
    with caplog.at_level(logging.INFO, "ph_l2o"):
        meta_train(make(), Quadratic(3), **SMALL)
    assert f"inner steps are not compiled: {make.__name__} is slower compiled" in caplog.text


@pytest.mark.parametrize("mode", ["steps", True, 0, None])
def test_unknown_compile_mode(mode):
    with pytest.raises(ValueError, match=r"^compile=.*: must be auto, step"):
        meta_train(SGD(), Quadratic(3), compile=mode, **SMALL)


def test_a_step_that_cannot_be_compiled(mnist_root):
    task = ImageClassification(model=Dropping, batch_size=2, data_dir=mnist_root)
    with pytest.raises(
        CompileError,
        match=r"^compile=step: the inner step draws random numbers.*; use compile=update or compile=false$",
    ):
        meta_train(SGD(), task, compile="step", **SMALL)
    with pytest.raises(CompileError, match=r"^compile=step: estimator=forward has no compiled form"):
        meta_train(SGD(), Quadratic(3), compile="step", estimator=Forward(), **SMALL)
