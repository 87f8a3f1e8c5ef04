"""Markdown that commands write: tables, and the place in a page that is theirs to renew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from uino_deploy.errors import InputError
from uino_deploy.files import atomic_file


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    """Return a table.

    Args:
        header: the columns' titles.
        rows: a cell for each column.
        numbers: align all columns but the first to the right.
    """
    rule = ["---", *["---:" if numbers else "---"] * (len(header) - 1)]
    return "".join("| " + " | ".join(row) + " |\n" for row in (header, rule, *rows))


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Change a Markdown file, whole or not at all."""
    text = change(path.read_text(encoding="utf-8"))
    with atomic_file(path, force=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


def renew(page: str, name: str, content: str) -> str:
    """Replace what stands between the lines `<!-- NAME begins -->` and `<!-- NAME ends -->`.

    Args:
        page: a Markdown text that holds both once.
        name: of the place.
        content: what shall stand there; ends with a line's end.

    Raises:
        InputError: the page has no such place.
    """
    begin, end = f"<!-- {name} begins -->\n", f"<!-- {name} ends -->\n"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise InputError(
            f"the Markdown file has no place for the {name}",
            f"mark it with the lines {begin.strip()} and {end.strip()}",
        )
    before, _, rest = page.partition(begin)
    return before + begin + content + end + rest.partition(end)[2]
