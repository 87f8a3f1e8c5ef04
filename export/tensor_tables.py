"""`docs/tensors.md`: every piece's tensors, for loading engines from C++ or with trtexec.

    python -m uino_deploy.export.tensor_tables > docs/tensors.md

A test keeps the page current.
"""

from __future__ import annotations

from collections.abc import Sequence

from uino_deploy.bundle import Edge, Precision
from uino_deploy.config import PRESETS, VARIANTS, UinoConfig, Variant
from uino_deploy.export.compose import describe_query
from uino_deploy.export.pieces import describe_pieces
from uino_deploy.export.precision import parse_precision
from uino_deploy.pipeline import CLASS, CLASS_AXIS, PIECES, QUERY, WHOLE, Route

_HEAD = """\
# The tensors of every piece

This page lists the inputs and outputs of every piece, for loading them from C++ or with trtexec.
`python -m uino_deploy.export.tensor_tables` writes it, and a test keeps it current. A bundle's
`manifest.json` lists the same tensors for that bundle, with their types, under `pieces`.

- All tensors are dense and row-major. An engine's inputs and outputs have these names.
- `batch` (queries at a time) and `shots` (images of a class) are dynamic in the ONNX files. An
  engine is built for 1 of each unless `uino-deploy build --shapes` sets a range.
- `image` is RGB, squashed to a square, divided by 255 and normalised with ImageNet's mean and
  standard deviation. `mask` is the fraction of each patch that the object covers, 0 to 1, row by
  row.
- `logits` come before the sigmoid: values above 0 are the object. `iou` is the IoU that the decoder
  predicts for its mask; it can fall outside 0 to 1.
- `image`, `mask`, `logits` and `iou` are always float32. An edge between pieces is float16 if the
  piece that produces it was exported in fp16, and float32 otherwise (fp32, bf16 and int8).

To enroll a class, run {class_pieces} in turn, its images as a batch. For a query, run only
`{whole}`, or {image_pieces} once, then {each_class} for each class. Some tensors
change their name or gain a leading 1 on the way:

| from | to |
|---|---|
"""

_VARIANT_NOTE = """
## Tensors that the other variants lack

The tables above describe the variant `full`; `cp4d` has the same tensors.

| variant | missing tensors |
|---|---|
"""


def page() -> str:
    """Return the page."""
    presets = [name for name in PRESETS if not name.endswith("-reg")]
    sections = [_head(), *(preset_section(name) for name in presets), _VARIANT_NOTE.strip("\n")]
    rows = [row for variant in VARIANTS if (row := _missing(variant))]
    return "\n".join(sections) + "\n" + "\n".join(rows) + "\n"


def _head() -> str:
    """Return the page's introduction and the table of connections between pieces."""
    image, each_class = QUERY.split({"image"})
    introduction = _HEAD.format(
        class_pieces=_listed(CLASS.pieces),
        whole=WHOLE,
        image_pieces=_listed(image),
        each_class=_listed(each_class),
    )
    return (
        introduction
        + "\n".join([*_links(CLASS, "a class's images"), *_links(QUERY, "a query's image")])
        + "\n"
    )


def _links(route: Route, images: str) -> list[str]:
    """Return a row for each tensor that a piece of a route gives, with the inputs that take it."""
    rows = []
    for piece in route.pieces:
        for edge in PIECES[piece].outputs:
            name = route.name(edge)
            source = f"`{piece}.{edge}`" + (f" of {images}" if name != edge else "")
            takers = _takers(route, name)
            if takers:
                rows.append(f"| {source} | {', '.join(takers)} |")
            if route is CLASS and name in QUERY.ends.inputs:
                source += ", with a leading 1" if name in CLASS_AXIS else ""
                takers = [*_takers(QUERY, name), f"`{WHOLE}.{name}`"]
                rows.append(f"| {source} | {', '.join(takers)} |")
    return rows


def _takers(route: Route, name: str) -> list[str]:
    return [
        f"`{piece}.{edge}`"
        for piece in route.pieces
        for edge in PIECES[piece].inputs
        if route.name(edge) == name
    ]


def _listed(pieces: Sequence[str]) -> str:
    return " and ".join(f"`{piece}`" for piece in pieces)


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
    for key, edge in _rows(config, "fp32"):
        piece, way, name = key
        shape = ", ".join(map(str, edge.shape))
        types = f"{edge.dtype} | {half[key].dtype}"
        lines.append(f"| `{piece}` | {way} | `{name}` | [{shape}] | {types} |")
    return "\n".join([*lines, ""])


def _rows(config: UinoConfig, precision: Precision) -> list[tuple[tuple[str, str, str], Edge]]:
    """Return ((piece, in or out, name), edge) for every edge."""
    pieces = describe_pieces(config, parse_precision([precision]))
    return [
        ((piece.name, way, edge.name), edge)
        for piece in (*pieces.values(), describe_query(pieces))
        for way, edges in (("in", piece.inputs), ("out", piece.outputs))
        for edge in edges
    ]


def _missing(variant: Variant) -> str:
    """Return the table's row of a variant; empty if it has every tensor."""
    every, there = (
        {f"`{piece}.{name}`" for (piece, _way, name), _edge in _rows(config, "fp32")}
        for config in (
            UinoConfig.from_preset("vitb14"),
            UinoConfig.from_preset("vitb14", variant),
        )
    )
    return f"| `{variant}` | {', '.join(sorted(every - there))} |" if every - there else ""


if __name__ == "__main__":
    import sys

    sys.stdout.write(page())
