"""The readers under attack: for each a valid sample, how it is damaged, and how it is read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz import damage
from tests.fuzz.harness import Broken, Case, Parser, command

# So that no more than this many pixels are decoded: `image` and `mask` state their memory by it.
PIXELS = 1 << 20

Damaged = Callable[[Random], dict[str, bytes]]

FORMATS = ("PNG", "JPEG", "MPO", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF")


def manifest(made: Path) -> Case:
    """A bundle's manifest, through `inspect` and `Bundle.open`."""
    valid = _bundle_files(made)
    document = json.loads(valid["manifest.json"])

    def read(folder: Path) -> None:
        from uino_deploy.bundle import Bundle

        command("inspect", str(folder))
        command("inspect", str(folder), "--json")
        bundle = Bundle.open(folder)
        _check(all(bundle.path(piece.model).is_file() for piece in bundle.manifest.pieces.values()))

    return Case(valid, _files("manifest.json", damage.json_of(document)), read)


def plan(made: Path) -> Case:
    """The JSON beside a plan, listed with its right hash, through `inspect` and `load_plan`."""
    valid = _bundle_files(made)
    name = "plans/tensorrt-sm_87/encoder"
    document = {
        "piece": "encoder", "backend": "tensorrt", "version": "10.3.0", "arch": "sm_87",
        "compute_capability": "8.7", "precision": "fp32", "workspace": 1 << 30, "tf32": False,
        "gpu": {"name": "Orin", "capability": "8.7", "driver": 12060, "runtime": 12060},
        "shapes": {"image": [[1, 3, 56, 56], [1, 3, 56, 56], [4, 3, 56, 56]]},
        "layers": {"FLOAT": 12}, "matrix_layers": {"FLOAT": 4}, "route": "none", "operators": [],
        "engine": {"layers": 9, "types": {"FLOAT": 7}, "untyped": 0, "plugins": [],
                   "tensors": ["image"]},
        "sources": {}, "plan_sha256": "", "built_by": "tests", "seconds": 1.5, "host_memory": 9,
        "plugins": {}, "miscompiles": [], "workarounds": [],
    }  # fmt: skip
    built = b"a plan"
    document["plan_sha256"] = hashlib.sha256(built).hexdigest()
    manifest = json.loads(valid["manifest.json"])
    manifest["plans"] = {"tensorrt-sm_87": {"encoder": f"{name}.plan"}}
    manifest["files"][f"{name}.plan"] = _entry(built)

    def files(text: bytes) -> dict[str, bytes]:
        manifest["files"][f"{name}.json"] = _entry(text)
        return {f"{name}.json": text, "manifest.json": json.dumps(manifest).encode()}

    def read(folder: Path) -> None:
        from uino_deploy.bundle import Bundle
        from uino_deploy.bundle.plans import load_plan

        command("inspect", str(folder))
        _, info = load_plan(Bundle.open(folder), "encoder", "tensorrt", "sm_87", "10.3.0")
        _check(info.plan_sha256 == hashlib.sha256(built).hexdigest())

    valid |= files(json.dumps(document).encode()) | {f"{name}.plan": built}
    return Case(valid, _then(damage.json_of(document), files), read)


def kernels(made: Path) -> Case:
    """A folder of kernels, through `read` of `kernels strip` and through the plugins' library."""
    from tests.kernels.plugins.folders import write_folder

    folder = write_folder(made / "kernels", dtypes=("float16",))
    valid = _read_all(folder)
    index = json.loads(valid["kernels.json"])
    name = f"{index['kernels'][0]}.json"

    def read(folder: Path) -> None:
        from uino_deploy.errors import UinoDeployError
        from uino_deploy.kernels.compiler.build import read
        from uino_deploy.kernels.plugins.library import Library

        with contextlib.suppress(UinoDeployError):
            read(folder)
        for kernel in Library.open(folder, "sm_87").kernels:
            _check(isinstance(kernel.ptx(), str) and isinstance(kernel.cubin(), bytes))

    damaged = _one_of(
        _files("kernels.json", damage.json_of(index)),
        _files(name, damage.json_of(json.loads(valid[name]))),
        _files(name.replace(".json", ".ptx"), damage.bytes_of(b"// ptx")),
    )
    return Case(valid, damaged, read)


def support(made: Path) -> Case:
    """A support file, through `inspect` and `Support.load`; also with a digest that is right."""
    from tests.bundle.test_support import make_support

    make_support().save(made / "s.safetensors")
    valid = (made / "s.safetensors").read_bytes()

    def read(folder: Path) -> None:
        from uino_deploy.bundle.support import Support

        path = folder / "s.safetensors"
        loaded = Support.load(path)
        for array in loaded.tensors.values():
            _check(array.dtype in (np.float32, np.float16) and bool(np.isfinite(array).all()))
        _check(loaded.shots >= 1 and len(loaded.prototypes) == 2)
        command("inspect", str(path))

    damaged = damage.safetensors_of(valid)
    return Case(
        {"s.safetensors": valid},
        _files("s.safetensors", damage.one_of(damaged, _then(damaged, _digested))),
        read,
    )


def reference(made: Path) -> Case:
    """A bundle's reference values, listed with their right hash."""
    from safetensors.numpy import save

    valid = _bundle_files(made)
    manifest = json.loads(valid["manifest.json"])
    tensors = {
        "support_image": np.ones((1, 3, 8, 8), np.float32),
        "image": np.ones((1, 3, 8, 8), np.float32),
        "mask": np.ones((1, 4), np.float32),
    }

    def files(data: bytes) -> dict[str, bytes]:
        manifest["files"]["reference.safetensors"] = _entry(data)
        name = "manifest.json"
        return {"reference.safetensors": data, name: json.dumps(manifest).encode()}

    def read(folder: Path) -> None:
        from uino_deploy.bundle import Bundle
        from uino_deploy.bundle.reference import inputs_of, load_example

        bundle = Bundle.open(folder)
        example = load_example(bundle)
        inputs_of(bundle.piece("encoder"), example)

    valid |= files(save(tensors))
    return Case(valid, _then(damage.safetensors_of(save(tensors)), files), read)


def checkpoint(made: Path) -> Case:
    """A checkpoint of our own, through `inspect` and `load_checkpoint`."""
    valid = _checkpoint(made / "c.safetensors")
    header = damage.header_of(valid)
    told = header["__metadata__"]

    def with_config(config: bytes) -> bytes:
        text = config.decode("utf-8", "replace")
        changed = header | {"__metadata__": told | {"config": text}}
        return damage.with_header(valid, json.dumps(changed).encode())

    def read(folder: Path) -> None:
        from uino_deploy.model.checkpoint import load_checkpoint

        path = folder / "c.safetensors"
        command("inspect", str(path))
        _check_finite(load_checkpoint(path))

    damaged = damage.one_of(
        damage.safetensors_of(valid),
        _then(damage.json_of(json.loads(told["config"])), with_config),
    )
    return Case({"c.safetensors": valid}, _files("c.safetensors", damaged), read, seconds=4)


def pth(made: Path) -> Case:
    """A PyTorch file, in both of its formats, through `inspect` and `load_dinov2`."""
    import torch

    from tests.model.test_checkpoint import SMALL, small_weights

    new, old = made / "new.pth", made / "old.pth"
    torch.save({"teacher": small_weights()}, new)
    torch.save(small_weights(), old, _use_new_zipfile_serialization=False)

    def read(folder: Path) -> None:
        from uino_deploy.model.checkpoint import load_dinov2

        path = folder / "e.pth"
        # A command describes the file first, whether or not it can be loaded.
        _either(lambda: command("inspect", str(path)))
        _check_finite(load_dinov2(path, SMALL))

    damaged = damage.one_of(
        damage.zip_of(new.read_bytes(), "data.pkl"), damage.bytes_of(old.read_bytes())
    )
    return Case({"e.pth": new.read_bytes()}, _files("e.pth", damaged), read, seconds=4)


def shards(made: Path) -> Case:
    """A checkpoint in parts, through the index that names them."""
    from safetensors.torch import save

    from tests.model.test_checkpoint import SMALL, small_weights

    weights = small_weights()
    names = sorted(weights)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    parts = {file: save({n: weights[n] for n in held}) for file, held in halves.items()}
    index = {"metadata": {}, "weight_map": {n: f for f, held in halves.items() for n in held}}
    name = "model.safetensors.index.json"

    def read(folder: Path) -> None:
        from uino_deploy.model.checkpoint import load_dinov2

        _check_finite(load_dinov2(folder / name, SMALL))

    damaged = _one_of(
        _files(name, damage.json_of(index)),
        _files("a.safetensors", damage.safetensors_of(parts["a.safetensors"])),
    )
    return Case({name: json.dumps(index).encode(), **parts}, damaged, read, seconds=4)


def onnx(made: Path) -> Case:
    """An ONNX graph's weight files, compared with what onnx itself finds; and `inspect`."""
    valid = _graph()

    def read(folder: Path) -> None:
        from uino_deploy.bundle.external_weights import external_weights

        path = folder / "g.onnx"
        _either(lambda: command("inspect", str(path)))
        names = external_weights(path)
        missed = _locations(path.read_bytes()) - names
        if missed:
            raise Broken(f"onnx reads {missed}, which the walker did not find")

    return Case({"g.onnx": valid}, _files("g.onnx", damage.protobuf_of(valid)), read)


def image(made: Path) -> Case:
    """An image of every format, through `load_image`."""

    def read(folder: Path) -> None:
        from uino_deploy.images import load_image

        (path,) = folder.glob("picture")
        pixels = load_image(path)
        _check(pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3)
        _check(0 < pixels.size <= 3 * PIXELS)

    return _pictures(made, read, _photographs())


def mask(made: Path) -> Case:
    """A mask of every format, through `load_marked`, with a label and without."""

    def read(folder: Path) -> None:
        from uino_deploy.images.reading import load_marked

        path = folder / "picture"
        for label in (1, None):
            marked = _either(lambda label=label: load_marked(path, path, label))
            if marked is not None:
                _check(marked.dtype == np.uint8 and marked.ndim == 2)
                _check(not set(np.unique(marked).tolist()) - {0, 1, 255})
        load_marked(path)

    return _pictures(made, read, _masks())


def coco(made: Path) -> Case:
    """COCO annotations of one image, as `enroll` reads them."""
    from tests.data.miniatures import polygon, runs_of

    box = np.zeros((10, 12), np.uint8)
    box[3:7, 2:9] = 1
    document = {
        "info": {},
        "images": [
            {"id": 1, "file_name": "sub/p.png", "height": 10, "width": 12},
            {"id": 2, "file_name": "other.png", "height": 10, "width": 12},
        ],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "hat"}],
        "annotations": [
            _annotation(1, 1, [polygon(1, 2, 5, 4), polygon(6.5, 3, 2, 2)]),
            _annotation(2, 1, {"size": [10, 12], "counts": runs_of(box)}),
            _annotation(3, 1, {"size": [10, 12], "counts": "P14c10b1"}),
            _annotation(4, 1, [polygon(1, 2, 5, 4)], iscrowd=1),
            _annotation(5, 2, [polygon(1, 2, 5, 4)]),
        ],
    }
    document["annotations"][2]["segmentation"] = _packed(box)
    picture = io.BytesIO()
    Image.fromarray(box * 255).save(picture, "PNG")

    def read(folder: Path) -> None:
        from uino_deploy.images.annotation import polygons_from_coco

        found = polygons_from_coco(folder / "coco.json", folder / "p.png", "cup")
        _check(found.dtype == np.uint8 and found.shape == (10, 12) and found.max() <= 1)

    valid = {"coco.json": json.dumps(document).encode(), "p.png": picture.getvalue()}
    return Case(valid, _files("coco.json", damage.json_of(document)), read)


def coco_folder(made: Path) -> Case:
    """A folder in COCO's layout, as `evaluate` reads it: classes, images and masks."""
    from tests.data.miniatures import make_coco

    make_coco(made / "coco", classes=4, per_class=2)
    valid = {n: d for n, d in _read_all(made / "coco").items() if "val2014" in n}
    name = "annotations/instances_val2014.json"

    def read(folder: Path) -> None:
        from uino_deploy.data.coco import Coco

        dataset = Coco(folder, 1)
        for label in range(len(dataset.classes)):
            for key in dataset.images(label)[:2]:
                shape = dataset.image(key).shape[:2]
                found = dataset.mask(key, label)
                _check(found.shape == shape and found.dtype == np.uint8 and found.max() <= 1)

    return Case(valid, _files(name, damage.json_of(json.loads(valid[name]))), read)


def voc(made: Path) -> Case:
    """A folder in VOC's layout with SBD's: lists, palettes and MATLAB files."""
    from scipy.io import savemat

    from tests.data.miniatures import labelled, write_jpeg, write_palette

    root = made / "voc"
    for number in (1, 2, 6):
        write_jpeg(root / "VOC2012/JPEGImages" / f"i{number}.jpg", number)
        if number < 6:
            write_palette(root / f"VOC2012/SegmentationClass/i{number}.png", labelled(number, 3))
    (root / "SBD/dataset/cls").mkdir(parents=True)
    labels = {"GTcls": {"Segmentation": labelled(6, 7)}}
    savemat(root / "SBD/dataset/cls/i6.mat", labels)
    sets = root / "VOC2012/ImageSets/Segmentation"
    sets.mkdir(parents=True)
    for lists, train in ((sets, "i2\n"), (root / "SBD/dataset", "i6\n")):
        (lists / "val.txt").write_text("i1\n")
        (lists / "train.txt").write_text(train)
    valid = _read_all(root)

    def read(folder: Path) -> None:
        from uino_deploy.data.pascal import Pascal

        for split in ("test", "train"):
            dataset = Pascal(folder, 0, split)
            for label in dataset.shown_labels():
                for key in dataset.images(label)[:2]:
                    _check(dataset.image(key).ndim == 3)
                    values = set(np.unique(dataset.mask(key, label)).tolist())
                    _check(not values - {0, 1, 255})

    label, matlab = "VOC2012/SegmentationClass/i1.png", "SBD/dataset/cls/i6.mat"
    damaged = _one_of(
        *(_files(n, damage.text_of(valid[n].decode())) for n in valid if n.endswith(".txt")),
        _files(label, damage.png_of(valid[label])),
        _files(matlab, damage.bytes_of(valid[matlab])),
        _files(matlab, damage.bytes_of(valid[matlab])),
    )
    return Case(valid, damaged, read)


def folder(made: Path) -> Case:
    """A user's folder of images and masks, as `evaluate --dataset folder` reads it."""
    from tests.data.miniatures import make_folder

    make_folder(made / "folder", count=3)
    valid = _read_all(made / "folder")
    image, mask = sorted(valid)[0], sorted(valid)[-1]

    def read(folder: Path) -> None:
        from uino_deploy.data.folder import Folder

        dataset = Folder(folder)
        listed = dataset.episode(0, 0, 1)
        for key in (listed.query, *listed.support):
            _check(dataset.image(key).ndim == 3)
            _check(not set(np.unique(dataset.mask(key, 0)).tolist()) - {0, 1, 255})

    damaged = _one_of(
        _files(mask, damage.png_of(valid[mask])), _files(image, damage.bytes_of(valid[image]))
    )
    return Case(valid, damaged, read)


def episodes(made: Path) -> Case:
    """A list of episodes."""
    from uino_deploy.data.episode_list import draw_list, read_list, write_list
    from uino_deploy.data.procedural import Procedural

    dataset = Procedural("demo", "held-out")
    write_list(made / "e.jsonl", dataset, None, 2, 0, draw_list(dataset, 4, 2, 0))
    valid = (made / "e.jsonl").read_bytes()
    lines = [json.loads(line) for line in valid.splitlines()]

    def read(folder: Path) -> None:
        header, listed = read_list(folder / "e.jsonl", dataset)
        _check(bool(listed) and all(len(each.support) == header.shots for each in listed))
        _check(all(0 <= each.label < len(dataset.classes) for each in listed))

    first, second, *rest = valid.splitlines()
    damaged = damage.one_of(
        _then(damage.json_of(lines[0]), lambda line: b"\n".join([line, second, *rest])),
        _then(damage.json_of(lines[1]), lambda line: b"\n".join([first, line, *rest])),
        damage.text_of(valid.decode()),
    )
    return Case({"e.jsonl": valid}, _files("e.jsonl", damaged), read)


def results(made: Path) -> Case:
    """An evaluation's results, read for a comparison that is reported."""
    from tests.evaluation.test_results import RUN
    from uino_deploy.evaluation.results import write_results

    write_results(made / "r.json", {}, {None: RUN})
    valid = (made / "r.json").read_bytes()

    def read(folder: Path) -> None:
        from uino_deploy.evaluation.report import make_report
        from uino_deploy.evaluation.results import read_runs

        runs = read_runs(folder / "r.json")
        for fold, run in runs.items():
            for others in ({}, {fold: RUN}):
                report = make_report("demo", 1, 0, {fold: run}, others)
                _check(0 <= report.document["miou"] <= 100)
                _check(0 <= report.document["fb_iou"] <= 100)
                _check(bool(report.sentences and report.class_table and report.paper_table))

    return Case({"r.json": valid}, _files("r.json", damage.json_of(json.loads(valid))), read)


def record(made: Path) -> Case:
    """A benchmark's record, through `compare`, as the first and as the second."""
    from tests.benchmarks.conftest import make_record
    from uino_deploy.benchmarks.record import save_record

    save_record(made / "a.json", make_record())
    valid = (made / "a.json").read_bytes()

    def read(folder: Path) -> None:
        for pair in (("a.json", "b.json"), ("b.json", "a.json")):
            command("compare", *(str(folder / each) for each in pair), "--all")
        command("compare", str(folder / "b.json"), str(folder / "b.json"), "--json")

    document = json.loads(valid)
    return Case(
        {"a.json": valid, "b.json": valid}, _files("b.json", damage.json_of(document)), read
    )


def ledger(made: Path) -> Case:
    """A saved ledger, through `kernels report --load`."""
    import uino_deploy.benchmarks.ledger as package

    text = (Path(package.__file__).parent / "ledger.json").read_text("utf-8")
    document = {"kernels": json.loads(text)["kernels"][:2]}

    def read(folder: Path) -> None:
        path = str(folder / "l.json")
        command("kernels", "report", "--load", path)
        command("kernels", "report", "--load", path, "--preset", "vits14", "--json")

    valid = {"l.json": json.dumps(document).encode()}
    return Case(valid, _files("l.json", damage.json_of(document)), read)


def table(made: Path) -> Case:
    """The table of latencies, as its reader reads it and as a page shows it."""
    from tests.benchmarks.conftest import make_record
    from uino_deploy.benchmarks.latency_csv import append_rows, read_rows, table_of

    append_rows(made, make_record())
    valid = (made / "latency.csv").read_text("utf-8")

    def read(folder: Path) -> None:
        _check(isinstance(table_of(read_rows(folder / "t.csv")), str))

    return Case({"t.csv": valid.encode()}, _files("t.csv", damage.text_of(valid)), read)


def state(made: Path) -> Case:
    """A training's folder: its state, its settings and its log."""
    import torch

    from uino_deploy.training.processes import ALONE
    from uino_deploy.training.run_folder import (
        LOG,
        SETTINGS,
        STATE,
        Best,
        State,
        cut_log,
        last_losses,
        load_state,
        prepared_folder,
        save_state,
    )

    settings = {"recipe": {"steps": 20, "rate": 1e-3}, "seed": 1, "data": None}
    best = Best(10, 50.0, {"w": torch.zeros(2)})
    save_state(made, State(0, 20, {"w": torch.ones(2)}, {"m": torch.zeros(3)}, best))
    log = "stage,step,loss,learning_rate,validation_miou\n0,0,,,40\n0,1,0.5,0.001,\n"
    saved = (made / STATE).read_bytes()
    valid = {STATE: saved, SETTINGS: json.dumps(settings).encode(), LOG: log.encode()}

    def read(folder: Path) -> None:
        with prepared_folder(folder, settings, resume=True, force=False, processes=ALONE):
            found = load_state(folder)
            _check(found.stage >= 0 and found.step >= 0)
            _check(found.best is None or (found.best.step >= 0 and 0 <= found.best.miou <= 100))
            cut_log(folder, found.stage, found.step)
            _check(len(last_losses(folder, 1)) == 1)

    damaged = _one_of(
        _files(STATE, damage.safetensors_of(saved)),
        _files(SETTINGS, damage.json_of(settings)),
        _files(LOG, damage.text_of(log)),
    )
    # The settings and the log are written again by every read.
    return Case(valid, _then(damaged, lambda files: valid | files), read)


def ptx(made: Path) -> Case:
    """The text of a kernel."""
    from tests.ptx.conftest import program_text

    body = """
    {
    .reg .b32 %t;
    add.s32 %t, %r0, 0x10;
    }
    @%p1 bra $L1;
    ld.shared.v2.b32 {%r1, %r2}, [buffer+16];
    setp.lt.s32 %p1|%p2, %r1, -3;
    mov.f32 %r3, 0f3F800000;
    .loc 1 2 3
    $L1: st.global.b32 [%rd0+4], %r3;
    """
    text = program_text(body, 2, shared=".shared .align 16 .b8 buffer[1024];")

    def read(folder: Path) -> None:
        from uino_deploy.ptx.parser import parse

        program = parse((folder / "k.ptx").read_bytes().decode("utf-8", "replace"))
        _check(bool(program.name) and program.static_shared >= 0)
        _check(all(0 <= at <= len(program.instructions) for at in program.labels.values()))

    words = (
        ".reg",
        ".param",
        ".shared",
        ".b64",
        ".align",
        "%r<80>",
        ".entry",
        "_",
        "|",
        "@",
        "$L1",
    )
    return Case({"k.ptx": text.encode()}, _files("k.ptx", damage.text_of(text, words)), read)


PARSERS: dict[str, Parser] = {
    "manifest": manifest,
    "plan": plan,
    "kernels": kernels,
    "support": support,
    "reference": reference,
    "checkpoint": checkpoint,
    "pth": pth,
    "shards": shards,
    "onnx": onnx,
    "image": image,
    "mask": mask,
    "coco": coco,
    "coco-folder": coco_folder,
    "voc": voc,
    "folder": folder,
    "episodes": episodes,
    "results": results,
    "record": record,
    "ledger": ledger,
    "table": table,
    "state": state,
    "ptx": ptx,
}


def _check(holds: bool) -> None:
    if not holds:
        raise Broken("what was read does not meet its contract")


def _check_finite(module: Any) -> None:
    import torch

    _check(all(bool(torch.isfinite(each).all()) for each in module.state_dict().values()))


def _either(read: Callable[[], Any]) -> Any:
    """Return what a reader gives, or None if it refuses the input as it should."""
    from uino_deploy.errors import UinoDeployError

    try:
        return read()
    except UinoDeployError as error:
        from tests.fuzz.harness import fault

        if fault(error):
            raise
        return None


def _files(name: str, damaged: damage.Damage) -> Damaged:
    return lambda random: {name: damaged(random)}


def _one_of(*cases: Damaged) -> Damaged:
    return lambda random: random.choice(cases)(random)


def _then(
    damaged: Callable[[Random], Any], change: Callable[[Any], Any]
) -> Callable[[Random], Any]:
    return lambda random: change(damaged(random))


def _entry(data: bytes) -> dict[str, object]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def _read_all(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _bundle_files(made: Path) -> dict[str, bytes]:
    from tests.runtime.conftest import write_fake_bundle

    return _read_all(write_fake_bundle(made / "b.uino"))


def _checkpoint(path: Path) -> bytes:
    """Write the smallest model there is, and return its bytes."""
    from uino_deploy.config import AdapterConfig, DecoderConfig, EncoderConfig, UinoConfig
    from uino_deploy.model import UinoFSS, save_checkpoint

    tiny = UinoConfig.from_preset("tiny")
    prompt = replace(tiny.prompt, semantic_hidden=4, similarity_channels=2, channels=(2, 2, 2),
                     head_channels=4, state=2)  # fmt: skip
    config = UinoConfig(
        preset="tiny",
        variant="full",
        image_size=28,
        encoder=EncoderConfig(12, 2, 2, 1, (1, 2), pretrained_grid=2),
        adapter=AdapterConfig(8, 8, 2, 8, 1),
        prompt=prompt,
        decoder=DecoderConfig(8, 1, 2, 8, 1, 8),
    )
    save_checkpoint(UinoFSS(config), path, {"made": "for an attack"})
    return path.read_bytes()


def _graph() -> bytes:
    """Return an ONNX model with a weight file wherever one can be named."""
    import onnx
    from onnx import helper

    from tests.bundle.test_external_weights import constant, graph_of, tensor

    branch = graph_of([constant("y", "branch.bin")], tensor("w", "inner.bin"))
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    body = [constant("y", "function.bin")]
    function = helper.make_function("d", "f", [], ["y"], body, [helper.make_opsetid("", 18)])
    small = onnx.TensorProto(name="b", dims=[2], data_type=1, float_data=[1, 2])
    graph = graph_of([choice], tensor("a", "main.weights"), small)
    values = onnx.SparseTensorProto(values=tensor("s", "sparse.bin"), dims=[9])
    graph.sparse_initializer.append(values)
    return bytes(helper.make_model(graph, functions=[function]).SerializeToString())


def _digested(data: bytes) -> bytes:
    """Return a support file with the digest of its tensors, if it can be read at all."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    from uino_deploy.bundle.support import _digest

    try:
        digest = _digest(load(data))
        header = damage.header_of(data)
        header["__metadata__"]["digest"] = digest
    except (SafetensorError, ValueError, LookupError, TypeError, RecursionError):
        return data
    return damage.with_header(data, json.dumps(header).encode())


def _locations(data: bytes) -> set[str]:
    """Return the names of weight files as the onnx package reads the graph."""
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.external_data_helper import _get_all_tensors

    try:
        model = onnx.load_model_from_string(data)
        tensors = list(_get_all_tensors(model))
    except (DecodeError, ValueError):
        return set()
    outside = [each for each in tensors if each.data_location == onnx.TensorProto.EXTERNAL]
    return {e.value for each in outside for e in each.external_data if e.key == "location"}


def _annotation(number: int, category: int, shape: object, iscrowd: int = 0) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": category, "segmentation": shape,
            "iscrowd": iscrowd, "area": 20.0, "bbox": [1, 2, 5, 4]}  # fmt: skip


def _packed(box: np.ndarray) -> dict[str, Any]:
    from pycocotools import mask as tools

    made = tools.encode(np.asfortranarray(box))
    return {"counts": made["counts"].decode(), "size": [int(each) for each in made["size"]]}


def _photographs() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (14, 18, 3), np.uint8)
    grey = Image.fromarray(colours[:, :, 0].astype(np.uint16) * 200)
    clear = Image.fromarray(np.dstack([colours, colours[:, :, 0]]))
    exif = Image.fromarray(colours)
    exif.getexif()[0x0112] = 6
    return [Image.fromarray(colours), grey, clear, exif]


def _masks() -> list[Image.Image]:
    plane = np.zeros((14, 18), np.uint8)
    plane[3:9, 4:12] = 255
    labels = Image.fromarray((plane // 255).astype(np.uint8))
    labels.putpalette([0, 0, 0, 128, 0, 0] + [9] * 762)
    return [Image.fromarray(plane), labels, Image.fromarray(plane.astype(np.uint16) * 257),
            Image.fromarray(plane.astype(np.float32) / 255)]  # fmt: skip


def _pictures(made: Path, read: Callable[[Path], None], pictures: list[Image.Image]) -> Case:
    """Return a case of pictures in every format that can hold them."""
    damaged, valid = [], b""
    for format_ in FORMATS:
        for picture in pictures:
            file = io.BytesIO()
            try:
                picture.save(file, format_, exif=picture.getexif())
            except (OSError, KeyError, ValueError):
                continue  # this format has no such pixels, or this Pillow lacks its coder
            data = file.getvalue()
            valid = valid or data
            damaged.append(damage.bytes_of(data))
            if format_ == "PNG":
                damaged.append(damage.png_of(data))
    return Case(
        {"picture": valid},
        _files("picture", damage.one_of(*damaged)),
        read,
        megabytes=256,
        seconds=4,
    )
