"""Real engines by TensorRT-RTX, whose builder needs no GPU; and silent changes, refused."""

import json
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import msgspec
import onnx
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper

from tests.export.test_verify import rewrite
from uino_deploy.bundle import Bundle, Decision, write_manifest
from uino_deploy.bundle.plans import PlanInfo, compute_capability, equivalent_commands, load_plan
from uino_deploy.bundle.reference import load_example
from uino_deploy.config import UinoConfig
from uino_deploy.errors import (
    BuildError,
    BundleError,
    CheckFailed,
    DependencyError,
    InputError,
    OutputExists,
)
from uino_deploy.export import engines, export_bundle
from uino_deploy.export.engine_check import Answer, find_wrong
from uino_deploy.export.engine_job import Job, Outcome
from uino_deploy.export.engines import build_engines, parse_shapes, profile_of, run_job
from uino_deploy.export.graph_reader import read_graph
from uino_deploy.export.precision import parse_precision
from uino_deploy.model.segmenter import UinoFSS
from uino_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend

RTX = "tensorrt-rtx"


@pytest.fixture(scope="module")
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


def test_shapes_are_parsed():
    assert parse_shapes(["batch:1:2:4", "shots:1:1:5"]) == {"batch": (1, 2, 4), "shots": (1, 1, 5)}


@pytest.mark.parametrize("value", ["batch:1:2", "depth:1:1:1", "batch:2:1:4", "batch:0:1:1", "x"])
def test_wrong_shapes_are_named(value):
    with pytest.raises(InputError, match=value):
        parse_shapes([value])


def test_a_profile_covers_every_dynamic_input(bundle):
    profile = profile_of(bundle.piece("prompt"), {"shots": (1, 2, 5)})
    assert set(profile) == {"query_deep", "support_deep", "weight"}
    assert [shape[1] for shape in profile["weight"]] == [1, 2, 5]
    assert [shape[0] for shape in profile["query_deep"]] == [1, 1, 1]


def test_shapes_that_nothing_has_are_not_ignored(bundle):
    with pytest.raises(InputError, match="--shapes shots: no input of encoder, decoder has it"):
        build_engines(
            bundle, RTX, "sm_89", pieces=["encoder", "decoder"], shapes={"shots": (1, 1, 5)}
        )


def test_shapes_beyond_the_bundles_limits_are_refused(bundle):
    limited = Bundle(
        bundle.root, msgspec.structs.replace(bundle.manifest, limits={"shots": 5}), bundle.config
    )
    with pytest.raises(InputError, match="the bundle allows 5, not 6"):
        build_engines(limited, RTX, "sm_89", pieces=["prompt"], shapes={"shots": (1, 1, 6)})


@pytest.mark.parametrize("arch", ["sm_", "89", "sm_8.9", "compute_89"])
def test_what_is_no_architecture_is_refused(bundle, arch):
    with pytest.raises(InputError, match=f"--arch {arch} is not an architecture"):
        build_engines(bundle, RTX, arch)


@pytest.mark.parametrize(("arch", "text"), [("sm_89", "8.9"), ("sm_87", "8.7"), ("sm_120", "12.0")])
def test_compute_capability(arch, text):
    assert compute_capability(arch) == text


ALL = ("encoder", "adapter", "support", "prompt", "decoder", "query")
WHOLE = ("support", "query")  # the query holds the graphs of the four others
BUILDS = [
    pytest.param("sm_89", "fp32", ALL, id="sm_89 fp32"),
    pytest.param("sm_89", "fp16", ALL, id="sm_89 fp16"),
    pytest.param("sm_80", "fp16", WHOLE, id="sm_80 fp16 whole"),
    pytest.param("sm_86", "fp32", WHOLE, id="sm_86 fp32 whole"),
    pytest.param("sm_120", "fp16", WHOLE, id="sm_120 fp16 whole"),
]
BUILDS += [
    pytest.param(arch, precision, ALL, id=f"{arch} {precision}", marks=pytest.mark.slow)
    for arch in ("sm_80", "sm_86", "sm_120")
    for precision in ("fp32", "fp16")
]


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(("arch", "precision", "pieces"), BUILDS)
def test_every_piece_builds(exported, tmp_path, arch, precision, pieces):
    made = Bundle.open(shutil.copytree(exported(precision).root, tmp_path / "made.uino"))
    wanted = {"fp32": "FLOAT", "fp16": "HALF"}[precision]
    infos = build_engines(made, RTX, arch, pieces=pieces, shapes={"batch": (1, 1, 2)})
    assert tuple(info.piece for info in infos) == pieces
    assert tuple(made.manifest.pieces) == ALL
    for info in infos:
        # Float32 by definition: in the prompt the mixers' convolutions too, 10 of 37 in all.
        assert info.matrix_layers[wanted] >= 0.7 * sum(info.matrix_layers.values())
        assert info.route == ("function" if info.piece in ("prompt", "query") else "none")
        assert info.engine is None or info.engine.types
    opened = Bundle.open(made.root)
    path, info = load_plan(opened, "query", RTX, arch, infos[0].version)
    assert path.stat().st_size > 100_000
    assert info == infos[-1]
    assert not list(made.root.glob(".plans*"))


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_vitb14_at_518_px_builds(tmp_path, precision):
    """About 3 GB of memory, most of it the query's weights."""
    model = UinoFSS(UinoConfig.from_preset("vitb14")).eval()
    made = export_bundle(model, tmp_path / "b.uino", precision=parse_precision([precision]))
    del model
    infos = build_engines(made, RTX, "sm_86")
    assert [info.piece for info in infos] == list(made.manifest.pieces)
    assert max(info.host_memory or 0 for info in infos) < 6 << 30


@pytest.mark.usefixtures("rtx")
def test_float32_pieces_have_no_half_layers(damaged):
    infos = build_engines(Bundle.open(damaged), RTX, "sm_86", pieces=["adapter", "decoder"])
    assert [set(info.layers) for info in infos] == [{"FLOAT"}, {"FLOAT"}]


def test_a_query_is_of_its_pieces_precisions(bundle):
    pieces = dict(bundle.manifest.pieces)
    pieces["encoder"] = msgspec.structs.replace(pieces["encoder"], precision="fp16")
    pieces["support"] = msgspec.structs.replace(pieces["support"], precision="bf16")
    manifest = msgspec.structs.replace(bundle.manifest, pieces=pieces)
    mixed = Bundle(bundle.root, manifest, bundle.config)
    assert mixed.precisions(pieces["query"]) == {"fp16", "fp32"}
    assert mixed.precisions(pieces["encoder"]) == {"fp16"}


@pytest.mark.usefixtures("rtx")
def test_the_side_json_says_what_was_built(damaged):
    (info,) = build_engines(
        Bundle.open(damaged),
        RTX,
        "sm_89",
        pieces=["support"],
        shapes={"shots": (1, 2, 5)},
        workspace=512 << 20,
        force=True,
    )
    path = damaged / "plans/tensorrt-rtx-sm_89/support.json"
    assert msgspec.json.decode(path.read_bytes(), type=PlanInfo) == info
    assert (info.compute_capability, info.workspace, info.gpu) == ("8.9", 512 << 20, None)
    assert info.shapes["mask"] == ([1, 64], [2, 64], [5, 64])
    files = Bundle.open(damaged).manifest.files
    assert info.sources == {
        name: files[name].sha256 for name in ("support.onnx", "support.weights")
    }
    assert info.plan_sha256 == files["plans/tensorrt-rtx-sm_89/support.plan"].sha256
    assert info.version.startswith("1.")
    assert info.host_memory is None or info.host_memory > 10 << 20
    assert info.built_by.startswith("uino-deploy ")


@pytest.mark.usefixtures("rtx")
def test_too_little_workspace_is_said_and_what_to_do(bundle):
    with pytest.raises(BuildError, match=r"decoder\.onnx.*workspace.*--workspace"):
        build_engines(bundle, RTX, "sm_89", pieces=["decoder"], workspace=256, force=True)


def test_rtx_takes_no_timing_cache(bundle, tmp_path):
    with pytest.raises(InputError, match="--timing-cache"):
        build_engines(bundle, RTX, "sm_89", timing_cache=tmp_path / "timings")


@pytest.mark.usefixtures("rtx")
def test_plans_are_kept_without_force(damaged):
    build_engines(Bundle.open(damaged), RTX, "sm_89", pieces=["support"], force=True)
    with pytest.raises(OutputExists, match="support"):
        build_engines(Bundle.open(damaged), RTX, "sm_89", pieces=["support"])


@pytest.mark.usefixtures("rtx")
def test_building_needs_neither_torch_nor_onnx(bundle, tmp_path):
    """A Jetson has numpy and TensorRT."""
    copy = shutil.copytree(bundle.root, tmp_path / "copy.uino")
    script = f"""
        import sys
        for name in ("torch", "onnx", "onnxscript", "triton", "onnxruntime"):
            sys.modules[name] = None
        from uino_deploy.cli import main
        main(["build", {str(copy)!r}, "--backend", "tensorrt-rtx", "--arch", "sm_89",
              "--piece", "support", "--force"])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("PASSED\n")


def remove_a_cast(model):
    cast = next(n for n in model.graph.node if n.op_type == "Cast")
    for node in model.graph.node:
        node.input[:] = [cast.input[0] if i == cast.output[0] else i for i in node.input]
    model.graph.node.remove(cast)


@pytest.mark.usefixtures("rtx")
def test_a_removed_cast_is_refused(half, tmp_path):
    """Strong typing: a float32 operand met by a float16 one is an error, not a silent cast."""
    copy = shutil.copytree(half.root, tmp_path / "copy.uino")
    changed = rewrite(copy / "encoder.onnx", remove_a_cast)
    with pytest.raises(BuildError, match=r"encoder\.onnx"):
        build_engines(changed, RTX, "sm_86", pieces=["encoder"], force=True)
    assert not list(copy.glob(".plans*"))
    assert Bundle.open(copy).manifest == changed.manifest


def widen_a_constant(model):
    """Write a constant as float64: the parser rounds it to float32 and says nothing."""
    tensor = next(
        t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and t.raw_data
    )
    values = onnx.numpy_helper.to_array(tensor).astype("float64")
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


@pytest.mark.usefixtures("rtx")
def test_a_float64_constant_is_refused(damaged):
    changed = rewrite(damaged / "decoder.onnx", widen_a_constant)
    with pytest.raises(BuildError, match=r"decoder\.onnx: the constant .+ is float64"):
        build_engines(changed, RTX, "sm_86", pieces=["decoder"], force=True)


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    ("piece", "operator", "name", "value", "message"),
    [
        ("prompt", "Correlation4d", "pool", 3, "'pool': the node has 3, .* needs 2"),
        ("prompt", "SelectiveScan2d", "aot", 0, "'aot': the node has 0, .* needs 1"),
        ("prompt", "SelectiveScan2d", "pool", 2, "has 2, .* needs no such attribute"),
        ("prompt", "ScanPrologue", "plane", 1, "'plane': the node has 1, .* needs 0"),
        ("prompt", "ScanPrologue", "channels", 8, "'channels': the node has 8, .* needs 16"),
        ("decoder", "LayerNormalization", "axis", 7, "LayerNormalization"),
    ],
)
def test_a_wrong_attribute_is_refused(damaged, piece, operator, name, value, message):
    """The first three would build: a portable function ignores its node's attributes."""

    def change(model):
        node = next(n for n in model.graph.node if n.op_type == operator)
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    changed = rewrite(damaged / f"{piece}.onnx", change)
    with pytest.raises(BuildError, match=message):
        build_engines(changed, RTX, "sm_86", pieces=[piece], force=True)


def test_a_missing_attribute_is_refused(damaged):
    def change(model):
        node = next(n for n in model.graph.node if n.op_type == "Correlation4d")
        kept = [a for a in node.attribute if a.name != "plugin_namespace"]
        del node.attribute[:]
        node.attribute.extend(kept)

    changed = rewrite(damaged / "prompt.onnx", change)
    with pytest.raises(BuildError, match="'plugin_namespace': the node lacks it"):
        engines.check_graph(changed, changed.piece("prompt"))


@pytest.mark.usefixtures("rtx")
def test_a_misspelt_operator_is_refused(damaged):
    """With a portable function of that name it would build, and no plugin would replace it."""

    def misspell(model):
        model.functions[0].name = model.functions[0].name.replace("rr", "r")
        for node in model.graph.node:
            if node.op_type == "Correlation4d":
                node.op_type = "Corelation4d"

    changed = rewrite(damaged / "prompt.onnx", misspell)
    with pytest.raises(BuildError, match=r"uino\.Corelation4d, which is not an operator"):
        build_engines(changed, RTX, "sm_86", pieces=["prompt"], force=True)


@pytest.mark.usefixtures("rtx")
def test_an_operator_without_body_or_plugin_is_refused(damaged):
    def strip(model):
        del model.functions[:]

    changed = rewrite(damaged / "prompt.onnx", strip)
    with pytest.raises(BuildError, match="Correlation4d"):
        build_engines(changed, RTX, "sm_86", pieces=["prompt"], force=True)


@pytest.mark.parametrize("harm", ["changed", "cut", "removed"])
def test_a_damaged_plan_is_refused_and_can_be_built_again(damaged, monkeypatch, harm):
    from uino_deploy.cli import main

    fake_run(monkeypatch, outcome())
    build_engines(Bundle.open(damaged), "tensorrt", "sm_87", pieces=["encoder"])
    plan = damaged / "plans/tensorrt-sm_87/encoder.plan"
    whole = plan.read_bytes()
    if harm == "removed":
        plan.unlink()
    else:
        plan.write_bytes(whole[:-1] + b"x" * (harm == "changed"))
    with pytest.raises(BundleError, match=r"encoder\.plan .*; uino-deploy build") as refused:
        Bundle.open(damaged)
    command = str(refused.value).partition("; uino-deploy ")[2].split()
    with pytest.raises(SystemExit) as left:
        main([*command, "--piece", "encoder"])
    assert not left.value.code
    assert Bundle.open(damaged).path("plans/tensorrt-sm_87/encoder.plan").read_bytes() == whole


@pytest.mark.parametrize(
    ("last_words", "end"),
    [
        ("kill -ABRT $$", "died of SIGABRT: terminate called"),
        ("exit 3", "died with status 3: terminate"),
    ],
)
def test_an_aborting_process_is_reported(monkeypatch, tmp_path, last_words, end):
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho 'terminate called' >&2\n{last_words}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    job = Job(backend=RTX, onnx="a/encoder.onnx", plan="x", arch="sm_86", shapes={})
    with pytest.raises(BuildError, match=rf"encoder\.onnx: the builder's process {end}"):
        run_job(job)


@pytest.mark.parametrize(
    ("kind", "error"),
    [("build", BuildError), ("dependency", DependencyError), ("input", InputError)],
)
def test_a_jobs_error_keeps_its_kind(monkeypatch, tmp_path, kind, error):
    line = msgspec.json.encode(
        {"answer": Outcome(version="10.3.0", error="it broke", hint="mend it", kind=kind)}
    )
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\nread -r _\necho '{line.decode()}'\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    job = Job(backend="tensorrt", onnx="encoder.onnx", plan="x", arch="sm_87", shapes={})
    with pytest.raises(error, match="it broke; mend it"):
        run_job(job)


# TensorRT 10's layout and words; test_inspector.py says from where they are.
INSPECTED = """{"Layers": [{"Name": "gemm", "LayerType": "gemm",
    "Outputs": [{"Name": "y", "Format/Datatype": "%s"}]}%s], "Bindings": []}"""


def outcome(**changes):
    """The report of a float32 piece's build by TensorRT 10.9; the engine shows no plugin."""
    known = {"layers": {"FLOAT": 9}, "matrix_layers": {"FLOAT": 9}}
    return Outcome(
        **{"version": "10.9.0", "inspector": INSPECTED % ("Float", ""), **known, **changes}
    )


def fake_run(monkeypatch, result):
    """Stand in for a builder that cannot run here; return the jobs it was given."""
    jobs = []
    monkeypatch.setattr(engines, "_require", lambda _backend: None)

    def run(job, _progress):
        jobs.append(job)
        Path(job.plan).write_bytes(b"plan")
        return result

    monkeypatch.setattr(engines, "run_job", run)
    monkeypatch.setattr(engines, "run_check", lambda _request: Answer())
    return jobs


def test_another_precision_is_not_accepted_silently(half, monkeypatch):
    fake_run(monkeypatch, outcome())
    with pytest.raises(CheckFailed, match=r"encoder\.onnx is fp16"):
        build_engines(half, "tensorrt", "sm_87", pieces=["encoder"])
    halves = {"layers": {"HALF": 9}, "matrix_layers": {"HALF": 9}}
    fake_run(monkeypatch, outcome(**halves))
    with pytest.raises(CheckFailed, match="the builder changed the precision"):
        build_engines(half, "tensorrt", "sm_87", pieces=["encoder"])


def test_float32_islands_pass_only_where_types_were_chosen(half, tmp_path, monkeypatch):
    """The counts are made up: no network of chosen types has been parsed by TensorRT here."""
    found = {"layers": {"HALF": 4, "FLOAT": 5}, "matrix_layers": {"HALF": 4, "FLOAT": 5}}
    inspected = INSPECTED % ("Half", "")
    root = shutil.copytree(half.root, tmp_path / "chosen.uino")

    def build(kept, **seen):
        fake_run(monkeypatch, outcome(inspector=inspected, **{**found, **seen}))
        decision = Decision(
            min_mask_iou=0.99,
            samples=["A"],
            half_flops=0.5,
            float32=dict.fromkeys(kept, "layer: overflows"),
            logits_error=1e-3,
            example_error=1e-3,
            mask_iou=1.0,
        )
        write_manifest(root, replace(half.manifest, decision=decision, files={}))
        build_engines(Bundle.open(root), "tensorrt", "sm_87", pieces=["encoder"], force=True)

    build(["encoder/node_MatMul_50"])
    refused = r"encoder\.onnx is fp16, but .* 44% are HALF"
    for kept in ([], ["decoder/node_MatMul_1"]):  # the encoder has no islands of its own
        with pytest.raises(CheckFailed, match=refused):
            build(kept)
    for wrong in ({"FLOAT": 9}, {"BF16": 9}):
        with pytest.raises(CheckFailed, match="0% are HALF"):
            build(["encoder/node_MatMul_50"], matrix_layers=wrong)


def test_tensorrt_engines_must_be_inspected(damaged, monkeypatch):
    fake_run(monkeypatch, outcome(inspector=""))
    with pytest.raises(BuildError, match="engine inspector"):
        build_engines(Bundle.open(damaged), "tensorrt", "sm_87", pieces=["encoder"])
    assert "tensorrt-sm_87" not in Bundle.open(damaged).manifest.plans


def nodes_of(bundle, piece):
    """Return the names of a piece's nodes of our domain: those of the plugin layers."""
    return [call.name for call in read_graph(bundle.path(bundle.piece(piece).model)).calls]


def with_kernels(bundle):
    """Put kernels into a bundle: one file stands for them all."""
    (bundle / "kernels/sm_87").mkdir(parents=True)
    (bundle / "kernels/sm_87/kernels.json").write_text("{}")
    Bundle.open(bundle).add(["kernels/sm_87/kernels.json"])


def test_plugins_are_asked_for_where_there_are_operators(damaged, monkeypatch):
    with_kernels(damaged)
    opened = Bundle.open(damaged)
    mixer = ["ScanPrologue", "SelectiveScan2d", "ScanEpilogue"]
    calls = ["Correlation4d", *[*mixer, *mixer, "NormMlp"] * 2]
    # The adapter has no operators, and is not asked.
    jobs = fake_run(monkeypatch, outcome(plugins=nodes_of(opened, "prompt"), route="aot"))
    infos = build_engines(opened, "tensorrt", "sm_87", pieces=["adapter", "prompt"])
    assert [job.plugins for job in jobs] == [False, True]
    assert jobs[1].kernels.endswith("/own/kernels/sm_87"), "a checked copy"
    assert [info.route for info in infos] == ["none", "aot"]
    assert infos[1].operators == calls
    assert infos[1].plugins == Counter(calls)
    lines = equivalent_commands(Bundle.open(damaged), infos[1:])
    assert lines == [f"trtexec --loadEngine={damaged}/plans/tensorrt-sm_87/prompt.plan"]


def test_kernels_that_an_engine_needs_come_with_it(damaged, monkeypatch, tmp_path):
    """Python plugins launch their cubins when the engine runs; ahead-of-time ones carry them."""
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    (kernels / "correlation4d.cubin").write_bytes(b"code")
    taken = nodes_of(Bundle.open(damaged), "prompt")
    for route, listed in (("aot", False), ("ipluginv3", True)):
        fake_run(monkeypatch, outcome(plugins=taken, route=route))
        options = {"pieces": ["prompt"], "kernels": kernels, "force": True}
        infos = build_engines(Bundle.open(damaged), "tensorrt", "sm_87", **options)
        opened = Bundle.open(damaged)
        assert ("kernels/sm_87/correlation4d.cubin" in opened.manifest.files) == listed
    assert opened.manifest.kernels == {"sm_87": "kernels/sm_87"}
    assert equivalent_commands(opened, infos) == []


def test_plugins_without_kernels_fail_before_anything_is_built(damaged, monkeypatch):
    jobs = fake_run(monkeypatch, outcome(route="aot"))
    (damaged / "kernels/sm_87").mkdir(parents=True)
    (damaged / "kernels/sm_87/kernels.json").write_text("put there by somebody else")
    with pytest.raises(BuildError, match=r"kernels compiled for sm_87; .* or .*--plugins none"):
        build_engines(Bundle.open(damaged), "tensorrt", "sm_87")
    assert jobs == []


def test_a_jetson_is_told_where_tensorrt_comes_from(bundle, monkeypatch, tmp_path):
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3")
    monkeypatch.setattr(engines, "TEGRA_RELEASE", release)
    monkeypatch.setattr(engines, "is_importable", lambda _name: False)
    with pytest.raises(DependencyError, match="python3-libnvinfer"):
        build_engines(bundle, "tensorrt", "sm_87")


def test_an_expanded_operator_fails_the_build(damaged, monkeypatch):
    with_kernels(damaged)
    taken = nodes_of(Bundle.open(damaged), "prompt")
    fake_run(monkeypatch, outcome(route="aot", plugins=taken[1:]))
    with pytest.raises(CheckFailed, match=r"14 plugin layers for 15 calls \(0 of 1 calls of Corr"):
        build_engines(Bundle.open(damaged), "tensorrt", "sm_87", pieces=["prompt"])
    jobs = fake_run(monkeypatch, outcome())
    (info,) = build_engines(
        Bundle.open(damaged), "tensorrt", "sm_87", pieces=["prompt"], plugins="none"
    )
    assert not jobs[0].plugins
    assert info.route == "function"


def test_a_failed_check_is_a_verdict(damaged, monkeypatch, capsys):
    from uino_deploy.cli import main

    with_kernels(damaged)
    fake_run(monkeypatch, outcome(route="aot"))
    command = ["build", str(damaged), "--backend", "tensorrt", "--arch", "sm_87"]
    with pytest.raises(SystemExit) as left:
        main([*command, "--piece", "prompt"])
    assert left.value.code == 1
    assert capsys.readouterr().out.startswith("FAILED: prompt: plugins were requested")
    with pytest.raises(SystemExit):
        main([*command, "--piece", "prompt", "--json"])
    captured = capsys.readouterr()
    assert msgspec.json.decode(captured.out)["passed"] is False
    assert captured.err.splitlines()[-1].startswith("FAILED: ")


def test_a_stale_or_foreign_plan_is_refused_with_the_command(damaged, monkeypatch):
    fake_run(monkeypatch, outcome())
    build_engines(Bundle.open(damaged), "tensorrt", "sm_87", pieces=["encoder"])
    opened = Bundle.open(damaged)
    load_plan(opened, "encoder", "tensorrt", "sm_87", "10.9.0")
    for arch, version in (("sm_87", "10.13.0"), ("sm_110", "10.9.0")):
        with pytest.raises(BundleError, match=f"uino-deploy build .* --arch {arch} --force"):
            load_plan(opened, "encoder", "tensorrt", arch, version)
    with pytest.raises(
        BundleError, match=r"built by tensorrt 10\.9\.0; this machine has 10\.13\.0"
    ):
        load_plan(opened, "encoder", "tensorrt", "sm_87", "10.13.0")
    with pytest.raises(BundleError, match=r"has no plan .*sm_110/encoder: it has .*tensorrt-sm_87"):
        load_plan(opened, "encoder", "tensorrt", "sm_110", "10.9.0")


def moved(root, source, target):
    """Copy a plan and its side JSON elsewhere in the bundle, listed as if built there."""
    for suffix in (".plan", ".json"):
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / (source + suffix), root / (target + suffix))
    return Bundle.open(root).add([target + ".plan", target + ".json"])


def test_a_plan_moved_by_hand_is_refused(damaged, monkeypatch):
    fake_run(monkeypatch, outcome())
    build_engines(Bundle.open(damaged), "tensorrt", "sm_87", pieces=["encoder"])
    opened = moved(damaged, "plans/tensorrt-sm_87/encoder", "plans/tensorrt-sm_110/encoder")
    with pytest.raises(BundleError, match="is encoder for tensorrt on sm_87, needed is encoder"):
        load_plan(opened, "encoder", "tensorrt", "sm_110", "10.9.0")
    other = damaged / "plans/tensorrt-sm_87/encoder.plan"
    other.write_bytes(b"another engine")
    opened = opened.add(["plans/tensorrt-sm_87/encoder.plan"])
    with pytest.raises(BundleError, match="not the one that its JSON file describes"):
        load_plan(opened, "encoder", "tensorrt", "sm_87", "10.9.0")


@pytest.mark.parametrize("name", ["encoder.onnx", "encoder.weights"])
def test_a_plan_of_another_export_is_refused(damaged, monkeypatch, name):
    fake_run(monkeypatch, outcome())
    opened = build_and_open(damaged)
    path = damaged / name
    path.write_bytes(path.read_bytes() + b"\0" * 16)
    with pytest.raises(BundleError, match=f"was built from another {name} than the bundle's"):
        load_plan(opened.add([name]), "encoder", "tensorrt", "sm_87", "10.9.0")


def build_and_open(root):
    build_engines(Bundle.open(root), "tensorrt", "sm_87", pieces=["encoder"])
    return Bundle.open(root)


def test_a_damaged_side_json_is_refused(damaged, monkeypatch):
    fake_run(monkeypatch, outcome())
    opened = build_and_open(damaged)
    name = "plans/tensorrt-sm_87/encoder.json"
    (damaged / name).write_text("{}")
    with pytest.raises(BundleError, match=r"encoder\.json does not describe a plan"):
        load_plan(opened.add([name]), "encoder", "tensorrt", "sm_87", "10.9.0")


def test_the_equivalent_commands_name_everything(damaged, monkeypatch):
    fake_run(monkeypatch, outcome())
    infos = build_engines(
        Bundle.open(damaged), "tensorrt", "sm_87", pieces=["adapter"], workspace=1 << 30
    )
    trtexec, polygraphy = equivalent_commands(Bundle.open(damaged), infos)
    assert trtexec.split()[2:] == [
        "--saveEngine=adapter-sm_87.plan",
        "--skipInference",
        "--stronglyTyped",
        "--minShapes=early:1x64x128",
        "--optShapes=early:1x64x128",
        "--maxShapes=early:1x64x128",
        "--noTF32",
        "--memPoolSize=workspace:1024M",
    ]
    assert "--trt-opt-shapes 'early:[1,64,128]'" in polygraphy
    assert "--pool-limit workspace:1024M" in polygraphy
    assert " -o adapter-sm_87.plan " in polygraphy, "never onto the bundle's own plan"
    infos[0].backend = "tensorrt-rtx"
    tool, polygraphy = equivalent_commands(Bundle.open(damaged), infos)
    assert tool.startswith("tensorrt_rtx --onnx=")
    assert "--computeCapabilities=87" in tool
    assert polygraphy.startswith("POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy convert ")
    assert polygraphy.endswith("--compute-capabilities 8.7")


def commanded(capsys, *arguments):
    from uino_deploy.cli import main

    with pytest.raises(SystemExit) as left:
        main(["build", *map(str, arguments)])
    assert not left.value.code
    return capsys.readouterr().out


def test_build_prints_a_line_a_plan_and_the_other_tools_only_when_asked(
    damaged, monkeypatch, capsys
):
    fake_run(monkeypatch, outcome(seconds=1.5))
    options = [damaged, "--backend", "tensorrt", "--arch", "sm_87", "--force"]
    options += ["--piece", "adapter", "--piece", "encoder"]
    plans = "plans/tensorrt-sm_87"
    assert commanded(capsys, *options).splitlines() == [
        f"adapter: fp32, 0.0 MB in 1.5 s, {plans}/adapter.plan",
        f"encoder: fp32, 0.0 MB in 1.5 s, {plans}/encoder.plan",
        "PASSED",
    ]
    verbose = commanded(capsys, *options, "--verbose")
    assert verbose.count("  trtexec --onnx=") == 2
    assert verbose.count("  polygraphy convert ") == 2
    assert "matrix layers" in verbose


def test_a_dry_run_prints_the_lines_of_the_other_tools_and_builds_nothing(damaged, capsys):
    before = Bundle.open(damaged).manifest
    options = [damaged, "--backend", "tensorrt", "--arch", "sm_87", "--shapes", "batch:1:1:4"]
    said = commanded(capsys, *options, "--dry-run").splitlines()
    assert said[0] == "encoder: fp32, plans/tensorrt-sm_87/encoder.plan"
    assert "prompt: fp32, the operators as plugins, plans/tensorrt-sm_87/prompt.plan" in said
    trtexec = [line for line in said if line.startswith("  trtexec")]
    assert len(trtexec) == 4  # trtexec cannot make our plugins: no prompt, no query
    assert "--maxShapes=image:4x3x112x112" in trtexec[0]
    assert Bundle.open(damaged).manifest == before
    document = json.loads(commanded(capsys, *options, "--dry-run", "--json", "--plugins", "none"))
    assert len(document["equivalent"]) == 2 * len(before.pieces)
    assert document["planned"][0] == "plans/tensorrt-sm_87/encoder.plan"


def test_tf32_is_recorded_and_shown(damaged, monkeypatch, capsys):
    from uino_deploy.cli import main

    jobs = fake_run(monkeypatch, outcome())
    build_and_open(damaged)
    options = {"pieces": ["decoder"], "tf32": True}
    infos = build_engines(Bundle.open(damaged), "tensorrt", "sm_87", **options)
    assert [job.tf32 for job in jobs] == [False, True]
    trtexec, polygraphy = equivalent_commands(Bundle.open(damaged), infos)
    assert "--noTF32" not in trtexec
    assert "--tf32" in polygraphy
    with pytest.raises(SystemExit):
        main(["inspect", str(damaged), "--json"])
    plans = msgspec.json.decode(capsys.readouterr().out)["plans"]
    ours = [plan for plan in plans if plan["backend"] == "tensorrt"]
    assert {plan["piece"]: plan["tf32"] for plan in ours} == {"encoder": False, "decoder": True}
    with pytest.raises(SystemExit):
        main(["inspect", str(damaged)])
    lines = [line for line in capsys.readouterr().out.splitlines() if "sm_87 " in line][-2:]
    assert [line.split()[-1] for line in lines] == ["off", "on"]


def test_a_known_miscompile_is_named_and_worked_around_where_asked(damaged, monkeypatch):
    jobs = fake_run(monkeypatch, outcome(version="10.13.3.9"))
    notes = []
    options = {"pieces": ["encoder", "decoder"], "progress": notes.append, "force": True}
    infos = build_engines(Bundle.open(damaged), "tensorrt", "sm_110", **options)
    warnings = [note for note in notes if note.startswith("warning")]
    assert len(warnings) == 1
    assert "thor-qkv-fusion" in warnings[0]
    assert "TensorRT-Edge-LLM#151" in warnings[0]
    assert (infos[1].miscompiles, infos[1].workarounds) == (["thor-qkv-fusion"], [])
    assert jobs[0].environment == {}
    options["workarounds"] = ["thor-qkv-fusion"]
    infos = build_engines(Bundle.open(damaged), "tensorrt", "sm_110", **options)
    assert jobs[-1].environment == {"__LUNOWUD": "-peep:fc_h_fusion=off"}
    assert infos[0].workarounds == ["thor-qkv-fusion"]
    options["workarounds"] = ["dino-10.3"]
    with pytest.raises(InputError, match=r"--workaround dino-10\.3 .*choose from thor-qkv-fusion"):
        build_engines(Bundle.open(damaged), "tensorrt", "sm_110", **options)


def test_wrong_engines_fail_the_build_and_are_removed(damaged, monkeypatch):
    fake_run(monkeypatch, outcome(version="10.3.0"))
    build_and_open(damaged)
    asked = []

    def wrong(request):
        asked.append(request)
        return Answer(wrong="decoder.logits differs")

    monkeypatch.setattr(engines, "run_check", wrong)
    with pytest.raises(CheckFailed, match=r"decoder\.logits differs.*removed; .*dino-10\.3"):
        build_engines(Bundle.open(damaged), "tensorrt", "sm_87", pieces=["decoder"], tf32=True)
    assert asked[0].precisions == {"decoder": ["fp16"]}, "TF32 is held to float16's bound"
    opened = Bundle.open(damaged)
    assert list(opened.manifest.plans["tensorrt-sm_87"]) == ["encoder"]
    assert not (damaged / "plans/tensorrt-sm_87/decoder.plan").exists()


def test_what_cannot_be_checked_is_said(damaged, monkeypatch):
    fake_run(monkeypatch, outcome())
    monkeypatch.setattr(engines, "run_check", lambda _r: Answer(skipped="encoder: no batch of 1"))
    notes = []
    options = {"pieces": ["encoder"], "progress": notes.append}
    build_engines(Bundle.open(damaged), "tensorrt", "sm_87", **options)
    assert "warning: not checked on the bundle's example: encoder: no batch of 1" in notes


class Spoilt:
    """ONNX Runtime whose outputs are doubled where they are asked to be."""

    def __init__(self, factor):
        self.backend, self.factor = OnnxRuntimeBackend(threads=1), factor

    def load(self, bundle, name):
        session = self.backend.load(bundle, name)

        def run(feeds):
            return {key: self.factor * value for key, value in session.run(feeds).items()}

        return SimpleNamespace(piece=session.piece, run=run)


def test_every_piece_is_held_to_the_bundles_example(bundle):
    example = load_example(bundle)
    for name in bundle.manifest.pieces:
        assert find_wrong(bundle, Spoilt(1), name, ["fp32"], example) == ""
        wrong = find_wrong(bundle, Spoilt(2), name, ["fp32"], example)
        assert wrong.startswith(f"{name}.")
        assert "1.00e+00 relative L2" in wrong


def test_rtx_knows_no_jetson(bundle):
    with pytest.raises(InputError, match="--arch sm_87"):
        build_engines(bundle, RTX, "sm_87")


# Builds a plan of the encoder and dies at the given file operation, as if the power had gone.
KILLED = """
    import os, sys
    from pathlib import Path
    from uino_deploy.bundle import Bundle
    from uino_deploy.export import engines
    from uino_deploy.export.engine_check import Answer
    from uino_deploy.export.engine_job import Outcome

    root, step, inspected = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    replace = os.replace

    def counted(source, target):
        global step
        if step == 0:
            os._exit(9)
        step -= 1
        replace(source, target)

    def run(job, _progress):
        Path(job.plan).write_bytes(b"a new plan")
        counts = {"FLOAT": 9}
        return Outcome(version="10.9.0", layers=counts, matrix_layers=counts, inspector=inspected)

    engines.run_check = lambda _request: Answer()
    engines.run_job, engines._require, os.replace = run, lambda _backend: None, counted
    engines.build_engines(Bundle.open(root), "tensorrt", "sm_87", pieces=["encoder"], force=True)
"""


def test_a_bundle_opens_wherever_a_build_is_killed(damaged, monkeypatch):
    fake_run(monkeypatch, outcome())
    script = textwrap.dedent(KILLED)
    statuses = []
    while 0 not in statuses:
        build_engines(Bundle.open(damaged), "tensorrt", "sm_87", pieces=["encoder"], force=True)
        done = subprocess.run(
            [sys.executable, "-c", script, damaged, str(len(statuses)), INSPECTED % ("Float", "")],
            check=False,
        )
        statuses.append(done.returncode)
        opened = Bundle.open(damaged)
        if "encoder" in opened.manifest.plans["tensorrt-sm_87"]:
            load_plan(opened, "encoder", "tensorrt", "sm_87", "10.9.0")
    # The manifest twice, and the plan and its side JSON in between.
    assert statuses == [9, 9, 9, 9, 0]
    path, _info = load_plan(opened, "encoder", "tensorrt", "sm_87", "10.9.0")
    assert path.read_bytes() == b"a new plan"
    assert not list(damaged.glob(".plans*"))
