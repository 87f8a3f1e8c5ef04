"""Launches a compiled kernel on the PTX executor with torch tensors, arguments by name."""

import numpy as np
import torch

from uino_deploy import ptx

UnsupportedPtx = ptx.UnsupportedPtx


def run(kernel, grid, arguments, outputs):
    """Launch a whole grid; return the outputs as tensors, every element of them written.

    Args:
        kernel: what `compile_variants` returned.
        grid: three ints.
        arguments: tensor, int or None (a null pointer) by parameter name.
        outputs: (shape, dtype) by parameter name.
    """
    made = {
        name: ptx.poisoned(tuple(shape), _NUMPY[dtype]) for name, (shape, dtype) in outputs.items()
    }
    names = [parameter["name"] for parameter in kernel.record["parameters"]]
    given = [made[name] if name in made else _bits(arguments[name]) for name in names]
    program = ptx.parse(kernel.ptx)
    ptx.launch(program, grid, kernel.record["block"][0], kernel.record["shared_bytes"], given)
    for name, out in made.items():
        assert out.complete, f"{kernel.name} leaves a part of {name} unwritten"
    return {name: _tensor(out.array, outputs[name][1]) for name, out in made.items()}


_NUMPY = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.uint16}


def _bits(value):
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().contiguous()
    return (value.view(torch.uint16) if value.dtype == torch.bfloat16 else value).numpy()


def _tensor(array, dtype):
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor
