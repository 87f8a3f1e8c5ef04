"""Compiles, off the card, the kernel variants that are only timed.

A name lists its differences from the shipped kernel: the correlation's tile (q, s, d, warps w,
stages x; `mma` for sm_80's instructions on a newer card), the scan's rows, steps, channels d and
warps w.
These answer what the first run on an H200 left open: which tile is fastest now that every product
is waited for, and whether narrower blocks beat the shipped ones for few long sequences.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from uino_deploy.config import UinoConfig
from uino_deploy.errors import BuildError
from uino_deploy.kernels.compiler.build import PLUGIN_SHARED_BYTES, Compiled, write
from uino_deploy.kernels.compiler.shapes import correlation_shape, packed_width, scan_shapes
from uino_deploy.kernels.compiler.targets import Target, target
from uino_deploy.kernels.compiler.variants import (
    Variant,
    correlation_variant,
    scan_tiling,
    scan_variant,
)
from uino_deploy.kernels.compiler.worker import compile_variant
from uino_deploy.kernels.correlation.triton_kernel import Tile, tile_for

PRESET, DTYPE = "vitb14", "float16"
TILES = (
    (128, 128, 32, 8, 3), (128, 128, 64, 8, 3), (128, 256, 32, 8, 3), (64, 128, 32, 4, 4),
    (64, 128, 64, 4, 3), (64, 64, 64, 4, 4), (256, 128, 32, 8, 3),
)  # fmt: skip
MMA_TILES = ((128, 128, 16, 8, 7), (128, 128, 32, 8, 3), (64, 128, 32, 4, 4))
# Rows, steps, channels of a block, warps.
PARALLEL = (
    (8, 8, 16, 2), (8, 4, 16, 2), (8, 8, 16, 1), (16, 4, 16, 2), (16, 4, 16, 4), (16, 8, 16, 4),
    (16, 4, 32, 8), (16, 8, 32, 8), (32, 4, 16, 4), (8, 8, 32, 2),
)  # fmt: skip
SERIAL = (
    (8, 4, 32, 2), (8, 4, 32, 1), (4, 4, 32, 1), (16, 4, 32, 2), (16, 2, 32, 4), (8, 2, 32, 2),
    (16, 4, 16, 2), (8, 4, 16, 1),
)  # fmt: skip


def correlations(aim: Target) -> Iterator[tuple[Variant, Target]]:
    """Yield the correlation's other tiles, for the card's instructions and for sm_80's."""
    shape = correlation_shape(UinoConfig.from_preset(PRESET))
    settle = tile_for(2, aim.capability).settle
    older = target("sm_80", aim.cuda)
    wanted = [(Tile(*sizes, settle=settle), aim, "") for sizes in TILES]
    wanted += [(Tile(*sizes), older, "mma-") for sizes in MMA_TILES if aim.capability > 80]
    for tile, built_for, note in wanted:
        base = correlation_variant(shape, DTYPE, built_for.capability)
        name = f"q{tile.block_q}s{tile.block_s}d{tile.block_d}w{tile.warps}x{tile.stages}"
        constants, config = tile.constants(shape.pool), f"{base.config}-{note}{name}"
        yield (
            replace(base, config=config, constants=constants, warps=tile.warps, stages=tile.stages),
            built_for,
        )


def scans(aim: Target) -> Iterator[tuple[Variant, Target]]:
    """Yield the scans' other blocks: rows, steps, channels, warps."""
    for shape in dict.fromkeys(scan_shapes(UinoConfig.from_preset(PRESET))):
        base, tiling = scan_variant(shape, DTYPE), scan_tiling(shape)
        for rows, steps, channels, warps in PARALLEL if tiling.parallel else SERIAL:
            if channels <= shape.channels:
                other = replace(tiling, rows=rows, steps=steps, block_d=channels, warps=warps)
                config = f"{base.config}-r{rows}s{steps}d{channels}w{warps}"
                sizes = (shape.states, shape.rank, packed_width(shape.rank, shape.states))
                constants = other.constants(*sizes)
                yield replace(base, config=config, constants=constants, warps=warps), aim


def compile_all(aim: Target, folder: Path) -> None:
    """Compile every variant for one architecture; a tile that does not fit is a result as well."""
    done = []
    for variant, built_for in [*correlations(aim), *scans(aim)]:
        try:
            made = compile_variant(variant, built_for)
        except BuildError as error:
            print(f"{variant.name}: not compiled: {error}")
            continue
        ptx, cubin = made.pop("ptx"), base64.b64decode(made.pop("cubin"))
        name = f"{variant.name}-{aim.arch}"
        record = {"name": name, "op": variant.op, "config": variant.config, "arch": aim.arch}
        record |= {"dtype": variant.dtype, **made, "constants": variant.constants}
        record |= {"parameters": [asdict(p) for p in variant.parameters]}
        record |= {"block": [32 * variant.warps, 1, 1]}
        record |= {"plugin": made["shared_bytes"] <= PLUGIN_SHARED_BYTES}
        record |= {"ptx_sha256": hashlib.sha256(ptx.encode()).hexdigest()}
        record |= {"cubin_sha256": hashlib.sha256(cubin).hexdigest()}
        done.append(Compiled(name, ptx, cubin, record))
        print(name, made["registers"], "registers", made["shared_bytes"], "bytes shared")
    folder.mkdir()
    write(done, folder)
