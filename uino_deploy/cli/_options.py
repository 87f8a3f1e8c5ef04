"""Options that several commands share: spelled once, explained once."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from uino_deploy.cli._console import Output


class GivenPath(click.Path):
    """A path that the library checks, but for an empty one, which would mean the working folder."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """Return the path, or fail as click does."""
        if value == "":
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


FILE = GivenPath(path_type=Path)


class FiniteRange(click.FloatRange):
    """A range of finite numbers: click lets NaN through, which every comparison then lets pass."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number, or fail as click does."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number", param, ctx)
        return number


if TYPE_CHECKING:  # the lowest click's class is not generic
    _ParamType = click.ParamType[int]
else:
    _ParamType = click.ParamType


class ByteSize(_ParamType):
    """A number of bytes, such as 20GB or 500 MB (powers of ten); 0 needs no unit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?(kB|MB|GB|TB)|0", value, re.ASCII | re.I)
        if found is None:
            self.fail(f"{value!r} is not a size: give one such as 20GB or 500MB", param, ctx)
        if found[1] is None:
            return 0
        thousands: int = 1 + "kmgt".index(found[2][0].lower())
        return round(float(found[1]) * float(1000**thousands))


# The data sets of `uino_deploy.data.open`: `--help` must not import it.
DATASETS = ("demo", "digits", "things", "things-unseen-hand", "things-absent", "objects",
            "pascal", "coco", "fss1000", "folder")  # fmt: skip

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass
class Settings:
    """State that `main` and the commands share during one run; the click context's object."""

    debug: bool = False


def _set_debug(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.ensure_object(Settings).debug = True


def debug_option(command: Command) -> Command:
    """Add `--debug`: show the traceback when a command fails."""
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=_set_debug,
        help="Show the traceback when a command fails.",
    )(command)


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json`, `--quiet` and `--debug`; the command receives them as `output: Output`."""

    @debug_option
    @click.option("--quiet", "-q", is_flag=True, help="Print no progress or notes.")
    @click.option("--json", "as_json", is_flag=True,
                  help="Print one JSON document on stdout, and nothing else.")  # fmt: skip
    @functools.wraps(command)
    def wrapped(*args: Any, as_json: bool, quiet: bool, **kwargs: Any) -> Any:
        return command(*args, output=Output(json=as_json, quiet=quiet), **kwargs)

    return wrapped


def bits_option(command: Command) -> Command:
    """Add `--bits`: real depth of grey images. The command receives `bits: int | None`."""
    return click.option(
        "--bits",
        type=click.IntRange(1, 32),
        help="Real depth of grey images of more than 8 bits.  [default: found]",
    )(command)


def label_option(command: Command) -> Command:
    """Add `--label`: the object in masks of labels. The command receives `label: int | None`."""
    return click.option(
        "--label",
        type=click.IntRange(0, 65535),
        help="The object's value in masks of labels.  [default: all but 0]",
    )(command)


def force_option(command: Command) -> Command:
    """Add `--force`: replace the output if it exists. The command receives `force: bool`."""
    return click.option("--force", is_flag=True, help="Replace existing output.")(command)
