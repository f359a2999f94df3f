"""Every exception of the package. This file imports nothing of it, so that all rooms raise and recognise the same ones.

Their texts are for the user: what is wrong, with which value, what is allowed, and what to do.
"""

from __future__ import annotations

from pathlib import Path


class ConfigError(ValueError):
    """The configuration can't be used; the text names key, value, what is allowed, and what to do."""


class OtherRunError(ConfigError):
    """The folder of a sweep's job belongs to a run with other settings, which stays as it is."""


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, or not one of ours."""


class ReportError(RuntimeError):
    """A folder has no results that a report could be made of, or a damaged file; the text names it."""


class WeightsError(RuntimeError):
    """A file holds no weights that can be used; the text says why."""


class NonFiniteError(RuntimeError):
    """Meta-training cannot go on, because losses or gradients are not finite."""


class ProcessError(RuntimeError):
    """The processes of a run can't go on together."""


class Interrupted(BaseException):
    """A signal asked this process to end; like KeyboardInterrupt, it is no error.

    Args:
        number: The signal.
        what: What became of the work, and how to go on, for the user.
    """

    def __init__(self, number: int, what: str = "") -> None:
        super().__init__(number, what)
        self.number, self.what = number, what


class Pruned(Exception):
    """A search ended a training that had no prospect; like `Interrupted`, it is no error."""


class WorkerError(RuntimeError):
    """A process of a run ended by an error that only its traceback explains, which is the text."""


class CompileError(RuntimeError):
    """Something cannot be compiled; the text says what, and what to do."""


class CompilerError(RuntimeError):
    """The loops of a drop-in optimizer cannot be compiled; the text says what to do."""


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
