"""Shared memory: races, copies that were not waited for, unwritten bytes, and bank conflicts."""

import numpy as np
import pytest

from uino_deploy import ptx
from uino_deploy.ptx.shared import wavefronts

SHARED = ".extern .shared .align 16 .b8 smem[];"
START = """
mov.b32 %r1, smem;
shl.b32 %r2, %r0, 2;
add.s32 %r3, %r1, %r2;
xor.b32 %r4, %r2, 128;
add.s32 %r4, %r1, %r4;
mad.wide.u32 %rd10, %r0, 4, %rd0;
mad.wide.u32 %rd11, %r0, 16, %rd0;
shl.b32 %r5, %r0, 4;
add.s32 %r5, %r1, %r5;
"""


def run(assemble, body, threads=64, shared=1024, source=None, grid=1):
    """Run `body`, which has its own word at %r3 and one of the other warp's at %r4."""
    text = assemble(START + body, 2, threads, SHARED)
    out = ptx.poisoned(threads, np.uint32)
    source = np.arange(4 * threads, dtype=np.uint32) if source is None else source
    trace = ptx.launch(ptx.parse(text), (grid, 1, 1), threads, shared, [source, out])
    return out, trace


EXCHANGE = """
st.shared.b32 [%r3], %r0;
{barrier}
ld.shared.b32 %r6, [{read}];
mad.wide.u32 %rd12, %r0, 4, %rd1;
st.global.b32 [%rd12], %r6;
"""


def test_exchange_with_a_barrier(assemble):
    out, trace = run(assemble, EXCHANGE.format(barrier="bar.sync 0;", read="%r4"))
    assert out.array.tolist() == [*range(32, 64), *range(32)]
    assert trace.shared_loads.warp_instructions == trace.shared_loads.wavefronts == 2
    assert trace.shared_loads.conflicts == trace.shared_stores.conflicts == 0
    assert trace.shared_stores.requested_bytes == 256


@pytest.mark.parametrize("barrier", ["", "bar.warp.sync -1;"])
def test_exchange_without_a_barrier_is_a_race(assemble, barrier):
    with pytest.raises(ptx.PtxFault, match="reads shared memory that thread 32 wrote, without"):
        run(assemble, EXCHANGE.format(barrier=barrier, read="%r4"))


def test_reading_ones_own_bytes_needs_no_barrier(assemble):
    out, _ = run(assemble, EXCHANGE.format(barrier="", read="%r3"))
    assert out.array.tolist() == list(range(64))


def test_a_warp_barrier_is_enough_within_a_warp(assemble):
    neighbour = "xor.b32 %r7, %r2, 4;\nadd.s32 %r7, %r1, %r7;\n"
    body = neighbour + EXCHANGE.format(barrier="bar.warp.sync -1;", read="%r7")
    out, _ = run(assemble, body)
    assert out.array.tolist() == [i ^ 1 for i in range(64)]
    with pytest.raises(ptx.PtxFault, match="thread 1 wrote"):
        run(assemble, neighbour + EXCHANGE.format(barrier="", read="%r7"))


READ = "st.shared.b32 [%r3], %r4;\nbar.sync 0;\nld.shared.b32 %r6, [%r4];\n{}\n"


def test_overwriting_what_others_read_or_wrote(assemble):
    reading = READ + "st.shared.b32 [%r3], %r2;"
    run(assemble, reading.format("bar.sync 0;"))
    with pytest.raises(ptx.PtxFault, match=r"overwrites shared memory that thread 3[23] reads"):
        run(assemble, reading.format(""))
    writing = "st.shared.b32 [%r3], %r0;\n{}\nst.shared.b32 [%r4], %r0;"
    run(assemble, writing.format("bar.sync 0;"))
    with pytest.raises(ptx.PtxFault, match="overwrites shared memory that thread 32 wrote"):
        run(assemble, writing.format(""))


def test_writing_what_is_there_already_is_no_race(assemble):
    run(assemble, "mov.b32 %r6, 5;\nst.shared.b32 [%r3], %r6;\nst.shared.b32 [%r4], %r6;")


def test_collisions_are_counted(assemble):
    _, trace = run(assemble, "st.shared.b32 [smem], %r0;")
    assert trace.shared_stores.collisions == 63
    _, trace = run(assemble, "st.shared.b32 [smem], 7;")
    assert trace.shared_stores.collisions == 0


def test_unwritten_bytes(assemble):
    with pytest.raises(ptx.PtxFault, match="reads shared memory that was never written"):
        run(assemble, EXCHANGE.format(barrier="bar.sync 0;", read="%r4+256"))


def test_each_block_starts_with_unwritten_memory(assemble):
    body = """
    mov.u32 %r9, %ctaid.x;
    setp.ne.u32 %p1, %r9, 0;
    @!%p1 st.shared.b32 [%r3], %r0;
    ld.shared.b32 %r6, [%r3];
    """
    run(assemble, body)
    with pytest.raises(ptx.PtxFault, match=r"never written \(block 1, thread 0\)"):
        run(assemble, body, grid=2)


def test_bounds_and_alignment(assemble):
    with pytest.raises(ptx.PtxFault, match="out of bounds, of 128 bytes"):
        run(assemble, "st.shared.b32 [%r3], %r0;", shared=128)
    with pytest.raises(ptx.PtxFault, match="misaligned"):
        run(assemble, "st.shared.v2.b32 [%r3], {%r0, %r0};")


COPY = """
cp.async.cg.shared.global [%r5+0], [%rd11+0], 0x10;
cp.async.commit_group;
cp.async.cg.shared.global [%r5+1024], [%rd11+0], 0x10, {size};
cp.async.commit_group;
cp.async.wait_group {allowed};
{barrier}
ld.shared.b32 %r6, [{read}];
mad.wide.u32 %rd12, %r0, 4, %rd1;
st.global.b32 [%rd12], %r6;
"""


def copied(assemble, allowed, barrier, read, size="16"):
    return run(
        assemble, COPY.format(allowed=allowed, barrier=barrier, read=read, size=size), shared=2048
    )


def test_copies_are_visible_after_wait_and_barrier(assemble):
    out, trace = copied(assemble, 1, "bar.sync 0;", "%r4")
    assert out.array.tolist() == [*range(32, 64), *range(32)]
    assert trace.arrays[0].loads.requested_bytes == 2 * 1024
    assert trace.arrays[0].loads.distinct_bytes == 1024
    out, _ = copied(assemble, 0, "bar.sync 0;", "%r4+1024")
    assert out.array.tolist() == [*range(32, 64), *range(32)]


def test_a_source_size_of_zero_fills_with_zeros_and_reads_nothing(assemble):
    prefix = "setp.lt.u32 %p1, %r0, 4;\nselp.b32 %r8, 16, 0, %p1;\n"
    body = prefix + COPY.format(allowed=0, barrier="bar.sync 0;", read="%r3+1024", size="%r8")
    out, trace = run(assemble, body, shared=2048)
    assert out.array.tolist() == [*range(16), *[0] * 48]
    assert trace.arrays[0].loads.requested_bytes == 1024 + 64


def test_reading_before_the_wait_is_a_fault(assemble):
    with pytest.raises(ptx.PtxFault, match=r"before waiting for its cp\.async group"):
        copied(assemble, 1, "bar.sync 0;", "%r4+1024")
    with pytest.raises(ptx.PtxFault, match=r"before waiting for its cp\.async group"):
        copied(assemble, 2, "bar.sync 0;", "%r4")


def test_reading_anothers_copy_without_a_barrier_is_a_race(assemble):
    with pytest.raises(ptx.PtxFault, match="without a barrier between"):
        copied(assemble, 0, "", "%r4")


def test_copies_that_were_not_committed_are_not_waited_for(assemble):
    body = """
    cp.async.ca.shared.global [%r5], [%rd11], 16;
    cp.async.wait_group 0;
    bar.sync 0;
    ld.shared.b32 %r6, [%r3];
    """
    with pytest.raises(ptx.PtxFault, match="before waiting for"):
        run(assemble, body)
    run(assemble, body.replace("wait_group 0", "wait_all"))


def test_overwriting_the_target_of_a_copy_is_a_fault(assemble):
    body = "cp.async.cg.shared.global [%r5], [%rd11], 16;\nst.shared.b32 [%r5], 1;"
    with pytest.raises(ptx.PtxFault, match="is copying to"):
        run(assemble, body)
    reading = READ + "cp.async.cg.shared.global [%r5], [%rd11], 16;"
    run(assemble, reading.format("bar.sync 0;"))
    with pytest.raises(ptx.PtxFault, match="reads"):
        run(assemble, reading.format(""))


def test_copies_check_their_global_source(assemble):
    with pytest.raises(ptx.PtxFault, match="out of bounds"):
        run(
            assemble,
            "cp.async.cg.shared.global [%r5], [%rd11], 16;",
            source=np.zeros(200, np.uint32),
        )


def test_a_partial_source_size_is_refused(assemble):
    body = "cp.async.cg.shared.global [%r5], [%rd11], 16, 8;"
    with pytest.raises(ptx.UnsupportedPtx, match="source size"):
        run(assemble, body)


def brute_force(addresses, width):
    """Passes of one warp: for each phase, the most distinct words that one bank must deliver."""
    lanes = 32 // max(width // 4, 1)
    passes = 0
    for first in range(0, 32, lanes):
        banks = [set() for _ in range(32)]
        for address in addresses[first : first + lanes]:
            for word in range(address // 4, (address + max(width, 4)) // 4):
                banks[word % 32].add(word)
        passes += max(len(bank) for bank in banks)
    return passes


@pytest.mark.parametrize("width", [2, 4, 8, 16])
def test_wavefronts_against_a_literal_count(random, width):
    for scale in (8, 64, 1024):
        addresses = random.integers(0, scale, (3, 32)) * width
        expected = sum(brute_force(row, width) for row in addresses.tolist())
        assert wavefronts(addresses, width)[0] == expected


def test_known_bank_conflicts():
    lane = np.arange(32)[None, :]
    assert wavefronts(lane * 4, 4) == (1, 1, 1)
    assert wavefronts(lane * 8, 4)[0] == 2
    assert wavefronts(lane * 128, 4)[0] == 32
    assert wavefronts(lane * 0, 4)[0] == 1
    assert wavefronts(lane * 132, 4)[0] == 1
    assert wavefronts(lane * 16, 16) == (4, 4, 1)
    assert wavefronts(lane * 128, 16)[0] == 32
    assert wavefronts(lane * 2, 2)[0] == 1
