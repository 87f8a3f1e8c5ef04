"""What a backend is: it loads a piece of a bundle and runs it on named arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from uino_deploy.bundle import Bundle, Piece
from uino_deploy.errors import InputError

Array = npt.NDArray[Any]


class Session(Protocol):
    """A loaded piece."""

    @property
    def piece(self) -> Piece:
        """The piece's description: the names, shapes and types of its inputs and outputs."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the piece.

        Args:
            feeds: an array for each input; float types are converted to the input's own.

        Returns:
            An array for each output, by name.

        Raises:
            InputError: an input is missing, unknown, or of a shape that the piece does not take.
        """


class Backend(Protocol):
    """A way to run pieces."""

    def load(self, bundle: Bundle, piece: str) -> Session:
        """Load a piece.

        Raises:
            BundleError: the bundle has no such piece, or its graph cannot be loaded or is not what
                the manifest describes.
            DependencyError: what the backend or the piece's precision needs is not there.
        """

    def describe(self) -> dict[str, str]:
        """Return what runs here: the backend, its version, its device, its threads."""


def prepare(piece: Piece, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Check feeds against a piece's inputs and convert them to its types, contiguous.

    Raises:
        InputError: an input is missing, unknown, or of a shape that the piece does not take.
    """
    names = [tensor.name for tensor in piece.inputs]
    if set(names) != feeds.keys():
        raise InputError(f"piece {piece.name} takes {names}, not {sorted(feeds)}")
    ready = {}
    for tensor in piece.inputs:
        array = feeds[tensor.name]
        fits = array.ndim == len(tensor.shape) and all(
            isinstance(wanted, str) or wanted == got
            for wanted, got in zip(tensor.shape, array.shape, strict=True)
        )
        if not fits:
            shape = list(array.shape)
            raise InputError(
                f"piece {piece.name} takes {tensor.name} of shape {tensor.shape}, not {shape}"
            )
        ready[tensor.name] = np.ascontiguousarray(array, dtype=tensor.dtype)
    return ready
