"""The option of commands that load a bundle or a support, and a word from those that change one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE

Command = TypeVar("Command", bound=Callable[..., Any])


def signature_option(command: Command) -> Command:
    """Add `--require-signature`, which holds for all that the command and its children load."""
    return click.option(
        "--require-signature",
        type=FILE,
        metavar="PUBLIC.pem",
        expose_value=False,
        callback=_require,
        help="Refuse a bundle or support that this public key's owner did not sign.",
    )(command)


@contextmanager
def watching_signature(signed: Path, output: Output) -> Iterator[None]:
    """Say, when the block ends, that a signature no longer fits the file that the block changed.

    Args:
        signed: the support, or the bundle's manifest.
        output: receives the warning.
    """
    from uino_deploy.bundle.signature import signature_path
    from uino_deploy.files import sha256

    def state() -> str:
        return sha256(signed) if signed.is_file() and place.is_file() else ""

    place = signature_path(signed)
    before = state()
    try:
        yield
    finally:
        if state() != before:
            output.warn(
                f"{place} no longer fits, as {signed.name} has changed: sign it again with "
                "`uino-deploy sign --force`"
            )


def _require(ctx: click.Context, _option: click.Parameter, key: Path | None) -> None:
    if key is None or ctx.resilient_parsing:
        return
    from uino_deploy.bundle.signature import VARIABLE, read_public_key

    read_public_key(key)  # a wrong key is refused before any work
    ctx.with_resource(_environment(VARIABLE, str(key.absolute())))


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable, which child processes inherit, while the block runs."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
