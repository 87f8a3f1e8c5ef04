"""Real runs on the bundled checkpoint: measurements, failures, and that nothing is hidden."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from uino_deploy.benchmarks.processes import WorkerFailed, WorkerProcess
from uino_deploy.benchmarks.record import load_record
from uino_deploy.benchmarks.runners.runner import Task
from uino_deploy.benchmarks.work import prepare
from uino_deploy.bundle import Bundle, write_manifest
from uino_deploy.cli import main

QUICK = ["--iterations", "2", "--rounds", "2", "--cold-starts", "1", "--threads", "1"]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small pictures: which packages with photographs are installed shall not matter."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number, size in enumerate([(60, 80), (70, 50)]):
        noise = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        smooth = Image.fromarray(noise).resize((8, 8)).resize(size[::-1], Image.Resampling.BICUBIC)
        smooth.save(folder / f"{number}.png")
    return folder


@pytest.fixture
def wrong_bundle(bundle_path: Path, tmp_path: Path) -> Path:
    """The bundle with its decoder's matrices a little too large, its hashes renewed."""
    path = Path(shutil.copytree(bundle_path, tmp_path / "wrong.uino"))
    manifest = Bundle.open(path).manifest
    graph = onnx.load(path / "decoder.onnx")
    for weight in graph.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) > 1:
            values = numpy_helper.to_array(weight) * np.float32(1.05)
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(graph, path / "decoder.onnx")
    write_manifest(path, manifest)
    return path


def test_a_run_measures_speed_accuracy_and_memory(bundle_path, photographs, tmp_path, capsys):
    out = tmp_path / "out"
    code = run(
        "benchmark", bundle_path, *QUICK, "--images", photographs, "--classes", 2, "--batch", 2,
        "--shots", 2, "--peers", "torch", "--episodes", 2, "--profile", "--append", tmp_path,
        "--portable",
        "-o", out, "--json", "--quiet",
    )  # fmt: skip
    assert code == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "PASSED"
    record = load_record(out / "record.json")
    assert json.loads(said.out)["method"]["rounds"] == 2
    ours, portable, peer = record.entries
    assert (ours.status, peer.status, peer.peer) == ("passed", "passed", True)
    assert portable.name == "onnxruntime portable fp32"
    assert portable.about["operators"] == "portable"
    assert ours.about["operators"].startswith("native")
    for entry in record.entries:
        assert entry.main is not None
        assert (entry.main.samples, len(entry.main.rounds)) == (4, 2)
        assert entry.main.p90 is None, "four samples tell no percentile"
        assert [str(result.case) for result in entry.cases] == [
            "classes 1, shots 1, batch 1",
            "classes 2, shots 1, batch 1",
            "classes 1, shots 2, batch 1",
            "classes 1, shots 1, batch 2",
        ]
        assert all(result.timing is not None for result in entry.cases)
        assert entry.memory is not None
        assert entry.memory.steady is not None
        assert entry.memory.peak is not None
        assert 1e7 < entry.memory.steady <= entry.memory.peak
        assert entry.cold_start is not None
        assert {"encoder", "prompt", "decoder"} < entry.stages.keys()
        assert entry.accuracy is not None
        assert entry.accuracy.logits_relative_l2 < 1e-4
        assert entry.accuracy.miou is not None
    assert ours.accuracy is not None
    assert {piece.piece for piece in ours.accuracy.pieces} == {
        "encoder", "adapter", "support", "prompt", "decoder",
    }  # fmt: skip
    profile, of_functions = record.profiles
    assert sum(layer.share for layer in profile.layers) == pytest.approx(1)
    assert "SelectiveScan2d" in {layer.operator for layer in profile.layers}
    assert "Scan" in {layer.operator for layer in of_functions.layers}
    trace, _ = sorted((out / "traces").iterdir())
    events = json.loads(trace.read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X"}
    everything = (out / "record.json").read_text() + trace.read_text()
    everything += (out / "report.html").read_text() + (tmp_path / "latency.csv").read_text()
    assert str(tmp_path) not in everything
    assert str(Path.home()) not in everything.replace("/root", str(Path.home()))


def test_an_accuracy_fault_is_not_hidden_by_speed(wrong_bundle, photographs, tmp_path, capsys):
    out = tmp_path / "out"
    code = run("benchmark", wrong_bundle, *QUICK, "--images", photographs, "-o", out, "--quiet")
    said = capsys.readouterr().out
    assert code == 1
    assert said.splitlines()[-1].startswith("FAILED: onnxruntime fp32: decoder.")
    (entry,) = load_record(out / "record.json").entries
    assert entry.status == "failed"
    assert (entry.main, entry.cases, entry.stages, entry.cold_start) == (None, [], {}, None)
    assert "Entries without a speed" in (out / "report.html").read_text()


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch, the command measures accuracy on the example stored in the bundle."""
    from uino_deploy.export import checkpoints

    monkeypatch.setattr(checkpoints, "is_importable", lambda _name: False)


@pytest.mark.usefixtures("without_torch")
def test_without_torch_the_stored_example_judges(wrong_bundle, photographs, tmp_path):
    out = tmp_path / "out"
    code = run("benchmark", wrong_bundle, *QUICK, "--images", photographs, "-o", out, "--quiet")
    assert code == 1
    (entry,) = load_record(out / "record.json").entries
    assert entry.accuracy is not None
    assert entry.accuracy.reference == "stored"
    assert "decoder.logits" in entry.reason


@pytest.mark.usefixtures("without_torch")
def test_a_backend_that_is_not_here_is_refused(bundle_path, photographs, tmp_path, capsys):
    out = tmp_path / "out"
    backends = ["--backend", "onnxruntime", "--backend", "onnxruntime:cuda"]
    code = run(
        "benchmark", bundle_path, *QUICK, *backends, "--images", photographs, "-o", out, "--quiet"
    )
    assert code == 1
    first, second = load_record(out / "record.json").entries
    assert first.main is not None
    assert (second.status, second.main) == ("refused", None)
    assert "CUDAExecutionProvider" in second.reason
    said = capsys.readouterr().out
    assert "REFUSED" in said
    assert said.splitlines()[-1].startswith("FAILED: onnxruntime:cuda fp32: ")


@pytest.mark.usefixtures("without_torch")
def test_nothing_that_can_run_is_an_error(bundle_path, photographs, capsys):
    arguments = ["--backend", "onnxruntime:cuda", "--images", photographs, "--quiet"]
    assert run("benchmark", bundle_path, *QUICK, *arguments) == 3
    assert "no entry can run on this machine" in capsys.readouterr().err


def test_a_dead_process_is_its_own_failure(bundle_path, photographs, tmp_path):
    import os
    import signal

    prepare(tmp_path, photographs, [], 0)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    task = Task(
        runner="onnxruntime",
        precision="fp32",
        threads=1,
        image_size=112,
        work=str(tmp_path),
        scratch=str(scratch),
        bundle=str(bundle_path),
    )
    with WorkerProcess(task) as worker:
        os.kill(worker.number, signal.SIGKILL)
        with pytest.raises(WorkerFailed, match="SIGKILL"):
            worker.ask("memory")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backend", "no-such"], "unknown backend"),
        (["--peers", "caffe"], "unknown peer"),
        (["--precision", "bf16"], "no given bundle is bf16"),
        (["--episodes", "3"], "--episodes needs the model"),
        (["--images", "no-such-folder"], "no-such-folder"),
    ],
)
@pytest.mark.usefixtures("without_torch")
def test_bad_arguments_are_named(bundle_path, arguments, said, capsys):
    assert run("benchmark", bundle_path, *QUICK, *arguments, "--quiet") == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("without_torch")
def test_two_bundles_that_look_alike_are_refused(bundle_path, capsys):
    assert run("benchmark", bundle_path, bundle_path, *QUICK, "--quiet") == 2
    assert "two bundles" in capsys.readouterr().err


@pytest.mark.usefixtures("without_torch")
def test_peers_need_the_model(bundle_path, capsys):
    assert run("benchmark", bundle_path, *QUICK, "--peers", "torch", "--quiet") == 2
    assert "peers need the PyTorch model" in capsys.readouterr().err


def test_the_help_names_the_peers(capsys):
    from uino_deploy.benchmarks.runners.table import PEERS

    assert run("benchmark", "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    names = said.partition("all, or some of ")[2].partition(", by commas")[0]
    assert names.replace(" or ", ", ").replace("- ", "-").split(", ") == list(PEERS)
