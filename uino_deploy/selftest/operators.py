"""Claims about the two operators: the references agree, and the compiled kernels match them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from uino_deploy.config import UinoConfig
from uino_deploy.dependencies import is_importable
from uino_deploy.errors import BuildError
from uino_deploy.kernels.compiler.shapes import ScanShape, correlation_shape, scan_shapes
from uino_deploy.kernels.correlation.reference import correlation4d
from uino_deploy.kernels.plugins.library import OPERATORS, Launch, Library
from uino_deploy.kernels.plugins.operator import Operator
from uino_deploy.kernels.selective_scan.reference import selective_scan2d
from uino_deploy.ptx.floats import round_bf16, widen_bf16
from uino_deploy.selftest.findings import CannotCheck, Claim, Measured
from uino_deploy.selftest.setting import Setting
from uino_deploy.tolerances import OPERATOR

Array = npt.NDArray[Any]
Shapes = dict[str, tuple[int, ...]]
Run = Callable[[Launch, list[Array], Array], Array]

CORRELATION, SCAN = OPERATORS["Correlation4d"], OPERATORS["SelectiveScan2d"]
_REFERENCES: dict[str, Callable[..., Array]] = {
    CORRELATION.name: correlation4d,
    SCAN.name: selective_scan2d,
}
DTYPES = ("float32", "float16", "bfloat16")
# The architecture whose PTX is executed on the CPU: Jetson Orin.
EXECUTED = "sm_87"


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
        if "a" in self.inputs:  # decays
            self.inputs["a"] = -np.abs(4 * self.inputs["a"])

    def arrays(self, dtype: str) -> dict[str, Array]:
        """Return the inputs in the operator's types for an element type."""
        types = self.operator.types(dtype)
        named = zip(self.operator.inputs, types, strict=False)
        return {tensor.name: narrow(self.inputs[tensor.name], kind) for tensor, kind in named}

    def exact(self, arrays: Mapping[str, Array]) -> Array:
        """Return the result in float64 for inputs that were rounded to their types."""
        wide_inputs = {name: wide(array) for name, array in arrays.items()}
        return _REFERENCES[self.operator.name](**wide_inputs, **self.attributes)


def narrow(values: Array, dtype: str) -> Array:
    """Round to a type; bfloat16 is returned as its bits in uint16."""
    if dtype == "bfloat16":
        return round_bf16(values.astype(np.float32))
    return values.astype(dtype)


def wide(array: Array) -> Array:
    """Return float64."""
    return (widen_bf16(array) if array.dtype == np.uint16 else array).astype(np.float64)


def relative_l2(found: Array, exact: Array) -> float:
    """Return |found - exact| / |exact|; NaN if `found` contains NaN."""
    return float(np.linalg.norm(wide(found) - exact) / np.linalg.norm(exact))


def small_cases(config: UinoConfig) -> list[Case]:
    """Return cases that take a CPU a second: ragged planes, several shots, both scans."""
    cases = []
    if config.prompt.hypercorrelation != "none":
        grid = {"height": 5, "width": 7, "pool": config.prompt.pool}
        cases.append(_correlation(grid, (2, 2, 2, 33, 48), "5 x 7 cells, 2 shots"))
        for shape in scan_shapes(config)[::2][:1]:
            for sequences, height, width in ((1, 9, 8), (19, 2, 5)):
                small = ScanShape(
                    sequences, height, width, shape.channels, shape.states, shape.rank
                )
                cases.append(_scan(small, f"{sequences} x {height} x {width}"))
    return cases


def model_cases(config: UinoConfig) -> list[Case]:
    """Return the operators at the model's own shapes."""
    if config.prompt.hypercorrelation == "none":
        return []
    s = correlation_shape(config)
    grid = {"height": s.height, "width": s.width, "pool": s.pool}
    sizes = (s.batch, s.shots, s.layers, s.n_query, s.channels)
    cases = [_correlation(grid, sizes, "the model's shape")]
    for shape in dict.fromkeys(scan_shapes(config)):
        where = f"{shape.sequences} x {shape.height} x {shape.width} x {shape.channels}"
        cases.append(_scan(shape, where))
    return cases


def _correlation(
    grid: Mapping[str, int], sizes: tuple[int, int, int, int, int], where: str
) -> Case:
    batch, shots, layers, n_query, channels = sizes
    cells = grid["height"] * grid["width"]
    shapes = {
        "query": (batch, layers, n_query, channels),
        "support": (batch, shots, layers, cells, channels),
        "weight": (batch, shots, cells),
    }
    return Case(CORRELATION, grid, shapes, where)


def _scan(shape: ScanShape, where: str) -> Case:
    plane = (shape.sequences, shape.height, shape.width)
    d, n, r = shape.channels, shape.states, shape.rank
    shapes = {
        "x": (*plane, d),
        "dt": (*plane, 4, r),
        "b": (*plane, 4, n),
        "c": (*plane, 4, n),
        "dt_weight": (4, d, r),
        "dt_bias": (4, d),
        "a": (4, d, n),
        "skip": (4, d),
    }
    return Case(SCAN, {}, shapes, where)


def claims(setting: Setting) -> list[Claim]:
    """Return the claims that need no GPU."""
    kernels = "the compiled PTX, executed instruction by instruction, against float64 numpy"
    return [
        Claim(
            f"{operator.name} in numpy matches PyTorch",
            "two implementations of one formula on the same random inputs, float64",
            partial(_against_torch, setting, operator),
        )
        for operator in (CORRELATION, SCAN)
    ] + [
        Claim(
            f"{operator.name}'s {EXECUTED} kernel is correct",
            kernels,
            partial(_executed, setting, operator),
        )
        for operator in (CORRELATION, SCAN)
    ]


def cases_of(operator: Operator, cases: Sequence[Case]) -> list[Case]:
    """Return an operator's cases.

    Raises:
        CannotCheck: the model has no such operator.
    """
    own = [case for case in cases if case.operator is operator]
    if not own:
        raise CannotCheck("this model's variant has no such operator")
    return own


def _against_torch(setting: Setting, operator: Operator) -> Iterator[Measured]:
    if not is_importable("torch"):
        raise CannotCheck("torch is not installed")
    import torch

    from uino_deploy.kernels.correlation import naive as correlation
    from uino_deploy.kernels.selective_scan import naive as scan

    functions: dict[str, Callable[..., Any]] = {
        CORRELATION.name: correlation.correlation4d,
        SCAN.name: scan.selective_scan2d,
    }
    for case in cases_of(operator, small_cases(setting.config())):
        tensors = [torch.from_numpy(array) for array in case.inputs.values()]
        result = functions[operator.name](*tensors, **case.attributes).numpy()
        error = relative_l2(result, case.exact(case.inputs))
        yield Measured(error, "relative L2", 1e-12, what=case.where)


def _executed(setting: Setting, operator: Operator) -> Iterator[Measured]:
    try:
        library = Library.open(setting.kernels_folder(EXECUTED), EXECUTED)
    except BuildError as error:  # such as kernels for another GPU
        raise CannotCheck(str(error)) from error
    for case in cases_of(operator, small_cases(setting.config())):
        for dtype in DTYPES:
            yield compare(library, case, dtype, execute_ptx)


def compare(library: Library, case: Case, dtype: str, run: Run) -> Measured:
    """Run a compiled kernel on a case and compare it with the exact result.

    Args:
        library: the compiled kernels.
        case: operator, shapes and inputs.
        dtype: element type.
        run: runs a launch; takes the launch, the inputs in their order, and an array of the
            output's shape and type, and returns the output.
    """
    launch = library.launch(case.operator, case.attributes, case.shapes, dtype)
    arrays = case.arrays(dtype)
    exact = case.exact(arrays)
    like = np.empty(exact.shape, "uint16" if dtype == "bfloat16" else dtype)
    return judged(run(launch, list(arrays.values()), like), exact, dtype, case)


def judged(found: Array, exact: Array, dtype: str, case: Case) -> Measured:
    """Compare a result with the exact one, within the operator's tolerance for its type."""
    error = relative_l2(found, exact)
    what = f"{dtype}, {case.where}"
    return Measured(error, "relative L2", OPERATOR[dtype].relative_l2, what=what)


def execute_ptx(launch: Launch, inputs: list[Array], like: Array) -> Array:
    """Execute a kernel's PTX on the CPU."""
    from uino_deploy import ptx

    out = ptx.poisoned(like.shape, like.dtype)
    ptx.launch(
        ptx.parse(launch.kernel.ptx()),
        grid=launch.grid,
        block=launch.threads,
        shared=launch.kernel.record.shared_bytes,
        arguments=[*inputs, *launch.scalars, out],
    )
    if not out.complete:
        raise ArithmeticError("the kernel left parts of its output unwritten")
    written: Array = out.array
    return written
