"""The sources that a result comes from: files of the package that a module is, imports, and so on."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = __name__.partition(".")[0]


def source_digest(root: Path, modules: Iterable[str]) -> str:
    """A hash of all files of the package on which these modules of it depend.

    Args:
        root: The package's folder.
        modules: Full names; those of other packages are left out.
    """
    digest = hashlib.sha256()
    for path in sorted(reachable(root, modules)):
        digest.update(f"{path.relative_to(root)} {file_digest(path)}".encode())
    return digest.hexdigest()[:24]


def reachable(root: Path, modules: Iterable[str]) -> set[Path]:
    """The files, with those in C++ beside them. A package's `__init__.py` counts where names are imported from it."""
    found: set[Path] = set()
    left = [path for name in modules if (path := _file(root, name)) is not None]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            left += _imported(root, path)
    return found | {other for folder in {path.parent for path in found} for other in folder.glob("*.cpp")}


@functools.cache
def _imported(root: Path, path: Path) -> tuple[Path, ...]:
    names = [name for node in ast.walk(ast.parse(path.read_text())) for name in _names(root, node)]
    return tuple(file for name in names if (file := _file(root, name)) is not None)


def _names(root: Path, node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if _file(root, inner) is not None else node.module


def _file(root: Path, module: str) -> Path | None:
    """Where a module of the package is; None for another, and for the package itself, which only shows names."""
    package, *parts = module.split(".")
    if package != PACKAGE or not parts:
        return None
    path = root.joinpath(*parts)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@functools.cache
def file_digest(path: Path) -> str:
    """A hash of a file, read once for each process."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:24]
