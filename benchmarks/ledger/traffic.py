"""Global memory traffic of a kernel, counted by executing its PTX on representative blocks."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from uino_deploy import ptx
from uino_deploy.kernels.compiler.shapes import (
    CorrelationShape,
    ScanShape,
    VolumeShape,
    packed_width,
)
from uino_deploy.kernels.compiler.variants import (
    ELEMENT_BYTES,
    Shape,
    Variant,
    grid_of,
    scalars_of,
    scan_tiling,
)
from uino_deploy.kernels.identity import DIRECTIONS

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


Dims = tuple[int, ...]


def arrays(shape: Shape) -> tuple[list[Dims], list[Dims]]:
    """Return the shapes of an operator's inputs and of its outputs, in the ABI's order."""
    if isinstance(shape, VolumeShape):
        return _volume_arrays(shape)
    if isinstance(shape, ScanShape):
        plane = (shape.sequences, shape.height, shape.width)
        n, r, d = shape.states, shape.rank, shape.channels
        parameters = [(4, d, r), (4, d), (4, d, n), (4, d)]
        return [(*plane, d), (*plane, 4, packed_width(r, n)), *parameters], [(*plane, d)]
    s = shape
    windows = -(-s.height // s.pool) * -(-s.width // s.pool)
    tokens = s.height * s.width
    query, support = (s.batch, s.layers, s.n_query), (s.batch, s.shots, s.layers, tokens)
    inputs = [(*query, s.channels), (*support, s.channels), (s.batch, s.shots, tokens)]
    return inputs, [(s.batch, s.shots, s.layers, s.n_query, windows)]


def _volume_arrays(shape: VolumeShape) -> tuple[list[Dims], list[Dims]]:
    d, width = shape.channels, shape.width
    volume = (shape.shots, shape.query, shape.query, shape.support, shape.support, d)
    mine, other = (shape.query, shape.support)[:: 1 - 2 * shape.plane]
    planes = (shape.shots * other**2, mine, mine)
    norm: list[Dims] = [(d,), (d,)]
    if shape.op == "norm_mlp":
        return [volume, *norm, (width, d), (width,), (d, width), (d,)], [volume]
    if shape.op == "scan_epilogue":
        return [(*planes, d), volume, *norm, (d, d), *norm, (d, d)], [volume]
    inputs = [volume, *norm, (d, d), (d, 3, 3), (d,), (4, width, d)]
    return inputs, [(*planes, d), (*planes, 4, width)]


def compulsory_bytes(variant: Variant, shape: Shape) -> int:
    """Return the compulsory bytes: each array once, but the scan's x and y in every direction.

    A direction reads x and writes y; all but the first read y too. Left out: what is read more
    than once because blocks share it (the small rows of a scan split by channels, the weights and
    the neighbours of the other kernels), and whatever the caches make of it.
    """
    sizes = _array_bytes(variant, shape)
    again = 0
    if isinstance(shape, ScanShape):
        passes = 2 * DIRECTIONS - 1
        again = (DIRECTIONS - 1) * sizes["x_ptr"] + (passes - 1) * sizes["y_ptr"]
    return sum(sizes.values()) + again


def distinct_bytes(variant: Variant, shape: Shape) -> int:
    """Return the bytes of all arrays, the traffic that no cache can avoid."""
    return sum(_array_bytes(variant, shape).values())


def dram_bytes(variant: Variant, shape: Shape, cache_bytes: int) -> int:
    """Return a model of the bytes between the last cache and memory.

    What fits into the cache crosses once. A scan whose arrays do not fit comes back to each cell
    in every direction from memory; the other kernels' neighbours and tiles stay near each other.
    """
    least = distinct_bytes(variant, shape)
    return least if least <= cache_bytes else compulsory_bytes(variant, shape)


def _array_bytes(variant: Variant, shape: Shape) -> dict[str, int]:
    pointers = [p for p in variant.parameters if p.pointer]
    inputs, outputs = arrays(shape)
    return {
        p.name: ELEMENT_BYTES[p.type] * int(np.prod(dims))
        for p, dims in zip(pointers, [*inputs, *outputs], strict=True)
    }


def flops(shape: Shape) -> int:
    """Return the multiplications and additions of the products, or of the recurrence.

    A scan's step costs each state 6 (decay's exponent, two products, two sums, output) and each
    channel 2 R + 12 (the low-rank step, softplus, skip); an exponential counts one. Of the
    prologue the nine taps count once, although each block projects its neighbours again.
    """
    if isinstance(shape, VolumeShape):
        d = shape.channels
        products = {
            "scan_prologue": d * d + 9 * d + 4 * shape.width * d,
            "scan_epilogue": 2 * d * d,
            "norm_mlp": 2 * shape.width * d,
        }
        return 2 * shape.cells * products[shape.op]
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
    given: list[NDArray[np.generic]] = []
    generator = np.random.default_rng(0)
    pointers = [NUMPY[p.type] for p in kernel.variant.parameters if p.pointer]
    inputs, outputs = arrays(shape)
    for kind, size in zip(pointers, inputs, strict=False):  # the outputs' types come last
        # Finite numbers in any of the types, whatever the bits mean.
        values = generator.integers(0x3800, 0x3C00, size).astype(np.uint16)
        given.append(values.view(kind) if kind != np.float32 else values.astype(np.float32) / 2**14)
    kinds = pointers[len(inputs) :]
    made = [ptx.poisoned(size, kind) for kind, size in zip(kinds, outputs, strict=True)]
    trace = ptx.launch(
        kernel.program,
        grid=grid,
        block=kernel.threads,
        shared=kernel.shared_bytes,
        arguments=[*given, *scalars_of(shape), *made],
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
    return scaled(samples(kernel, shape, capability), kernel.variant, shape, capability)


def sampled(shape: Shape) -> Shape:
    """Return the shape whose samples serve this one too; a correlation's may have any depth."""
    if isinstance(shape, CorrelationShape):
        return replace(shape, batch=1, shots=1, layers=1, channels=_LONG)
    return shape


def samples(kernel: Executable, shape: Shape, capability: int) -> list[Traffic]:
    """Execute whole blocks of a launch, from which `scaled` computes the launch's traffic.

    A scan needs one block of each kind of group and of channels; a correlation one layer's first
    row and column of tiles, at two depths; the others some blocks across the volume, and the last.
    """
    if isinstance(shape, CorrelationShape):
        return [_one_layer(kernel, shape, depth, capability) for depth in (_SHORT, _LONG)]
    if isinstance(shape, VolumeShape):
        grid = grid_of(kernel.variant, shape, capability)
        some, last = _some_blocks(grid[0])
        return [run_blocks(kernel, shape, grid, chosen) for chosen in (some, [last]) if chosen]
    runs = []
    for held, _ in _groups(shape):
        alone = replace(shape, sequences=held)
        grid = scan_tiling(shape).grid(held, shape.channels)
        runs.append(run_blocks(kernel, alone, grid, list(range(grid[1]))))
    return runs


def _some_blocks(count: int) -> tuple[list[int], int]:
    """Return up to 16 blocks before the last, evenly apart, and the last one."""
    before = count - 1
    return [i * before // min(16, before) for i in range(min(16, before))], before


def scaled(samples: list[Traffic], variant: Variant, shape: Shape, capability: int) -> Traffic:
    """Return a launch's traffic from its samples.

    The correlation's loop over channels adds the same traffic in each iteration.
    """
    if isinstance(shape, CorrelationShape):
        short, long = samples
        rounds = (shape.channels - _SHORT) / (_LONG - _SHORT)
        one = short.combine(long, rounds).combine(short, -rounds)
        return one.times(shape.layers * shape.batch * shape.shots)
    if isinstance(shape, VolumeShape):
        *some, last = samples  # a launch of one block has only a last one
        blocks = grid_of(variant, shape, capability)[0]
        chosen, _ = _some_blocks(blocks)
        return last.combine(some[0], (blocks - 1) / len(chosen)) if some else last
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
