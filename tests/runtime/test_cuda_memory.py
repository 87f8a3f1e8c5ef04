"""GPU memory, the stream and graphs against a CUDA runtime in numpy, and real bindings' names."""

import gc
import itertools
import subprocess
import sys

import numpy as np
import pytest

from tests.runtime.fake_cuda import FakeCudart, cudaError_t
from uino_deploy.errors import CudaError, DependencyError
from uino_deploy.runtime.cuda_memory import ALIGNMENT, Device, check, import_cudart


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_the_device_says_what_it_is(cudart):
    device = Device()
    assert (device.name, device.architecture) == ("Fake GPU", "sm_87")
    assert device.memory() == (cudart.capacity, cudart.capacity)
    assert isinstance(device.stream, int)
    assert device.stream


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shape", [(3, 5), (1,), (0, 4)])
def test_arrays_go_to_the_device_and_back(cudart, dtype, shape):
    array = numbers(*shape).astype(dtype)
    there = Device().upload(array)
    assert there.shape == shape
    assert there.dtype == dtype
    np.testing.assert_array_equal(there.to_host(), array)


def test_an_array_is_read_at_once_and_may_be_changed_then(cudart):
    device, array = Device(), numbers(4, 4)
    before = array.copy()
    there = device.upload(array.T)
    array[:] = 0
    np.testing.assert_array_equal(there.to_host(), before.T)


def test_many_uploads_before_any_wait_do_not_disturb_each_other(cudart):
    device = Device()
    arrays = [numbers(50, 10 + i, seed=i) for i in range(8)]
    there = [device.upload(array) for array in arrays]
    for array, made in zip(arrays, there, strict=True):
        np.testing.assert_array_equal(made.to_host(), array)


def test_a_download_of_several_arrays_waits_once(cudart):
    device = Device()
    there = {name: device.upload(numbers(6, seed=ord(name))) for name in "abc"}
    device.synchronise()
    cudart.calls.clear()
    found = device.download(there)
    assert cudart.calls.count("cudaMemcpyAsync") == 3
    assert cudart.calls.count("cudaStreamSynchronize") <= 2  # one more where staging must grow
    for name in "abc":
        np.testing.assert_array_equal(found[name], numbers(6, seed=ord(name)))


def test_addresses_are_aligned_and_never_shared(cudart):
    device = Device()
    held = [device.empty((size,), np.uint8) for size in (1, 255, 256, 257, 1000, 0)]
    spans = sorted((array.address, array.address + array.nbytes) for array in held)
    assert all(start % ALIGNMENT == 0 for start, _ in spans)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_an_unaligned_address_is_an_error(cudart):
    device = Device()
    cudart.next += 64
    with pytest.raises(CudaError, match="not aligned to 256"):
        device.empty((8,), np.float32)


def test_memory_is_kept_for_the_next_array_of_its_size(cudart):
    device = Device()
    first = device.empty((100,), np.float32)
    address = first.address
    del first
    assert device.empty((99,), np.float32).address == address
    assert cudart.calls.count("cudaMalloc") == 1
    assert device.allocated == 512


def test_memory_that_is_given_back_early_is_not_overwritten_early(cudart):
    device = Device()
    source = numbers(64)
    there = device.upload(source)
    copy = device.empty((64,), np.float32)
    device.copy(copy, there)
    del there
    again = device.upload(numbers(64, seed=1))  # takes the memory that the copy still reads
    np.testing.assert_array_equal(copy.to_host(), source)
    np.testing.assert_array_equal(again.to_host(), numbers(64, seed=1))


def test_idle_memory_is_freed_where_new_memory_is_short(cudart):
    device = Device()
    cudart.capacity = 1024
    first = device.empty((1000,), np.uint8)
    with pytest.raises(CudaError, match=r"taking 512 bytes.*cudaErrorMemoryAllocation \(2\)"):
        device.empty((512,), np.uint8)
    del first
    assert device.empty((512,), np.uint8).nbytes == 512
    assert device.allocated == 512
    # TensorRT asks for the last error after its launches: it must not find ours.
    assert cudart.calls.count("cudaGetLastError") == 2


def test_everything_is_given_back_at_the_end(cudart):
    kept = [everything(Device())]
    gc.collect()
    assert cudart.device, "an array still holds its device"
    kept.clear()
    gc.collect()
    assert (cudart.device, cudart.pinned, cudart.handles) == ({}, {}, {})


def test_a_graph_does_its_work_each_time_it_is_launched(cudart):
    device = Device()
    source, target = device.upload(numbers(5)), device.empty((5,), np.float32)
    device.synchronise()
    graph = device.capture(lambda: device.copy(target, source))
    assert np.isnan(target.to_host()).all(), "capturing runs nothing"
    device.launch(graph)
    np.testing.assert_array_equal(target.to_host(), numbers(5))


def test_work_that_cannot_be_captured_leaves_the_stream_usable(cudart):
    device = Device()
    device.synchronise()
    with pytest.raises(CudaError, match="cudaErrorStreamCaptureUnsupported"):
        device.capture(device.synchronise)
    assert cudart.capturing is None
    assert len(cudart.handles) == 1
    np.testing.assert_array_equal(device.upload(numbers(3)).to_host(), numbers(3))


STEPS = [
    "cudaGetDeviceCount",
    "cudaSetDevice",
    "cudaFree",
    "cudaGetDeviceProperties",
    "cudaDeviceGetAttribute",
    "cudaStreamCreateWithFlags",
    "cudaMalloc",
    "cudaMallocHost",
    "cudaMemcpyAsync",
    "cudaStreamBeginCapture",
    "cudaStreamEndCapture",
    "cudaGraphInstantiate",
    "cudaGraphDestroy",
    "cudaGraphLaunch",
    "cudaStreamSynchronize",
]


def everything(device):
    """Make every call; return an array of the device."""
    array = device.upload(numbers(3))
    device.synchronise()
    graph = device.capture(lambda: device.copy(array, array))
    device.launch(graph)
    array.to_host()
    return array


@pytest.mark.parametrize("step", STEPS)
def test_a_failure_of_any_call_is_an_error_that_names_it(cudart, step):
    cudart.failures[step] = [cudaError_t.cudaErrorIllegalAddress]
    with pytest.raises(CudaError, match=r"cudaErrorIllegalAddress \(700\)") as caught:
        everything(Device())
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_every_call_was_made_to_fail(cudart):
    everything(Device())
    gc.collect()
    cleanup = {"cudaFreeHost", "cudaGraphExecDestroy", "cudaStreamDestroy"}
    assert set(cudart.calls) == set(STEPS) | cleanup


@pytest.mark.parametrize("step", ["cudaGraphExecDestroy", "cudaFreeHost", "cudaStreamDestroy"])
def test_a_failure_at_the_end_is_a_warning(cudart, step):
    cudart.failures[step] = [cudaError_t.cudaErrorIllegalAddress]
    with pytest.warns(ResourceWarning, match="cudaErrorIllegalAddress"):
        everything(Device())


def test_no_driver_and_no_gpu(cudart):
    cudart.failures["cudaGetDeviceCount"] = [cudaError_t.cudaErrorInsufficientDriver]
    with pytest.raises(DependencyError, match=r"cudaErrorInsufficientDriver.*driver"):
        Device()
    cudart.cudaGetDeviceCount = lambda: (cudaError_t.cudaSuccess, 0)
    with pytest.raises(DependencyError, match="no NVIDIA GPU"):
        Device()

    def as_cuda_python_12_6():
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    cudart.cudaGetDeviceCount = as_cuda_python_12_6
    with pytest.raises(DependencyError, match=r"libcuda\.so\.1"):
        Device()


@pytest.mark.parametrize(
    "name", ["cudaErrorNoDevice", "cudaErrorInsufficientDriver", "cudaErrorStubLibrary"]
)
def test_what_is_missing_is_no_fault(name):
    with pytest.raises(DependencyError, match=name):
        check((cudaError_t[name],), "x")


@pytest.mark.parametrize("name", ["cudaErrorIllegalAddress", "cudaErrorMemoryAllocation"])
def test_a_fault_is_nothing_missing(name):
    with pytest.raises(CudaError, match=name) as fault:
        check((cudaError_t[name],), "x")
    assert not isinstance(fault.value, DependencyError)
    assert fault.value.exit_code == 3


def test_check_returns_what_the_call_returned():
    success = cudaError_t.cudaSuccess
    assert check((success, 5), "x") == 5
    assert check((success, 5, 6), "x") == (5, 6)
    assert check((success,), "x") == ()


def test_cuda_python_goes_by_both_of_its_names(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    old = FakeCudart()
    monkeypatch.setitem(sys.modules, "cuda", old)
    monkeypatch.setitem(sys.modules, "cuda.cudart", old)
    assert import_cudart() is old
    monkeypatch.setitem(sys.modules, "cuda.cudart", None)
    with pytest.raises(DependencyError, match="cuda-python is not installed") as caught:
        import_cudart()
    assert caught.value.exit_code == 3


def test_the_fake_has_only_what_cuda_python_has():
    real = pytest.importorskip("cuda.bindings.runtime")
    names = [name for name in dir(FakeCudart) if name.startswith("cuda")]
    assert [name for name in names if not hasattr(real, name)] == []
    for enumeration in ("cudaError_t", "cudaMemcpyKind"):
        for member in getattr(FakeCudart, enumeration):
            assert int(getattr(getattr(real, enumeration), member.name)) == member.value
    assert real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    assert real.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor == 75
    assert real.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor == 76


def test_real_bindings_without_a_driver_say_so_in_one_line():
    pytest.importorskip("cuda.bindings.runtime")
    code = (
        "from uino_deploy.runtime.cuda_memory import Device\n"
        "from uino_deploy.errors import DependencyError\n"
        "try:\n    Device()\nexcept DependencyError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) <= 1


@pytest.mark.parametrize("shape", [(3, 2, 5), (1, 4), (2, 1000)])
def test_rows_are_copied_inside_the_device_and_aligned(cudart, shape):
    array = numbers(*shape)
    there = Device().upload(array)
    before = cudart.calls.count("cudaStreamSynchronize")
    rows = there.rows()
    assert cudart.calls.count("cudaStreamSynchronize") == before
    del there
    for index, row in enumerate(rows):
        assert row.address % ALIGNMENT == 0
        np.testing.assert_array_equal(row.to_host(), array[index : index + 1])
