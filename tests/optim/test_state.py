"""What lies in `optimizer.state` belongs to parameters, and goes with them: files, wrappers, parameters that change."""

import copy
import itertools
import weakref

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint import state_dict as of_torch
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ph_l2o.optim import Learned, PortHamiltonian
from tests.optim.conftest import FORMS, flat, train


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def steps(params, optimizer, first, count):
    for k in range(first, first + count):
        draws = torch.Generator().manual_seed(k)
        for p in params:
            p.grad = torch.randn(p.shape, generator=draws).to(p.dtype)
        optimizer.step()


def through_checkpoint(model, optimizer, other, resumed, folder, **options):
    options = of_torch.StateDictOptions(**options)
    saved = of_torch.get_state_dict(model, optimizer, options=options)
    checkpoint.save({"model": saved[0], "optimizer": saved[1]}, checkpoint_id=folder)
    there = dict(zip(("model", "optimizer"), of_torch.get_state_dict(other, resumed, options=options), strict=True))
    checkpoint.load(there, checkpoint_id=folder)
    of_torch.set_state_dict(
        other, resumed, model_state_dict=there["model"], optim_state_dict=there["optimizer"], options=options
    )


def through_zero(model, optimizer, other, resumed, folder):
    optimizer.consolidate_state_dict()
    torch.save(optimizer.state_dict(), folder / "state.pt")
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(torch.load(folder / "state.pt", weights_only=True))


def through_file(model, optimizer, other, resumed, folder):
    torch.save(optimizer.state_dict(), folder / "state.pt")
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(torch.load(folder / "state.pt", weights_only=True))


HOWS = {
    "checkpoint": through_checkpoint,
    "flattened": lambda *a: through_checkpoint(*a, flatten_optimizer_state_dict=True),
    "full": lambda *a: through_checkpoint(*a, full_state_dict=True),
    "zero": through_zero,
    "file": through_file,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("form", "dtype", "how"),
    [
        *itertools.product(
            ("PortHamiltonian", "kronecker", "LSTM"), (torch.bfloat16, torch.float32, torch.float64), HOWS
        ),
        *itertools.product(("AdamW", "Muon"), (torch.float32,), HOWS),
    ],
    ids=str,
)
def test_a_saved_state_continues_bit_for_bit(form, dtype, how, model, alone, tmp_path):
    make, model, models = FORMS[form], model.to(dtype), []
    for other in (model, copy.deepcopy(model)):
        if how == "zero":
            models.append((other, ZeroRedundancyOptimizer(other.parameters(), make)))
        else:
            models.append((other, make(other.parameters())))
    steps([*model.parameters()][:3], models[0][1], 0, 2)
    steps([*model.parameters()], models[0][1], 2, 3)
    HOWS[how](*models[0], *models[1], tmp_path)
    for other, optimizer in models:
        other[2].bias.grad = None
        steps([*other.parameters()][:3], optimizer, 5, 2)
        steps([*other.parameters()], optimizer, 7, 2)
    assert torch.equal(flat(model), flat(models[1][0])) and flat(model).isfinite().all()


@pytest.mark.filterwarnings("ignore")
def test_a_state_that_is_made_before_training_changes_nothing(make, model, alone):
    """torch.distributed.checkpoint takes a step at lr 0 with gradients of 0 for it."""
    other = copy.deepcopy(model)
    optimizer, twin = make(model.parameters()), make(other.parameters())
    of_torch.get_optimizer_state_dict(model, optimizer)
    assert torch.equal(flat(model), flat(other)) and optimizer.state
    if isinstance(optimizer, torch.optim.AdamW):
        return  # its bias correction is one step further
    train(model, optimizer, 4)
    train(other, twin, 4)
    assert torch.equal(flat(model), flat(other))


def test_a_state_of_an_earlier_version_is_refused(model):
    for key, made in (("account", PortHamiltonian), ("memory", FORMS["LSTM"])):
        state = {"state": {key: {"energy": 1.0}}, "param_groups": make_groups(made, model)}
        with pytest.raises(ValueError, match="of an earlier version"):
            made(model.parameters()).load_state_dict(state)


def make_groups(made, model):
    return made(model.parameters()).state_dict()["param_groups"]


def test_what_wrappers_keep_is_loaded_too(make, model):
    optimizer = make(model.parameters())
    train(model, optimizer, 2, with_loss=False)
    optimizer.state["wrapper"] = {"scale": torch.tensor(0.5)}
    optimizer.state[model[0].weight]["mean"] = torch.ones(8, 4)
    other = make(copy.deepcopy(model).parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.state["wrapper"] == {"scale": torch.tensor(0.5)}
    assert torch.equal(other.state[other.param_groups[0]["params"][0]]["mean"], torch.ones(8, 4))


class Touched(TorchDispatchMode):
    """Storages that operations read or write."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_flatten((args, kwargs, out))[0]:
            if torch.is_tensor(x) and "view" not in str(func) and "detach" not in str(func):
                self.found.add(x.untyped_storage().data_ptr())
        return out


def test_what_does_not_train_is_not_touched(make):
    """Frozen, without gradient from the start, and resting after it has trained: in steps with other units."""
    trained, resting, idle = (torch.randn(4, 3).requires_grad_() for _ in range(3))
    frozen = torch.ones(1000, dtype=torch.bfloat16)
    optimizer = make([{"params": [frozen, trained]}, {"params": [resting, idle]}])
    takes_loss = not isinstance(optimizer, torch.optim.AdamW)
    steps([trained, resting], optimizer, 0, 2)
    resting.grad = None
    kept = [x for x in optimizer.state[resting].values() if torch.is_tensor(x) and x.dim() > 1 and x.numel()]
    others = {x.untyped_storage().data_ptr() for x in (frozen, resting, idle, *kept)}
    assert len(kept) >= 1 and len(others) == 3 + len(kept)
    before = [x.clone() for x in kept]
    with Touched() as touched:
        for scale in (1.0, 1e3, 1e-9):
            trained.grad = scale * torch.randn(4, 3)
            optimizer.step(**{"loss": scale} if takes_loss else {})
    assert len(touched.found) > 1 and not others & touched.found
    assert all(map(torch.equal, kept, before)) and set(optimizer.state) == {trained, resting}


def test_parameters_come_and_go(make):
    """A twin that has the others in another place, or never had those that are gone, takes the same steps."""
    torch.manual_seed(0)
    start = [torch.randn(3, 2), torch.randn(4), torch.randn(2, 2), torch.randn(3)]
    first, second, third, fourth = (x.clone().requires_grad_() for x in start)
    optimizer = make([{"params": []}, {"params": [first, second]}, {"params": [third]}])
    steps([first, second, third], optimizer, 0, 3)
    optimizer.param_groups.pop()
    optimizer.param_groups[1]["params"].remove(first)
    before = first.clone(), third.clone()
    optimizer.param_groups[0]["params"].append(fourth)
    steps([second, fourth], optimizer, 3, 3)
    assert torch.equal(first, before[0]) and torch.equal(third, before[1])
    assert not torch.equal(fourth, start[3]) and second.isfinite().all() and fourth.isfinite().all()
    moved = make([{"params": [x.detach().clone().requires_grad_() for x in (fourth, second)]}])
    for p, q in zip(moved.param_groups[0]["params"], (fourth, second), strict=True):
        moved.state[p] = copy.deepcopy(optimizer.state[q])
    steps([fourth, second], optimizer, 6, 3)
    steps(moved.param_groups[0]["params"], moved, 6, 3)
    assert [p.tolist() for p in moved.param_groups[0]["params"]] == [fourth.tolist(), second.tolist()]


def fits(x, p):
    return torch.is_tensor(x) and x.shape == p.shape


@pytest.mark.parametrize("keeps", [True, False])
def test_replaced_parameters_are_freed(make, keeps):
    """As densification does it: a longer tensor in place of one, with its memory or without."""
    others = [torch.ones(3, requires_grad=True), torch.ones(2, 2, requires_grad=True)]
    optimizer, dead = make([torch.ones(4, 2, requires_grad=True), *others]), []
    params = optimizer.param_groups[0]["params"]
    for k in range(4):
        in_bases = "basis" in optimizer.state.get(params[0], {})
        if k and keeps and (in_bases or isinstance(optimizer, Learned)):  # nothing that could be made longer
            with pytest.raises(ValueError, match=r"parameter 0 has shape \(5, 2\) now, .* del optimizer.state"):
                steps(params, optimizer, k, 1)
            return
        steps(params, optimizer, k, 1)
        old = params[0]
        memory = optimizer.state.pop(old)
        dead += [weakref.ref(x) for x in (old, *memory.values()) if fits(x, old)]
        params[0] = nn.Parameter(torch.cat([old.detach(), torch.randn(1, 2)]))
        if keeps:
            longer = {k: torch.cat([x, torch.zeros(1, 2)]) for k, x in memory.items() if fits(x, old)}
            optimizer.state[params[0]] = memory | longer
        del old, memory  # no cycle holds them
    assert len(dead) >= 4 and not any(x() is not None for x in dead)
    steps(params, optimizer, 9, 1)
    assert all(p.isfinite().all() for p in params)


def test_a_large_parameter_that_is_appended_stays_where_it_is(make):
    p, q = torch.randn(5, 4).requires_grad_(), torch.full((6,), 1e6).requires_grad_()
    optimizer = make([p])
    steps([p], optimizer, 0, 3)
    optimizer.param_groups[0]["params"].append(q)
    before = q.detach().clone()
    steps([p, q], optimizer, 3, 20)
    assert (q - before).norm() < 0.1 * before.norm() and p.norm() < 1e3


@pytest.mark.parametrize("form", ["PortHamiltonian", "compiled", "kronecker"])
def test_a_parameter_that_comes_with_the_state_of_another_training(form):
    """Its energies join the account, which stays one; what is known of it goes on in the units of its new optimizer."""
    torch.manual_seed(0)
    p, q = torch.randn(5, 4).requires_grad_(), torch.randn(3, 2).requires_grad_()
    one, two = FORMS[form]([p]), FORMS[form]([q])
    for k in range(6):
        p.grad, q.grad = torch.randn_like(p), 1e8 * torch.randn_like(q)
        one.step(loss=2.0 + k)
        if k < 4:
            two.step(loss=1e-3)
    energy, kinetic = (sum(o.diagnostics()[name] for o in (one, two)) for name in ("energy", "kinetic"))
    two.param_groups[0]["params"].append(p)
    two.state[p] = copy.deepcopy(one.state[p])
    p.grad = None
    before = p.detach().clone()
    two.step(loss=1e-3)
    assert torch.equal(p, before) and two.diagnostics()["steps"] == 7  # the account of the longer training
    assert two.state[p]["account"] is two.state[q]["account"]
    found = two.diagnostics()
    assert found["kinetic"] <= found["energy"] <= energy + kinetic
    for _ in range(5):
        p.grad, q.grad = torch.randn_like(p), 1e8 * torch.randn_like(q)
        two.step(loss=1e-3)
        assert two.diagnostics()["energy"] <= found["energy"]
    assert p.isfinite().all() and q.isfinite().all() and two.skipped == 0
    assert torch.cat([p.flatten(), q.flatten()]).norm() <= two.radius()
