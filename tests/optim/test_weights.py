"""Weights in files: what is shipped, what is refused."""

import importlib
import json
import sys
import warnings

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import ph_l2o
from ph_l2o import checkpoints, recipes
from ph_l2o.checkpoints import load_checkpoint
from ph_l2o.errors import WeightsError
from ph_l2o.optim import Learned, export, load, save_weights
from ph_l2o.optim import PortHamiltonian as DropIn
from ph_l2o.optimizers import LSTM, PortHamiltonian, PortHamiltonianKronecker
from ph_l2o.tasks import Quadratic


def one() -> list[torch.Tensor]:
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.randn(3)
    return [p]


def test_default_weights_are_small_and_fit_this_version():
    path = checkpoints.FOLDER / "default.safetensors"
    assert path.stat().st_size < 200_000
    assert isinstance(checkpoints.load_weights("default"), PortHamiltonian)
    about = checkpoints.describe(path)
    assert about["recipe"]["_target_"].endswith("PortHamiltonian") and about["trained_on"]
    assert "/" not in json.dumps(about), "a folder of the machine on which it was trained"
    ph_l2o.optim.PortHamiltonian(one()).step()


@pytest.mark.parametrize(
    "made", [PortHamiltonian(hidden_size=5, radius=7.0), LSTM(hidden_size=3)], ids=["ours", "lstm"]
)
def test_round_trip(tmp_path, made):
    path = save_weights(made, tmp_path / "mine.safetensors", trained_on=["nothing"])
    again = checkpoints.load_weights(path)
    assert type(again) is type(made) and again.recipe == made.recipe and not again.training
    for name, x in made.state_dict().items():
        assert torch.equal(again.state_dict()[name], x)
    assert checkpoints.describe(path)["trained_on"] == ["nothing"]
    optimizer = load(path)(one(), lr=0.5)
    assert isinstance(optimizer, DropIn if isinstance(made, PortHamiltonian) else Learned)
    optimizer.step()


def test_checkpoint_and_export(tmp_path, capsys):
    small = {"num_problems": 2, "horizons": (20,), "val_every": 1, "val_problems": 2, "val_horizon": 3}
    start = PortHamiltonian(hidden_size=4)
    trained = ph_l2o.meta_train(start, Quadratic(dim=3), outer_steps=1, output_dir=tmp_path, compile=False, **small)
    path = tmp_path / "checkpoints" / "best.ckpt"
    for source in (path, str(path)):
        load(source)(one()).step(loss=1.0)
    DropIn(one(), pretrained=path).step()
    target = tmp_path / "out" / "weights.safetensors"
    assert export.main([str(path), str(target)]) == 0
    assert "PortHamiltonian" in capsys.readouterr().out
    expected, found = load_checkpoint(path)[0].state_dict(), checkpoints.load_weights(target).state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in trained.state_dict())
    assert export.main([str(tmp_path / "none.ckpt"), str(target)]) == 1
    assert "no such checkpoint" in capsys.readouterr().err
    assert export.main(["untrained", str(tmp_path / "weights.bin")]) == 1
    assert "must end in .safetensors" in capsys.readouterr().err


def test_export_with_other_arguments(tmp_path, capsys):
    torch.manual_seed(0)
    optimizer = PortHamiltonianKronecker(hidden_size=4, max_preconditioner_dim=16)
    source, target = save_weights(optimizer, tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    settings = ["--set", "decay=[200,0.5]", "--set", "clock=50", "--set", "max_preconditioner_dim=64"]
    assert export.main([str(source), str(target), *settings]) == 0
    found = checkpoints.load_weights(target)
    assert isinstance(found, PortHamiltonianKronecker) and found.max_preconditioner_dim == 64
    assert found.anytime.decay == (200, 0.5) and found.controller.clock == 50
    assert torch.equal(found.controller.powers, optimizer.controller.powers)
    capsys.readouterr()
    for wrong, message in (
        ("--set=decay=[1]", "optimizer.decay=[1]: must be two finite numbers > 0"),
        ("--set=decay=1", "--set decay=1"),
        ("--set=radius", "--set radius: must be NAME=VALUE with one of hidden_size"),
        (
            "--set=hidden_size=5",
            "--set hidden_size=5: with it the weights don't fit, controller.0.weight has shape (4, 27)",
        ),
        ("--set=budget=-1", "optimizer.budget=-1: must be > 0"),
        ("--set=budget=much", "--set budget=much"),
    ):
        assert export.main([str(source), str(target), wrong]) == 1
        assert message in capsys.readouterr().err


def test_files_that_are_refused(tmp_path):
    good = save_weights(PortHamiltonian(hidden_size=4), tmp_path / "good.safetensors")
    tensors, recipe = load_file(good), PortHamiltonian(hidden_size=4).recipe

    def written(recipe: object, tensors: dict) -> str:
        path = tmp_path / "bad.safetensors"
        save_file(tensors, path, {"recipe": json.dumps(recipe)})
        return str(path)

    with pytest.raises(FileNotFoundError, match=r"pretrained=none.ckpt: no such file"):
        load("none.ckpt")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(good.read_bytes()[:500])
    with pytest.raises(WeightsError, match="damaged"):
        load(damaged)
    (tmp_path / "damaged.ckpt").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="damaged"):
        load(tmp_path / "damaged.ckpt")
    save_file(tensors, tmp_path / "foreign.safetensors")
    with pytest.raises(WeightsError, match="not written by ph_l2o"):
        load(tmp_path / "foreign.safetensors")
    for plugins in ((), ("os",)):  # it is no optimizer, whatever is allowed
        with pytest.raises(WeightsError, match=r"is of os.system, which is not known here"):
            load(written({"_target_": "os.system", "command": "true"}, tensors), plugins=plugins)
    with pytest.raises(WeightsError, match=r"is of ph_l2o.optimizers.Adamant, which this version"):
        load(written({"_target_": "ph_l2o.optimizers.Adamant"}, tensors))
    with pytest.raises(WeightsError, match="doesn't take its arguments"):
        load(written({**recipe, "depth": 3}, tensors))
    with pytest.raises(WeightsError, match="don't fit"):
        load(written({**recipe, "hidden_size": 5}, tensors))
    with pytest.raises(WeightsError, match="not finite"):
        load(written(recipe, {name: x * torch.nan for name, x in tensors.items()}))


def test_evaluate_knows_the_shipped_weights():
    from ph_l2o.commands.evaluate import _entry

    name, optimizer = _entry("port_hamiltonian", OmegaConf.create({"plugins": []}))
    expected = checkpoints.load_weights("default").state_dict()
    assert name == "port_hamiltonian" and isinstance(optimizer, PortHamiltonian)
    assert all(torch.equal(x, expected[key]) for key, x in optimizer.state_dict().items())


OUTSIDE = """
import torch
from torch import nn
from ph_l2o.optimizers import LearnedOptimizer

class Scaled(LearnedOptimizer):
    def __init__(self, scale=0.5):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def init(self, params):
        return ()

    def update(self, params, grads, loss, state):
        return params.like(params.flat - self.scale * grads.flat), state
"""


def test_an_optimizer_from_outside(tmp_path, monkeypatch):
    (tmp_path / "outside.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(recipes, "_CLASSES", recipes._CLASSES.copy())
    before = recipes._CLASSES.copy()
    made = importlib.import_module("outside").Scaled(scale=0.25)
    path = save_weights(made, tmp_path / "outside.safetensors")
    assert load(path)(one()).param_groups[0]["lr"] == 1  # it has been imported

    monkeypatch.delitem(sys.modules, "outside")  # as in another process, in which nothing has imported it
    monkeypatch.setattr(recipes, "_CLASSES", before)
    for plugins in ((), ("another", "json")):
        with pytest.raises(
            WeightsError, match=r"is of outside.Scaled, which is not known here; import outside, .*plugins=\[outside\]"
        ):
            load(path, plugins=plugins)
        assert "outside" not in sys.modules
    (p,) = one()
    expected = p.detach() - 0.25 * p.grad
    load(path, plugins=["outside"])([p]).step()
    assert torch.equal(p, expected)
    monkeypatch.delitem(sys.modules, "outside")
    known = {place: cls for place, cls in before.items() if not place.startswith("outside")}
    monkeypatch.setattr(recipes, "_CLASSES", known)
    assert export.main([str(path), str(tmp_path / "again.safetensors")]) == 1
    assert export.main([str(path), str(tmp_path / "again.safetensors"), "--plugin", "outside"]) == 0
    with pytest.raises(WeightsError, match="holds Scaled, not PortHamiltonian"):
        DropIn(one(), pretrained=path)

    monkeypatch.delitem(sys.modules, "outside")
    monkeypatch.setattr(recipes, "_CLASSES", before)
    (tmp_path / "outside.py").unlink()
    importlib.invalidate_caches()
    with pytest.raises(WeightsError, match=r"is of outside.Scaled, which can't be imported"):
        load(path, plugins=["outside"])


def test_what_cannot_be_rebuilt_is_not_saved(tmp_path):
    class Own(PortHamiltonian):
        pass

    with pytest.raises(ValueError, match="Own: can't be rebuilt"):
        save_weights(Own(), tmp_path / "own.safetensors")


@pytest.mark.parametrize("pace", [[0.0, 0.0], [0.2, 0.6]])
def test_weights_from_when_there_was_a_pace(tmp_path, pace):
    made = PortHamiltonian(hidden_size=4)
    path = tmp_path / "old.safetensors"
    save_file(made.state_dict(), path, {"recipe": json.dumps({**made.recipe, "pace": pace})})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = checkpoints.load_weights(path)
    assert torch.equal(found.controller.powers, made.controller.powers)
    assert [str(w.message) for w in seen] == (
        []
        if pace == [0.0, 0.0]
        else [f"{path}: its pace={pace} is left out, since there is none any more; give total_steps instead"]
    )
