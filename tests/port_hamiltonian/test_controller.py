"""What the port-Hamiltonian optimizer's controller sees and sets, against a slow and literal implementation."""

import math

import pytest
import torch
from torch import Tensor

from ph_l2o.optimizers import PortHamiltonian, map_state
from ph_l2o.params import Layout, Params
from ph_l2o.port_hamiltonian import controller
from ph_l2o.port_hamiltonian.state import PortHamiltonianState

PROBLEMS = 4
LAYOUTS = {
    "one": Layout(("theta",), ((5,),)),
    "five": Layout(("w1", "b1", "w2", "b2", "kernel"), ((3, 4), (3,), (2, 3), (), (2, 3, 2, 2))),
}


def expected(
    optimizer: PortHamiltonian, layout: Layout, flat: Tensor, grad: Tensor, loss: float, old: PortHamiltonianState,
    now: PortHamiltonianState,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Features `(T, 27)` and the ports log gain, mix, keep, ρ, lean `(T, 5)` of one problem, for the next state."""
    uses, unit, k, count = bool(now.uses_loss), now.gradient_unit.item(), now.step.item(), layout.numel
    mean, reference = now.second_mean.item() + 1e-20, now.reference.item() + 1e-20
    length = progress = 0.0
    of_loss = [0.0] * 4
    if uses:
        fast, slow, start = now.loss_fast.item(), now.loss_slow.item(), now.loss_start.item()
        of_loss = [0.3 * math.log(loss / fast), 0.3 * math.log(fast / slow), 0.3 * math.log(loss / start), 1.0]
        length = math.log(fast / (unit * count * math.sqrt(mean))) + 2
        length = min(max(length, -10), 10)
        progress = min(max(math.log(slow / fast), 0), math.log(30))
    growth = max(math.log(mean / reference), -12)
    k = k if optimizer.controller.clock is None else optimizer.controller.clock
    of_problem = [
        0.25 * growth,
        *of_loss,
        0.3 * length,
        old.trust.item(),
        0.3 * math.log(old.share.item() + 1e-4),
        0.3 * math.log(k),
        0.2 * math.log(count),
        *(math.tanh(k / scale - 1) for scale in (20, 100, 1000)),
    ]
    features, ports = [], []
    columns = (flat, old.momentum, grad / unit, *now.averages, now.second, now.start_squares)
    for t, (theta, pi, g, m9, m99, v, starts) in enumerate(zip(*(x.split(layout.sizes) for x in columns), strict=True)):
        log_v, shape = math.log(v.mean().item() + 1e-20), layout.shapes[t]
        of_tensor = [
            0.25 * max(log_square(m9) - log_v, -6),
            0.25 * max(log_square(m99) - log_v, -6),
            0.5 * max(log_square(g) - log_v, -2),
            0.2 * max(log_v - math.log(mean), math.log(1e-10)),
            0.2 * max(log_square(pi) + math.log(count), -20),
            0.3 * max(log_square(theta), -20),
            *((g * x).mean().item() * math.exp(-0.5 * (log_square(g) + log_square(x))) for x in (m9, m99, pi)),
        ]
        static = [
            0.2 * math.log(len(g)),
            float(len(shape) > 1),
            0.2 * math.log(min(shape[0], len(g) // shape[0])) if shape else 0.0,
            t / layout.num_tensors,
            float(t >= layout.num_tensors - 2),
        ]
        x = torch.tensor([*of_tensor, *of_problem, *static], dtype=flat.dtype)
        out = optimizer.controller(x)
        mix, keep, lean, rho = torch.sigmoid(out[1:]).tolist()
        size, at_start = (max(math.sqrt(squares.mean().item()), 0.05) for squares in (theta * theta, starts))
        size = min(size, 1.5 * at_start) if starts.any() else size
        powers = optimizer.controller.powers.tolist()
        log_lr = out[0].item() + 0.5 * progress + powers[0] * length + powers[1] * math.log(size)
        features.append(x)
        ports.append([log_lr + 0.5 * lean * growth, mix, keep, 0.999 * rho, lean])
    return torch.stack(features), torch.tensor(ports, dtype=flat.dtype)


def log_square(x: Tensor) -> float:
    return math.log((x * x).mean().item() + 1e-20)


@pytest.mark.parametrize("clock", [None, 50])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@torch.no_grad()
def test_features_and_ports_match_the_reference(layout, clock, monkeypatch):
    torch.manual_seed(0)
    optimizer = PortHamiltonian(clock=clock).double()
    for p in optimizer.parameters():
        p += 0.5 * torch.randn_like(p)
    set_ports, seen, found = controller.ports, [], []
    monkeypatch.setattr(controller, "ports", lambda *arguments: found.append(set_ports(*arguments)) or found[-1])
    optimizer.controller.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    params = Params(torch.randn(PROBLEMS, layout.numel, dtype=torch.float64), layout)
    params.flat[1] *= 1e-3  # entries below the least size
    params.flat[3] = 0.0
    state = optimizer.hide_loss(optimizer.init(params), torch.arange(PROBLEMS) == 2)
    for k in range(30):
        seen.clear()
        found.clear()
        grads = params.like(params.flat + torch.randn_like(params.flat))
        loss = grads.flat.square().sum(1) * torch.tensor([1.0, 1.0, 1.0, 1e6], dtype=torch.float64)
        new, following = optimizer.update(params, grads, loss, state)
        rows = seen[0]
        ports = torch.stack(found[0], 2)
        for i in range(PROBLEMS):
            old, now = (map_state(lambda x: x[i], s) for s in (state, following))  # noqa: B023
            features, sets = expected(optimizer, layout, params.flat[i], grads.flat[i], loss[i].item(), old, now)
            torch.testing.assert_close(rows[i], features)
            torch.testing.assert_close(ports[i], sets)
        params, state = (new.like(3 * new.flat) if k == 15 else new), following


@pytest.mark.parametrize("own", [["4.bias"], ["4.weight"], ["0.weight", "2.bias", "powers"], None])
@torch.no_grad()
def test_problems_with_controllers_of_their_own(own):
    """Some or all parameters with the problems' axis in front, against one problem at a time."""
    torch.manual_seed(0)
    network = controller.Controller(4, 0.05).double()
    shared = dict(network.named_parameters())
    phi = {n: p + torch.randn(3, *p.shape, dtype=p.dtype) if own is None or n in own else p for n, p in shared.items()}
    features = torch.randn(3, 3, 27, dtype=torch.float64)
    found = torch.func.functional_call(network, phi, (features,))
    for b in range(3):
        alone = {n: phi[n][b] if phi[n].dim() > shared[n].dim() else phi[n] for n in phi}
        torch.testing.assert_close(found[b], torch.func.functional_call(network, alone, (features[b : b + 1],))[0])
