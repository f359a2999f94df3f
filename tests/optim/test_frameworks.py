"""The drop-in in a Lightning module, and in several processes."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric import Fabric
from torch import nn

from ph_l2o.optim import PortHamiltonian
from tests.optim.conftest import flat

REPLICAS = Path(__file__).with_name("replicas.py")


class Module(pl.LightningModule):
    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.make = nn.Linear(4, 1), make

    def training_step(self, batch, _):
        x = batch[0]
        return (self.net(x) - x.sum(1, keepdim=True)).square().mean()

    def configure_optimizers(self):
        optimizer = self.make(self.net.parameters())
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


def fit(make, folder, epochs=2, ckpt_path=None, module=Module, **options):
    data = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), batch_size=4)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    module = module(make)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(max_epochs=epochs, devices=1, default_root_dir=folder, **quiet, **options)
        trainer.fit(module, loader, ckpt_path=ckpt_path)
    return module, trainer


@pytest.mark.parametrize(
    "options", [{}, {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}]
)
def test_lightning_with_automatic_optimization(tmp_path, options, learned):
    module, trainer = fit(lambda p: PortHamiltonian(p, pretrained=learned), tmp_path, **options)
    (optimizer,) = trainer.optimizers
    found = optimizer.diagnostics()
    assert found["steps"] == trainer.global_step == (6 if "accumulate_grad_batches" in options else 12)
    assert found["uses_loss"] and optimizer.param_groups[0]["lr"] == 0.5 and flat(module).isfinite().all()


def test_lightning_resumes_bit_for_bit(tmp_path, learned):
    def make(p):
        return PortHamiltonian(p, pretrained=learned)

    whole, _ = fit(make, tmp_path, 3)
    _, trainer = fit(make, tmp_path, 2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    resumed, _ = fit(make, tmp_path, 3, tmp_path / "two.ckpt")
    assert torch.equal(flat(whole), flat(resumed))


def run(*arguments: object) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(REPLICAS), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_replicas_are_equal_bit_for_bit(tmp_path):
    processes = [run(rank, tmp_path) for rank in range(2)]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for how, skipped in (("loss", 1), ("no loss", 0), ("kronecker", 1)):
        assert torch.equal(one[how][0], two[how][0]) and one[how][1] == two[how][1] == skipped
    assert torch.equal(one["join"][0], two["join"][0]) and (one["join"][1], two["join"][1]) == (3, 5)
    for ours, theirs in zip(one["zero"], two["zero"], strict=True):
        for k in range(0, len(ours), 2):  # a run, and the one that was resumed
            assert torch.equal(ours[k], ours[k + 1]) and torch.equal(ours[k], theirs[k]) and ours[k].isfinite().all()
    assert not torch.equal(one["own loss"][0], two["own loss"][0])  # so the test can fail
    assert "needs whole parameters, and one is sharded (FSDP or DTensor)" in one["sharded"]
    assert (one["group of one"], two["group of one"]) == (1.0, 2.0)


def test_fabric_steps_with_the_loss_that_was_set_before():
    ends = []
    for wrapped in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        inner = PortHamiltonian(model.parameters())
        fabric = Fabric(accelerator="cpu")
        module, optimizer = fabric.setup(model, inner) if wrapped else (model, inner)
        for k in range(5):
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(k))
            loss = (module(x) - x.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            fabric.backward(loss) if wrapped else loss.backward()
            inner.loss = loss
            optimizer.step()
        assert inner.diagnostics()["uses_loss"]
        ends.append(flat(model))
    assert torch.equal(*ends)
