"""Names of torch that are underscored, experimental or undocumented, and the versions that they were tested with.

Nothing else in this package asks for such names, but for `torch.utils._pytree`, which is everywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ph_l2o import native
from ph_l2o.errors import CompileError

__all__ = ["TorchDispatchMode", "ahead_of_time", "check_version", "is_pointwise", "is_product", "is_view", "why_not"]

log = logging.getLogger(__name__)

OLDEST, NEWEST = (2, 11), (2, 14)
_OPTIONS: dict[str, Any] = {"size_asserts": False}
# One allocation for all outputs and one for what lies between kernels: each costs as much as a small kernel. With
# Python between the kernels a small step takes half as long again. -O3 is for the kernels; elsewhere it takes seconds.
_ON_CPU = {"cpp_wrapper": True, "cpp_wrapper_build_separate": True, "memory_planning": True, "memory_pool": "outputs"}


def check_version() -> None:
    """Raise CompileError if this torch is not among those that compilation was tested with."""
    major, minor, *_ = torch.__version__.split(".")
    if not OLDEST <= (int(major), int(minor)) <= NEWEST:
        tested = " to ".join(".".join(map(str, v)) for v in (OLDEST, NEWEST))
        raise CompileError(f"cannot be compiled with torch {torch.__version__} (tested with {tested})")


def ahead_of_time(
    function: Callable[..., Sequence[Tensor]], examples: Sequence[Tensor], others: Sequence[Tensor], digest: str
) -> Callable[..., Sequence[Tensor]]:
    """`function` compiled for tensors like these, without guards: a call is the compiled code.

    It is kept between runs, see `ph_l2o.native`.

    Args:
        function: Of tensors alone; it must not look at values.
        examples: Tensors; strides count as well.
        others: Further examples. Sizes in which they differ from the first may be any.
        digest: Says what the function computes of which tensors.

    Raises:
        CompileError: If it cannot be traced or compiled.
    """
    failures: list[Exception] = []

    @torch.compiler.allow_in_graph
    def opaque(*tensors: Tensor) -> Sequence[Tensor]:
        try:
            return function(*tensors)
        except Exception as error:  # any operation of a module can refuse; the compiler's error would hide it
            failures.append(error)
            raise

    def call(*tensors: Tensor) -> Sequence[Tensor]:
        return opaque(*tensors)

    options = _OPTIONS | (_ON_CPU if all(x.device.type == "cpu" for x in examples) else {})
    pairs = zip(examples, others, strict=True)
    free = [[axis for axis, n in enumerate(x.shape) if n != y.shape[axis]] for x, y in pairs]
    key = "\n".join([digest, str(free), str(options), torch.__version__, sys.version, native.processor()])
    path = native.folder() / f"step_{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    found = _loaded(path, opaque)
    if found is None:
        try:
            found = _compiled(call, examples, free, options)
        except Exception as error:
            raise _explained(failures[-1] if failures else error) from error
        _save(found, path, opaque)
    found.disable_guard_check()
    return found


def _compiled(call: Any, examples: Sequence[Tensor], free: list[list[int]], options: dict[str, Any]) -> Any:
    import torch._dynamo as dynamo

    examples = tuple(x.detach() for x in examples)
    for x, axes in zip(examples, free, strict=True):
        for axis in axes:
            dynamo.mark_dynamic(x, axis)
    options = options | {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    with dynamo.config.patch(enable_aot_compile=True), _quiet():  # off by default in torch 2.11
        compiled: Any = torch.compile(call, fullgraph=True, dynamic=False, options=options)
        return compiled.aot_compile((examples, {}))


def _loaded(path: Path, opaque: Callable[..., Any]) -> Any:
    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            return torch.compiler.load_compiled_function(file, external_data={"opaque": opaque})
    except Exception as error:  # it is damaged
        log.warning("%s cannot be loaded and is made anew (%s)", path, _first_line(error))
        return None


def _save(compiled: Any, path: Path, opaque: Callable[..., Any]) -> None:
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # whole, or not at all
            compiled.save_compiled_function(str(Path(folder) / path.name), external_data={"opaque": opaque})
            os.replace(Path(folder) / path.name, path)
    except Exception as error:  # the disk is full, or there is something in it that torch cannot write
        log.warning("%s cannot be written, so that the next run compiles anew (%s)", path, _first_line(error))


def is_view(operation: Any) -> bool:
    """Whether an operation only looks at its input in another way."""
    return operation.is_view or operation is torch.ops.aten._unsafe_view.default


def is_pointwise(operation: Any) -> bool:
    """Whether it computes each number by itself, from inputs that broadcast."""
    return torch.Tag.pointwise in operation.tags


def is_product(operation: Any) -> bool:
    """Whether it is a matrix product, a convolution, or the like."""
    return operation.overloadpacket in flop_registry


def why_not(operation: Any) -> str | None:
    """Why an operation cannot be part of what is compiled, if it cannot."""
    if torch.Tag.nondeterministic_seeded in operation.tags:
        return "draws random numbers"
    if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(operation.tags):
        return "looks at the values of tensors"
    return None


def _explained(error: Exception) -> CompileError:
    if isinstance(error, CompileError):
        return error
    if "CxxCompiler" in f"{type(error).__name__} {error}":
        return CompileError("needs a C++ compiler, and none was found; install g++ or clang++, or set compile=false")
    return CompileError(f"cannot be compiled ({_first_line(error)})")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings that are between torch's own parts, and without the trace of an error that is raised anyway."""
    noisy = [logging.getLogger(name) for name in ("torch.utils.cpp_extension", "torch._guards")]
    before = [(logger, logger.level) for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in before:
            logger.setLevel(level)
