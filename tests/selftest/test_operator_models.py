"""Each operator alone in an ONNX file: the portable function, in every runtime that is here."""

from itertools import cycle

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.selftest.faults import faults_of
from uino_deploy.config import PRESETS
from uino_deploy.export.engine_job import Job
from uino_deploy.export.engines import build_in, builder
from uino_deploy.export.graph_reader import read_graph
from uino_deploy.export.onnx_writer import check_model
from uino_deploy.export.operator_models import operator_model
from uino_deploy.kernels.compiler.targets import DTYPES
from uino_deploy.kernels.plugins.names import PLUGIN
from uino_deploy.runtime import openvino_backend
from uino_deploy.selftest.cases import EPILOGUE, MLP, PROLOGUE, ragged_cases
from uino_deploy.selftest.operator_engines import feeds_of
from uino_deploy.selftest.operators import judged

CASES = ragged_cases(PRESETS.values())
AROUND_SCANS = (PROLOGUE, EPILOGUE, MLP)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.where)
every_type = pytest.mark.parametrize("dtype", DTYPES)


def write(folder, case, dtype):
    path = folder / "one.onnx"
    onnx.save(operator_model(case.operator, case.attributes, case.shapes, dtype), path)
    return path


def test_the_cases_are_every_tiling_that_presets_use():
    tilings = [case.operator.configurations(case.attributes, case.shapes)[0] for case in CASES]
    assert sorted(tilings) == sorted(
        [
            *("p2", "p3"),
            *("parallel-d16n4r2p16", "parallel-d16n4r2p16", "parallel-d16n4r4p16"),
            *("serial-d16n4r2p16", "serial-d32n4r2p16", "serial-d64n4r4p16"),
            *(
                f"{plane}-d{width}{packed}"
                for plane in ("query", "support")
                for width in (16, 32, 64)
                for packed in ("", "p16")
            ),
            *("d16f32", "d32f64", "d64f128"),
        ]
    )


@every_type
@every_case
def test_the_node_is_the_exporters(tmp_path, case, dtype):
    path = write(tmp_path, case, dtype)
    check_model(path)
    summary = read_graph(path)
    (call,) = summary.calls
    more = {"channels": case.shapes["volume"][-1]} if case.operator is PROLOGUE else {}
    assert call.attributes == {**case.attributes, **more, **PLUGIN}
    assert summary.functions == {case.operator.name}
    assert not summary.doubles


def in_onnxruntime(path, feeds):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def in_openvino(path, feeds):
    openvino = pytest.importorskip("openvino")
    model = openvino_backend._read(path, {name: array.shape for name, array in feeds.items()})
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return list(openvino.Core().compile_model(model, "CPU", options)(feeds).values())


@pytest.mark.parametrize("run", [in_onnxruntime, in_openvino], ids=["onnxruntime", "openvino"])
@every_type
@every_case
def test_it_computes_the_operator_and_a_fault_is_found(tmp_path, case, dtype, run):
    if run is in_onnxruntime and dtype == "bfloat16" and case.operator in AROUND_SCANS:
        pytest.skip("ONNX Runtime has no product of bfloat16 on a CPU")
    arrays = case.arrays(dtype)
    exact = case.exact(arrays)
    found = [np.array(out) for out in run(write(tmp_path, case, dtype), feeds_of(arrays))]
    assert judged(found, exact, dtype, case).holds
    for fault in faults_of(case):
        spoiled = [fault(found[0]), *found[1:]]
        assert not judged(spoiled, exact, dtype, case).holds, fault.__name__


def test_tensorrt_rtx_builds_each_tiling(tmp_path):
    """Its builder needs no GPU. One process for all, as the self-test builds them."""
    pytest.importorskip("tensorrt_rtx")
    with builder() as child:
        for case, dtype in zip(CASES, cycle(DTYPES), strict=False):
            plan = tmp_path / "one.plan"
            job = Job(
                backend="tensorrt-rtx",
                onnx=str(write(tmp_path, case, dtype)),
                plan=str(plan),
                arch="sm_89",
                shapes={},
            )
            outcome = build_in(child, job)
            assert plan.stat().st_size
            assert (outcome.plugins, outcome.route) == ([], "function")
            plan.unlink()
