"""Functions compiled with their pullback: what is kept, stored, taken as an input, and found again by the next run."""

import logging
import os

import pytest
import torch
from torch import Tensor

from ph_l2o import native
from ph_l2o.compilation import functions, torch_versions
from ph_l2o.compilation.dispatch import Recorder
from ph_l2o.compilation.functions import compile_differentiable, compile_function
from ph_l2o.errors import CompileError
from tests.compilation.traced import as_a_graph


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PH_L2O_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def graphs(monkeypatch) -> list[torch.fx.GraphModule]:
    """What would be compiled."""
    found: list[torch.fx.GraphModule] = []

    def traced(*arguments):
        found.append(as_a_graph(*arguments))
        return found[-1]

    monkeypatch.setattr(functions, "ahead_of_time", traced)
    return found


def operations(graph: torch.fx.GraphModule) -> list[str]:
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    return [node.target.overloadpacket.__name__ for node in nodes]


def layer(inputs: list[Tensor], constants: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """A product, a large sum of what is cheap, and a derivative inside."""
    weight, x = inputs

    def loss(x: Tensor) -> Tensor:
        return (x @ weight).tanh().square().sum()

    slope = torch.func.grad(loss)(x)
    return [x - 0.1 * slope, (slope * constants[0]).square().sum(1)], [constants[0] + 1]


def examples(rows: int = 3, columns: int = 4) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x, c = torch.randn(2, rows, columns, generator=generator, dtype=torch.float64)
    return [weight, x], [c]


def assert_right(compiled: functions.Differentiable, function=layer, *, given=None) -> None:
    inputs, constants = examples() if given is None else given
    (*expected, _), (rest,) = (function(inputs, constants)[0] + [None]), function(inputs, constants)[1]
    outputs, others, kept = compiled.forward([*inputs, *constants])
    torch.testing.assert_close(list(outputs), expected)
    torch.testing.assert_close(list(others), [rest])
    cotangents = [torch.ones_like(x) for x in expected]
    _, pull = torch.func.vjp(lambda *x: tuple(function(list(x), constants)[0]), *inputs)
    torch.testing.assert_close(list(compiled.backward(kept, cotangents)), list(pull(tuple(cotangents))))


def test_products_are_kept_and_not_computed_again(graphs):
    assert_right(compile_differentiable(layer, *examples()))
    forward, backward = map(operations, graphs)
    eager = torch.fx.experimental.proxy_tensor.make_fx(
        lambda *x: torch.func.vjp(lambda *y: tuple(layer(list(y), [x[2]])[0]), *x[:2])[1]((x[1], x[1].sum(1)))
    )(*examples()[0], *examples()[1])
    assert forward.count("mm") == 2
    assert backward.count("mm") == operations(eager).count("mm") - 2


@pytest.mark.parametrize(("rows", "kept"), [(2**14, 1), (2**14 - 1, 0)])
def test_large_sums_are_kept(graphs, rows, kept):
    x = torch.ones(rows)
    compile_differentiable(lambda inputs, _: ([inputs[0].exp().sum().square()], []), [x], [])
    assert len(graphs[0](x)) == 1 + kept
    assert operations(graphs[1]).count("sum") == 1 - kept


def test_a_function_that_computes_something_else_the_second_time_is_refused():
    calls = []

    def fickle(inputs, _):
        calls.append(0)
        x = inputs[0] @ inputs[0] if len(calls) <= 2 else inputs[0].sum(1)
        return [x.sum()], []

    with pytest.raises(CompileError, match=r"^computes sum on the way back, where it computed something else"):
        compile_differentiable(fickle, [torch.ones(2, 2)], [])


@pytest.mark.parametrize(("columns", "stored"), [(2, 1), (1, 0)])
def test_small_results_that_are_broadcast_are_stored_at_the_base_of_the_view(graphs, columns, stored):
    def function(tensors: list[Tensor]) -> list[Tensor]:
        small, large = tensors
        return [large * small.exp()[:, None]]

    compile_function(function, [torch.ones(8), torch.ones(8, columns)])
    found = [n for n in graphs[0].graph.nodes if n.op == "call_function" and "as_strided" in str(n.target)]
    assert [n.args[0].target.overloadpacket.__name__ for n in found] == ["exp"] * stored


def test_what_is_stored_is_not_inlined():
    """The same by the compiler: a loop of its own for what is small."""
    from torch._inductor import metrics

    loops = []
    for columns in (2, 1):
        metrics.reset()
        compile_function(
            lambda tensors: [tensors[1] * tensors[0].exp()[:, None]], [torch.ones(8), torch.ones(8, columns)]
        )
        loops.append(metrics.ir_nodes_pre_fusion)
    assert loops == [2, 1]


def test_constants_that_a_function_finds_are_inputs():
    constant = torch.tensor([1.0, 2.0])
    compiled = compile_differentiable(lambda inputs, _: ([inputs[0] * constant], []), [torch.ones(2)], [])
    constant.fill_(3)
    (found,), _, kept = compiled.forward([torch.ones(2)])
    assert found.tolist() == [3, 3]
    assert compiled.backward(kept, [torch.ones(2)])[0].tolist() == [3, 3]


def test_two_closures_of_one_definition():
    def times(factor: float):
        return compile_function(lambda tensors: [factor * tensors[0]], [torch.ones(2)])

    two, three = times(2), times(3)
    assert two([torch.ones(2)])[0].tolist() == [2, 2]
    assert three([torch.ones(2)])[0].tolist() == [3, 3]


def test_the_next_run_finds_what_was_compiled(monkeypatch, caplog):
    assert_right(compile_differentiable(layer, *examples()))
    files = sorted(native.folder().iterdir())
    assert len(files) == 2, "forward and backward"
    with monkeypatch.context() as patch:
        patch.setattr(torch_versions, "_compiled", None)
        assert_right(compile_differentiable(layer, *examples()))
    for file in files:
        file.write_bytes(file.read_bytes()[:-100])
    assert_right(compile_differentiable(layer, *examples()))
    assert caplog.text.count("cannot be loaded and is made anew") == 2
    assert sorted(native.folder().iterdir()) == files


def digest(function, *given: Tensor) -> str:
    with Recorder(given) as recorder:
        function(*given)
    return recorder.digest.hexdigest()


def test_the_digest_tells_computations_apart():
    def function(factor: float = 2.0, literal: float = 1.0, swapped: bool = False):
        def call(x: Tensor, y: Tensor) -> Tensor:
            total = factor * x + y * torch.tensor(literal, dtype=x.dtype)
            return torch.sub(y, total) if swapped else torch.sub(total, y)

        return call

    x, y = torch.ones(2, 3), torch.zeros(2, 3)
    same = digest(function(), x, y)
    assert digest(function(), y, x) == same, "values do not count"
    others = [
        digest(function(factor=3.0), x, y),
        digest(function(literal=3.0), x, y),
        digest(function(swapped=True), x, y),
        digest(function(), x.double(), y.double()),
        digest(function(), x.mT, y.mT),
        digest(function(), torch.ones(3, 2).mT, y),
    ]
    assert len({same, *others}) == 1 + len(others)


def test_sizes_that_may_be_any():
    compiled = compile_differentiable(layer, *examples(rows=7), any_sizes={7: 11})
    for rows in (2, 5, 7, 40):
        assert_right(compiled, given=examples(rows))

    def fixed(inputs: list[Tensor], constants: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [inputs[0] * torch.ones(7)], []

    with pytest.raises(CompileError, match=r"^cannot be compiled"):
        compile_differentiable(fixed, [torch.ones(7)], [], any_sizes={7: 11})


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda tensors: [tensors[0] + torch.rand(2)], r"^draws random numbers \(aten.rand"),
        (lambda tensors: [tensors[0] * float(tensors[0].sum())], r"^looks at the values of tensors \(aten"),
        (lambda tensors: [tensors[0][tensors[0] > 0]], r"^looks at the values of tensors \(aten"),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_words(function, message):
    with pytest.raises(CompileError, match=message):
        compile_function(function, [torch.ones(2)])


@pytest.mark.parametrize(
    ("version", "fine"), [("2.10.1", False), ("2.11.0", True), ("2.14.9+cu130", True), ("2.15.0a0", False)]
)
def test_versions_of_torch(monkeypatch, version, fine):
    monkeypatch.setattr(torch, "__version__", version)
    if fine:
        torch_versions.check_version()
    else:
        with pytest.raises(CompileError, match=rf"^cannot be compiled with torch {version} \(tested with 2\.11 to"):
            compile_function(lambda tensors: tensors, [torch.ones(2)])


def test_code_is_not_kept_where_others_can_write(monkeypatch, tmp_path, caplog):
    (tmp_path / "ph_l2o").mkdir()
    os.chmod(tmp_path / "ph_l2o", 0o777)
    monkeypatch.setenv("PH_L2O_CACHE", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        folder = native.folder()
    assert folder != tmp_path / "ph_l2o" and not folder.stat().st_mode & 0o077
    assert "not kept between runs: others can write to" in caplog.text and "set PH_L2O_CACHE" in caplog.text
    os.chmod(tmp_path / "ph_l2o", 0o755)
    assert native.folder() == tmp_path / "ph_l2o"
