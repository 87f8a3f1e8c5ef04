"""Global memory: loads, stores, counts and faults."""

import numpy as np
import pytest

from uino_deploy import ptx
from uino_deploy.errors import InputError

COPY = """
mad.wide.u32 %rd10, %r0, {stride}, %rd0;
mad.wide.u32 %rd11, %r0, {stride}, %rd1;
ld.global{load} {registers}, [%rd10+{offset}];
st.global{store} [%rd11+{offset}], {registers};
"""


def copy(assemble, arrays, kind="b32", vector=1, stride=4, offset=0, threads=32, hints=""):
    name = {"b16": "rs", "b32": "r", "b64": "rd"}.get(kind, "r")
    registers = ", ".join(f"%{name}{20 + i}" for i in range(vector))
    width = f".v{vector}" if vector > 1 else ""
    body = COPY.format(
        stride=stride,
        offset=offset,
        registers=f"{{{registers}}}" if vector > 1 else registers,
        load=f"{hints}{width}.{kind}",
        store=f"{width}.{kind}",
    )
    return ptx.launch(ptx.parse(assemble(body, 2, threads)), (1, 1, 1), threads, 0, arrays)


@pytest.mark.parametrize(
    ("kind", "vector"), [("b8", 1), ("b16", 1), ("b16", 4), ("b32", 1), ("b32", 2), ("b32", 4),
                         ("b64", 1), ("b64", 2), ("u32", 4), ("f32", 1)]
)  # fmt: skip
def test_loads_and_stores_of_every_width(assemble, random, kind, vector):
    width = int(kind[1:]) // 8 * vector
    source = random.integers(0, 256, 64 * width, dtype=np.uint8)
    out = ptx.poisoned(64 * width, np.uint8)
    trace = copy(assemble, [source, out], kind, vector, stride=width, threads=64)
    assert (out.array == source).all()
    assert out.complete
    loads, stores = trace.arrays[0].loads, trace.arrays[1].stores
    for counted in (loads, stores):
        assert counted.requested_bytes == counted.distinct_bytes == 64 * width
        assert counted.sectors == max(2, 2 * width)
        assert counted.warp_instructions == 2
        assert counted.by_width == {width: 64}
    assert trace.requested_bytes == trace.written_bytes == 64 * width
    assert trace.load_sectors == trace.store_sectors == loads.sectors


@pytest.mark.parametrize("hints", [".nc", ".cg", ".L1::no_allocate", ".ca", ".nc.L1::evict_last"])
def test_cache_hints_change_nothing(assemble, hints):
    source = np.arange(32, dtype=np.uint32)
    out = ptx.poisoned(32, np.uint32)
    copy(assemble, [source, out], hints=hints)
    assert (out.array == source).all()


def test_scattered_and_repeated_reads_are_counted_in_sectors(assemble):
    source = np.arange(32 * 16, dtype=np.uint32)
    out = ptx.poisoned(32 * 16, np.uint32)
    trace = copy(assemble, [source, out], stride=64)
    assert trace.arrays[0].loads.sectors == 32
    assert trace.arrays[0].loads.requested_bytes == 128
    assert not out.complete
    assert out.written.sum() == 128
    out = ptx.poisoned(1, np.uint32)
    trace = copy(assemble, [source, out], stride=0)
    assert trace.arrays[0].loads.sectors == 1
    assert trace.arrays[0].loads.requested_bytes == 128
    assert trace.arrays[0].loads.distinct_bytes == 4


def test_narrow_values_extend_in_wide_registers(assemble):
    body = """
    ld.global.s16 %r1, [%rd0];
    ld.global.u16 %r2, [%rd0];
    ld.global.b8 %rs1, [%rd0];
    cvt.u32.u16 %r3, %rs1;
    st.global.v2.b32 [%rd1], {%r1, %r2};
    st.global.b32 [%rd1+8], %r3;
    st.global.b8 [%rd1+12], %r1;
    """
    source = np.array([0xFF80], dtype=np.uint16)
    out = ptx.Output(np.zeros(16, dtype=np.uint8))
    ptx.launch(ptx.parse(assemble(body, 2)), (1, 1, 1), 32, 0, [source, out])
    assert out.array[:12].view(np.uint32).tolist() == [0xFFFFFF80, 0xFF80, 0x80]
    assert out.array[12:].tolist() == [0x80, 255, 255, 255]


def test_out_of_bounds_names_offset_and_thread(assemble):
    source = np.arange(31, dtype=np.uint32)
    with pytest.raises(
        ptx.PtxFault, match=r"4 bytes at offset 124 of argument 0.*out of bounds"
    ) as caught:
        copy(assemble, [source, ptx.poisoned(32, np.uint32)])
    assert (caught.value.block, caught.value.thread) == (0, 31)
    with pytest.raises(ptx.PtxFault, match="argument 1"):
        copy(assemble, [np.arange(32, dtype=np.uint32), ptx.poisoned(31, np.uint32)])
    with pytest.raises(ptx.PtxFault, match=r"outside every argument|out of bounds"):
        copy(assemble, [np.arange(32, dtype=np.uint32), ptx.poisoned(32, np.uint32)], offset=-4)
    with pytest.raises(ptx.PtxFault, match="outside every argument"):
        copy(assemble, [None, ptx.poisoned(32, np.uint32)])


def test_misaligned_vectors_are_faults(assemble):
    source, out = np.arange(256, dtype=np.uint32), ptx.poisoned(256, np.uint32)
    with pytest.raises(ptx.PtxFault, match="16 bytes at offset 8 of argument 0: misaligned"):
        copy(assemble, [source, out], "b32", 4, stride=16, offset=8)
    with pytest.raises(ptx.PtxFault, match="misaligned"):
        copy(assemble, [source, out], "b32", 1, stride=2)


def test_inputs_are_read_only_and_outputs_poisoned(assemble):
    source = np.arange(32, dtype=np.uint32)
    with pytest.raises(ptx.PtxFault, match="writes argument 1, which is an input"):
        copy(assemble, [source, source.copy()])
    with pytest.raises(ptx.PtxFault, match="reads bytes of argument 0 that were never written"):
        copy(assemble, [ptx.poisoned(32, np.float32), ptx.poisoned(32, np.float32)])
    kept = ptx.Output(source.copy(), keep=True)
    out = ptx.poisoned(32, np.uint32)
    copy(assemble, [kept, out])
    assert (out.array == source).all()
    assert np.isnan(ptx.poisoned(3, np.float16).array).all()
    assert np.isnan(ptx.poisoned(3, np.float32).array).all()
    assert (ptx.poisoned(3, np.uint16).array.view(np.int16) == -1).all()


def test_predicated_accesses_touch_only_their_threads(assemble):
    body = """
    setp.lt.u32 %p1, %r0, 5;
    mad.wide.u32 %rd10, %r0, 4, %rd0;
    mad.wide.u32 %rd11, %r0, 4, %rd1;
    mov.u32 %r1, 77;
    @%p1 ld.global.b32 %r1, [%rd10];
    @!%p1 mov.b32 %r1, 99;
    st.global.b32 [%rd11], %r1;
    """
    out = ptx.poisoned(32, np.uint32)
    source = np.arange(5, dtype=np.uint32)
    trace = ptx.launch(ptx.parse(assemble(body, 2)), (1, 1, 1), 32, 0, [source, out])
    assert out.array.tolist() == [0, 1, 2, 3, 4] + [99] * 27
    assert trace.arrays[0].loads.requested_bytes == 20
    assert trace.arrays[0].loads.sectors == 1


def test_one_access_may_reach_several_arrays(assemble):
    body = """
    setp.lt.u32 %p1, %r0, 16;
    selp.b64 %rd10, %rd0, %rd1, %p1;
    mad.wide.u32 %rd10, %r0, 4, %rd10;
    ld.global.b32 %r1, [%rd10];
    mad.wide.u32 %rd11, %r0, 4, %rd2;
    st.global.b32 [%rd11], %r1;
    """
    a, b = np.arange(16, dtype=np.uint32), np.arange(100, 132, dtype=np.uint32)
    out = ptx.poisoned(32, np.uint32)
    trace = ptx.launch(ptx.parse(assemble(body, 3)), (1, 1, 1), 32, 0, [a, b, out])
    assert out.array.tolist() == [*range(16), *range(116, 132)]
    assert trace.arrays[0].loads.sectors == trace.arrays[1].loads.sectors == 2


def test_atomics(assemble):
    body = """
    atom.global.gpu.acq_rel.add.u32 %r1, [%rd0], 2;
    mad.wide.u32 %rd10, %r0, 4, %rd1;
    st.global.b32 [%rd10], %r1;
    red.global.max.s32 [%rd0+4], %r0;
    """
    total = ptx.Output(np.zeros(2, dtype=np.uint32), keep=True)
    out = ptx.poisoned(32, np.uint32)
    ptx.launch(ptx.parse(assemble(body, 2)), (2, 1, 1), 32, 0, [total, out], blocks=[0])
    assert total.array.tolist() == [64, 31]
    assert sorted(out.array.tolist()) == list(range(0, 64, 2))


def test_hints_fences_and_generic_addresses_change_nothing(assemble):
    body = """
    createpolicy.fractional.L2::evict_last.b64 %rd30, 1.0;
    cvta.to.global.u64 %rd31, %rd0;
    mad.wide.u32 %rd10, %r0, 4, %rd31;
    mad.wide.u32 %rd11, %r0, 4, %rd1;
    prefetch.global.L2 [%rd10];
    ld.global.L1::evict_last.L2::cache_hint.b32 {%r1}, [%rd10+0], %rd30;
    membar.gl;
    st.global.L1::evict_last.L2::cache_hint.b32 [%rd11+0], {%r1}, %rd30;
    """
    source = np.arange(32, dtype=np.uint32)
    out = ptx.poisoned(32, np.uint32)
    ptx.launch(ptx.parse(assemble(body, 2)), (1, 1, 1), 32, 0, [source, out])
    assert (out.array == source).all()


def test_arguments_must_fit(assemble):
    program = ptx.parse(assemble("", 1))
    with pytest.raises(InputError, match="takes 1 arguments, 2"):
        ptx.launch(program, (1, 1, 1), 32, 0, [None, None])
    with pytest.raises(InputError, match="contiguous"):
        ptx.launch(program, (1, 1, 1), 32, 0, [np.zeros((4, 4))[:, 1]])
    with pytest.raises(InputError, match="does not fit"):
        ptx.launch(program, (1, 1, 1), 32, 0, ["text"])
    with pytest.raises(InputError, match="64 threads"):
        ptx.launch(program, (1, 1, 1), 64, 0, [None])
    with pytest.raises(InputError, match="no such blocks"):
        ptx.launch(program, (2, 1, 1), 32, 0, [None], blocks=[2])


STRUCT = """.version 8.5
.target sm_80
.address_size 64
.visible .entry k(.param .align 8 .b8 k_param_0[32])
{
.reg .b32 %r<10>;
.reg .b64 %rd<10>;
mov.u32 %r0, %tid.x;
mov.b64 %rd0, k_param_0;
add.s64 %rd1, %rd0, 8;
ld.param.u8 %r1, [%rd1+-4];
ld.param.u64 %rd2, [%rd1];
ld.param.u64 %rd3, [k_param_0+16];
mad.wide.u32 %rd4, %r0, 4, %rd2;
ld.volatile.global.u32 %r2, [%rd4];
add.u32 %r2, %r2, %r1;
ld.param.u32 %r3, [%rd0];
add.u32 %r2, %r2, %r3;
mad.wide.u32 %rd5, %r0, 4, %rd3;
st.volatile.global.u32 [%rd5], %r2;
ret;
}
"""


def launch_struct(text, *members):
    return ptx.launch(ptx.parse(text), (1, 1, 1), 32, 0, [ptx.Struct(*members)])


def test_a_struct_holds_numbers_and_pointers_where_c_puts_them():
    source = np.arange(32, dtype=np.uint32)
    out = ptx.poisoned(32, np.uint32)
    trace = launch_struct(STRUCT, np.int32(1000), np.uint8(7), source, out, None)
    assert out.array.tolist() == list(range(1007, 1039))
    assert trace.arrays[2].loads.requested_bytes == 128
    assert trace.arrays[3].stores.requested_bytes == 128


def test_a_struct_of_another_size_or_content_is_refused():
    out = ptx.poisoned(32, np.uint32)
    with pytest.raises(InputError, match="has 32 bytes"):
        launch_struct(STRUCT, np.int32(1), out)
    with pytest.raises(InputError, match="cannot hold a str"):
        launch_struct(STRUCT, "text")


@pytest.mark.parametrize("offset", [28, -12, 1])
def test_a_parameter_read_outside_or_misaligned_is_a_fault(offset):
    text = STRUCT.replace("[%rd1];", f"[%rd1+{offset}];")
    arrays = np.arange(32, dtype=np.uint32), ptx.poisoned(32, np.uint32)
    with pytest.raises(ptx.PtxFault, match="outside every parameter, or misaligned"):
        launch_struct(text, np.int32(0), np.uint8(7), *arrays, None)


# Each thread writes its number, then reads its neighbour's and writes that elsewhere.
EXCHANGE = """
mad.wide.u32 %rd10, %r0, 4, %rd0;
st.global.b32 [%rd10], %r0;
{first}
xor.b32 %r1, %r0, {distance};
mad.wide.u32 %rd11, %r1, 4, %rd0;
ld.global.b32 %r2, [%rd11];
{second}
st.global.b32 [%rd10], %r2;
"""


def exchange(assemble, first, second, distance=1, blocks=1):
    text = assemble(EXCHANGE.format(first=first, second=second, distance=distance), 1, 64)
    out = ptx.poisoned(64, np.uint32)
    ptx.launch(ptx.parse(text), (blocks, 1, 1), 64, 0, [out])
    return out.array


def test_threads_may_exchange_through_memory_between_barriers(assemble):
    for distance in (1, 32):
        swapped = exchange(assemble, "bar.sync 0;", "bar.sync 0;", distance)
        assert (swapped == np.arange(64) ^ distance).all()


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("", "bar.sync 0;", "reads bytes of argument 0 that thread 1 of block 0 wrote, without"),
        ("bar.sync 0;", "", "overwrites bytes of argument 0 that thread 1 of block 0 reads"),
    ],
)
def test_an_exchange_without_a_barrier_is_a_fault(assemble, first, second, reason):
    with pytest.raises(ptx.PtxFault, match=reason):
        exchange(assemble, first, second)


def test_blocks_cannot_exchange(assemble):
    with pytest.raises(ptx.PtxFault, match="of block"):
        exchange(assemble, "bar.sync 0;", "bar.sync 0;", blocks=2)
