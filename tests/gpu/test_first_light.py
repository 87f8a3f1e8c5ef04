"""A rehearsal of the checks for a card: correct code passes, every planted fault is reported."""

import inspect
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("triton", reason="compiles Triton kernels")

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import first_light  # noqa: E402
import mamba_kernels  # noqa: E402
import wheelhouse  # noqa: E402

from tests.kernels.presets import preset_variants  # noqa: E402
from uino_deploy.errors import CheckFailed  # noqa: E402
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


def test_the_rehearsals_driver_has_only_what_cuda_python_has():
    import rehearsal

    real = pytest.importorskip("cuda.bindings.driver")
    for result in rehearsal.Result:
        assert int(getattr(real.CUresult, result.name)) == result
    for name, value in vars(rehearsal.Driver.CUfunction_attribute).items():
        assert int(getattr(real.CUfunction_attribute, name)) == value
    functions = {n: f for n, f in vars(rehearsal.Driver).items() if n.startswith("cu")}
    assert len(functions) > 10
    for name, function in functions.items():
        # The first line of its documentation is the signature.
        signature = getattr(real, name).__doc__.splitlines()[0]
        arguments = signature.partition("(")[2].rstrip(")")
        code = function.__code__
        if not code.co_flags & inspect.CO_VARARGS:
            assert len(list(filter(None, arguments.split(",")))) == code.co_argcount - 1, signature


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
    found = first_light.Report(tmp_path, rehearsal=False, wanted=list(rows))
    for step, status in rows.items():
        found.put(step, [{"case": "", "status": status}] if status else [], 0.0)
    return found


@pytest.mark.parametrize("status", ["FAILED", "TIMEOUT", "MISSING", "SKIPPED", "REHEARSED", None])
def test_only_what_ran_and_was_right_passes(tmp_path, status):
    assert report(tmp_path, aot="PASSED", jit="PASSED").verdict() == "PASSED: aot, jit alone"
    assert report(tmp_path, aot="PASSED", jit=status).verdict() == "FAILED: jit"


def test_nothing_is_no_pass(tmp_path):
    assert report(tmp_path).verdict() == "FAILED: no step ran"


def test_only_a_whole_run_passes_without_a_word(tmp_path):
    """The results are written after every shard: a run that is cut off leaves no PASSED behind."""
    found = first_light.Report(tmp_path, False, list(first_light.STEPS))
    rows = [{"case": "", "status": "PASSED"}]
    for step in first_light.STEPS:
        found.put(step, rows, 0.0, finished=False)
        written = json.loads((tmp_path / "first_light.json").read_text())
        assert written["verdict"].startswith("FAILED: not finished: ")
        found.put(step, rows, 0.0)
    assert found.verdict() == "PASSED"
    found.part = "float16"
    assert found.verdict() == "PASSED: shards float16 alone"


def test_a_page_of_a_run_that_was_cut_off_does_not_pass(tmp_path):
    import page

    report(tmp_path, versions="PASSED").put("aot", [], 0.0)
    found = json.loads((tmp_path / "first_light.json").read_text())
    assert found["verdict"] == "FAILED: aot"
    found = {"steps": {}, "rehearsal": False, "verdict": "FAILED: not finished: aot"}
    assert "FAILED: not finished: aot" in page.result_page(found)


def test_no_speed_without_right_results(packed, tmp_path):
    _, found = rehearse(packed, tmp_path, "--plant", "wrong", "--only", "ncu")
    assert statuses(found, "aot") >= {"FAILED"}
    assert found["steps"]["ncu"]["rows"] == [
        {"case": "", "status": "SKIPPED", "error": "aot is not right"}
    ]


def test_a_step_brings_the_steps_that_it_relies_on(tmp_path):
    assert first_light.with_gates(["times"]) == ["aot", "jit", "times"]
    assert first_light.with_gates(["mamba", "aot"]) == ["aot", "mamba"]
    assert not report(tmp_path, jit="PASSED").right("aot")
    assert report(tmp_path, aot="PASSED").right("aot")


def test_all_limits_together_stay_under_ten_minutes():
    assert first_light.STEPS["gradients"].limit == 240
    assert first_light.longest() <= first_light.MINUTES * 60 - first_light.CLOSING
    assert first_light.MINUTES < 10


def test_the_verdict_of_a_rehearsal_names_the_steps_that_did_not_run(packed, tmp_path):
    done, found = rehearse(packed, tmp_path, "--only", "gradients")
    assert done.returncode == 0, done.stdout
    assert statuses(found, "gradients") == {"REHEARSED"}
    assert (
        found["verdict"] == "REHEARSED: nothing ran on a card; of gradients nothing ran here either"
    )


def test_mamba_ssm_that_was_not_packed_is_missing(packed, tmp_path):
    part = tmp_path / "rows.jsonl"
    command = [sys.executable, "-B", "first_light.py", "--child", "mamba", "--rehearse"]
    done = subprocess.run(
        command, cwd=packed, env=os.environ | {"FIRST_LIGHT_PART": str(part)}, check=False
    )
    (row,) = map(json.loads, part.read_text().splitlines())
    assert done.returncode == 1
    assert row["status"] == "MISSING"
    assert "mamba80" in row["error"]


@pytest.mark.parametrize("lacking", ["sources", "nvcc"])
def test_the_wheelhouse_says_why_mamba_ssm_is_missing(tmp_path, monkeypatch, capsys, lacking):
    def pip(verb, pinned, folder, options):
        raise CheckFailed(f"pip {verb} {' '.join(pinned)}: ERROR: no network")

    monkeypatch.setattr(mamba_kernels, "pip", pip)
    monkeypatch.setenv("PATH", str(tmp_path))
    if lacking == "nvcc":
        monkeypatch.setattr(mamba_kernels, "fetch_sources", lambda folder: folder)
    mamba_kernels.pack(tmp_path / "mamba", "sm_90", "vitb14", ["float16"])
    (only,) = (tmp_path / "mamba").iterdir()
    wanted = {"sources": "download mamba-ssm==2.3.2.post1", "nvcc": "install nvidia-cuda-nvcc=="}
    assert wanted[lacking] in only.read_text()
    assert "no network" in only.read_text()
    assert "will be MISSING" in capsys.readouterr().err


@pytest.fixture(scope="module")
def packed_with_mamba(packed):
    """The same folder with mamba-ssm's kernel for the small preset, from PyPI by nvcc."""
    mamba_kernels.pack(packed / "mamba80", "sm_80", "tiny", ["float16"])
    reason = packed / "mamba80/missing.txt"
    if reason.exists():
        pytest.skip(reason.read_text())
    return packed


def mamba_rows(found):
    return {row["case"]: row for row in found["steps"]["mamba"]["rows"]}


@pytest.mark.slow
def test_mamba_ssm_is_rehearsed_beside_ours(packed_with_mamba, tmp_path):
    done, found = rehearse(packed_with_mamba, tmp_path, "--only", "mamba")
    assert done.returncode == 0, done.stdout
    rows = mamba_rows(found)
    call = "fp16 tiny B1 K1 scan 4x8x8x16"
    assert rows[call]["error"] < 5e-4
    assert rows[call]["error_with_glue"] < 2e-3
    for how in ("ours", "mamba-ssm alone", "mamba-ssm with glue"):
        assert rows[f"{how} {call}"]["ms"] > 0
        assert rows[f"{how} {call}"]["floor_ms"] == rows[f"ours {call}"]["floor_ms"]


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTS)
def test_a_fault_of_mamba_ssms_kernel_is_reported(packed_with_mamba, tmp_path, monkeypatch, plant):
    """The step alone: in a whole rehearsal the same fault in `aot` would keep it from running."""
    monkeypatch.setenv("FIRST_LIGHT_PLANT", plant)
    monkeypatch.setattr(first_light, "HERE", packed_with_mamba)
    found = first_light.Report(tmp_path / "out", True, ["aot", "mamba"])
    found.put("aot", [{"case": "", "status": "REHEARSED"}], 0.0)
    end = time.monotonic() + (30 if plant == "hang" else 120)
    arguments = SimpleNamespace(rehearse=True, shards=[], jobs=1)
    first_light.run_wave(["mamba"], found, tmp_path, end, arguments)
    assert found.verdict() == "FAILED: mamba"
    assert found.results["mamba"]["status"] == expected(plant)
    if plant == "wrong":
        wrong = [r["case"] for r in found.results["mamba"]["rows"] if r["status"] == "FAILED"]
        assert "fp16 tiny B1 K1 scan 4x8x8x16" in wrong


def fill(folder, **sizes):
    folder.mkdir(parents=True)
    for name, size in sizes.items():
        (folder / name).write_bytes(bytes(size))


def test_a_large_wheelhouse_is_split_into_loads_that_together_are_it(tmp_path):
    mib = 1 << 20
    out = tmp_path / "build/gpu"
    fill(out, a=mib // 2, b=mib // 2, c=mib // 2, d=10)
    (tmp_path / "build/gpu-part9.tar").touch()
    loads = wheelhouse.split(out, mib)
    assert [load.name for load in loads] == ["gpu-part1.tar", "gpu-part2.tar", "gpu-part3.tar"]
    assert all(load.stat().st_size <= mib for load in loads)
    assert not (tmp_path / "build/gpu-part9.tar").exists()
    lines = wheelhouse.instructions(out, loads)
    there = tmp_path / "there"
    for load in loads:
        assert any(line.startswith(f"tar -xf {load} -C ") for line in lines)
        with tarfile.open(load) as archive:
            archive.extractall(there, filter="data")
    assert {p.name: p.stat().st_size for p in (there / "gpu").iterdir()} == {
        p.name: p.stat().st_size for p in out.iterdir()
    }
    assert lines[-1].endswith('first_light.py --out "$OUT"')


def test_what_fits_is_one_load_and_a_file_that_never_fits_is_refused(tmp_path):
    out = tmp_path / "gpu"
    fill(out, a=1000, b=3 << 20)
    assert wheelhouse.split(out, 4 << 20) == [out]
    with pytest.raises(ValueError, match="gpu/b alone is larger"):
        wheelhouse.split(out, 2 << 20)
    assert list(tmp_path.iterdir()) == [out]


def test_a_page_shows_mamba_ssm_beside_ours():
    import page

    rows = [
        {"case": f"{how} fp16 scan", "status": "PASSED", "ms": ms, "share": 0.1 / ms}
        for how, ms in (("ours", 0.5), ("mamba-ssm alone", 1.0), ("mamba-ssm with glue", 2.0))
    ]
    steps = {"mamba": {"rows": [{"case": "fp16 scan", "status": "PASSED"}, *rows]}}
    (table,) = page.beside_mamba(steps)
    assert table.rows == [
        ["fp16 scan", "0.5000", "1.0000", "2.0000", "2.00", "4.00", "20.0%", "10.0%", "5.0%"]
    ]
    assert page.beside_mamba({}) == []


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
