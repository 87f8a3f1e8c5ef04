"""`wgmma` against plain matrix products, tiles laid out byte by byte, operands in flight."""

import numpy as np
import pytest

from uino_deploy import ptx

THREADS = 128
ROW_BYTES = {0: 16, 3: 32, 2: 64, 1: 128}


def place(row, byte, swizzle, leading, stride):
    """Where byte `byte` of a K-major row lies: PTX ISA, "Canonical layouts", one byte at a time."""
    width = ROW_BYTES[swizzle]
    address = (row // 8) * stride + (row % 8) * width + (byte // width) * leading + byte % width
    for bit in range({0: 0, 3: 1, 2: 2, 1: 3}[swizzle]):
        if address & (1 << (7 + bit)):
            address ^= 1 << (4 + bit)
    return address


def tile(matrix, swizzle, leading, stride, size):
    """The bytes of a [rows, 16] float16 matrix as a descriptor of these fields reads them."""
    data = np.zeros(size, np.uint8)
    for row, halves in enumerate(matrix):
        for k, half in enumerate(halves):
            at = place(row, 2 * k, swizzle, leading, stride)
            data[at : at + 2] = np.frombuffer(half.tobytes(), np.uint8)
    return data


def descriptor(start, swizzle, leading, stride):
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | swizzle << 62


SUMS = ", ".join(f"%f{i}" for i in range(4))


def program(after="", scale="0", before_wait=""):
    """One m64n8k16 product of tiles at 0 (A) and 8192 (B); the sums go to the second argument."""
    copies = "\n".join(
        f"ld.global.b32 %r9, [%rd9 + {at}];\nst.shared.b32 [%r8 + {at}], %r9;"
        for at in range(0, 12288, 4 * THREADS)
    )
    return f""".version 8.5
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 data[];
.visible .entry k(
.param .u64 .ptr .global .align 1 k_param_0,
.param .u64 .ptr .global .align 1 k_param_1,
.param .u64 k_param_2,
.param .u64 k_param_3
)
.reqntid {THREADS}
{{
.reg .pred %p<4>;
.reg .b32 %r<20>;
.reg .b32 %f<4>;
.reg .b64 %rd<20>;
ld.param.b64 %rd0, [k_param_0];
ld.param.b64 %rd1, [k_param_1];
ld.param.b64 %rd2, [k_param_2];
ld.param.b64 %rd3, [k_param_3];
mov.u32 %r0, %tid.x;
shl.b32 %r7, %r0, 2;
mov.b32 %r6, data;
add.s32 %r8, %r6, %r7;
cvt.u64.u32 %rd8, %r7;
add.s64 %rd9, %rd0, %rd8;
{copies}
mov.b32 %f0, 0f3F800000;
mov.b32 %f1, 0f3F800000;
mov.b32 %f2, 0f3F800000;
mov.b32 %f3, 0f3F800000;
bar.sync 0;
fence.proxy.async.shared::cta;
wgmma.fence.sync.aligned;
wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {{{SUMS}}}, %rd2, %rd3, {scale}, 1, 1, 0, 0;
wgmma.commit_group.sync.aligned;
{before_wait}
wgmma.wait_group.sync.aligned 0;
{after}
shl.b32 %r5, %r0, 4;
cvt.u64.u32 %rd5, %r5;
add.s64 %rd6, %rd1, %rd5;
st.global.v4.b32 [%rd6], {{{SUMS}}};
ret;
}}
"""


def run(random, swizzle=2, **text):
    """Return the executed sums as a matrix, and the product in float32."""
    a, b = (random.normal(size=(n, 16)).astype(np.float16) for n in (64, 8))
    width = ROW_BYTES[swizzle]
    leading, stride = (128, 256) if swizzle == 0 else (0, 8 * width)
    source = np.concatenate(
        [tile(a, swizzle, leading, stride, 8192), tile(b, swizzle, leading, stride, 4096)]
    )
    fields = [descriptor(start, swizzle, leading, stride) for start in (0, 8192)]
    out = ptx.poisoned((THREADS, 4), np.float32)
    ptx.launch(ptx.parse(program(**text)), (1, 1, 1), THREADS, 12288, [source, out, *fields])
    got = np.empty((64, 8), np.float32)
    for thread in range(THREADS):
        warp, g, t = thread // 32, thread % 32 // 4, thread % 4
        for i in range(4):
            got[16 * warp + g + 8 * (i // 2), 2 * t + i % 2] = out.array[thread, i]
    return got, a.astype(np.float32) @ b.astype(np.float32).T


@pytest.mark.parametrize("swizzle", list(ROW_BYTES))
def test_a_product_of_tiles_in_every_layout(random, swizzle):
    got, expected = run(random, swizzle)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_the_scale_says_whether_the_sums_are_kept(random):
    got, expected = run(random, scale="1")
    np.testing.assert_allclose(got, expected + 1, rtol=1e-5, atol=1e-5)


def test_the_sums_arrive_with_the_wait(random):
    early = "\n".join(f"mov.b32 %r{10 + i}, %f{i};" for i in range(4))
    late = "\n".join(f"mov.b32 %f{i}, %r{10 + i};" for i in range(4))
    got, _ = run(random, before_wait=early, after=late)
    assert (got == 1).all()


def test_what_a_product_in_flight_reads_may_not_be_overwritten(random):
    with pytest.raises(ptx.PtxFault, match="overwrites shared memory that a wgmma in flight reads"):
        run(random, before_wait="st.shared.b32 [%r8], %r0;")
    with pytest.raises(ptx.PtxFault, match="overwrites shared memory"):  # no barrier after the wait
        run(random, after="st.shared.b32 [%r8], %r0;")
    got, expected = run(random, after="bar.sync 0;\nst.shared.b32 [%r8], %r0;")
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_memory_that_nobody_wrote_is_a_fault(random):
    a = random.normal(size=(64, 16)).astype(np.float16)
    source = tile(a, 2, 0, 512, 12288)
    out = ptx.poisoned((THREADS, 4), np.float32)
    beyond = [descriptor(0, 2, 0, 512), descriptor(12288, 2, 0, 512)]
    with pytest.raises(ptx.PtxFault, match="never written"):
        ptx.launch(ptx.parse(program()), (1, 1, 1), THREADS, 16384, [source, out, *beyond])


@pytest.mark.parametrize(
    "instruction",
    [
        "wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 {%r1, %r2}, %rd1, %rd2, 1;",
        "wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16 {%r1, %r2}, %rd1, %rd2, 1, 1, 1, 0, 0;",
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r1}, %rd1, %rd2, 1, 1, 1, 0, 0;",
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 "
        "{%r1, %r2, %r3, %r4}, %rd1, %rd2, 1, -1, 1, 0, 0;",
    ],
)
def test_other_forms_are_refused(assemble, instruction):
    with pytest.raises(ptx.UnsupportedPtx):
        ptx.launch(ptx.parse(assemble(instruction, 0, 128)), (1, 1, 1), 128, 0, [])
