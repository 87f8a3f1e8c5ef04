"""Folders of kernels as `kernels build` writes them, with invented code."""

import hashlib
import json
from dataclasses import asdict

from uino_deploy.kernels.compiler.shapes import packed_width
from uino_deploy.kernels.plugins.library import OPERATORS

CORRELATION, PROLOGUE, SCAN, EPILOGUE, MLP = OPERATORS.values()

_TILE = {"BLOCK_Q": 128, "BLOCK_S": 128}
CONFIGS = [
    (CORRELATION, "p2", _TILE, 256),
    (CORRELATION, "p3", _TILE, 256),
    (SCAN, "serial-d32n4r2p16", {"PARALLEL": False, "ROWS": 4, "BLOCK_D": 32}, 128),
    (SCAN, "parallel-d16n4r2p16", {"PARALLEL": True, "ROWS": 32, "BLOCK_D": 16}, 256),
    (SCAN, "serial-d64n4r4p16", {"PARALLEL": False, "ROWS": 4, "BLOCK_D": 64}, 256),
    (PROLOGUE, "query-d32p16", {"CELLS": 64}, 128),
    (PROLOGUE, "support-d32p16", {"CELLS": 64}, 128),
    (EPILOGUE, "query-d32", {"CELLS": 64}, 128),
    (MLP, "d32f64", {"CELLS": 64}, 128),
]


def record(operator, config, constants, threads, dtype, arch):
    """Return the JSON of one kernel, and its files."""
    name = f"{operator.kernel}-{config}-{dtype}-{arch}"
    ptx, cubin = f"// {name}", f"cubin of {name}".encode()
    return {
        "name": name,
        "op": operator.kernel,
        "config": config,
        "arch": arch,
        "dtype": dtype,
        "entry": f"{operator.kernel}_kernel",
        "shared_bytes": 49152,
        "registers": 100,
        "parameters": [asdict(p) for p in operator.parameters(dtype)],
        "constants": constants,
        "block": [threads, 1, 1],
        "plugin": True,
        "ptx_sha256": hashlib.sha256(ptx.encode()).hexdigest(),
        "cubin_sha256": hashlib.sha256(cubin).hexdigest(),
    }


def write_folder(folder, arch="sm_87", dtypes=("float16", "float32"), change=lambda _record: None):
    """Write a folder; `change` may alter each record before it is written."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [record(*config, dtype, arch) for config in CONFIGS for dtype in dtypes]
    for one in records:
        change(one)
        name = one["name"]
        (folder / f"{name}.json").write_text(json.dumps(one))
        (folder / f"{name}.ptx").write_text(f"// {name}")
        (folder / f"{name}.cubin").write_bytes(f"cubin of {name}".encode())
    names = {"kernels": sorted(one["name"] for one in records)}
    (folder / "kernels.json").write_text(json.dumps(names))
    return folder


def correlation_shapes(batch=1, shots=1, layers=6, tokens=49, channels=64, grid=(7, 7), sets=None):
    """Return the inputs' shapes of Correlation4d; support and weight have `sets` batches."""
    sets = batch if sets is None else sets
    cells = grid[0] * grid[1]
    return {
        "query": (batch, layers, tokens, channels),
        "support": (sets, shots, layers, cells, channels),
        "weight": (sets, shots, cells),
    }


def scan_shapes(sequences=3, height=4, width=5, channels=32, states=4, rank=2):
    """Return the inputs' shapes of SelectiveScan2d."""
    plane = (sequences, height, width)
    return {
        "x": (*plane, channels),
        "packed": (*plane, 4, packed_width(rank, states)),
        "dt_weight": (4, channels, rank),
        "dt_bias": (4, channels),
        "a": (4, channels, states),
        "skip": (4, channels),
    }


def volume_shapes(operator, plane=0, cells=(2, 3, 5, 4, 2), channels=32, width=16):
    """Return the inputs' shapes of an operator on a volume; `width` is P or F."""
    d, (shots, hq, wq, hs, ws) = channels, cells
    volume = {"volume": (*cells, d), "norm_weight": (d,), "norm_bias": (d,)}
    if operator is MLP:
        layers = {"weight1": (width, d), "bias1": (width,), "weight2": (d, width), "bias2": (d,)}
        return volume | layers
    if operator is PROLOGUE:
        kernels = {"conv_weight": (d, 3, 3), "conv_bias": (d,)}
        return volume | {"in_weight": (d, d)} | kernels | {"projection": (4, width, d)}
    planes = (shots * hs * ws, hq, wq) if plane == 0 else (shots * hq * wq, hs, ws)
    norm = {"out_norm_weight": (d,), "out_norm_bias": (d,)}
    after = {"gate_weight": (d, d)} | norm | {"projection": (d, d)}
    return {"y": (*planes, d)} | volume | after
