"""Nothing that comes from a file is executed; what a user types makes what its place asks for, and nothing else."""

import copy
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from ph_l2o import recipes
from ph_l2o.checkpoints import add_checksum, load_checkpoint, load_weights, read_checkpoint
from ph_l2o.commands.evaluate import _entry
from ph_l2o.commands.instantiate import build
from ph_l2o.commands.train import start_from
from ph_l2o.errors import CheckpointError, ConfigError, WeightsError
from ph_l2o.estimators import Truncated
from ph_l2o.meta import MetaLearner, MetaSettings
from ph_l2o.optim import PortHamiltonian as DropIn
from ph_l2o.optim import export, load
from ph_l2o.optimizers import PortHamiltonian
from ph_l2o.tasks import Quadratic

GOOD = PortHamiltonian(hidden_size=2)
OURS = "ph_l2o.optimizers.PortHamiltonian"
# {marker} is the file that a successful attack makes.
ATTACKS: dict[str, Any] = {
    "torch function": {"_target_": "torch.utils.collect_env.run", "command": "touch {marker}"},
    "torch function of many": {"_target_": "torch.utils.collect_env.run_and_read_all", "run_lambda": "os.system"},
    "os": {"_target_": "os.system", "command": "touch {marker}"},
    "subprocess": {"_target_": "subprocess.getoutput", "cmd": "touch {marker}"},
    "subprocess class": {"_target_": "subprocess.Popen", "args": ["touch", "{marker}"]},
    "builtin": {"_target_": "builtins.exec", "source": "open('{marker}', 'w')"},
    "open": {"_target_": "builtins.open", "file": "{marker}", "mode": "w"},
    "pathlib": {"_target_": "pathlib.Path.touch", "self": "{marker}"},
    "alias in torch": {"_target_": "torch.os.system", "command": "touch {marker}"},
    "alias in this package": {"_target_": "ph_l2o.files.subprocess.getoutput", "cmd": "touch {marker}"},
    "import": {"_target_": "ph_l2o.recipes.importlib.import_module", "name": "attacking_module"},
    "import by a class": {"_target_": "attacking_module.Attack"},
    "own function": {"_target_": "ph_l2o.files.write_atomically", "path": "{marker}", "content": ""},
    "own lazy name": {"_target_": "ph_l2o.lazy.resolve", "place": "attacking_module"},
    "writer": {"_target_": "torch.save", "obj": 1, "f": "{marker}"},
    "profiler": {"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": "{marker}"},
    "hydra": {"_target_": "hydra.utils.instantiate", "config": {"_target_": "os.mkdir", "path": "{marker}"}},
    "method of a class": {"_target_": f"{OURS}.save", "path": "{marker}"},
    "compiler": {"_target_": "torch.utils.cpp_extension.load", "name": "x", "sources": ["{marker}"]},
    "hub": {"_target_": "torch.hub.load", "repo_or_dir": "{marker}", "model": "x", "source": "local"},
    "partial": {"_target_": "os.mkdir", "_partial_": True, "path": "{marker}"},
    "partial of ours": {"_target_": OURS, "_partial_": True},
    "by place": {"_target_": "os.mkdir", "_args_": ["{marker}"]},
    "by place, of ours": {"_target_": OURS, "_args_": [{"_target_": "os.mkdir", "path": "{marker}"}]},
    "nested": {"_target_": OURS, "hidden_size": {"_target_": "os.mkdir", "path": "{marker}"}},
    "nested in a list": {"_target_": OURS, "pace": [{"_target_": "os.mkdir", "path": "{marker}"}, 0]},
    "nested in a mapping": {"_target_": OURS, "pace": {"a": {"_target_": "os.mkdir", "path": "{marker}"}}},
    "nested in an optimizer": {
        "_target_": "ph_l2o.optimizers.Scheduled", "horizon": 3, "optimizer": {"_target_": "os.mkdir", "path": "x"}
    },
    "environment": {"_target_": OURS, "hidden_size": "${oc.env:PH_L2O_SECRET}"},
    "environment in the class": {"_target_": "${oc.env:PH_L2O_SECRET}"},
    "resolver": {"_target_": OURS, "hidden_size": "${run_dir:null,{marker},x}"},
    "a list for a class": {"_target_": ["os.system"]},
    "a number for a class": {"_target_": 3},
    "a node for a class": {"_target_": {"_target_": "os.mkdir", "path": "{marker}"}},
    "no class": {"hidden_size": 2},
    "a word": "os.system",
    "a list": [{"_target_": "os.mkdir", "path": "{marker}"}],
    "another kind of ours": {"_target_": "ph_l2o.tasks.Quadratic"},
    "abstract": {"_target_": "ph_l2o.optimizers.LearnedOptimizer"},
    "lines": {"_target_": "os.system\nerror: nothing\x1b[2J"},
}  # fmt: skip


def filled(value: Any, marker: Path) -> Any:
    if isinstance(value, dict):
        return {k: filled(v, marker) for k, v in value.items()}
    if isinstance(value, list):
        return [filled(v, marker) for v in value]
    return value.replace("{marker}", str(marker)) if isinstance(value, str) else value


@pytest.fixture
def attacking(tmp_path, monkeypatch) -> Path:
    """The file that must not be made, by code that could be imported."""
    marker = tmp_path / "executed"
    monkeypatch.setenv("PH_L2O_SECRET", "2")
    package = tmp_path / "modules" / "innocent"
    package.mkdir(parents=True)
    source = f"open({str(marker)!r}, 'w').close()\nclass Attack: pass\n"
    (package / "__init__.py").write_text("")
    (package / "attack.py").write_text(source)
    (tmp_path / "modules" / "attacking_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    for name in ("innocent", "innocent.attack", "attacking_module"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return marker


def checkpoint(path: Path, optimizer: Any, **config: Any) -> Path:
    weights = {f"optimizer.{name}": x for name, x in GOOD.state_dict().items()}
    torch.save({"ph_l2o": {"config": {"optimizer": optimizer, **config}}, "state_dict": weights}, path)
    return path


@pytest.mark.parametrize("name", ATTACKS)
def test_a_file_executes_nothing(tmp_path, attacking, capsys, name):
    recipe = filled(ATTACKS[name], attacking)
    path, safe = checkpoint(tmp_path / "attack.ckpt", recipe), tmp_path / "attack.safetensors"
    save_file(GOOD.state_dict(), safe, {"recipe": json.dumps(recipe)})
    refused: list[BaseException] = []
    for way in (
        lambda: _entry(str(path), OmegaConf.create({"plugins": ["innocent"]})),  # evaluate.py
        lambda: start_from(str(path), GOOD),  # train.py weights=…
        lambda: DropIn([torch.ones(2, requires_grad=True)], pretrained=path),
        lambda: DropIn([torch.ones(2, requires_grad=True)], pretrained=safe),
        lambda: load(path),
        lambda: load_weights(safe, plugins=["innocent"]),
        lambda: load_checkpoint(path),
    ):
        with pytest.raises((CheckpointError, WeightsError, ConfigError)) as found:
            way()
        refused.append(found.value)
    assert export.main([str(path), str(tmp_path / "out.safetensors")]) == 1
    shown = [capsys.readouterr().err.rstrip("\n"), *map(str, refused)]
    assert all(re.match(r"(weights=)?/.*attack\.(ckpt|safetensors): .", text) for text in shown), shown
    assert not any("\n" in text or "\x1b" in text for text in shown)
    assert not attacking.exists() and "attacking_module" not in sys.modules and "innocent.attack" not in sys.modules


def test_only_the_modules_that_the_user_named_are_imported(tmp_path, attacking):
    path = checkpoint(tmp_path / "attack.ckpt", {"_target_": "innocent.attack.Attack"})
    with pytest.raises(CheckpointError, match=r"is of innocent.attack.Attack, .* plugins=\[innocent.attack\]"):
        load_checkpoint(path, plugins=["innocent"])
    assert not attacking.exists()
    with pytest.raises(CheckpointError, match=r"is of innocent.attack.Attack"):
        load_checkpoint(path, plugins=["innocent.attack"])  # no optimizer, but what the user named is imported
    assert attacking.exists()


def test_the_rest_of_a_configuration_is_never_built(tmp_path, attacking):
    attack = {"_target_": "os.mkdir", "path": str(attacking)}
    others = dict.fromkeys(("task", "estimator", "meta", "trainer", "callbacks", "hydra", "plugins"), attack)
    path = checkpoint(tmp_path / "attack.ckpt", GOOD.recipe, run_name="../../escaped\x1b[2J", **others)
    name, optimizer = _entry(str(path), OmegaConf.create({"plugins": []}))
    assert name == "attack", "the name of a file of results would lead out of its folder"
    assert all(torch.equal(x, GOOD.state_dict()[k]) for k, x in optimizer.state_dict().items())
    assert export.main([str(path), str(tmp_path / "out.safetensors")]) == 0
    assert not attacking.exists()


TYPED = [
    ("task", {"_target_": "torch.utils.collect_env.run", "command": "touch {marker}"}, "task._target_=.* is no class"),
    ("task", {"_target_": "torch.os.system", "command": "touch {marker}"}, "task._target_=.* there is no such class"),
    ("task", {"_target_": "ph_l2o.files.subprocess.Popen", "args": "ls"}, "task._target_=.* there is no such class"),
    ("task", {"_target_": "ph_l2o.files.write_atomically", "path": "{marker}", "content": ""}, ".* is no class"),
    ("task", {"_target_": "ph_l2o.commands.train.Path"}, "task._target_=.* must be a ph_l2o Task"),
    ("task", {"_target_": "ph_l2o.tasks.Quadratic.sample"}, "task._target_=.* there is no such class"),
    ("task", {"_target_": "ph_l2o.optimizers.Adam"}, "task._target_=.* must be a ph_l2o Task"),
    ("task", {"_target_": "ph_l2o.tasks.Quadratic", "_partial_": True, "dim": {"_target_": "os.mkdir"}}, "task.dim"),
    ("task", {"_target_": "ph_l2o.tasks.Quadratic", "_recursive_": False}, "task._recursive_: no such argument"),
    ("task", {"_target_": "innocent.attack.Attack"}, r"task._target_=.* allow another .*plugins=\[innocent.attack\]"),
    ("task", {"_target_": "Quadratic"}, "task._target_=Quadratic: must be in one of"),
    ("optimizer", {"_target_": "torch.nn.Linear"}, "optimizer._target_=.* must be a ph_l2o LearnedOptimizer"),
    ("optimizer", {"_target_": "torch.optim.Adam"}, "optimizer._target_=.* must be a ph_l2o LearnedOptimizer"),
    ("estimator", {"_target_": "ph_l2o.tasks.Quadratic"}, "estimator._target_=.* must be a ph_l2o Estimator"),
    ("meta", {"_target_": "ph_l2o.meta.MetaLearner"}, "meta._target_=.* must be a ph_l2o MetaSettings"),
    ("trainer", {"_target_": "pytorch_lightning.LightningModule"}, "trainer._target_=.* must be a pytorch_lightning T"),
    ("callbacks.x", {"_target_": "torch.nn.ReLU"}, "callbacks.x._target_=.* must be a pytorch_lightning Callback"),
    ("logger.x", {"_target_": "torch.nn.ReLU"}, "logger.x._target_=.* must be a pytorch_lightning Logger"),
    ("logger.x", {"_target_": "ph_l2o.meta.meta_train"}, "logger.x._target_=.* is no class"),
    ("suite.x.task", {"_target_": "torch.nn.ReLU"}, "suite.x.task._target_=.* must be a ph_l2o Task"),
    (
        "meta",
        {"_target_": "ph_l2o.meta.MetaSettings", "outer_optimizer": {"_target_": "torch.save", "_partial_": True}},
        "meta.outer_optimizer._target_=torch.save: is no class",
    ),
    (
        "meta",
        {"_target_": "ph_l2o.meta.MetaSettings", "schedule": {"_target_": "torch.optim.Adam", "_partial_": True}},
        "meta.schedule._target_=.* must be a torch LRScheduler",
    ),
    (
        "meta",
        {"_target_": "ph_l2o.meta.MetaSettings", "objective": {"_target_": "torch.save", "_partial_": True}},
        "meta.objective._target_=torch.save: is no class",
    ),
    (
        "task",
        {"_target_": "ph_l2o.tasks.Mixture", "tasks": {"a": {"_target_": "os.mkdir", "path": "{marker}"}}},
        "task.tasks.a._target_=os.mkdir: must be in one of",
    ),
    (
        "task",
        {"_target_": "ph_l2o.tasks.Mixture", "tasks": [{"_target_": "torch.nn.ReLU", "_args_": [True]}]},
        "task.tasks._target_=.* must be a ph_l2o Task",
    ),
    (
        "trainer",
        {"_target_": "pytorch_lightning.Trainer", "_partial_": True, "profiler": {"_target_": "torch.hub.load"}},
        "trainer.profiler._target_=torch.hub.load: is no class",
    ),
    (
        "trainer",
        {"_target_": "pytorch_lightning.Trainer", "_args_": [{"_target_": "torch.distributed.run.main"}]},
        r"trainer._args_._target_=torch.distributed.run.main: is no class",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("key", "node", "message"), TYPED, ids=[f"{k}, {n['_target_']}" for k, n, _ in TYPED])
def test_what_is_typed_makes_what_its_place_asks_for(attacking, key, node, message):
    with pytest.raises(ConfigError) as found:
        build(filled(node, attacking), key, plugins=["math"])
    assert re.match(message, str(found.value)), found.value
    assert "\n" not in str(found.value) and not attacking.exists()


def test_functions_of_the_users_modules_are_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "_CLASSES", recipes._CLASSES.copy())
    (tmp_path / "mine.py").write_text(
        "from os import mkdir\nfrom ph_l2o.tasks import Quadratic\n"
        "def narrow(dim):\n    return Quadratic(dim, condition_number=1)\n"
        "def wrong():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert build({"_target_": "mine.narrow", "dim": 3}, "task", plugins=["mine"]).dim == 3
    for name, message in (("wrong", "makes a int; must make a ph_l2o Task"), ("mkdir", "is no class")):
        with pytest.raises(ConfigError, match=f"task._target_=mine.{name}: {message}"):
            build({"_target_": f"mine.{name}"}, "task", plugins=["mine"])
    monkeypatch.delitem(sys.modules, "mine")
    importlib.invalidate_caches()


FOREIGN = [
    {"task": {"_target_": "torch.utils.collect_env.run", "command": "touch {marker}"}},
    {"task": {"_target_": "innocent.attack.Attack"}, "plugins": ["innocent.attack"]},
    {"task": {"_target_": "ph_l2o.tasks.Mixture", "tasks": [{"_target_": "os.mkdir", "path": "{marker}"}]}},
    {"trainer": {"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": "{marker}"}},
    {"meta": {"_target_": "ph_l2o.meta.MetaSettings", "outer_optimizer": {"_target_": "os.mkdir", "_partial_": True}}},
    {"overrides": ["+task.x=${oc.env:PH_L2O_SECRET}"]},
]


def trained(command, run_folder) -> dict[str, Any]:
    """The content of a checkpoint."""
    if "trained" not in KEPT:
        assert command("train", "debug=default", "optimizer=adam", "compare=false").code == 0
        KEPT["trained"] = read_checkpoint(run_folder() / "checkpoints" / "last.ckpt")
    return copy.deepcopy(KEPT["trained"])


KEPT: dict[str, Any] = {}


@pytest.mark.parametrize("part", FOREIGN, ids=range(len(FOREIGN)))
def test_somebody_elses_checkpoint_that_is_resumed_executes_nothing(
    command, run_folder, tmp_path, attacking, part, left_behind
):
    path = tmp_path / "foreign.ckpt"
    content = trained(command, run_folder)
    content["ph_l2o"]["config"] |= filled(part, attacking)
    add_checksum(content)
    torch.save(content, path)
    before = left_behind()
    outcome = command("train", f"ckpt_path={path}", "meta.outer_steps=6")
    assert re.match(f"({path}|task._target_=).*: ", outcome.error), outcome.error
    assert not attacking.exists() and left_behind() == before


def test_what_writes_is_not_taken_from_a_checkpoint(command, run_folder, tmp_path, attacking):
    content = trained(command, run_folder)
    writer = {"_target_": "pytorch_lightning.callbacks.ModelCheckpoint", "dirpath": str(attacking)}
    folders = {"runs": str(attacking), "data": str(attacking), "output_dir": str(attacking)}
    content["ph_l2o"]["config"] |= {"callbacks": {"x": writer}, "logger": {"x": writer}, "paths": folders}
    content["ph_l2o"]["config"]["overrides"] += [f"paths.runs={attacking}", "hydra.run.dir=x", "+hydra/launcher=joblib"]
    add_checksum(content)
    torch.save(content, tmp_path / "foreign.ckpt")
    outcome = command("train", f"ckpt_path={tmp_path / 'foreign.ckpt'}", "meta.outer_steps=6", "run_name=on")
    assert outcome.code == 0, outcome.err
    (last,) = tmp_path.glob("runs/20*/*_on/checkpoints/last.ckpt")
    assert read_checkpoint(last)["global_step"] == 6 and not attacking.exists()


OF_A_FOLDER = [
    ("plugins: []", "plugins: [attacking_module]", r"its run had plugins=\[attacking_module\]; type them"),
    ("seed: 0", "seed: ${oc.env:PH_L2O_SECRET}", "has interpolations, which are not resolved from a file"),
    ("_target_: ph_l2o.tasks.Quadratic", "_target_: torch.os.system", "task._target_=torch.os.system: there is no"),
]


def test_a_folder_of_a_run_that_somebody_else_made(command, run_folder, attacking):
    assert command("train", "debug=default", "optimizer=adam", "compare=false").code == 0
    path = run_folder() / "config.yaml"
    text = path.read_text()
    for before, after, message in OF_A_FOLDER:
        assert before in text
        path.write_text(text.replace(before, after))
        assert re.search(message, command("train", f"ckpt_path={path.parent / 'checkpoints' / 'last.ckpt'}").error)
        assert not attacking.exists() and "attacking_module" not in sys.modules


def test_lightnings_way_to_load_calls_nothing(tmp_path, attacking):
    path = checkpoint(tmp_path / "attack.ckpt", GOOD.recipe)
    content = torch.load(path, weights_only=True)
    torch.save(content | {"hyper_parameters": {"_instantiator": "attacking_module.Attack"}}, path)
    arguments = (Quadratic(3), Truncated(), MetaSettings())
    found = MetaLearner.load_from_checkpoint(path, PortHamiltonian(hidden_size=2), *arguments)
    assert all(torch.equal(x, GOOD.state_dict()[name]) for name, x in found.optimizer.state_dict().items())
    assert not attacking.exists()
    with pytest.raises(CheckpointError, match=r"attack.ckpt: its weights don't fit.*; give the optimizer"):
        MetaLearner.load_from_checkpoint(path, PortHamiltonian(hidden_size=3), *arguments)
