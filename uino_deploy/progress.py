"""Progress of a long task, displayed as the caller chooses."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Step = Callable[[], None]

Progress = Callable[[str, int], AbstractContextManager[Step]]
"""Opens a display for a description and a number of steps; yields a function to call per step."""


@contextmanager
def silent(_what: str, _total: int) -> Iterator[Step]:
    """Show nothing: the default for functions that take a `Progress`."""
    yield lambda: None
