"""Claims about the operators: the references agree, and the compiled kernels match them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from uino_deploy.dependencies import is_importable
from uino_deploy.errors import BuildError
from uino_deploy.kernels import native
from uino_deploy.kernels.compiler.build import PLUGIN_SHARED_BYTES
from uino_deploy.kernels.compiler.targets import DTYPES
from uino_deploy.kernels.plugins.library import OPERATORS, Launch, Library
from uino_deploy.kernels.plugins.operator import Operator
from uino_deploy.selftest.cases import (
    Array,
    Case,
    cases_of,
    in_torch,
    listed,
    ragged_cases,
    wide,
)
from uino_deploy.selftest.findings import CannotCheck, Claim, Measured
from uino_deploy.selftest.setting import Setting
from uino_deploy.tolerances import OPERATOR, relative_l2

Run = Callable[[Launch, list[Array], list[Array]], list[Array]]
Exact = Callable[[Case, Mapping[str, Array]], list[Array]]

# The architecture whose PTX is executed on the CPU: Jetson Orin's.
EXECUTED = "sm_87"


def claims(setting: Setting) -> list[Claim]:
    """Return the claims that need no GPU."""
    references = [
        Claim(
            f"{operator.name} in numpy matches PyTorch",
            "two implementations of one formula on the same random inputs, float64",
            partial(_against_torch, setting, operator),
        )
        for operator in OPERATORS.values()
    ]
    executed = [
        Claim(
            f"{operator.name}'s {EXECUTED} kernel computes it",
            "the compiled PTX, executed instruction by instruction as TensorRT launches a plugin, "
            "against float64 numpy",
            partial(_executed, setting, operator),
        )
        for operator in OPERATORS.values()
    ]
    native_forms = [
        Claim(
            f"{name}'s native form computes it",
            "the library that PyTorch, ONNX Runtime and OpenVINO call on this processor, against "
            "float64 numpy",
            partial(_native, setting, OPERATORS[name]),
        )
        for name in ("Correlation4d", "SelectiveScan2d")
    ]
    return [*references, *native_forms, *executed]


def _native(setting: Setting, operator: Operator) -> Iterator[Measured]:
    library = native.load()
    if not isinstance(library, native.Native):
        raise CannotCheck(f"no native operators: {library}")
    for case in cases_of(operator, ragged_cases([setting.config()])):
        for dtype in native.TYPES:
            arrays = case.arrays(dtype)
            (wanted,) = case.exact(arrays)
            out = np.empty(wanted.shape, arrays[next(iter(arrays))].dtype)
            operands = [array.ctypes.data for array in (*arrays.values(), out)]
            shapes = [array.shape for array in arrays.values()]
            if operator.name == "Correlation4d":
                height, width, pool = (case.attributes[n] for n in ("height", "width", "pool"))
                library.correlation4d(dtype, operands, shapes, (height, width, pool), 2)
            else:
                library.selective_scan2d(dtype, operands, shapes, 2)
            yield judged([out], [wanted], dtype, case)


def _against_torch(setting: Setting, operator: Operator) -> Iterator[Measured]:
    if not is_importable("torch"):
        raise CannotCheck("torch is not installed")
    import torch

    for case in cases_of(operator, ragged_cases([setting.config()])):
        tensors = [torch.from_numpy(array) for array in case.inputs.values()]
        found = [t.numpy() for t in listed(in_torch(operator)(*tensors, **case.attributes))]
        error = _worst(found, case.exact(case.inputs))
        yield Measured(error, "relative L2", 1e-12, what=case.where)


def _executed(setting: Setting, operator: Operator) -> Iterator[Measured]:
    try:
        library = Library.open(setting.kernels_folder(EXECUTED), EXECUTED)
    except BuildError as error:  # such as kernels for another GPU
        raise CannotCheck(str(error)) from error
    for case in cases_of(operator, ragged_cases([setting.config()])):
        for dtype in DTYPES:
            yield compare(library, case, dtype, execute_ptx)


def compare(
    library: Library, case: Case, dtype: str, run: Run, exact: Exact = Case.exact
) -> Measured:
    """Run a compiled kernel on a case and compare it with the exact result.

    Args:
        library: the compiled kernels.
        case: operator, shapes and inputs.
        dtype: element type.
        run: launches; takes the launch, the inputs in their order, and arrays of the outputs'
            shapes and types, and returns the outputs.
        exact: returns the results in float64.
    """
    launch = library.launch(case.operator, case.attributes, case.shapes, dtype)
    arrays = case.arrays(dtype)
    wanted = exact(case, arrays)
    kind = "uint16" if dtype == "bfloat16" else dtype
    like = [np.empty(result.shape, kind) for result in wanted]
    return judged(run(launch, list(arrays.values()), like), wanted, dtype, case)


def judged(found: list[Array], exact: list[Array], dtype: str, case: Case) -> Measured:
    """Compare results with the exact ones, within the operator's tolerance for its type."""
    what = f"{dtype}, {case.where}"
    bound = OPERATOR[dtype].relative_l2
    return Measured(_worst(found, exact), "relative L2", bound, what=what)


def _worst(found: list[Array], exact: list[Array]) -> float:
    pairs = zip(found, exact, strict=True)
    return max(relative_l2(wide(result), wanted) for result, wanted in pairs)


def execute_ptx(launch: Launch, inputs: list[Array], like: list[Array]) -> list[Array]:
    """Execute a kernel's PTX on the CPU, launched as TensorRT launches an ahead-of-time plugin.

    That is the stripped PTX alone, with the inputs, the int32 arguments and the outputs in this
    order, and with no more shared memory than a launch gets that did not ask for more.

    Raises:
        BuildError: the kernel needs more shared memory.
        ArithmeticError: it left parts of an output unwritten.
    """
    from uino_deploy import ptx

    record = launch.kernel.record
    if record.shared_bytes > PLUGIN_SHARED_BYTES:
        raise BuildError(
            f"{record.name} needs {record.shared_bytes} bytes of shared memory, and a plugin's "
            f"launch gets {PLUGIN_SHARED_BYTES}"
        )
    outputs = [ptx.poisoned(each.shape, each.dtype) for each in like]
    ptx.launch(
        ptx.parse(launch.kernel.ptx()),
        grid=launch.grid,
        block=launch.threads,
        shared=record.shared_bytes,
        arguments=[*inputs, *launch.scalars, *outputs],
    )
    if not all(out.complete for out in outputs):
        raise ArithmeticError("the kernel left parts of an output unwritten")
    return [out.array for out in outputs]
