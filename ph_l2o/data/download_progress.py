"""Says what is being done: a logging line, and a spinner where a person watches."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Yields ``say(message)``, which logs at INFO and shows the message on an interactive terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield _logger.info
        return

    from rich.console import Console
    from rich.markup import escape

    with Console(file=sys.stderr).status("") as status:

        def say(message: str) -> None:
            _logger.info(message)
            status.update(escape(message))

        yield say
