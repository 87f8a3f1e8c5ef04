"""The part of the runtime that runs on TensorRT-RTX's real bindings without a GPU."""

import subprocess
import sys

import pytest

from uino_deploy.cli import main
from uino_deploy.runtime.tensorrt_backend import _logger

trt = pytest.importorskip("tensorrt_rtx")

HAS_GPU = (
    subprocess.run(
        [sys.executable, "-c", "from uino_deploy.runtime.cuda_memory import Device; Device()"],
        capture_output=True,
        check=False,
    ).returncode
    == 0
)
without_gpu = pytest.mark.skipif(HAS_GPU, reason="there is a GPU here")

USED = {
    trt.Runtime: "deserialize_cuda_engine",
    trt.ICudaEngine: "num_io_tensors get_tensor_name get_tensor_mode get_tensor_dtype "
    "get_tensor_shape get_tensor_location create_execution_context",
    trt.IExecutionContext: "set_input_shape infer_shapes get_tensor_shape set_tensor_address "
    "execute_async_v3",
    trt.DataType: "FLOAT HALF",
    trt.TensorIOMode: "INPUT OUTPUT",
    trt.TensorLocation: "DEVICE",
    trt.ILogger: "ERROR INTERNAL_ERROR",
}


@pytest.mark.parametrize("owner", USED, ids=lambda owner: owner.__name__)
def test_every_name_that_the_runtime_uses_is_there(owner):
    assert [name for name in USED[owner].split() if not hasattr(owner, name)] == []


@pytest.mark.parametrize("plan", [b"no plan at all" * 100, b""], ids=["text", "empty"])
def test_what_is_no_plan_is_refused_with_tensorrts_own_words(plan, capfd):
    log = _logger(trt)
    assert trt.Runtime(log).deserialize_cuda_engine(plan) is None
    assert log.last_error
    assert capfd.readouterr().err == "", "TensorRT's log is not the user's"


@without_gpu
@pytest.mark.parametrize("backend", ["tensorrt-rtx", "tensorrt"])
def test_without_a_gpu_the_command_says_so_in_one_line(fake_bundle, red_files, capsys, backend):
    image, mask = red_files
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "enroll",
                str(fake_bundle),
                "--shot",
                f"{image}:{mask}",
                "--name",
                "red",
                "-o",
                str(image.parent / "red.safetensors"),
                "--backend",
                backend,
            ]
        )
    assert stopped.value.code == 3
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("error: ")
