"""PyTorch as a backend of the runtime: the reference, in float32, from the bundle's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from uino_deploy.bundle import Bundle
from uino_deploy.bundle import Piece as PieceEntry
from uino_deploy.errors import InputError
from uino_deploy.export.exporter import fingerprint
from uino_deploy.export.onnx_writer import DEFAULT_OPSET
from uino_deploy.export.pieces import Piece, pieces_of
from uino_deploy.export.precision import parse_precision
from uino_deploy.model.assembly import assemble_from_checkpoint
from uino_deploy.runtime.session import Array, HostBackend, HostSession

# The pieces that the query is composed of, in their order, and what it calls their results.
_QUERY = ("encoder", "adapter", "prompt", "decoder")
_QUERY_NAMES = {"deep": "query_deep"}


class TorchBackend(HostBackend):
    """Runs a bundle's pieces in the model that it was exported from, on the CPU.

    Args:
        checkpoint: one of our own.

    Raises:
        CheckpointError: it is unreadable, damaged, or not ours.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._modules: dict[str, Piece] = {}
        self._fingerprint = ""

    def load(self, bundle: Bundle, piece: str) -> TorchSession:
        """Return a piece of the model; see `Backend.load`.

        Raises:
            InputError: the bundle was exported from another model.
        """
        described = bundle.piece(piece)
        if bundle.manifest.fingerprint != self._fingerprint:
            self._assemble(bundle)
        names = _QUERY if piece == "query" else (piece,)
        return TorchSession(described, [self._modules[name] for name in names])

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
        found = fingerprint(model)
        if found != bundle.manifest.fingerprint:
            raise InputError(
                f"{bundle.root} was not exported from {self._checkpoint}: fingerprints differ",
                "name the checkpoint that was exported",
            )
        parts = pieces_of(model, parse_precision(["fp32"]), DEFAULT_OPSET)
        self._modules, self._fingerprint = {part.name: part for part in parts}, found


class TorchSession(HostSession):
    """A piece of the model, or the query as a chain of them."""

    def __init__(self, piece: PieceEntry, parts: list[Piece]) -> None:
        super().__init__(piece)
        self._parts = parts

    def compute(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run the piece; see `HostSession.compute`."""
        known = {name: torch.from_numpy(array.astype(np.float32)) for name, array in feeds.items()}
        with torch.inference_mode():
            for part in self._parts:
                made = _run(part, known)
                if len(self._parts) > 1:
                    made = {_QUERY_NAMES.get(name, name): value for name, value in made.items()}
                known |= made
        return {
            edge.name: known[edge.name].numpy().astype(edge.dtype) for edge in self._piece.outputs
        }


def _run(part: Piece, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    module: nn.Module = part.module
    outputs: tuple[Tensor, ...] = module(*(known[edge.name] for edge in part.inputs))
    return {edge.name: output for edge, output in zip(part.outputs, outputs, strict=True)}
