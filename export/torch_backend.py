"""PyTorch as a backend of the runtime: the reference, in float32, from the bundle's checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from uino_deploy.bundle import Bundle, Piece
from uino_deploy.errors import InputError
from uino_deploy.export.exporter import fingerprint
from uino_deploy.export.pieces import PieceModule, reference_pieces, run_modules
from uino_deploy.model.assembly import assemble_from_checkpoint
from uino_deploy.pipeline import QUERY, WHOLE, Route
from uino_deploy.runtime.session import Array, HostBackend, HostSession


class TorchBackend(HostBackend):
    """Runs a bundle's pieces in the model that it was exported from, on the CPU, in any thread.

    Args:
        checkpoint: a uino-deploy checkpoint.

    Raises:
        CheckpointError: it is unreadable, damaged, or not a uino-deploy checkpoint.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._pieces: dict[str, PieceModule] = {}
        self._fingerprint = ""

    def load(self, bundle: Bundle, piece: str) -> TorchSession:
        """Return a piece of the model; see `Backend.load`.

        Raises:
            InputError: the bundle was exported from another model.
        """
        described = bundle.piece(piece)
        if bundle.manifest.fingerprint != self._fingerprint:
            self._assemble(bundle)
        if piece == WHOLE:
            return TorchSession(described, QUERY, [self._pieces[name] for name in QUERY.pieces])
        return TorchSession(described, Route((piece,)), [self._pieces[piece]])

    def describe(self) -> dict[str, str]:
        """Return the backend, its version and its checkpoint."""
        return {
            "backend": "torch",
            "version": str(torch.__version__),
            "device": "cpu",
            "checkpoint": self._checkpoint.name,
        }

    def _assemble(self, bundle: Bundle) -> None:
        model = assemble_from_checkpoint(self._checkpoint, bundle.config.image_size).model
        own = fingerprint(model)
        if own != bundle.manifest.fingerprint:
            raise InputError(
                f"{bundle.root} was not exported from {self._checkpoint}: fingerprints differ",
                "give the checkpoint that was exported",
            )
        self._pieces, self._fingerprint = reference_pieces(model), own


class TorchSession(HostSession):
    """A piece of the model, or the query as a chain of them."""

    def __init__(self, piece: Piece, route: Route, parts: list[PieceModule]) -> None:
        super().__init__(piece)
        self._route = route
        self._parts = parts

    def compute(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run the piece; see `HostSession.compute`."""
        known = {name: torch.from_numpy(array.astype(np.float32)) for name, array in feeds.items()}
        with torch.inference_mode():
            made = run_modules(self._route, self._parts, known)
        return {
            edge.name: made[edge.name].numpy().astype(edge.dtype) for edge in self._piece.outputs
        }
