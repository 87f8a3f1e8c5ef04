"""Global memory traffic of a kernel, counted by executing its PTX on representative blocks."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from uino_deploy import ptx
from uino_deploy.kernels.compiler.shapes import CorrelationShape, ScanShape
from uino_deploy.kernels.compiler.variants import (
    ELEMENT_BYTES,
    Variant,
    grid_of,
    scalars_of,
    scan_tiling,
)

Shape = CorrelationShape | ScanShape

# numpy has no bfloat16: its bits are passed as uint16.
NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


@dataclass(frozen=True)
class Traffic:
    """A launch's global memory traffic, scaled from whole executed blocks."""

    requested_bytes: float
    written_bytes: float
    load_sectors: float
    store_sectors: float
    tensor_core_instructions: float

    def __add__(self, other: Traffic) -> Traffic:
        """Return the sum of two parts of a launch."""
        return self.combine(other, 1)

    def combine(self, other: Traffic, factor: float) -> Traffic:
        """Return self + factor * other."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Traffic(*(mine + factor * theirs for mine, theirs in pairs))

    def times(self, factor: float) -> Traffic:
        """Return the traffic of `factor` such parts."""
        return Traffic(0, 0, 0, 0, 0).combine(self, factor)


@dataclass(frozen=True)
class Executable:
    """A compiled kernel in the executor's form, with its variant."""

    variant: Variant
    program: ptx.Program
    threads: int
    shared_bytes: int


def array_shapes(shape: Shape) -> list[tuple[int, ...]]:
    """Return the shapes of the operator's arrays in the ABI's order, the output last."""
    if isinstance(shape, ScanShape):
        plane = (shape.sequences, shape.height, shape.width)
        n, r, d = shape.states, shape.rank, shape.channels
        parameters = [(4, d, r), (4, d), (4, d, n), (4, d)]
        operands = [(*plane, d), (*plane, 4, r), (*plane, 4, n), (*plane, 4, n)]
        return [*operands, *parameters, (*plane, 4, d)]
    s = shape
    windows = -(-s.height // s.pool) * -(-s.width // s.pool)
    return [
        (s.batch, s.layers, s.n_query, s.channels),
        (s.batch, s.shots, s.layers, s.height * s.width, s.channels),
        (s.batch, s.shots, s.height * s.width),
        (s.batch, s.shots, s.layers, s.n_query, windows),
    ]


def compulsory_bytes(variant: Variant, shape: Shape) -> int:
    """Return the compulsory bytes: each array once, the scan's x once for each direction."""
    sizes = _array_bytes(variant, shape)
    return sum(sizes.values()) + 3 * sizes.get("x_ptr", 0)


def distinct_bytes(variant: Variant, shape: Shape) -> int:
    """Return the bytes of all arrays, the traffic that no cache can avoid."""
    return sum(_array_bytes(variant, shape).values())


def _array_bytes(variant: Variant, shape: Shape) -> dict[str, int]:
    pointers = [p for p in variant.parameters if p.pointer]
    return {
        p.name: ELEMENT_BYTES[p.type] * int(np.prod(dims))
        for p, dims in zip(pointers, array_shapes(shape), strict=True)
    }


def flops(shape: Shape) -> int:
    """Return the multiplications and additions of the dot products, or of the recurrence.

    A scan's step costs each state 6 (decay's exponent, two products, two sums, output) and each
    channel 2 R + 12 (the low-rank step, softplus, skip); an exponential counts one.
    """
    if isinstance(shape, ScanShape):
        visits = shape.sequences * shape.length * 4 * shape.channels
        return visits * (6 * shape.states + 2 * shape.rank + 12)
    s = shape
    pairs = s.batch * s.shots * s.layers * s.n_query * s.height * s.width
    return 2 * pairs * s.channels


def run_blocks(
    kernel: Executable,
    shape: Shape,
    grid: tuple[int, int, int],
    blocks: list[int],
) -> Traffic:
    """Execute the blocks with these linear indices and return their traffic."""
    arrays: list[NDArray[np.generic]] = []
    generator = np.random.default_rng(0)
    pointers = [p for p in kernel.variant.parameters if p.pointer]
    dims = array_shapes(shape)
    for parameter, size in zip(pointers[:-1], dims[:-1], strict=True):
        kind = NUMPY[parameter.type]
        # Small bit patterns are harmless numbers in either 16-bit type.
        values = generator.integers(0x3800, 0x3C00, size).astype(np.uint16)
        arrays.append(
            values.view(kind) if kind != np.float32 else values.astype(np.float32) / 2**14
        )
    output = ptx.poisoned(dims[-1], NUMPY[pointers[-1].type])
    trace = ptx.launch(
        kernel.program,
        grid=grid,
        block=kernel.threads,
        shared=kernel.shared_bytes,
        arguments=[*arrays, *scalars_of(shape), output],
        blocks=blocks,
    )
    return Traffic(
        trace.requested_bytes,
        trace.written_bytes,
        trace.load_sectors,
        trace.store_sectors,
        trace.tensor_core_instructions,
    )


def count(kernel: Executable, shape: Shape, capability: int) -> Traffic:
    """Return a whole launch's traffic, scaled from whole blocks."""
    return scaled(samples(kernel, shape, capability), shape)


def sampled(shape: Shape) -> Shape:
    """Return the shape whose samples serve this one too; a correlation's may have any depth."""
    if isinstance(shape, ScanShape):
        return shape
    return replace(shape, batch=1, shots=1, layers=1, channels=_LONG)


def samples(kernel: Executable, shape: Shape, capability: int) -> list[Traffic]:
    """Execute whole blocks of a launch, from which `scaled` computes the launch's traffic.

    A scan needs two directions of each kind of group (reversed directions visit the same cells); a
    correlation needs one layer's first row and column of tiles, at two depths.
    """
    if isinstance(shape, CorrelationShape):
        return [_one_layer(kernel, shape, depth, capability) for depth in (_SHORT, _LONG)]
    runs = []
    for held, _ in _groups(shape):
        alone = replace(shape, sequences=held)
        _, _, widths = scan_tiling(shape).grid(held, shape.channels)
        forward = [g + 4 * w for w in range(widths) for g in (0, 1)]
        runs.append(run_blocks(kernel, alone, (1, 4, widths), forward).times(2))
    return runs


def scaled(samples: list[Traffic], shape: Shape) -> Traffic:
    """Return a launch's traffic from its samples.

    The correlation's loop over channels adds the same traffic in each iteration.
    """
    if isinstance(shape, CorrelationShape):
        short, long = samples
        rounds = (shape.channels - _SHORT) / (_LONG - _SHORT)
        one = short.combine(long, rounds).combine(short, -rounds)
        return one.times(shape.layers * shape.batch * shape.shots)
    total = Traffic(0, 0, 0, 0, 0)
    for part, (_, times) in zip(samples, _groups(shape), strict=True):
        total = total.combine(part, times)
    return total


def _groups(shape: ScanShape) -> list[tuple[int, int]]:
    """Return (sequences in a block, number of such blocks): whole groups, then the rest."""
    tiling = scan_tiling(shape)
    per_group = 1 if tiling.parallel else tiling.rows
    whole, rest = divmod(shape.sequences, per_group)
    return [(held, times) for held, times in ((per_group, whole), (rest, 1)) if held and times]


# Channels of the two short runs from which the loop over channels is extrapolated.
_SHORT, _LONG = 64, 128


def _one_layer(
    kernel: Executable, shape: CorrelationShape, channels: int, capability: int
) -> Traffic:
    """Count one layer from its first row and first column of tiles.

    A block's traffic is that of its query tile plus that of its window tile, so row and column
    give all of them.
    """
    small = CorrelationShape(
        1, 1, 1, shape.n_query, channels, shape.height, shape.width, shape.pool
    )
    grid = grid_of(kernel.variant, small, capability)
    constants = kernel.variant.constants
    q_tiles = -(-shape.n_query // constants["BLOCK_Q"])
    w_tiles = grid[0] // q_tiles
    group = min(constants["GROUP_Q"], q_tiles)

    def block(q: int, w: int) -> int:
        """Invert the kernel's order of tiles."""
        start = q // group * group
        return start * w_tiles + w * min(group, q_tiles - start) + q % group

    row = run_blocks(kernel, small, grid, [block(0, w) for w in range(w_tiles)])
    corner = run_blocks(kernel, small, grid, [block(0, 0)])
    column = run_blocks(kernel, small, grid, [block(q, 0) for q in range(q_tiles)])
    # Loads: sum over (q, w) of Q[q] + S[w], where Q[q] + S[0] and Q[0] + S[w] are known. Stores are
    # rows times windows, a product.
    total = column.times(w_tiles).combine(row, q_tiles).combine(corner, -q_tiles * w_tiles)
    stored = column.written_bytes * row.written_bytes / corner.written_bytes
    sectors = column.store_sectors * row.store_sectors / corner.store_sectors
    return replace(total, written_bytes=stored, store_sectors=sectors)
