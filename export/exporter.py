"""`export_bundle`: a complete bundle from a model, or nothing."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import onnx
from msgspec.structs import replace
from safetensors.torch import save_file
from torch import nn

import uino_deploy
from uino_deploy.bundle import (
    MANIFEST,
    Bundle,
    Decision,
    DType,
    Edge,
    Manifest,
    Piece,
    Precision,
    Preprocess,
    Provenance,
    Source,
    model_fingerprint,
    write_manifest,
)
from uino_deploy.bundle.checked import checked_copy
from uino_deploy.errors import InputError
from uino_deploy.export.compose import describe_query, write_query
from uino_deploy.export.examples import Image, example_of
from uino_deploy.export.forecast.blocks import ORDER
from uino_deploy.export.mixed import mixed_piece
from uino_deploy.export.onnx_writer import check_model, save_model, write_piece
from uino_deploy.export.opsets import DEFAULT_OPSET, OPSETS
from uino_deploy.export.pieces import BATCH, SHOTS, exportable_pieces
from uino_deploy.export.precision import EIGHT_BIT, least_opset, parse_precision
from uino_deploy.export.quantise import quantise
from uino_deploy.files import atomic_directory
from uino_deploy.images import preprocess_image
from uino_deploy.kernels.identity import VERSION
from uino_deploy.letters import draw_letter
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.pipeline import CLASS, PIECES, QUERY, WHOLE, producer, route_of
from uino_deploy.sbom import bill_of_materials, write_bill

REFERENCE = "reference.safetensors"
SBOM = "sbom.cdx.json"
REFERENCE_SEED = 0
REFERENCE_LETTER = (
    "S"  # not one that the self-test enrolls: this exposes a backend that keeps state
)
_TOOLS = ("torch", "onnx", "onnxscript", "onnx-ir", "numpy", "safetensors")


def export_bundle(
    model: UinoFSS,
    output: str | Path,
    *,
    precision: Mapping[str, Precision] | None = None,
    opset: int | None = None,
    max_batch: int | None = None,
    max_shots: int | None = None,
    sources: Sequence[Source] = (),
    untrained: Sequence[str] = (),
    seed: int | None = None,
    force: bool = False,
    calibration: Sequence[Image] = (),
    progress: Callable[[str], None] = lambda _note: None,
) -> Bundle:
    """Export a model piece by piece and write the bundle, whole or not at all.

    Args:
        model: the trained model; it is set to evaluation mode.
        output: the bundle's folder, `NAME.uino`.
        precision: fp32, fp16 or bf16 for each piece, or int8 or fp8 for the encoder; fp32
            throughout when None.
        opset: version of ONNX's standard operators; the first that can express the precisions,
            from 18 on, if None.
        max_batch: the largest batch of queries to allow; any if None.
        max_shots: the largest number of support images to allow; any if None.
        sources: the checkpoints that the weights came from.
        untrained: the parts with random weights.
        seed: the seed of the random weights.
        force: replace an existing bundle.
        calibration: images uint8 [H, W, 3] that set the scales of int8 and fp8 pieces.
        progress: called with a note before each step.

    Returns:
        The bundle, opened.

    Raises:
        InputError: the opset is not supported or does not express a precision, a limit is below 1,
            or int8 or fp8 has no images.
        OutputExists: the bundle exists, or the folder exists and is not a bundle.
        BuildError: a piece could not be exported.
    """
    precision = precision or parse_precision([])
    least = max(DEFAULT_OPSET, least_opset(precision))
    opset = least if opset is None else opset
    if opset not in OPSETS:
        raise InputError(
            f"--opset {opset} is not supported", f"use {OPSETS.start} to {OPSETS.stop - 1}"
        )
    if opset < least_opset(precision):
        raise InputError(
            f"--opset {opset} quantises neither float16 nor to fp8", f"use {least} or leave it out"
        )
    limits = _limits(max_batch, max_shots)
    model.eval()
    modules = exportable_pieces(model, precision, opset)
    pieces = {name: made.piece for name, made in modules.items()}
    inputs = [preprocess_image(image, model.config.image_size)[None] for image in calibration]
    with atomic_directory(output, force, marker=MANIFEST) as folder:
        for name, made in modules.items():
            progress(f"exporting {name} in {made.piece.precision}")
            path = write_piece(made, folder, opset)
            if made.piece.precision in EIGHT_BIT:
                progress(f"quantising {name}")
                told = quantise(path, inputs, made.piece.precision)
                pieces[name] = replace(made.piece, quantisation=told)
        progress("joining the pieces of a query")
        write_query(pieces, folder)
        progress("running the reference")
        (query, _), shot = reference_letters()
        example = example_of(model, query, [shot])
        save_file(example, folder / REFERENCE)
        write_bill(bill_of_materials(["cpu", "export"]), folder / SBOM)
        progress("hashing the files")
        write_manifest(
            folder,
            Manifest(
                operators=VERSION,
                model=model.config.to_dict(),
                fingerprint=fingerprint(model),
                preprocess=Preprocess(size=model.config.image_size),
                opset=opset,
                pieces={**pieces, WHOLE: describe_query(pieces)},
                limits=limits,
                reference=REFERENCE,
                provenance=Provenance(
                    created_by=f"uino-deploy {uino_deploy.__version__}",
                    versions=_versions(),
                    sources=list(sources),
                    untrained=list(untrained),
                    seed=seed,
                    sbom=SBOM,
                ),
                licences=["Apache-2.0"],
            ),
        )
    return Bundle.open(output, verify=False, require_signature=False)


def reference_letters() -> list[tuple[Image, Image]]:
    """Return the stored example's query and its shot, images with their masks."""
    return [draw_letter(REFERENCE_SEED + n, REFERENCE_LETTER) for n in range(2)]


def export_mixed(
    bundle: Bundle,
    output: str | Path,
    halves: Collection[str],
    decision: Decision,
    force: bool = False,
) -> Bundle:
    """Write a float32 bundle again with some of its nodes in float16.

    Args:
        bundle: float32.
        output: the new bundle's folder, `NAME.uino`.
        halves: names, in the joined query, of the nodes that compute in float16.
        decision: why; the manifest keeps it.
        force: replace an existing bundle.

    Returns:
        The bundle, opened.

    Raises:
        OutputExists: the bundle exists, or the folder exists and is not a bundle.
        BuildError: a piece is not a valid ONNX model.
    """
    manifest = bundle.manifest
    kept = [manifest.reference, *([manifest.provenance.sbom] if manifest.provenance.sbom else [])]
    with atomic_directory(output, force, marker=MANIFEST) as folder:
        pieces: dict[str, Piece] = {}
        for name in ORDER:
            piece = bundle.piece(name)
            taken = {edge.name: _given_type(name, edge, pieces) for edge in piece.inputs}
            own = {half.partition("/")[2] for half in halves if half.startswith(f"{name}/")}
            with checked_copy(bundle, piece) as graph:
                pieces[name], model = mixed_piece(piece, onnx.load(graph), own, taken)
            save_model(model, folder / piece.model, f"{name}.weights")
            check_model(folder / piece.model)
        pieces = {name: pieces[name] for name in PIECES}
        write_query(pieces, folder)
        for name in kept:
            (folder / name).write_bytes(bundle.read(name))
        pieces[WHOLE] = describe_query(pieces)
        write_manifest(folder, replace(manifest, pieces=pieces, decision=decision, files={}))
    return Bundle.open(output, verify=False, require_signature=False)


def _given_type(piece: str, edge: Edge, pieces: Mapping[str, Piece]) -> DType:
    """Return the type of an input: that of the output of another piece which feeds it."""
    tensor = route_of(piece).name(edge.name)
    maker = producer(tensor)
    if maker is None:
        return edge.dtype
    outputs = {route.name(e.name): e for route in (CLASS, QUERY) for e in pieces[maker].outputs}
    return outputs[tensor].dtype


def _limits(max_batch: int | None, max_shots: int | None) -> dict[str, int]:
    limits = {BATCH: max_batch, SHOTS: max_shots}
    for name, limit in limits.items():
        if limit is not None and limit < 1:
            raise InputError(f"--max-{name} {limit} allows nothing", "use 1 or more")
    return {name: limit for name, limit in limits.items() if limit is not None}


def fingerprint(model: UinoFSS) -> str:
    """Return the identity of the weights that a support file depends on."""
    parts = {"encoder": model.encoder, "prompt_generator": model.prompt_generator}
    return model_fingerprint(
        model.config.to_dict(), {name: _weights_hash(part) for name, part in parts.items()}
    )


def _weights_hash(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    tools = {name: metadata.version(name) for name in _TOOLS}
    return {"python": platform.python_version(), **tools}
