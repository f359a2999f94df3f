"""The import graph of the package, drawn from its source: floors, circles, imports inside functions."""

import ast
import sys
from pathlib import Path

import ph_l2o

ROOT = Path(ph_l2o.__file__).parent
FLOORS = {
    0: [
        *["errors", "interruption", "ranks", "lazy", "native", "processes"],
        *["checks", "checksums", "files", "keys", "palette", "params", "segments", "recipes"],
    ],
    1: ["data", "optimizers"],
    2: ["tasks", "port_hamiltonian"],
    3: ["checkpoints", "inner"],
    4: ["estimators", "optim"],
    5: ["compilation"],
    6: ["meta", "evaluation", "reports"],
    7: ["claims"],
    8: ["commands", "dashboard"],
    9: ["cli", "report", "__init__"],
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
# The one arrow up: public names are shown where users look for all optimizers, on first use.
DOORS = {("optimizers.__init__", "port_hamiltonian")}


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts)] = ast.parse(path.read_text())
    return found


def imported(node: ast.AST, known: dict[str, ast.Module]) -> set[str]:
    """Modules of the package that a statement imports, without the package's name; lazy ones by `resolve` too."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "resolve" and node.args:
        text = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
        names = [str(getattr(text, "value", "")).partition(":")[0]]
    found = set()
    for name in names:
        if not name.startswith("ph_l2o."):
            continue
        parts = name.split(".")[1:]
        while parts and ".".join(parts) not in known and ".".join([*parts, "__init__"]) not in known:
            parts.pop()
        if parts:
            found.add(".".join(parts) if ".".join(parts) in known else ".".join([*parts, "__init__"]))
    return found


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: set().union(*(imported(node, known) for node in ast.walk(tree))) for name, tree in known.items()}


def room(module: str) -> str:
    return module.partition(".")[0]


def test_every_module_is_in_a_room_on_a_floor():
    assert {room(name) for name in modules()} == set(FLOOR)


def test_no_arrow_leads_up_or_to_a_room_beside():
    wrong = [
        f"{name} -> {other}"
        for name, others in graph().items()
        for other in others
        if room(name) != room(other) and FLOOR[room(other)] >= FLOOR[room(name)] and FLOOR[room(name)] > 0
        and (name, room(other)) not in DOORS
    ]  # fmt: skip
    assert not wrong, "\n".join(sorted(wrong))


def test_no_circles():
    edges = {name: {o for o in others if (name, room(o)) not in DOORS} for name, others in graph().items()}
    order: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in order:
            for other in sorted(edges[name]):
                visit(other, (*path, name))
            order.append(name)

    for name in edges:
        visit(name, ())


def test_the_package_is_not_imported_inside_functions():
    known, wrong = modules(), []
    for name, tree in known.items():
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                inside = [n for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom)]
                wrong += [f"{name}.{function.name}: {m}" for n in inside for m in imported(n, known)]
    assert not wrong, "\n".join(sorted(wrong))


def test_nothing_is_named_like_the_standard_library():
    names = {part for module in modules() for part in module.split(".")} - {"__init__"}
    assert not names & set(sys.stdlib_module_names)


def test_no_file_is_too_long():
    sizes = {str(p.relative_to(ROOT)): p.read_text().count("\n") for p in ROOT.rglob("*.py")}
    assert not {name: n for name, n in sizes.items() if n > 400}


def test_no_function_is_too_long():
    """Bodies, without docstrings."""
    sizes = {}
    for name, tree in modules().items():
        for f in ast.walk(tree):
            if isinstance(f, ast.FunctionDef) and f.end_lineno is not None:
                first = f.body[min(1, len(f.body) - 1) if ast.get_docstring(f) else 0]
                sizes[f"{name}.{f.name}"] = f.end_lineno - first.lineno + 1
    assert not {name: n for name, n in sizes.items() if n > 50}
