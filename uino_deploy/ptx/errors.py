"""Errors of the executor: unsupported PTX text, and faults of the program."""

from __future__ import annotations

from uino_deploy.errors import CheckFailed


class PtxError(CheckFailed):
    """The base of both errors: a PTX program could not be verified."""


class UnsupportedPtx(PtxError):
    """An instruction, modifier, operand or directive that the executor does not support.

    The executor refuses what it does not support: guessing would make its verdict worthless.
    """

    def __init__(self, reason: str, line: int, text: str = "") -> None:
        super().__init__(f"PTX line {line}: {reason}" + (f" in `{text}`" if text else ""))
        self.line = line
        self.text = text


class PtxFault(PtxError):
    """The program did something undefined, such as reading unwritten bytes."""

    def __init__(self, reason: str, line: int, text: str, block: int, thread: int) -> None:
        super().__init__(f"PTX line {line}: {reason} (block {block}, thread {thread}) in `{text}`")
        self.reason = reason
        self.line = line
        self.text = text
        self.block = block
        self.thread = thread
