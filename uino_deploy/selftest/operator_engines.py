"""Claims that an engine of one operator alone computes it: as the plugin, and as its function.

A model hides its operators: normalisations behind them swallow a factor, a sum over directions
their order. Here nothing stands behind them but a cast.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from uino_deploy.bundle import Edge, Piece
from uino_deploy.bundle.manifest import Precision
from uino_deploy.bundle.plans import EngineBackend
from uino_deploy.child import Child
from uino_deploy.dependencies import is_importable
from uino_deploy.errors import CheckFailed
from uino_deploy.export.audit import check_plugins
from uino_deploy.export.engine_job import Job
from uino_deploy.export.engines import RTX_ARCHITECTURES, build_in, builder
from uino_deploy.export.graph_reader import read_graph
from uino_deploy.kernels.compiler.targets import capability_of, dtypes_of
from uino_deploy.kernels.plugins import register_plugins
from uino_deploy.kernels.plugins.library import OPERATORS
from uino_deploy.kernels.plugins.operator import Operator
from uino_deploy.runtime.tensorrt_backend import TensorRtBackend
from uino_deploy.selftest.cases import (
    Array,
    Case,
    cases_of,
    exact_on_gpu,
    ragged_cases,
    wide,
)
from uino_deploy.selftest.findings import CannotCheck, Claim, Measured
from uino_deploy.selftest.operators import judged
from uino_deploy.selftest.setting import Setting

Form = Literal["plugin", "function"]

_PRECISIONS: dict[str, Precision] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def claims(setting: Setting, backend: EngineBackend) -> list[Claim]:
    """Return the claims about the operators in a library's engines; TensorRT-RTX has no plugins."""
    forms: tuple[Form, ...] = ("plugin", "function") if backend == "tensorrt" else ("function",)
    return [
        Claim(
            f"{operator.name}'s {form}, alone in an engine, computes it",
            "one-node networks of every type and tiling, two images and two shots, ragged, built "
            "now; the plugin layer counted in the parsed network; against float64",
            partial(_in_engines, setting, backend, operator, form),
        )
        for operator in OPERATORS.values()
        for form in forms
    ]


def _in_engines(
    setting: Setting, backend: EngineBackend, operator: Operator, form: Form
) -> Iterator[Measured]:
    if not is_importable("onnx"):
        raise CannotCheck("onnx is not installed: pip install onnx")
    if backend == "tensorrt-rtx" and setting.architecture not in RTX_ARCHITECTURES:
        raise CannotCheck(f"TensorRT-RTX does not build for {setting.architecture}")
    runner = TensorRtBackend(backend)
    kernels = setting.kernels_folder(setting.architecture) if form == "plugin" else None
    folder = Path(setting.scratch, f"{backend}-{operator.kernel}-{form}")
    folder.mkdir()
    # One process for all: they are many, and a second each to start. It registers plugins for this
    # form only, so that the other's nodes find none.
    with builder() as child:
        for case in cases_of(operator, ragged_cases(setting.configs())):
            for dtype in dtypes_of(capability_of(setting.architecture)):
                job = _job(setting, backend, case, dtype, folder, kernels)
                yield _measured(child, runner, job, case, dtype)


def _job(
    setting: Setting,
    backend: EngineBackend,
    case: Case,
    dtype: str,
    folder: Path,
    kernels: Path | None,
) -> Job:
    """Write the model; return the job that builds it, as a plugin where kernels are given."""
    import onnx

    from uino_deploy.export.operator_models import operator_model

    path = folder / f"{case.where.replace(' ', '')}-{dtype}.onnx"
    onnx.save(operator_model(case.operator, case.attributes, case.shapes, dtype), path)
    return Job(
        backend=backend,
        onnx=str(path),
        plan=str(path.with_suffix(".plan")),
        arch=setting.architecture,
        shapes={},
        plugins=kernels is not None,
        kernels=None if kernels is None else str(kernels),
    )


def _measured(child: Child, runner: TensorRtBackend, job: Job, case: Case, dtype: str) -> Measured:
    """Build an engine, run it on the case, and hold it to the operator's own tolerance.

    Raises:
        CheckFailed: the parsed network has no plugin layer where it should, or one where not.
    """
    outcome = build_in(child, job)
    piece = described(case, dtype, job.onnx)
    if job.plugins:
        check_plugins(piece, read_graph(Path(job.onnx)).calls, outcome.plugins)
    elif outcome.plugins:
        raise CheckFailed(f"{piece.name}: {', '.join(outcome.plugins)} became a plugin")
    if outcome.route == "ipluginv3":  # the engine takes its kernel from this process's registry
        register_plugins(job.arch, Path(str(job.kernels)), "ipluginv3")
    session = runner.load_plan_file(Path(job.plan), piece, {}, "run this self-test again")
    arrays = case.arrays(dtype)
    found = session.run(feeds_of(arrays))
    results = [found[tensor.name] for tensor in case.operator.outputs]
    return judged(results, exact_on_gpu(case, arrays), dtype, case)


def described(case: Case, dtype: str, model: str) -> Piece:
    """Describe a one-node model as the runtime describes a piece; its tensors are float32."""
    sizes = case.operator.sizes(case.attributes, case.shapes)
    return Piece(
        name=f"{case.operator.kernel} ({case.where}, {dtype})",
        model=model,
        precision=_PRECISIONS[dtype],
        inputs=[
            Edge(name=name, shape=list(shape), dtype="float32")
            for name, shape in case.shapes.items()
        ],
        outputs=[
            Edge(name=tensor.name, shape=list(size), dtype="float32")
            for tensor, size in zip(case.operator.outputs, sizes, strict=True)
        ],
    )


def feeds_of(arrays: dict[str, Array]) -> dict[str, Array]:
    """Return inputs in float32, as the one-node models take them: they were rounded before."""
    return {name: wide(array).astype(np.float32) for name, array in arrays.items()}
