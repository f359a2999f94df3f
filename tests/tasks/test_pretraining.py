"""The mixture of conf/task/pretrain.yaml: every member can be learned on."""

import functools

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from ph_l2o import cli
from ph_l2o.commands.configuration import register
from ph_l2o.commands.instantiate import build
from ph_l2o.estimators import OBJECTIVES, Truncated
from ph_l2o.inner import Window, start
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import SGD
from ph_l2o.tasks import Mixture

NAMES = list(OmegaConf.load(f"{cli.conf_dir()}/task/pretrain.yaml").tasks)


@functools.cache
def mixture(data: str) -> Mixture:
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=["task=pretrain", f"paths.data={data}"])
    return build(cfg.task, "task")


def test_there_are_many_members(mnist_root):
    members = mixture(str(mnist_root)).members()
    assert [name for name, _ in members] == NAMES and len(NAMES) >= 30
    assert len({str(task.spec()) for _, task in members}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_member_has_meta_gradients_and_is_small(mnist_root, name):
    task = mixture(str(mnist_root)).tasks[name]
    problem = task.sample(ProblemKeys(0, "val", 0, range(2)))
    assert problem.params.layout.numel <= 100_000 and not problem.buffers
    optimizer = SGD(lr=1e-4)
    phi = dict(optimizer.named_parameters())
    carry, objective = start(optimizer, problem), OBJECTIVES["mean_log_loss"]
    estimate = Truncated()(Window(optimizer, phi, problem, carry, 0, 3, objective))
    assert estimate.losses.shape == (3, 2)
    assert torch.isfinite(estimate.losses).all() and (estimate.losses > 0).all()
    (gradient,) = estimate.gradient.values()
    assert torch.isfinite(gradient).all() and gradient != 0
