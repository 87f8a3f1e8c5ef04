"""`uino-deploy inspect`: describe a file, a bundle or a preset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from uino_deploy.cli._console import Output, size
from uino_deploy.cli._options import output_options
from uino_deploy.cli._signature import signature_option

Description = dict[str, Any]

# Of a value in a checkpoint's metadata that is shown.
_MOST_LETTERS = 120


@click.command()
@click.argument("target", metavar="FILE|PRESET")
@signature_option
@output_options
def inspect(target: str, output: Output) -> None:
    """Describe a bundle, support, checkpoint, ONNX file or preset.

    Bundles and support files are first checked against their hashes. A preset (vits14, vitb14,
    vitl14, each also with -reg, and tiny) lists the parameter counts of its model's parts.

    \b
    Examples:
      uino-deploy inspect build/demo/demo.uino
      uino-deploy inspect bottle.safetensors
      uino-deploy inspect dinov2_vitb14_pretrain.pth
      uino-deploy inspect vitb14 --json
    """
    from uino_deploy.inspection import inspect as describe

    description = describe(target)
    _SHOWN[description["kind"]](description, output)
    output.document(description)


def _show_bundle(found: Description, output: Output) -> None:
    manifest = found["manifest"]
    model, made = manifest["model"], manifest["provenance"]
    output.text(
        f"bundle {found['path']}: {model['preset']} {model['variant']} at "
        f"{model['image_size']} px, opset {manifest['opset']}, schema {manifest['schema']}, "
        f"{size(found['bytes'])}, all files match the manifest"
    )
    output.text(f"fingerprint {manifest['fingerprint']}")
    output.text()
    output.table(
        ["piece", "precision", "edge", "name", "shape"],
        [
            [piece["name"], piece["precision"], kind, edge["name"], shape(edge["shape"])]
            for piece in manifest["pieces"].values()
            for kind, listed in (("in", piece["inputs"]), ("out", piece["outputs"]))
            for edge in listed
        ],
    )
    output.text()
    output.table(
        ["file", "size", "sha256"],
        [
            [name, size(entry["size"]), entry["sha256"][:16]]
            for name, entry in manifest["files"].items()
        ],
    )
    output.text()
    output.text(f"made by {made['created_by']}; {versions(made['versions'])}")
    for source in made["sources"]:
        state = "trained" if source["trained"] else "untrained"
        output.text(f"{source['role']}: {source['name']} ({state}, sha256 {source['sha256'][:16]})")
    if made["untrained"]:
        output.text(f"UNTRAINED, random weights of seed {made['seed']}: {parts(made['untrained'])}")
    output.text(f"engines: {parts(manifest['plans']) or 'none'}")
    if found["plans"]:
        rows = [
            [
                p["arch"],
                p["piece"],
                f"{p['backend']} {p['version']}",
                p["precision"],
                _tf32(p["tf32"]),
            ]
            for p in found["plans"]
        ]
        output.table(["arch", "piece", "built by", "precision", "TF32"], rows)


def _tf32(asked: bool | None) -> str:
    """Describe whether a plan computes TF32; versions that did not ask left it on."""
    return {None: "not recorded: on by default", False: "off", True: "on"}[asked]


def _show_support(found: Description, output: Output) -> None:
    shots = f"{found['shots']} shot{'s' if found['shots'] > 1 else ''}"
    output.text(
        f"support {found['path']}: class {found['name']!r}, {shots}, encoded in "
        f"{found['precision']} by {found['model']}, {size(found['bytes'])}, "
        "contents match their hash"
    )
    output.text(f"fingerprint {found['fingerprint']}")
    output.text()
    output.table(
        ["tensor", "shape", "type"],
        [[each["name"], shape(each["shape"]), each["dtype"]] for each in found["tensors"]],
    )


def _show_checkpoint(found: Description, output: Output) -> None:
    total = sum(found["parameters"].values())
    types = ", ".join(f"{count} {dtype}" for dtype, count in found["dtypes"].items())
    output.text(
        f"checkpoint {found['path']}: {found['layout']}, {found['tensors']} tensors ({types}), "
        f"{total:,} parameters, {size(found['bytes'])}"
    )
    output.text()
    output.table(["part", "parameters"], [[n, f"{c:,}"] for n, c in found["parameters"].items()])
    if found["refused"]:
        output.text()
        output.warn(f"export takes no weights from it: {found['refused']}")
    if found["metadata"]:
        output.text()
    for key, value in found["metadata"].items():
        output.text(f"{key}: {_plain(value)}")


def _show_onnx(found: Description, output: Output) -> None:
    opsets = ", ".join(f"{domain} {version}" for domain, version in found["opsets"].items())
    output.text(f"ONNX {found['path']}: opsets {opsets}")
    weights = ", ".join(f"{count:,} {dtype}" for dtype, count in found["weights"].items())
    output.text(f"weights: {weights or 'none'}")
    output.text()
    output.table(
        ["edge", "name", "shape", "type"],
        [
            [kind, edge["name"], shape(edge["shape"]), edge["dtype"]]
            for kind, listed in (("in", found["inputs"]), ("out", found["outputs"]))
            for edge in listed
        ],
    )
    output.text()
    output.table(["operator", "nodes"], list(found["operators"].items()))
    if found["functions"]:
        output.text(f"functions: {', '.join(found['functions'])}")


def _show_preset(found: Description, output: Output) -> None:
    encoder = found["encoder"]
    output.text(
        f"preset {found['preset']}: ViT of width {encoder['width']}, depth {encoder['depth']}, "
        f"{encoder['heads']} heads, {encoder['registers']} registers, patch {encoder['patch']}, "
        f"{found['image_size']} px"
    )
    output.text("parameters per part; the segmenter is everything but the encoder")
    output.text()
    counts = found["parameters"]
    names = max(counts.values(), key=len)  # the fullest variant has every part, in order
    output.table(
        ["part", *counts],
        [
            [_nested(name), *(f"{c[name]:,}" if name in c else "-" for c in counts.values())]
            for name in names
        ],
    )


def _nested(name: str) -> str:
    """Return a part's name, indented by its depth: "a.b" as "  b"."""
    *above, own = name.split(".")
    return "  " * len(above) + own


_SHOWN: dict[str, Callable[[Description, Output], None]] = {
    "bundle": _show_bundle,
    "support": _show_support,
    "checkpoint": _show_checkpoint,
    "onnx": _show_onnx,
    "preset": _show_preset,
}


def _plain(value: Any) -> str:
    """Return a value of the metadata on one line: of an object what is short, and what is left."""
    if not isinstance(value, dict):
        return str(value)
    short = {
        key: each
        for key, each in value.items()
        if each is not None
        and not isinstance(each, (dict, list))
        and len(str(each)) <= _MOST_LETTERS
    }
    left = [key for key in value if key not in short and value[key] is not None]
    told = ", ".join(f"{key} {each}" for key, each in short.items())
    return told + (f"; --json also has {', '.join(left)}" if left else "")


def shape(dimensions: list[int | str]) -> str:
    """Return a shape such as [batch, 3, 112, 112]."""
    return f"[{', '.join(map(str, dimensions))}]"


def versions(found: dict[str, str]) -> str:
    """Return packages and versions on one line."""
    return ", ".join(f"{name} {version}" for name, version in found.items())


def parts(names: list[str] | dict[str, Any]) -> str:
    """Return names on one line."""
    return ", ".join(names)
