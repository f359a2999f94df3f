"""What has been compiled in this run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

from ph_l2o.compilation.functions import timed

log = logging.getLogger(__name__)

_MANY = 16  # compiled functions of one run, after which it is worth saying so


class Compilations:
    """Compiled functions by their signature: what they depend on besides the values of their inputs."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, signature: Hashable, name: str, compile: Callable[[], Any]) -> Any:
        """The function of a signature, compiled the first time.

        Args:
            signature: Of the function.
            name: Of what is compiled, for the log.
            compile: Compiles it.

        Raises:
            CompileError: If it cannot be compiled.
        """
        if signature not in self._known:
            with timed(name):
                self._known[signature] = compile()
            if len(self._known) == _MANY:
                log.warning(
                    "%d architectures so far, each compiled by itself; compile=update or false may be faster", _MANY
                )
        return self._known[signature]
