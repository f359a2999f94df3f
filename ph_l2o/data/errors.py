"""What goes wrong with data sets, as errors that say what to do."""

from pathlib import Path


class DataError(RuntimeError):
    """A data set is missing, damaged or cannot be written; the message says what to do."""


class DamagedFileError(DataError):
    """A data file is there but is not what it should be.

    Args:
        path: The offending file.
        problem: What is wrong with it, without the path.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}; delete it (or put a good copy in its place) and run again")
        self.path = path
        self.problem = problem

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        return type(self), (self.path, self.problem)
