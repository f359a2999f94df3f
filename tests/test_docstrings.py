"""The examples in docstrings run, and give what they show."""

import doctest
import importlib
from pathlib import Path

import pytest
import torch

import ph_l2o

ROOT = Path(ph_l2o.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(("ph_l2o", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if ">>>" in path.read_text()
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.attempted > 0 and found.failed == 0
