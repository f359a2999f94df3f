"""Triton's passes are the plain ones, and are used on GPUs where Triton runs; without a GPU by its interpreter."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ph_l2o.port_hamiltonian import passes
from ph_l2o.port_hamiltonian.fused import Fused
from ph_l2o.port_hamiltonian.kernels import Plain

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def version(package: str) -> tuple[int, ...]:
    return tuple(map(int, importlib.metadata.version(package).split(".")[:2]))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is not None and version("triton") < (3, 8) and version("numpy") >= (2, 4),
    reason="the interpreter of this Triton does not run with this numpy",
)
def test_equal_to_plain_operations():
    """In a process of its own: whether kernels are interpreted is settled when Triton is imported."""
    file = Path(__file__).with_name("interpreted_triton.py")
    call = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(call, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that there need not be, for which Triton's passes are a word, or an error."""
    found = {"Triton": "Triton's", "works": lambda device: True}
    monkeypatch.setattr(passes, "resolve", lambda place: found[place.partition(":")[2]])
    monkeypatch.setattr(passes.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    passes.takes_triton.cache_clear()
    yield found
    passes.takes_triton.cache_clear()


def test_triton_is_for_gpus(gpu):
    assert passes.passes_for([GPU, GPU], False) == passes.passes_for([GPU], True) == "Triton's"
    assert passes.passes_for([CPU], False) is Plain and passes.passes_for([CPU], True) is Fused
    assert passes.passes_for([GPU, CPU], True) is passes.passes_for([torch.device("mps")], True) is Plain


def test_plain_operations_where_triton_is_missing_or_the_gpu_too_old(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))
    assert passes.passes_for([GPU], False) is Plain
    passes.takes_triton.cache_clear()
    monkeypatch.setattr(passes.importlib.util, "find_spec", lambda _: None)
    assert passes.passes_for([GPU], False) is Plain


def test_plain_operations_and_one_warning_where_triton_fails(gpu, recwarn):
    def fail(device: torch.device) -> bool:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    gpu["works"] = fail
    with pytest.warns(
        match=r"Triton fails on cuda:0 \(RuntimeError: Failed to find C compiler.\); steps there are slow"
    ):
        assert passes.passes_for([GPU], False) is Plain
    recwarn.clear()
    assert passes.passes_for([GPU], False) is Plain and not recwarn
