"""A process of a DDP training with the drop-in; `python replicas.py RANK FOLDER`, of two."""

import copy
import sys
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.distributed.optim import ZeroRedundancyOptimizer

from ph_l2o.optim import PortHamiltonian, from_learned, load
from ph_l2o.optimizers import LSTM
from ph_l2o.optimizers import PortHamiltonian as Learned


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    learned = Learned(hidden_size=4)
    found = {}
    for how in ("loss", "no loss", "own loss", "kronecker"):
        torch.manual_seed(1)
        model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)))
        options = {"reduce_loss": False} if how == "own loss" else {}
        make = load("kronecker") if how == "kronecker" else from_learned(learned)
        optimizer = make(model.parameters(), **options)
        data = torch.Generator().manual_seed(100 + rank)
        for k in range(50):
            x = torch.randn(8, 3, generator=data)
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            if k == 20 and rank == 1:
                loss = loss * torch.nan  # one process alone cannot skip
            optimizer.step(loss=None if how == "no loss" else loss)
        found[how] = (nn.utils.parameters_to_vector(model.parameters()).detach(), optimizer.skipped)
    torch.manual_seed(1)
    forms = (torch.optim.AdamW, PortHamiltonian, load("kronecker"), from_learned(LSTM(hidden_size=4)))
    found["zero"] = [zero(rank, form) for form in forms]
    torch.manual_seed(1)
    model = nn.parallel.DistributedDataParallel(nn.Linear(3, 1))
    optimizer = PortHamiltonian(model.parameters(), pretrained=learned)
    with Join([model, optimizer]):
        for k in range(3 + 2 * rank):
            optimizer.zero_grad()
            loss = (model(data := torch.full((2, 3), 1.0 + k)) - data.sum(1, keepdim=True)).square().mean()
            loss.backward()
            optimizer.step(loss=loss)
    lone = PortHamiltonian([torch.ones(2, requires_grad=True)], pretrained=learned)
    with Join([lone]):  # without a model that is told of it
        for _ in range(2 - rank):
            lone.param_groups[0]["params"][0].grad = torch.ones(2)
            lone.step(loss=1.0)
    found["join"] = (nn.utils.parameters_to_vector(model.parameters()).detach(), optimizer.diagnostics()["steps"])
    found["zero"] = [
        zero(rank, form) for form in (PortHamiltonian, load("kronecker"), from_learned(LSTM(hidden_size=4)))
    ]
    alone = [torch.ones(2, requires_grad=True)]
    alone[0].grad = torch.ones(2)
    mine = [dist.new_group([k]) for k in range(2)][rank]
    optimizer = PortHamiltonian(alone, pretrained=learned, process_group=mine)
    optimizer.step(loss=1.0 + rank)
    found["group of one"] = optimizer.diagnostics()["loss_unit"]
    dist.destroy_process_group()
    if rank == 0:
        found["sharded"] = refuse_sharded(folder)
    torch.save(found, folder / f"{rank}.pt")


def zero(rank: int, form) -> list[torch.Tensor]:
    """What a run with ZeRO reaches, and one resumed from it; of several tensors, and of fewer than processes."""
    found = []
    for shapes in (((4, 3), (3,), (2, 2), (5,)), ((3, 2),)):
        torch.manual_seed(3)
        models = [nn.ParameterList([nn.Parameter(torch.randn(s)) for s in shapes])]
        models.append(copy.deepcopy(models[0]))
        runs = [ZeroRedundancyOptimizer(m.parameters(), form) for m in models]

        def steps(n: int, first: int, models=models, runs=runs) -> None:
            for k in range(first, first + 3):
                for p in models[n]:
                    p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(k))
                runs[n].step(**{} if form is torch.optim.AdamW else {"loss": 1.0 + rank})

        steps(0, 0)
        runs[0].consolidate_state_dict(0)
        state = [copy.deepcopy(runs[0].state_dict()) if rank == 0 else None]
        dist.broadcast_object_list(state, 0)
        models[1].load_state_dict(models[0].state_dict())
        runs[1].load_state_dict(state[0])
        for n in range(2):
            steps(n, 3)
            found.append(nn.utils.parameters_to_vector(models[n].parameters()).detach())
    return found


def refuse_sharded(folder: Path) -> str:
    """What is said of a DTensor."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{folder}/one", rank=0, world_size=1)
    try:
        sharded = distribute_tensor(torch.ones(4), init_device_mesh("cpu", (1,)), [Shard(0)])
        PortHamiltonian([nn.Parameter(sharded)])
    except TypeError as error:
        return str(error)
    finally:
        dist.destroy_process_group()
    return "nothing"


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
