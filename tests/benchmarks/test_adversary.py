"""The script that attacks the guarantee."""

import json

import adversary
import pytest
import torch
from _violations import VIOLATIONS

from ph_l2o.optimizers import PortHamiltonian
from ph_l2o.params import Params


def test_quick_finds_nothing_and_goes_on(tmp_path, monkeypatch, capsys, mnist_root):
    path = tmp_path / "found.json"
    command = ["adversary.py", "--quick", "--json", str(path), "--data", str(mnist_root)]
    monkeypatch.setattr("sys.argv", command)
    monkeypatch.setattr(adversary, "set_up_torch", lambda threads: None)
    assert adversary.main() == 0
    content = json.loads(path.read_text())
    assert len(content["parts"]) == 22
    assert all(row[key] == 0 for row in content["parts"].values() for key in VIOLATIONS)
    assert content["parts"]["attack, float32"]["farthest"] > 0.5  # where the spring begins
    assert " 0 violations" in capsys.readouterr().out
    # What is there is not run again.
    content["parts"]["quadratic, float64"]["not_finite"] = 3
    path.write_text(json.dumps(content))
    assert adversary.main() == 1
    assert "3 violations" in capsys.readouterr().out


@torch.no_grad()
def test_weights_of_many_are_those_of_each():
    together = adversary.many(4, torch.float64, 2)
    torch.manual_seed(7)
    params = Params(torch.randn(8, adversary.LAYOUT.numel, dtype=torch.float64), adversary.LAYOUT)
    grads, loss = params.like(torch.randn_like(params.flat)), torch.rand(8, dtype=torch.float64)
    found, _ = together.update(params, grads, loss, together.init(params))
    for i in (0, 2):  # the others are perturbed
        torch.manual_seed(i)
        optimizer, rows = PortHamiltonian().double(), slice(2 * i, 2 * i + 2)
        own = params.like(params.flat[rows])
        expected, _ = optimizer.update(own, own.like(grads.flat[rows]), loss[rows], optimizer.init(own))
        torch.testing.assert_close(found.flat[rows], expected.flat)


@pytest.mark.parametrize("what", ["account", "energy", "ball", "parameters"])
@torch.no_grad()
def test_violations_are_seen(what):
    optimizer = PortHamiltonian().double()
    params = Params(torch.ones(1, adversary.LAYOUT.numel, dtype=torch.float64), adversary.LAYOUT)
    old, loss = optimizer.init(params), torch.ones(1, dtype=torch.float64)
    seen = adversary.watch(old)
    new, state = optimizer.update(params, params, loss, old)
    found = adversary.looked(seen, new.flat, loss, old, state, 1e-12)
    counts = found.account, found.exceeded, found.outside, found.broken
    assert [int(x) for x in counts] == [0] * 4
    flat = new.flat
    if what == "account":
        state = state._replace(energy=old.energy * (1 + 1e-9))
    elif what == "energy":
        state = state._replace(momentum=state.momentum + 10)
    else:
        flat = flat * (2000 if what == "ball" else torch.nan)
    found = adversary.looked(seen, flat, loss, old, state, 1e-12)
    count = {"account": found.account, "energy": found.exceeded, "ball": found.outside, "parameters": found.broken}
    assert int(count[what]) == 1


def test_a_stopped_attack_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(adversary, "CHUNK", 1)
    path, run = tmp_path / "kept.pt", (12, 90, torch.float32)
    whole = adversary.by_attack(*run, None, False)

    def stop(text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(adversary._measure, "say", stop)
    with pytest.raises(KeyboardInterrupt):
        adversary.by_attack(*run, path, False)
    assert path.exists()
    resumed = adversary.by_attack(*run, path, False)
    assert not path.exists()
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
