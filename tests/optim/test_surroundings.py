"""What stands around a step: autocast, defaults of torch, torch.compile, closures, Lightning, options of AdamW."""

import contextlib
import pickle

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from ph_l2o.optim import PortHamiltonian, from_learned, load
from ph_l2o.optim.adamw_options import INSTEAD
from ph_l2o.optimizers import HNN, LSTM, SOAP, CoordinatewiseMLP, Muon, RNNprop
from tests.optim.conftest import FORMS, flat, loss_of, train
from tests.optim.test_frameworks import fit


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


AROUND = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "half": lambda: default_dtype(torch.float16),
    "double": lambda: default_dtype(torch.float64),
    "inference": torch.inference_mode,
}


def made(form):
    """A function that makes the optimizer; the learned one that goes in is there before."""
    torch.manual_seed(1)
    others = {"RNNprop": RNNprop(hidden_size=4), "HNN": HNN(), "LSTM": LSTM(hidden_size=4)}
    others |= {"MLP": CoordinatewiseMLP(), "Muon": Muon(lr=0.01), "SOAP": SOAP(lr=0.01)}
    return from_learned(others[form]) if form in others else FORMS[form]


def reached(make, around_making=contextlib.nullcontext, around_step=contextlib.nullcontext):
    draws = torch.Generator().manual_seed(0)
    params = [torch.randn(s, generator=draws).requires_grad_() for s in ((6, 5), (5,), (3, 2, 2))]
    with around_making():
        optimizer = make(params)
    for _ in range(4):
        for p in params:
            p.grad = torch.randn(p.shape, generator=draws)
        with around_step():
            optimizer.step(loss=torch.tensor(1.5, dtype=torch.float32, device="cpu"))
            optimizer.step(lambda: 0.1)
    return nn.utils.parameters_to_vector(params).detach()


@pytest.mark.parametrize(
    "form", ["PortHamiltonian", "compiled", "kronecker", "LSTM", "RNNprop", "HNN", "MLP", "Muon", "SOAP"]
)
def test_nothing_leaks_in(form):
    make, expected = made(form), reached(made(form))
    for name, around in AROUND.items():
        assert torch.equal(reached(make, around_step=around), expected), name
        if name != "inference":
            assert torch.equal(reached(make, around_making=around), expected), name
    assert torch.get_default_dtype() == torch.float32 and torch.get_default_device().type == "cpu"


@pytest.mark.parametrize("make", [PortHamiltonian, load("kronecker"), lambda p: load("default")(p)], ids=range(3))
def test_making_one_draws_nothing(make):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    make([torch.ones(2, requires_grad=True)])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's tracer asks the loss for it
@pytest.mark.parametrize("form", ["PortHamiltonian", "LSTM"])
def test_under_torch_compile(form):
    """The step and the whole training step; a pickled optimizer's too."""
    found = []
    for how in ("eager", "step", "whole", "pickled"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = made(form)(net.parameters())
        if how == "pickled":
            net, optimizer = pickle.loads(pickle.dumps((net, optimizer)))

        def whole(x, net=net, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
            loss.backward()
            optimizer.step(loss=loss)

        if how == "step":
            optimizer.step = torch.compile(optimizer.step, backend="eager")
        run = whole if how in ("eager", "step") else torch.compile(whole, backend="eager")
        for k in range(3):
            run(torch.randn(16, 4, generator=torch.Generator().manual_seed(k)))
        found.append(flat(net))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)
    torch.compiler.reset()


@pytest.mark.parametrize("form", ["PortHamiltonian", "LSTM"])
def test_what_closures_return(form, model):
    results = {"loss": lambda x: x, "dict": lambda x: {"loss": x, "logits": 1}, "tuple": lambda x: (x, 1)}
    found = []
    for wrap in results.values():
        net = pickle.loads(pickle.dumps(model))
        optimizer = made(form)(net.parameters())
        for k in range(3):

            def closure(net=net, k=k, optimizer=optimizer, wrap=wrap):
                optimizer.zero_grad()
                loss = loss_of(net, k)
                loss.backward()
                return wrap(loss)

            result = optimizer.step(closure)
            assert type(result) is type(wrap(torch.ones(())))
        found.append(flat(net))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    before, optimizer = flat(model), made(form)(model.parameters())
    train(model, optimizer, 1)
    before = flat(model)
    for bad in ({"logits": 1.0}, (), {"loss": None}, "loss", object(), {"loss": "no"}, (torch.ones(2),)):
        with pytest.raises((TypeError, ValueError), match=r"must return the loss|must be one real number"):
            optimizer.step(lambda bad=bad: bad)
    with pytest.raises(TypeError, match="give one of them"):
        optimizer.step(lambda: 1.0, loss=1.0)
    assert torch.equal(flat(model), before)
    assert optimizer.step(lambda: None, loss=2.0) == 2.0


class Manual(pl.LightningModule):
    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.make, self.automatic_optimization = nn.Linear(4, 1), make, False

    def training_step(self, batch, _):
        optimizer, (x,) = self.optimizers(), batch
        loss = (self.net(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step(loss=loss)

    def configure_optimizers(self):
        return self.make(self.net.parameters())


def test_lightning_with_manual_optimization(tmp_path, learned):
    module, trainer = fit(lambda p: PortHamiltonian(p, pretrained=learned), tmp_path, module=Manual)
    (optimizer,) = trainer.optimizers
    assert optimizer.diagnostics()["steps"] == 12 and optimizer.diagnostics()["uses_loss"]
    assert flat(module).isfinite().all()


@pytest.mark.parametrize("form", ["PortHamiltonian", "LSTM"])
@pytest.mark.parametrize("name", INSTEAD)
def test_options_of_adamw(form, name):
    p = torch.ones(2, requires_grad=True)
    asked = {"betas": (0.9, 0.99), "eps": 1e-8}.get(name, True)
    for params, options in (([p], {name: asked}), ([{"params": [p], name: asked}], {})):
        with pytest.raises(TypeError, match=rf"{name}=.* is AdamW's alone: {INSTEAD[name][:20]}"):
            made(form)(params, **options)
    optimizer = made(form)([p], **{name: None}, lr=0.5)
    with pytest.raises(TypeError, match=f"{name}="):
        optimizer.add_param_group({"params": [torch.ones(1, requires_grad=True)], name: asked})
    assert len(optimizer.param_groups) == 1
    torch.optim.AdamW([p], **{name: asked} if name != "fused" else {})  # it is one of AdamW's


def test_a_mistyped_option():
    with pytest.raises(TypeError, match=r"has no option weight_deca; did you mean weight_decay"):
        PortHamiltonian([torch.ones(2, requires_grad=True)], weight_deca=0.1)
