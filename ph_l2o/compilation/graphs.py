"""Functions as graphs of plain operations, compiled ahead of time with their derivative.

`torch.compile` refuses to differentiate a compiled function twice, and its calls cost more than an inner step of a
small problem. Here a function that may take derivatives inside, by `torch.func.grad`, is traced together with its
vector-Jacobian product by `make_fx`. The joint graph is cut into a forward part and a backward part, which share what
is cheaper to keep than to recompute, and TorchInductor compiles both. A call then is the compiled code and nothing
else: no guards, no autograd. Compiled code is kept between processes in Inductor's cache (`TORCHINDUCTOR_CACHE_DIR`).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.func import functionalize, vjp

from ph_l2o.compilation.barriers import insert_barriers
from ph_l2o.compilation.residuals import drop_sizes, keep_bases
from ph_l2o.errors import CompileError
from ph_l2o.segments import tracing

log = logging.getLogger(__name__)

Tensors = Sequence[Tensor]
Function = Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]


class Differentiable(NamedTuple):
    """A compiled function with its vector-Jacobian product.

    Attributes:
        forward: Inputs, differentiable ones first → outputs, other outputs, and what the backward part needs.
        backward: What the forward part kept, and cotangents of the outputs → gradients of the differentiable inputs.
    """

    forward: Callable[[Tensors], tuple[Tensors, Tensors, Tensors]]
    backward: Callable[[Tensors, Tensors], Tensors]


def compile_differentiable(
    function: Function, inputs: Tensors, constants: Tensors, *, any_sizes: bool = False
) -> Differentiable:
    """Compile `function(inputs, constants) -> (outputs, others)` and its vector-Jacobian product.

    Args:
        function: Pure, of static shapes; it must not look at values.
        inputs: Examples of what it is differentiated in.
        constants: Examples of its other tensors.
        any_sizes: Compile for all sizes that the function allows, not for those of the examples alone. These should be
            unlike each other and more than 1.

    Raises:
        CompileError: If it cannot be traced or compiled.
    """
    num_inputs, num_known = len(inputs), len(inputs) + len(constants)
    _look_at_processor()
    with torch.no_grad():
        outputs, others = function(list(inputs), list(constants))  # also fills caches of constants before tracing

    def joint(*flat: Tensor) -> list[Tensor]:
        known = list(flat[num_inputs:num_known])
        product: Any = vjp(lambda *x: _split(function(list(x), known)), *flat[:num_inputs], has_aux=True)
        found, pull, rest = product
        return [*found, *rest, *pull(tuple(flat[num_known:]))]

    cotangents = [torch.zeros_like(x) for x in outputs]
    graph, lifted = _trace(joint, [*inputs, *constants, *cotangents], num_known, any_sizes=any_sizes)
    primals, tangents = [*inputs, *constants, *lifted], cotangents
    num_outputs, num_forward = len(outputs), len(outputs) + len(others)
    forward_graph, backward_graph = _partition(graph, primals, tangents, num_forward)
    if any_sizes:
        drop_sizes(forward_graph, backward_graph)
    residuals = keep_bases(forward_graph, backward_graph, num_forward)
    for part in (forward_graph, backward_graph):
        insert_barriers(part)
    forward = _compiled(forward_graph, primals, any_sizes=any_sizes)

    def run_forward(arguments: Tensors) -> tuple[Tensors, Tensors, Tensors]:
        everything = [*arguments, *lifted]
        found = forward(*everything)
        kept = [*(everything[k] for k in residuals.inputs), *found[num_forward:]]
        return found[:num_outputs], found[num_outputs:num_forward], kept

    with torch.no_grad():
        kept = run_forward([*inputs, *constants])[2]
    backward = _compiled(backward_graph, [*kept, *tangents], any_sizes=any_sizes)
    return Differentiable(run_forward, lambda kept, cotangents: backward(*kept, *cotangents))


def compile_function(function: Callable[[list[Tensor]], list[Tensor]], inputs: Tensors) -> Callable[[Tensors], Tensors]:
    """Compile `function(inputs) -> outputs` without derivative; see `compile_differentiable`."""
    with torch.no_grad():
        function(list(inputs))
        graph, lifted = _trace(lambda *flat: function(list(flat)), inputs, len(inputs))
        insert_barriers(graph)
        compiled = _compiled(graph, [*inputs, *lifted])
        return lambda arguments: compiled(*arguments, *lifted)


def _batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None, var: Tensor | None, train: bool, *rest: float
) -> Any:
    legit = torch.ops.aten._native_batch_norm_legit
    if mean is None:
        return legit.no_stats(x, weight, bias, train, *rest)
    return legit.default(x, weight, bias, mean, var, train, *rest)


# The schema of `native_batch_norm` hides that it changes the running statistics; that of its successor does not.
_EXPLICIT = {torch.ops.aten.native_batch_norm.default: _batch_norm}


def _split(found: tuple[list[Tensor], list[Tensor]]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return tuple(found[0]), tuple(found[1])


def _trace(
    function: Callable[..., list[Tensor]], inputs: Tensors, place: int, *, any_sizes: bool = False
) -> tuple[fx.GraphModule, list[Tensor]]:
    """The graph without mutations, and the constants that it met, which become inputs from number `place` on."""
    from torch.fx.experimental.proxy_tensor import make_fx

    inputs = [x.detach() for x in inputs]  # tracing tells tensors apart by identity
    mode = "symbolic" if any_sizes else "real"
    try:
        with tracing(), _one_symbol_each():
            traced = make_fx(function, decomposition_table=_EXPLICIT, tracing_mode=mode, _allow_non_fake_inputs=True)(
                *inputs
            )
    except Exception as error:  # any operation of a module can refuse
        raise CompileError(f"cannot be traced ({_first_line(error)})") from error
    lifted = _lift_constants(traced)

    def reordered(*flat: Tensor) -> Any:
        end = place + len(lifted)
        return traced(*flat[:place], *flat[end:], *flat[place:end])

    mode = "symbolic" if any_sizes else "fake"
    with torch.no_grad(), _one_symbol_each():
        graph = make_fx(functionalize(reordered), tracing_mode=mode)(*inputs[:place], *lifted, *inputs[place:])
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph, lifted


def _one_symbol_each() -> Any:
    """Sizes that are equal in the examples may be different."""
    from torch.fx.experimental import _config

    return _config.patch(use_duck_shape=False)  # type: ignore[attr-defined]


def _lift_constants(module: fx.GraphModule) -> list[Tensor]:
    """Turn tensors that lie in the module into further inputs."""
    graph = module.graph
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    known: dict[str, fx.Node] = {}
    lifted: list[Tensor] = []
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        name = str(node.target)
        if name not in known:
            with graph.inserting_after(last):
                last = known[name] = graph.placeholder(f"constant_{len(lifted)}")
            lifted.append(getattr(module, name))
        node.replace_all_uses_with(known[name])
        graph.erase_node(node)
    module.recompile()
    return lifted


def _partition(
    graph: fx.GraphModule, primals: Tensors, tangents: Tensors, num_forward: int
) -> tuple[fx.GraphModule, fx.GraphModule]:
    import torch._functorch.config as config
    from functorch.compile import min_cut_rematerialization_partition

    for k, node in enumerate(n for n in graph.graph.nodes if n.op == "placeholder"):
        name = f"primals_{k + 1}" if k < len(primals) else f"tangents_{k + 1 - len(primals)}"
        node.target = node.name = name
    graph.recompile()
    # Elementwise results are cheaper to recompute than to write and read.
    with config.patch(aggressive_recomputation=True):
        return min_cut_rematerialization_partition(graph, [*primals, *tangents], num_fwd_outputs=num_forward)


def _compiled(graph: fx.GraphModule, inputs: Tensors, *, any_sizes: bool = False) -> Callable[..., Tensors]:
    from torch._inductor import standalone_compile

    options: dict[str, Any] = {"size_asserts": False}
    if all(x.device.type == "cpu" for x in inputs):
        options["cpp_wrapper"] = True  # with Python between the kernels, a small step takes half as long again
        options["cpp_wrapper_build_separate"] = True  # -O3 is for the kernels; on the wrapper it takes seconds
        # One allocation for all outputs and one for what lies between kernels: each costs as much as a small kernel.
        options |= {"memory_planning": True, "memory_pool": "outputs"}
    with _quiet():
        try:
            artifact = standalone_compile(
                graph,
                list(inputs),
                dynamic_shapes="from_graph" if any_sizes else "from_example_inputs",
                options={"config_patches": options},
            )
        except Exception as error:
            raise CompileError(_explained(error)) from error
    return artifact


@functools.cache
def _look_at_processor() -> None:
    """Let Inductor try which vector instructions there are; it takes seconds, most of them in other processes."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    threading.Thread(target=pick_vec_isa, daemon=True).start()


def _explained(error: BaseException) -> str:
    if "compiler" in str(error).lower() and "found" in str(error).lower():
        return "needs a C++ compiler, and none was found; install g++ or clang++, or set compile=false"
    return f"TorchInductor failed ({_first_line(error)})"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings that are between torch's own parts, and not for the user."""
    noisy = logging.getLogger("torch.utils.cpp_extension")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        noisy.setLevel(level)


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Say how long a compilation took."""
    began = time.perf_counter()
    yield
    log.info("compiled %s in %.1f s", what, time.perf_counter() - began)
