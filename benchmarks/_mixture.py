"""The mixture that the shipped weights were pretrained on."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir

from ph_l2o.commands.configuration import register
from ph_l2o.commands.instantiate import build
from ph_l2o.tasks import Mixture

_CONF = Path(__file__).resolve().parents[1] / "conf"


def mixture(data: Path) -> Mixture:
    """`task=pretrain`, with the data sets of this folder, ready."""
    register()
    with initialize_config_dir(str(_CONF), version_base="1.3"):
        config = compose("train", [f"paths.data={data.absolute()}", "task=pretrain", "hydra.run.dir=."])
    task: Mixture = build(config.task, "task")
    task.prepare()
    return task
