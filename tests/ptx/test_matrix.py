"""Tensor-core fragments against plain matrix products, written out lane by lane."""

import numpy as np
import pytest

from uino_deploy import ptx
from uino_deploy.ptx.floats import round_bf16, round_tf32, widen_bf16


def elements(kind, k):
    """Each lane's elements of A and B as the PTX ISA's formulae give them.

    Returns (row, column) for A and B: lists by lane of lists by element.
    """
    packed = 1 if kind == "tf32" else 2
    a, b = [], []
    for lane in range(32):
        g, t = lane // 4, lane % 4
        if packed == 2:
            count = 8 if k == 16 else 4
            a.append([(g + 8 * (i // 2 % 2), t * 2 + i % 2 + 8 * (i // 4)) for i in range(count)])
            b.append([(t * 2 + i % 2 + 8 * (i // 2), g) for i in range(count // 2)])
        else:
            a.append([(g + 8 * (i % 2), t + 4 * (i // 2)) for i in range(k // 2)])
            b.append([(t + 4 * i, g) for i in range(k // 4)])
    return a, b


def pack(values, kind):
    """Elements of one lane to 32-bit registers."""
    values = np.array(values, dtype=np.float32)
    if kind == "tf32":
        return values.view(np.uint32)
    bits = round_bf16(values) if kind == "bf16" else values.astype(np.float16).view(np.uint16)
    return bits.view(np.uint32)


def rounded(matrix, kind):
    if kind == "bf16":
        return widen_bf16(round_bf16(matrix))
    return (
        matrix.astype(np.float16).astype(np.float32) if kind == "f16" else round_tf32(matrix, "rz")
    )


def registers(prefix, first, count):
    return "{" + ", ".join(f"%{prefix}{first + i}" for i in range(count)) + "}"


@pytest.mark.parametrize(
    ("kind", "k"), [("f16", 16), ("bf16", 16), ("f16", 8), ("bf16", 8), ("tf32", 8), ("tf32", 4)]
)
def test_mma_is_a_matrix_product(assemble, random, kind, k):
    warps = 2
    a = random.normal(size=(warps, 16, k)).astype(np.float32)
    b = random.normal(size=(warps, k, 8)).astype(np.float32)
    c = random.normal(size=(warps, 16, 8)).astype(np.float32)
    of_a, of_b = elements(kind, k)
    packed_a = np.array(
        [[pack([a[w][p] for p in lane], kind) for lane in of_a] for w in range(warps)]
    )
    packed_b = np.array(
        [[pack([b[w][p] for p in lane], kind) for lane in of_b] for w in range(warps)]
    )
    place = [
        [(lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2) for i in range(4)] for lane in range(32)
    ]
    packed_c = np.array([[[c[w][p] for p in lane] for lane in place] for w in range(warps)])
    na, nb = packed_a.shape[2], packed_b.shape[2]
    body = []
    for pointer, first, count in ((0, 10, na), (1, 20, nb), (2, 30, 4)):
        for i in range(count):
            body.append(f"mad.wide.u32 %rd10, %r0, {4 * count}, %rd{pointer};")
            body.append(f"ld.global.b32 %r{first + i}, [%rd10+{4 * i}];")
    shape = f"m16n8k{k}"
    body.append(
        f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 {registers('r', 30, 4)},"
        f" {registers('r', 10, na)}, {registers('r', 20, nb)}, {registers('r', 30, 4)};"
    )
    body.append("mad.wide.u32 %rd11, %r0, 16, %rd3;")
    body.append(f"st.global.v4.b32 [%rd11], {registers('r', 30, 4)};")
    out = ptx.poisoned((warps, 32, 4), np.float32)
    arguments = [packed_a, packed_b, packed_c.astype(np.float32), out]
    text = assemble("\n".join(body), 4, 32 * warps)
    trace = ptx.launch(ptx.parse(text), (1, 1, 1), 32 * warps, 0, arguments)
    product = rounded(a, kind).astype(np.float64) @ rounded(b, kind) + c
    expected = [[[product[w][p] for p in lane] for lane in place] for w in range(warps)]
    np.testing.assert_allclose(out.array, expected, rtol=1e-5, atol=1e-5)
    assert trace.tensor_core_instructions == warps
    assert trace.arrays[3].stores.by_width == {16: 32 * warps}


def matrix_program(assemble, move, count, threads=32):
    """Fill 1 KiB of shared memory with half numbers 0, 1, 2..., then `move`, then store."""
    body = ["mov.b32 %r1, smem;", "shl.b32 %r2, %r0, 5;", "add.s32 %r2, %r1, %r2;"]
    body += ["mad.wide.u32 %rd10, %r0, 32, %rd0;"]
    for i in range(8):
        body += [f"ld.global.b32 %r3, [%rd10+{4 * i}];", f"st.shared.b32 [%r2+{4 * i}], %r3;"]
    body += [
        "bar.sync 0;",
        "and.b32 %r4, %r0, 31;",
        "shl.b32 %r4, %r4, 4;",
        "add.s32 %r4, %r1, %r4;",
    ]
    body += [*move, f"mad.wide.u32 %rd11, %r0, {4 * count}, %rd1;"]
    for i in range(count):
        body.append(f"st.global.b32 [%rd11+{4 * i}], %r{10 + i};")
    return assemble("\n".join(body), 2, threads, ".extern .shared .align 16 .b8 smem[];")


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
def test_ldmatrix(assemble, count, trans):
    load = (
        f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {registers('r', 10, count)}, [%r4];"
    )
    text = matrix_program(assemble, [load], count)
    out = ptx.poisoned((32, count, 2), np.uint16)
    source = np.arange(512, dtype=np.uint16)
    trace = ptx.launch(ptx.parse(text), (1, 1, 1), 32, 1024, [source, out])
    tiles = source[: 64 * count].reshape(count, 8, 8)
    for lane in range(32):
        for matrix in range(count):
            row, column = lane // 4, lane % 4 * 2
            tile = tiles[matrix].T if trans else tiles[matrix]
            assert out.array[lane, matrix].tolist() == tile[row, column : column + 2].tolist()
    assert trace.shared_loads.wavefronts == trace.shared_loads.ideal == count


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_stmatrix_undoes_ldmatrix(assemble, trans):
    moves = [
        f"ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {registers('r', 10, 4)}, [%r4];",
        "bar.sync 0;",
        f"stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r4+512], {registers('r', 10, 4)};",
        "bar.sync 0;",
        "shl.b32 %r5, %r0, 4;",
        "add.s32 %r5, %r1, %r5;",
        f"ld.shared.v4.b32 {registers('r', 10, 4)}, [%r5+512];",
    ]
    out = ptx.poisoned(256, np.uint16)
    source = np.arange(512, dtype=np.uint16)
    ptx.launch(ptx.parse(matrix_program(assemble, moves, 4)), (1, 1, 1), 32, 1024, [source, out])
    assert (out.array == source[:256]).all()


def test_an_incomplete_warp_is_a_fault(assemble):
    moves = [
        "setp.gt.u32 %p1, %r0, 15;",
        "@%p1 bra $skip;",
        f"ldmatrix.sync.aligned.m8n8.x1.shared.b16 {registers('r', 10, 1)}, [%r4];",
        "$skip:",
        "mov.b32 %r10, 0;",
    ]
    text = matrix_program(assemble, moves, 1)
    with pytest.raises(ptx.PtxFault, match="do not all arrive"):
        ptx.launch(
            ptx.parse(text),
            (1, 1, 1),
            32,
            1024,
            [np.arange(512, dtype=np.uint16), ptx.poisoned(32, "u4")],
        )


def test_whole_warps_may_stay_away(assemble):
    moves = [
        "mov.b32 %r10, 0;",
        "mov.b32 %r11, 0;",
        "setp.lt.u32 %p1, %r0, 32;",
        "@%p1 bra $skip;",
        f"ldmatrix.sync.aligned.m8n8.x2.shared.b16 {registers('r', 10, 2)}, [%r4];",
        "shfl.sync.bfly.b32 %r11, %r10, 1, 31, -1;",
        "stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%r4], {%r10};",
        "mov.b32 %r20, 0f3F800000;",
        f"mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {registers('r', 30, 4)},"
        " {%r20, %r20}, {%r20}, {%r20, %r20, %r20, %r20};",
        "mov.b32 %r10, %r33;",
        "@%p1 mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%r10, %r11, %r12, %r13},"
        " {%r20, %r20}, {%r20}, {%r20, %r20, %r20, %r20};",
        "$skip:",
    ]
    out = ptx.poisoned((64, 2), np.uint32)
    source = np.arange(1024, dtype=np.uint16)
    text = matrix_program(assemble, moves, 2, 64)
    ptx.launch(ptx.parse(text), (1, 1, 1), 64, 2048, [source, out])
    assert (out.array[:32] == 0).all()
    assert (out.array[32:, 0].view(np.float32) == 5).all()
    pairs = source[:64].view(np.uint32)
    assert out.array[32:, 1].tolist() == [pairs[lane ^ 1] for lane in range(32)]


@pytest.mark.parametrize(
    "instruction",
    [
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r1}, {%r2}, {%r3}, {%r4};",
        "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r1}, {%r2}, {%r3}, {%r4};",
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r1}, %rd1, %rd2, 1, 1, 1, 0, 0;",
        "ldmatrix.sync.aligned.m16n16.x1.shared.b8 {%r1}, [%r2];",
    ],
)
def test_other_matrix_instructions_are_refused(assemble, instruction):
    with pytest.raises(ptx.UnsupportedPtx):
        ptx.launch(ptx.parse(assemble(instruction, 0)), (1, 1, 1), 32, 0, [])
