"""Progress of a long piece of work, as the caller wants it shown."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Step = Callable[[], None]

Progress = Callable[[str, int], AbstractContextManager[Step]]
"""Opens a display for a description and a number of steps; yields what to call after each step."""


@contextmanager
def silent(_what: str, _total: int) -> Iterator[Step]:
    """Show nothing: the default where a function takes a `Progress`."""
    yield lambda: None
