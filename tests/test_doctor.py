"""doctor: known bad combinations, usable backends, and advice."""

import json
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from uino_deploy import doctor as doctor_module
from uino_deploy.cli import cli, main
from uino_deploy.dependencies import read_jetpack, require
from uino_deploy.doctor import (
    BACKENDS,
    EXTRAS,
    PACKAGES,
    diagnose,
    find_conflicts,
    find_warnings,
    judge_backends,
    judge_extras,
)
from uino_deploy.errors import DependencyError
from uino_deploy.miscompiles import MISCOMPILES, known_miscompiles


def packages(**installed: str) -> dict[str, str | None]:
    """Return a machine with only the named packages; `_` stands for `-`."""
    given = {name.replace("_", "-"): version for name, version in installed.items()}
    return {name: given.get(name) for name in PACKAGES}


def test_both_onnxruntimes_are_a_problem():
    (problem,) = find_conflicts(packages(onnxruntime="1.23.0", onnxruntime_gpu="1.23.0"))
    assert "overwrite each other" in problem
    assert "pip uninstall" in problem
    assert find_conflicts(packages(onnxruntime_gpu="1.23.0")) == []


@pytest.mark.parametrize(
    ("numpy", "tensorrt", "advice"),
    [
        ("1.26.4", "10.3.0", None),
        ("2.0.0", "10.3.0", "numpy<2'"),
        ("2.3.5", "10.13.3.9", "numpy<2'"),
        ("2.3.5", "10.16.1", None),
        ("2.4.0", "10.16.1", "numpy<2.4'"),
        ("2.4.6", "11.2.0", "numpy<2.4'"),
        ("2.4.6", "11.2.1.2", None),
        ("2.4rc1", "11.4.1", None),
    ],
)
def test_numpy_traps_of_the_tensorrt_bindings(numpy, tensorrt, advice):
    problems = find_conflicts(packages(numpy=numpy, tensorrt=tensorrt))
    assert len(problems) == (advice is not None)
    assert all(advice in problem for problem in problems)


THOR, ORIN = (f"X, compute capability {c}, driver 580" for c in ("11.0", "8.7"))
BLACKWELL = "NVIDIA RTX 5090, compute capability 12.0, driver 580.1"


@pytest.mark.parametrize(
    ("tensorrt", "gpu", "names"),
    [
        ("10.3.0", ORIN, ["dino-10.3"]),
        ("10.4.0", None, ["dino-10.3"]),
        ("10.5.0", ORIN, []),
        ("10.13.3.9", THOR, ["thor-qkv-fusion"]),
        ("10.13.3.9", ORIN, []),
        ("10.16.1.11", THOR, []),
        ("10.16.1.11", BLACKWELL, ["sm120-half-attention"]),
        (None, BLACKWELL, []),
    ],
)
def test_known_miscompiles_are_named(tensorrt, gpu, names):
    found = find_warnings({"tensorrt": tensorrt, "triton": "3.9.0"}, gpu)
    assert [line.removeprefix("known miscompile ").partition(":")[0] for line in found] == names


def test_an_older_triton_is_named_as_slow():
    (line,) = find_warnings({"triton": "3.6.0"}, None)
    assert line.startswith("slow kernels: Triton 3.6.0")
    assert find_warnings({"triton": "3.7.0"}, None) == []


def test_a_mended_miscompile_concerns_nobody():
    mended = [each.name for each in MISCOMPILES if each.mended]
    assert mended == ["triton-wgmma-pipeline"]
    assert known_miscompiles("triton", "3.9.0", "sm_90") == []


def test_missing_backends_come_with_the_pip_command():
    statuses = judge_backends(packages(), [], None, None)
    assert set(statuses) == set(BACKENDS)
    assert not any(status.runs for status in statuses.values())
    assert statuses["onnxruntime"].advice == "pip install -e '.[cpu]' in a checkout of uino-deploy"


def test_backends_that_would_run():
    found = packages(onnxruntime_gpu="1.23.0", tensorrt="10.9", cuda_python="12.8", torch="2.13.0")
    cpu_only = judge_backends(found, ["CPUExecutionProvider"], None, None)
    assert cpu_only["onnxruntime"].runs
    assert cpu_only["torch"].runs
    assert not cpu_only["tensorrt"].runs
    assert "GPU" in cpu_only["tensorrt"].advice
    assert judge_backends(found, ["CPUExecutionProvider"], "H100", None)["tensorrt"].runs
    assert not judge_backends(found, [], "H100", None)["onnxruntime"].runs


def test_extras_of_single_commands_come_with_the_pip_command():
    advice = {name: each.advice for name, each in judge_extras(packages(scikit_image="1")).items()}
    assert advice["instances"] == ""
    assert advice["signing"] == "pip install -e '.[signing]' in a checkout of uino-deploy"
    partly = judge_extras(packages(jinja2="3"))
    assert partly["pages"].advice.startswith("pip install -e '.[pages]'")


def test_the_extras_are_those_of_pyproject():
    metadata = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    for extra, (needed, _purpose) in EXTRAS.items():
        declared = re.search(rf"^{extra} = (\[[^]]*\])$", metadata, re.MULTILINE)
        assert set(re.findall(r'"([\w-]+)', declared[1])) == set(needed)
        assert set(needed) <= set(PACKAGES)


def test_a_jetson_is_told_to_use_jetpacks_tensorrt():
    statuses = judge_backends(packages(), [], "Jetson integrated GPU", "R36 (release)")
    assert "python3-libnvinfer" in statuses["tensorrt"].advice


def test_jetpack_release_file(tmp_path):
    release = tmp_path / "nv_tegra_release"
    assert read_jetpack(release) is None
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 1\nmore\n")
    assert read_jetpack(release) == "R36 (release), REVISION: 4.3, GCID: 1"


def test_the_command_reports_this_machine(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] == (stopped.value.code == 0)
    assert document["packages"]["numpy"]
    assert set(document["backends"]) == set(BACKENDS)
    assert document["provider_advice"]["cpu"] == ""
    assert "cuda" in document["provider_advice"]


def leave(_request, _note):
    """Stand in for a library that ends the process."""
    sys.exit("broken library")


def test_a_provider_that_aborts_is_reported_and_no_more(monkeypatch):
    monkeypatch.setattr(doctor_module, "_PROBE", "tests.test_doctor:leave")
    found = diagnose()
    assert found.provider_advice == {
        "(all)": "cannot be asked: its process died with status 1: broken library"
    }
    assert found.backends["onnxruntime"].runs


def test_the_command_fails_with_3_on_a_broken_environment(monkeypatch):
    broken = diagnose().to_dict() | {"problems": ["a and b overwrite each other"]}
    broken |= {"backends": diagnose().backends, "extras": diagnose().extras}
    monkeypatch.setattr(doctor_module, "diagnose", lambda: doctor_module.Diagnosis(**broken))
    done = CliRunner().invoke(cli, ["doctor"])
    assert done.exit_code == 3
    assert done.output.splitlines()[-1] == "FAILED: a and b overwrite each other"


def test_require_names_what_is_missing_and_the_extra():
    require("cpu", "json")
    with pytest.raises(DependencyError, match="no_such_module is not installed") as raised:
        require("export", "json", "no_such_module")
    assert raised.value.hint == "pip install -e '.[export]' in a checkout of uino-deploy"
