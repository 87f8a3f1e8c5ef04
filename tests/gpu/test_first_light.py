"""A rehearsal of the checks for a card: correct code passes, every planted fault is reported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="compiles Triton kernels")

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import first_light  # noqa: E402
import wheelhouse  # noqa: E402

from tests.kernels.presets import preset_variants  # noqa: E402
from uino_deploy.kernels.compiler.build import compile_target, write  # noqa: E402
from uino_deploy.kernels.compiler.targets import target  # noqa: E402

PLANTS = ("wrong", "fault", "hang", "missing")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The folder that `make gpu-wheelhouse` packs, with only the small preset's kernels."""
    out = tmp_path_factory.mktemp("gpu")
    wheelhouse.pack_code(out)
    names = [v.name for v in preset_variants(80, ["tiny"]) if v.dtype == "float16"]
    (out / "k80").mkdir()
    write(compile_target(target("sm_80", "12.6"), ["tiny"], names), out / "k80")
    (out / "sweep").symlink_to(out / "k80")
    return out


def rehearse(packed, tmp_path, *arguments, minutes="3"):
    command = [sys.executable, "-B", "first_light.py", "--rehearse", "--jobs", "2"]
    command += ["--shards", "float16", "--shards", "vits14"]
    command += ["--minutes", minutes, "--out", str(tmp_path / "out"), *arguments]
    done = subprocess.run(command, cwd=packed, capture_output=True, text=True, check=False)
    document = json.loads((tmp_path / "out/first_light.json").read_text())
    return done, document


def statuses(found, step):
    return {row["status"] for row in found["steps"][step]["rows"]}


def test_a_rehearsal_passes_and_says_that_no_card_was_there(packed, tmp_path):
    done, found = rehearse(packed, tmp_path, "--only", "versions", "--only", "memory")
    assert done.returncode == 0, done.stdout
    assert found["verdict"] == "REHEARSED: nothing ran on a card"
    assert statuses(found, "memory") == {"REHEARSED"}


def expected(plant):
    return {"hang": "TIMEOUT", "missing": "MISSING"}.get(plant, "FAILED")


def check(packed, tmp_path, plant, step, minutes="3"):
    minutes = "0.5" if plant == "hang" else minutes
    done, found = rehearse(packed, tmp_path, "--plant", plant, "--only", step, minutes=minutes)
    assert done.returncode == 1, done.stdout
    assert found["verdict"] == f"FAILED: {step}"
    assert expected(plant) in statuses(found, step)
    assert "found nothing" not in {row.get("error") for row in found["steps"][step]["rows"]}


@pytest.mark.parametrize("plant", [p for p in PLANTS if p != "hang"])
def test_a_fault_of_the_memory_layer_is_reported(packed, tmp_path, plant):
    check(packed, tmp_path, plant, "memory")


@pytest.mark.parametrize("plant", [p for p in PLANTS if p != "hang"])
def test_a_fault_of_a_launch_is_reported(packed, tmp_path, plant):
    check(packed, tmp_path, plant, "cubin")


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("step", ["aot", "jit", "cubin", "memory", "model", "sweep"])
def test_a_planted_fault_is_reported_by_every_step(packed, tmp_path, plant, step):
    check(packed, tmp_path, plant, step)


def report(tmp_path, **rows):
    found = first_light.Report(tmp_path, rehearsal=False)
    for step, status in rows.items():
        found.put(step, [{"case": "", "status": status}] if status else [], 0.0)
    return found


@pytest.mark.parametrize("status", ["FAILED", "TIMEOUT", "MISSING", "SKIPPED", None])
def test_only_what_ran_and_was_right_passes(tmp_path, status):
    assert report(tmp_path, aot="PASSED", jit="PASSED").verdict() == "PASSED"
    assert report(tmp_path, aot="PASSED", jit=status).verdict() == "FAILED: jit"


def test_nothing_is_no_pass(tmp_path):
    assert report(tmp_path).verdict() == "FAILED: no step ran"


def test_no_speed_without_right_results(packed, tmp_path):
    arguments = ["--plant", "wrong", "--only", "aot", "--only", "times"]
    _, found = rehearse(packed, tmp_path, *arguments)
    assert statuses(found, "aot") >= {"FAILED"}
    assert found["steps"]["times"]["rows"] == [
        {"case": "", "status": "SKIPPED", "error": "aot is not right"}
    ]


def test_a_page_shows_the_card_the_verdict_and_every_time(tmp_path):
    run = HERE.parents[1] / "benchmarks/data/gpu/h200-e29c450.json"
    out = tmp_path / "run.html"
    command = [sys.executable, str(HERE / "page.py"), str(run), str(out)]
    subprocess.run(command, check=True)
    text, found = out.read_text(), json.loads(run.read_text())
    assert "First light on NVIDIA H200" in text
    assert "FAILED" in text
    for step in ("times", "modules", "sweep"):
        for row in found["steps"][step]["rows"]:
            if "ms" in row:
                assert row["case"] in text
                assert f"{row['ms']:.4f}" in text


def test_the_readme_shows_the_times_of_the_committed_run():
    import page

    run = HERE.parents[1] / "benchmarks/data/gpu/h200-e29c450.json"
    table = page.readme_table(json.loads(run.read_text()))
    assert table in (HERE / "README.md").read_text()
    assert table.count("\n") == 2 + 5 + 3
