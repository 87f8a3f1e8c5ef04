"""Compares `--precision auto` with ModelOpt's AutoCast: a record, and a table in docs/precision.md.

    python -m venv build/modelopt
    build/modelopt/bin/pip install "nvidia-modelopt[onnx]"
    uino-deploy export --checkpoint uino_deploy/assets/tiny.safetensors -o build/exact.uino
    python tools/compare_autocast.py build/exact.uino build/modelopt/bin/python

Both start from the same float32 bundle, and from the same bundle with massive activations planted
behind one layer. Both see the same four scenes; errors are measured on four others, of other
things on other photographs. AutoCast converts each piece by its own program, with its defaults,
float32 inputs and outputs, and the scenes as calibration data. A piece that it cannot convert stays
float32: it needs TensorRT's libraries for operators that are not ONNX's, so it gets the prompt with
the operators' functions inlined.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from msgspec.structs import replace
from onnx import TensorProto, inliner

from tests.export.planted import plant
from uino_deploy.bundle import Bundle, write_manifest
from uino_deploy.export.choice import choose_types
from uino_deploy.export.exporter import export_mixed
from uino_deploy.export.forecast.blocks import ORDER
from uino_deploy.export.forecast.chain import Chain
from uino_deploy.export.forecast.ranges import measure_ranges
from uino_deploy.export.forecast.samples import thing_samples
from uino_deploy.export.onnx_writer import register_schemas, save_model
from uino_deploy.kernels.identity import DOMAIN
from uino_deploy.markdown import renew, rewrite, table
from uino_deploy.runtime import Predictor
from uino_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend
from uino_deploy.tolerances import relative_l2

BUDGET = 0.99
PLANTED = ("encoder.blocks.3.mlp.fc2", 1e4)
ROOT = Path(__file__).resolve().parent.parent
TARGET, PAGE = ROOT / "benchmarks" / "data" / "autocast.json", ROOT / "docs" / "precision.md"


def main(exact: Path, python: Path) -> None:
    """Compare on both models; write the record and the table."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        plain = Bundle.open(exact)
        planted, _ = plant(plain, work / "planted.uino", *PLANTED)
        rows = [
            row
            for name, bundle in (("as trained", plain), ("massive activations", planted))
            for row in compared(name, bundle, python, work / name.replace(" ", "-"))
        ]
    TARGET.write_text(json.dumps(rows, indent=1) + "\n")
    write_table()


def write_table() -> None:
    """Write the record's table into the page."""
    rows = json.loads(TARGET.read_text())
    cells = [
        [r["model"], r["method"], f"{100 * r['half_flops']:.1f}", f"{r['logits_error']:.1e}",
         f"{r['mask_iou']:.4f}", r["remark"]]
        for r in rows
    ]  # fmt: skip
    header = ["model", "method", "% of FLOPs in float16", "logits error", "mask IoU", "remark"]
    rewrite(PAGE, lambda page: renew(page, "autocast", table(header, cells)))


def compared(name: str, exact: Bundle, python: Path, work: Path) -> list[dict]:
    """Return a row for each method."""
    work.mkdir()
    samples = thing_samples()
    chain = Chain(exact, samples)
    flops = {node: each.flops for node, each in measure_ranges(chain).items()}
    halves, decision = choose_types(exact, samples, samples[0], BUDGET)
    ours = export_mixed(exact, work / "auto.uino", halves, decision)
    theirs, cast, failed = autocast(exact, chain, python, work)
    wanted = logits(exact)
    remark = f"float32 stays: {', '.join(failed)} (it fails)" if failed else ""
    islands = f"{len(decision.float32)} nodes stay float32"
    found = (("auto", ours, halves, islands), ("AutoCast", theirs, cast, remark))
    return [
        {
            "model": name,
            "method": method,
            "half_flops": sum(flops.get(n, 0) for n in nodes) / sum(flops.values()),
            "logits_error": max(map(relative_l2, got := logits(bundle), wanted)),
            "mask_iou": iou(got, wanted),
            "remark": text,
        }
        for method, bundle, nodes, text in found
    ]


def autocast(
    exact: Bundle, chain: Chain, python: Path, work: Path
) -> tuple[Bundle, set[str], list[str]]:
    """Return AutoCast's bundle, its nodes in float16 and the pieces that it could not convert."""
    root = Path(shutil.copytree(exact.root, work / "autocast.uino"))
    halves, failed = set[str](), []
    for piece in ORDER:
        source, target = work / f"{piece}.onnx", work / f"{piece}_cast.onnx"
        model = onnx.load(exact.path(f"{piece}.onnx"))
        if any(node.domain == DOMAIN for node in model.graph.node):
            model = inliner.inline_local_functions(model)
            kept = [opset for opset in model.opset_import if opset.domain != DOMAIN]
            del model.opset_import[:]
            model.opset_import.extend(kept)
        onnx.save(model, source)
        data = work / f"{piece}.npz"
        np.savez(data, **feeds(chain, piece))
        command = [python, "-m", "modelopt.onnx.autocast", "--onnx_path", source, "--keep_io_types"]
        options = ["--output_path", target, "--calibration_data", data, "--providers", "cpu"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        if done.returncode or not target.exists():
            print(f"{piece}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            failed.append(piece)
            continue
        converted = onnx.load(target)
        halves |= {f"{piece}/{name}" for name in in_float16(converted)}
        (root / f"{piece}.weights").unlink(missing_ok=True)
        save_model(converted, root / f"{piece}.onnx", f"{piece}.weights")
    write_manifest(root, replace(exact.manifest, files={}))
    return Bundle.open(root), halves, failed


def feeds(chain: Chain, piece: str) -> Mapping[str, np.ndarray]:
    """Return what a piece takes for the first scene."""
    blocks = [block for block in chain.blocks if block.piece == piece]
    names = {value.name for block in blocks for value in block.model.graph.input}
    made = {name for block in blocks for name in block.gives}
    return {n: a for b in blocks for n, a in chain.inputs(b, 0).items() if n in names - made}


def in_float16(model: onnx.ModelProto) -> set[str]:
    """Return the nodes that give float16."""
    register_schemas()
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
    return {n.name for n in graph.node if types.get(n.output[0]) == TensorProto.FLOAT16}


def logits(bundle: Bundle) -> list[np.ndarray]:
    """Segment the scenes that no method has seen."""
    predictor = Predictor(bundle, OnnxRuntimeBackend())
    found = []
    for sample in thing_samples(4, "held-out", seed=99):
        support = predictor.enroll(sample.shots, name=sample.name)
        found.append(predictor.predict(sample.image, [support])[0].logits)
    return found


def iou(got: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """Return the IoU of all masks together."""
    pairs = list(zip(got, wanted, strict=True))
    same = sum(int(((a > 0) & (b > 0)).sum()) for a, b in pairs)
    return same / sum(int(((a > 0) | (b > 0)).sum()) for a, b in pairs)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
