"""A bundle small enough to write by hand: it finds the patches whose colour is the support's.

Its pieces have the names, edges and dynamic dimensions of a real export, so that the runtime can be
tested without torch and without an export. Channels are the normalised colours (D = E = 3), both
layers of `deep` are the same (L = 2).
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from uino_deploy import cli
from uino_deploy.bundle import (
    Edge,
    Manifest,
    Piece,
    Preprocess,
    Provenance,
    model_fingerprint,
    write_manifest,
)
from uino_deploy.config import UinoConfig
from uino_deploy.pipeline import PIECES, Edges

SIZE = 56

BODIES = {
    "encoder": """
        encoder (float[batch,3,56,56] image) => (float[batch,16,3] early, float[batch,2,16,3] deep)
        <int64[3] rows = {0, 3, -1}, int64[1] layer = {1}> {
            pooled = AveragePool <kernel_shape = [14, 14], strides = [14, 14]> (image)
            flat = Reshape (pooled, rows)
            early = Transpose <perm = [0, 2, 1]> (flat)
            one = Unsqueeze (early, layer)
            deep = Concat <axis = 1> (one, one)
        }""",
    "adapter": """
        adapter (float[batch,16,3] early) => (float[batch,3,4,4] embedding)
        <int64[4] planes = {0, 3, 4, 4}> {
            channels = Transpose <perm = [0, 2, 1]> (early)
            embedding = Reshape (channels, planes)
        }""",
    "support": """
        support (float[shots,2,16,3] deep, float[shots,16] mask)
        => (float[shots,16] weight, float[2,3] prototypes, float[2,3] sparse)
        <float one = {1.0}, float two = {2.0}, int64 last = {1},
         int64[1] tail = {2}, int64[2] both = {0, 1}> {
            twice = Mul (two, mask)
            weight = Sub (twice, one)
            tokens = Gather <axis = 1> (deep, last)
            outside = Sub (one, mask)
            shares_in = Unsqueeze (mask, tail)
            shares_out = Unsqueeze (outside, tail)
            marked_in = Mul (tokens, shares_in)
            marked_out = Mul (tokens, shares_out)
            sum_in = ReduceSum <keepdims = 0> (marked_in, both)
            sum_out = ReduceSum <keepdims = 0> (marked_out, both)
            count_in = ReduceSum <keepdims = 0> (mask, both)
            count_out = ReduceSum <keepdims = 0> (outside, both)
            mean_in = Div (sum_in, count_in)
            mean_out = Div (sum_out, count_out)
            zero_axis = Constant <value = int64[1] {0}> ()
            row_in = Unsqueeze (mean_in, zero_axis)
            row_out = Unsqueeze (mean_out, zero_axis)
            prototypes = Concat <axis = 0> (row_in, row_out)
            sparse = Identity (prototypes)
        }""",
    "prompt": """
        prompt (float[batch,2,16,3] query_deep, float[1,shots,2,16,3] support_deep,
                float[1,shots,16] weight, float[2,3] prototypes) => (float[batch,3,4,4] dense)
        <int64 last = {1}, int64 first = {0}, int64[1] tail = {2}, int64[4] planes = {0, 1, 4, 4},
         int64[4] wide = {1, 3, 1, 1}> {
            tokens = Gather <axis = 1> (query_deep, last)
            inside = Gather <axis = 0> (prototypes, first)
            outside = Gather <axis = 0> (prototypes, last)
            to_inside = Sub (tokens, inside)
            to_outside = Sub (tokens, outside)
            near = ReduceSumSquare <keepdims = 0> (to_inside, tail)
            far = ReduceSumSquare <keepdims = 0> (to_outside, tail)
            closer = Sub (far, near)
            plane = Reshape (closer, planes)
            dense = Expand (plane, wide)
        }""",
    "decoder": """
        decoder (float[batch,3,4,4] embedding, float[1,2,3] sparse, float[batch,3,4,4] dense)
        => (float[batch,1,16,16] logits, float[batch,1] iou)
        <int64[1] channel = {1}, float[4] scales = {1.0, 1.0, 4.0, 4.0}, float[1] half = {0.5},
         int64[2] one = {1, 1}> {
            plane = ReduceMean (dense, channel)
            none = Constant <value = float[0] {}> ()
            logits = Resize <mode = "nearest"> (plane, none, scales)
            batch = Shape <start = 0, end = 1> (embedding)
            single = Constant <value = int64[1] {1}> ()
            shape = Concat <axis = 0> (batch, single)
            iou = Expand (half, shape)
        }""",
}


@pytest.fixture
def run(capsys):
    """Return a function that runs the program and gives its exit code, stdout and stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return caught.value.code, shown.out, shown.err

    return run


@pytest.fixture(scope="session")
def fake_bundle(tmp_path_factory):
    """Return a bundle that finds the support's colour; do not change it."""
    return write_fake_bundle(tmp_path_factory.mktemp("fake") / "fake.uino")


@pytest.fixture
def red_square():
    """Return an image [60, 80] with a red square on blue, and its mask."""
    image = np.full((60, 80, 3), (20, 40, 200), np.uint8)
    mask = np.zeros((60, 80), np.uint8)
    mask[15:45, 20:60] = 1
    image[mask == 1] = (220, 30, 20)
    return image, mask


@pytest.fixture
def red_files(red_square, tmp_path):
    """Return the paths of the red square's image and mask as files."""
    image, mask = red_square
    Image.fromarray(image).save(tmp_path / "red.png")
    Image.fromarray(mask * 255).save(tmp_path / "red-mask.png")
    return tmp_path / "red.png", tmp_path / "red-mask.png"


def write_fake_bundle(directory: Path, weights: str = "0" * 64) -> Path:
    """Write the bundle; `weights` stands for its checkpoint's hash."""
    directory.mkdir()
    pieces = {}
    for name, body in BODIES.items():
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\n{body}')
        onnx.checker.check_model(model, full_check=True)
        onnx.save_model(model, directory / f"{name}.onnx")
        pieces[name] = Piece(
            name=name,
            model=f"{name}.onnx",
            precision="fp32",
            inputs=[_tensor(value) for value in model.graph.input],
            outputs=[_tensor(value) for value in model.graph.output],
        )
        edges = Edges(
            *(tuple(e.name for e in group) for group in (pieces[name].inputs, pieces[name].outputs))
        )
        assert edges == PIECES[name], "not the exporter's names"
    (directory / "reference.safetensors").write_bytes(b"not looked into by the runtime")
    config = UinoConfig.from_preset("tiny", image_size=SIZE).to_dict()
    manifest = Manifest(
        model=config,
        fingerprint=model_fingerprint(config, {"encoder": weights}),
        preprocess=Preprocess(size=SIZE),
        opset=18,
        pieces=pieces,
        reference="reference.safetensors",
        provenance=Provenance(created_by="uino-deploy tests", versions={}),
    )
    write_manifest(directory, manifest)
    return directory


def _tensor(value: onnx.ValueInfoProto) -> Edge:
    kind = value.type.tensor_type
    shape = [d.dim_param or d.dim_value for d in kind.shape.dim]
    return Edge(name=value.name, shape=shape, dtype="float32")
