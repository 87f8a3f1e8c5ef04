"""Real engines by TensorRT-RTX, whose builder needs no GPU; and what must not pass silently."""

import sys

import onnx
import pytest

from tests.export.conftest import random_model
from tests.export.test_verify import rewrite
from uino_deploy.bundle import Bundle
from uino_deploy.errors import BuildError, BundleError, CheckFailed, InputError, OutputExists
from uino_deploy.export import engines, export_bundle
from uino_deploy.export.engine_job import Job, Outcome
from uino_deploy.export.engines import build_engines, parse_shapes, profile_of, run_job
from uino_deploy.export.precision import parse_precision
from uino_deploy.plans import equivalent_commands, load_plan

RTX = "tensorrt-rtx"


@pytest.fixture(scope="module")
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("half") / "half.uino"
    return export_bundle(random_model(), path, precision=parse_precision(["fp16"]))


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


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_120"])
def test_every_piece_builds(bundle, half, arch):
    for made, wanted in ((bundle, "FLOAT"), (half, "HALF")):
        infos = build_engines(made, RTX, arch, shapes={"batch": (1, 1, 2)}, force=True)
        assert [info.piece for info in infos] == list(made.manifest.pieces)
        for info in infos:
            assert info.layers[wanted] > 0
            assert info.route == ("function" if info.piece in ("prompt", "query") else "none")
        opened = Bundle.open(made.root)
        path, info = load_plan(opened, "query", RTX, arch, infos[0].version)
        assert path.stat().st_size > 100_000
        assert info == infos[-1]
        assert not list(made.root.glob(".plans-*"))


@pytest.mark.usefixtures("rtx")
def test_float32_pieces_have_no_half_layers(bundle):
    infos = build_engines(bundle, RTX, "sm_86", pieces=["encoder", "decoder"], force=True)
    assert [set(info.layers) for info in infos] == [{"FLOAT"}, {"FLOAT"}]


@pytest.mark.usefixtures("rtx")
def test_plans_are_kept_without_force(bundle):
    build_engines(bundle, RTX, "sm_89", pieces=["support"], force=True)
    with pytest.raises(OutputExists, match="support"):
        build_engines(Bundle.open(bundle.root), RTX, "sm_89", pieces=["support"])


@pytest.mark.usefixtures("rtx")
def test_a_removed_cast_is_refused(half, tmp_path):
    """Strong typing: a float32 operand met by a float16 one is an error, not a silent cast."""
    import shutil

    copy = shutil.copytree(half.root, tmp_path / "copy.uino")

    def remove_a_cast(model):
        cast = next(n for n in model.graph.node if n.op_type == "Cast")
        for node in model.graph.node:
            node.input[:] = [cast.input[0] if i == cast.output[0] else i for i in node.input]
        model.graph.node.remove(cast)

    changed = rewrite(copy / "encoder.onnx", remove_a_cast)
    with pytest.raises(BuildError, match=r"encoder\.onnx"):
        build_engines(changed, RTX, "sm_86", pieces=["encoder"], force=True)
    assert not list(copy.glob(".plans-*"))


@pytest.mark.usefixtures("rtx")
def test_a_misspelt_operator_without_a_body_is_refused(damaged):
    def misspell(model):
        del model.functions[:]
        next(n for n in model.graph.node if n.domain == "uino").op_type = "Corelation4d"

    changed = rewrite(damaged / "prompt.onnx", misspell)
    with pytest.raises(BuildError, match="Corelation4d"):
        build_engines(changed, RTX, "sm_86", pieces=["prompt"], force=True)


def test_an_aborting_process_is_reported(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    job = Job(backend=RTX, onnx="a/encoder.onnx", plan="x", arch="sm_86", shapes={})
    with pytest.raises(BuildError, match=r"encoder\.onnx: the builder's process died"):
        run_job(job)


def fake_run(monkeypatch, outcome):
    """Stand in for a builder that cannot run here."""
    monkeypatch.setattr(engines, "_require", lambda _backend: None)

    def run(job, _progress):
        with open(job.plan, "wb") as file:
            file.write(b"plan")
        return outcome

    monkeypatch.setattr(engines, "run_job", run)


def test_another_precision_is_not_accepted_silently(half, monkeypatch):
    fake_run(monkeypatch, Outcome(version="10.9.0", layers={"FLOAT": 9}))
    with pytest.raises(CheckFailed, match=r"encoder\.onnx is fp16"):
        build_engines(half, "tensorrt", "sm_87", pieces=["encoder"])


def test_a_stale_or_foreign_plan_is_refused_with_the_command(damaged, monkeypatch):
    fake_run(monkeypatch, Outcome(version="10.9.0", layers={"FLOAT": 9}))
    build_engines(Bundle.open(damaged), "tensorrt", "sm_87", pieces=["encoder"])
    opened = Bundle.open(damaged)
    load_plan(opened, "encoder", "tensorrt", "sm_87", "10.9.0")
    for arch, version in (("sm_87", "10.13.0"), ("sm_110", "10.9.0")):
        with pytest.raises(BundleError, match=f"uino-deploy build .* --arch {arch} --force"):
            load_plan(opened, "encoder", "tensorrt", arch, version)

    def touch(model: onnx.ModelProto) -> None:
        model.doc_string = "another export"

    changed = rewrite(damaged / "encoder.onnx", touch)
    with pytest.raises(BundleError, match="another ONNX file"):
        load_plan(changed, "encoder", "tensorrt", "sm_87", "10.9.0")


def test_the_equivalent_commands_name_every_shape(damaged, monkeypatch):
    fake_run(monkeypatch, Outcome(version="10.9.0", layers={"FLOAT": 9}))
    infos = build_engines(Bundle.open(damaged), "tensorrt", "sm_87", pieces=["adapter"])
    trtexec, polygraphy = equivalent_commands(Bundle.open(damaged), infos)
    assert "--stronglyTyped" in trtexec
    assert "--optShapes=early:1x64x128" in trtexec
    assert "--trt-opt-shapes early:[1,64,128]" in polygraphy


def test_rtx_knows_no_jetson(bundle):
    with pytest.raises(InputError, match="--arch sm_87"):
        build_engines(bundle, RTX, "sm_87")
