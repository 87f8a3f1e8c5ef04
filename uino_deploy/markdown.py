"""Markdown that commands write: tables, and the marked section of a page that they update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from uino_deploy.errors import InputError
from uino_deploy.files import atomic_file


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    """Return a table.

    Args:
        header: the columns' titles.
        rows: each with a cell for every column.
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
    """Replace the text between the lines `<!-- NAME begins -->` and `<!-- NAME ends -->`.

    Args:
        page: a Markdown text that contains each line once.
        name: the name in both lines.
        content: the new text; ends with a newline.

    Raises:
        InputError: the page has no such section.
    """
    begin, end = f"<!-- {name} begins -->\n", f"<!-- {name} ends -->\n"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise InputError(
            f"the Markdown file has no marked section for the {name}",
            f"mark it with the lines {begin.strip()} and {end.strip()}",
        )
    before, _, rest = page.partition(begin)
    return before + begin + content + end + rest.partition(end)[2]
