"""One model and its exported bundles for all tests of the export."""

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from uino_deploy.bundle import Bundle
from uino_deploy.config import UinoConfig
from uino_deploy.export import export_bundle, exporter
from uino_deploy.export.onnx_writer import save_model
from uino_deploy.export.pieces import PieceModule
from uino_deploy.export.precision import parse_precision
from uino_deploy.letters import draw_letter
from uino_deploy.model.segmenter import UinoFSS


def random_model(variant: str = "full") -> UinoFSS:
    """A tiny model with random weights and BatchNorm statistics, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = UinoFSS(UinoConfig.from_preset("tiny", variant)).eval()
        for name, buffer in model.adapter.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
        for parameter in model.parameters():  # LayerNorms and biases as a trained model has them
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="session")
def model() -> UinoFSS:
    return random_model()


@pytest.fixture(scope="session")
def exported(model, made_once, tmp_path_factory):
    """The function that exports the model in a precision: once, with a copy for each worker."""

    @cache
    def export(precision: str) -> Bundle:
        def make(path: Path) -> None:
            chosen = parse_precision([precision])
            export_bundle(model, path, precision=chosen, seed=7, untrained=["encoder"])

        root = made_once(f"export-{precision}.uino", make)
        folder = tmp_path_factory.mktemp(precision)
        return Bundle.open(shutil.copytree(root, folder / "tiny.uino"))

    return export


@pytest.fixture(scope="session")
def bundle(exported) -> Bundle:
    """The model in float32; do not change it."""
    return exported("fp32")


@pytest.fixture(scope="session")
def half(exported) -> Bundle:
    """The model in float16; do not change it."""
    return exported("fp16")


def reuse(patch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    """Let an export copy the float32 bundle's pieces in place of tracing the same ones again."""

    def copy(made: PieceModule, folder: Path, opset: int) -> Path:
        name = made.piece.name
        model = onnx.load(bundle.root / f"{name}.onnx")
        for owner in (model, *model.functions):
            for imported in owner.opset_import:
                if not imported.domain:
                    imported.version = opset
        save_model(model, folder / f"{name}.onnx", f"{name}.weights")
        return folder / f"{name}.onnx"

    patch.setattr(exporter, "write_piece", copy)


@pytest.fixture(scope="session")
def calibration() -> list[NDArray[np.uint8]]:
    """Four images to calibrate on."""
    return [draw_letter(seed)[0] for seed in range(50, 54)]


@pytest.fixture(scope="session")
def quantised(model, bundle, calibration, made_once, tmp_path_factory):
    """The function that exports the model with its encoder in int8 or fp8."""

    @cache
    def export(kind: str) -> Bundle:
        def make(path: Path) -> None:
            with pytest.MonkeyPatch.context() as patch:
                reuse(patch, bundle)
                chosen = parse_precision([f"encoder={kind}"])
                export_bundle(model, path, precision=chosen, calibration=calibration)

        root = made_once(f"quantised-{kind}.uino", make)
        folder = tmp_path_factory.mktemp(kind)
        return Bundle.open(shutil.copytree(root, folder / "tiny.uino"))

    return export


@pytest.fixture
def damaged(bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the bundle to do harm to."""
    return Path(shutil.copytree(bundle.root, tmp_path / "damaged.uino"))
