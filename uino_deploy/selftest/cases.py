"""The operators at concrete shapes: seeded inputs, and the exact result in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from uino_deploy.config import UinoConfig
from uino_deploy.dependencies import is_importable
from uino_deploy.kernels.compiler.shapes import (
    CorrelationShape,
    ScanShape,
    VolumeShape,
    correlation_shape,
    packed_width,
    scan_shapes,
    volume_shapes,
)
from uino_deploy.kernels.correlation.reference import correlation4d
from uino_deploy.kernels.epilogue.reference import scan_epilogue
from uino_deploy.kernels.mlp.reference import norm_mlp
from uino_deploy.kernels.plugins.expressions import Numbers, evaluate
from uino_deploy.kernels.plugins.library import OPERATORS
from uino_deploy.kernels.plugins.operator import Operator
from uino_deploy.kernels.plugins.volumes import PLANES
from uino_deploy.kernels.plugins.volumes import planes as planes_of
from uino_deploy.kernels.prologue.reference import scan_prologue
from uino_deploy.kernels.selective_scan.reference import selective_scan2d
from uino_deploy.ptx.floats import round_bf16, widen_bf16
from uino_deploy.selftest.findings import CannotCheck

Array = npt.NDArray[Any]
Shapes = dict[str, tuple[int, ...]]

CORRELATION, PROLOGUE, SCAN, EPILOGUE, MLP = OPERATORS.values()
_REFERENCES: dict[str, Callable[..., Any]] = {
    CORRELATION.name: correlation4d,
    PROLOGUE.name: scan_prologue,
    SCAN.name: selective_scan2d,
    EPILOGUE.name: scan_epilogue,
    MLP.name: norm_mlp,
}

# Two images, two shots, a rest in every tile: of queries, of windows, of channels.
_RAGGED = {"batch": 2, "shots": 2, "layers": 2, "n_query": 140, "channels": 80}
_RAGGED_GRID = {"height": 11, "width": 13}
# Both images' and shots' planes in one call: a few long scans, which run in parallel segments with
# a rest, and more short ones than the rows of a serial block.
_PLANES = {"parallel": (4, 13, 20), "serial": (20, 2, 5)}
# Two images' and shots' volumes: S, and the sides of the query's plane and of the support's.
_CELLS = (4, 5, 7, 3, 2)


class Case:
    """An operator at one set of shapes, with random inputs and the exact result for each type."""

    def __init__(
        self, operator: Operator, attributes: Mapping[str, int], shapes: Shapes, where: str
    ) -> None:
        self.operator = operator
        self.attributes = dict(attributes)
        self.shapes = shapes
        self.where = where
        random = np.random.default_rng(7)
        self.inputs = {name: random.normal(size=shape) for name, shape in shapes.items()}
        if "a" in self.inputs:  # decays, and steps small enough for a state to outlive a chunk
            self.inputs["a"] = -np.abs(4 * self.inputs["a"])
            self.inputs["dt_bias"] -= 3

    def arrays(self, dtype: str) -> dict[str, Array]:
        """Return the inputs in the types that the operator takes for an element type."""
        types = self.operator.types(dtype)
        named = zip(self.operator.inputs, types, strict=False)
        return {tensor.name: narrow(self.inputs[tensor.name], kind) for tensor, kind in named}

    def exact(self, arrays: Mapping[str, Array]) -> list[Array]:
        """Return the results in float64, by numpy, for inputs that were rounded to their types."""
        wide_inputs = {name: wide(array) for name, array in arrays.items()}
        return listed(_REFERENCES[self.operator.name](**wide_inputs, **self.attributes))


def listed(results: Any) -> list[Any]:
    """Return an operator's one result, or its several ones, as a list."""
    return list(results) if isinstance(results, tuple) else [results]


def exact_on_gpu(case: Case, arrays: Mapping[str, Array]) -> list[Array]:
    """Return what `Case.exact` returns, by PyTorch on the GPU where it can: numpy takes minutes."""
    device = _torch_device()
    if device is None:
        return case.exact(arrays)
    import torch

    # Each input by its position: PyTorch and numpy write some names in different cases.
    tensors = [torch.from_numpy(wide(array)).to(device) for array in arrays.values()]
    results = listed(in_torch(case.operator)(*tensors, **case.attributes))
    return [result.cpu().numpy() for result in results]


@cache
def _torch_device() -> str | None:
    """Return PyTorch's GPU; None where torch is not installed or has none."""
    if not is_importable("torch"):
        return None
    import torch

    return "cuda" if torch.cuda.is_available() else None


def in_torch(operator: Operator) -> Callable[..., Any]:
    """Return the operator's definition in PyTorch, which computes in float64 on float64."""
    room = _REFERENCES[operator.name].__module__.removesuffix(".reference")
    definition: Callable[..., Any] = getattr(import_module(f"{room}.naive"), operator.kernel)
    return definition


def narrow(values: Array, dtype: str) -> Array:
    """Round to a type; bfloat16 comes as the uint16 that holds its bits."""
    if dtype == "bfloat16":
        return round_bf16(values.astype(np.float32))
    return values.astype(dtype)


def wide(array: Array) -> Array:
    """Return float64."""
    return (widen_bf16(array) if array.dtype == np.uint16 else array).astype(np.float64)


def ragged_cases(configs: Iterable[UinoConfig]) -> list[Case]:
    """Return small cases for every tiling that models use, with two images and two shots.

    They are each pool of the correlation, both tilings of each width of the scan, and each width of
    the operators around it, over both planes.
    """
    cases: dict[str, Case] = {}
    for config in configs:
        if config.prompt.hypercorrelation == "none":
            continue
        pool = config.prompt.pool
        shape = CorrelationShape(**_RAGGED, **_RAGGED_GRID, pool=pool)
        cases.setdefault(f"p{pool}", _correlation(shape, f"p{pool}, B=2, K=2, 11 x 13 cells"))
        for scan in scan_shapes(config):
            for tiling, plane in _PLANES.items():
                sizes = zip(("sequences", "height", "width"), plane, strict=True)
                small = replace(scan, **dict(sizes))
                where = f"{tiling}, {' x '.join(map(str, plane))} x {scan.channels}"
                cases.setdefault(where, _scan(small, where))
        for around in volume_shapes(config):
            case = _around_a_scan(around, _CELLS)
            cases.setdefault(f"{case.operator.name}, {case.where}", case)
    return list(cases.values())


def model_cases(config: UinoConfig) -> list[Case]:
    """Return the operators at the model's own shapes."""
    if config.prompt.hypercorrelation == "none":
        return []
    cases = [_correlation(correlation_shape(config), "the model's shape")]
    for shape in dict.fromkeys(scan_shapes(config)):
        where = f"{shape.sequences} x {shape.height} x {shape.width} x {shape.channels}"
        cases.append(_scan(shape, where))
    for around in volume_shapes(config):
        cells = (around.shots, around.query, around.query, around.support, around.support)
        cases.append(_around_a_scan(around, cells))
    return cases


def cases_of(operator: Operator, cases: Sequence[Case]) -> list[Case]:
    """Return an operator's cases.

    Raises:
        CannotCheck: there is none.
    """
    found = [case for case in cases if case.operator is operator]
    if not found:
        raise CannotCheck("this model's variant has no such operator")
    return found


def _correlation(s: CorrelationShape, where: str) -> Case:
    cells = s.height * s.width
    shapes = {
        "query": (s.batch, s.layers, s.n_query, s.channels),
        "support": (s.batch, s.shots, s.layers, cells, s.channels),
        "weight": (s.batch, s.shots, cells),
    }
    grid = {"height": s.height, "width": s.width, "pool": s.pool}
    return Case(CORRELATION, grid, shapes, where)


def _scan(shape: ScanShape, where: str) -> Case:
    plane = (shape.sequences, shape.height, shape.width)
    d, n, r = shape.channels, shape.states, shape.rank
    shapes = {
        "x": (*plane, d),
        # The padding holds noise here, which no form may read.
        "packed": (*plane, 4, packed_width(r, n)),
        "dt_weight": (4, d, r),
        "dt_bias": (4, d),
        "a": (4, d, n),
        "skip": (4, d),
    }
    return Case(SCAN, {}, shapes, where)


def _around_a_scan(shape: VolumeShape, cells: Sequence[int]) -> Case:
    """Return the case of a prologue, an epilogue or an MLP over a volume of these cells."""
    d, width, size = shape.channels, shape.width, (*cells, shape.channels)
    volume = {"volume": size, "norm_weight": (d,), "norm_bias": (d,)}
    where = " x ".join(map(str, size))
    if shape.op == MLP.kernel:
        layers = {"weight1": (width, d), "bias1": (width,), "weight2": (d, width), "bias2": (d,)}
        return Case(MLP, {}, volume | layers, where)
    attributes, where = {"plane": shape.plane}, f"{PLANES[shape.plane]} plane, {where}"
    if shape.op == PROLOGUE.kernel:
        weights = {"in_weight": (d, d), "conv_weight": (d, 3, 3), "conv_bias": (d,)}
        weights |= {"projection": (4, width, d)}
        return Case(PROLOGUE, attributes, volume | weights, where)
    planes = tuple(evaluate(e, Numbers(volume)) for e in planes_of(attributes))
    weights = {"gate_weight": (d, d), "out_norm_weight": (d,), "out_norm_bias": (d,)}
    weights |= {"projection": (d, d)}
    return Case(EPILOGUE, attributes, {"y": (*planes, d)} | volume | weights, where)
