"""`docs/tensors.md`: every piece's tensors, for who loads the engines from C++ or by trtexec.

    python -m uino_deploy.export.tensor_tables > docs/tensors.md

A test holds the page to what this writes.
"""

from __future__ import annotations

from torch import nn

from uino_deploy.bundle import Precision, Tensor
from uino_deploy.config import PRESETS, VARIANTS, UinoConfig, Variant
from uino_deploy.export.compose import query_edges
from uino_deploy.export.pieces import Piece, edges_of
from uino_deploy.export.precision import parse_precision

_HEAD = """\
# The tensors of every piece

Written by `python -m uino_deploy.export.tensor_tables`; a test holds it to the code. A bundle's
`manifest.json` says the same of the bundle at hand under `pieces`, types included.

- All tensors are dense and row-major, and an engine's input and output names are these names.
- `batch` (queries at a time) and `shots` (images of a class) are dynamic in the ONNX files. An
  engine is built for 1 of each unless `uino-deploy build --shapes` asks for a range.
- `image` is RGB, squashed to the square, divided by 255 and normalised by ImageNet's mean and
  deviation; `mask` is the share of each patch that is the object, row by row, 0 to 1.
- `logits` are not squashed: above 0 is the object. `iou` is the decoder's estimate of its quality.
- `image`, `mask`, `logits` and `iou` are float32 always. An edge between pieces is float16 where
  the piece that produces it was exported in fp16, and float32 otherwise (fp32 and bf16).

A class is enrolled by `encoder` (its images, as a batch) and `support`. A query then takes `query`
alone, or `encoder`, `adapter`, and for each class `prompt` and `decoder`. What one piece gives the
next, under another name or with a leading 1:

| from | to |
|---|---|
| `encoder.early` | `adapter.early` |
| `encoder.deep` of the class's images, `[shots, ...]` | `support.deep` |
| the same as `[1, shots, ...]` | `prompt.support_deep`, `query.support_deep` |
| `encoder.deep` of the query | `prompt.query_deep` |
| `support.weight` as `[1, shots, tokens]` | `prompt.weight`, `query.weight` |
| `support.prototypes` | `prompt.prototypes`, `query.prototypes` |
| `support.sparse` as `[1, 2, width]` | `decoder.sparse`, `query.sparse` |
| `adapter.embedding` | `decoder.embedding` |
| `prompt.dense` | `decoder.dense` |
"""

_VARIANT_NOTE = """
## What the variants leave out

The tables above are of the variant `full`; `cp4d` has the same tensors.

| variant | tensors that are not there |
|---|---|
"""


def page() -> str:
    """Return the page."""
    presets = [name for name in PRESETS if not name.endswith("-reg")]
    sections = [_HEAD, *(preset_section(name) for name in presets), _VARIANT_NOTE.strip("\n")]
    rows = [row for variant in VARIANTS if (row := _missing(variant))]
    return "\n".join(sections) + "\n" + "\n".join(rows) + "\n"


def preset_section(preset: str) -> str:
    """Return one preset's heading and table."""
    config = UinoConfig.from_preset(preset)
    twin = f" and `{preset}-reg`" if f"{preset}-reg" in PRESETS else ""
    lines = [
        f"## `{preset}`{twin}, {config.image_size} px",
        "",
        "| piece | | tensor | shape | all pieces fp32 | all pieces fp16 |",
        "|---|---|---|---|---|---|",
    ]
    half = dict(_rows(config, "fp16"))
    for key, tensor in _rows(config, "fp32"):
        piece, way, name = key
        shape = ", ".join(map(str, tensor.shape))
        types = f"{tensor.dtype} | {half[key].dtype}"
        lines.append(f"| `{piece}` | {way} | `{name}` | [{shape}] | {types} |")
    return "\n".join([*lines, ""])


def _rows(config: UinoConfig, precision: Precision) -> list[tuple[tuple[str, str, str], Tensor]]:
    """Return ((piece, in or out, tensor's name), tensor) of every edge."""
    edges = edges_of(config, parse_precision([precision]))
    pieces = tuple(Piece(name, precision, nn.Identity(), *ways) for name, ways in edges.items())
    inputs, outputs = query_edges(pieces)
    edges["query"] = (tuple(inputs), tuple(outputs))
    return [
        ((piece, way, tensor.name), tensor)
        for piece, ways in edges.items()
        for way, tensors in zip(("in", "out"), ways, strict=True)
        for tensor in tensors
    ]


def _missing(variant: Variant) -> str:
    """Return the table's row of a variant; empty where it has every tensor."""
    every, there = (
        {f"`{piece}.{name}`" for (piece, _way, name), _tensor in _rows(config, "fp32")}
        for config in (
            UinoConfig.from_preset("vitb14"),
            UinoConfig.from_preset("vitb14", variant),
        )
    )
    return f"| `{variant}` | {', '.join(sorted(every - there))} |" if every - there else ""


if __name__ == "__main__":
    import sys

    sys.stdout.write(page())
