"""Branches, loops, barriers, blocks side by side, and registers never written."""

import numpy as np
import pytest

from uino_deploy import ptx

STORE = """
mov.u32 %r70, %ctaid.x;
mov.u32 %r71, %ntid.x;
mad.lo.s32 %r72, %r70, %r71, %r0;
mad.wide.u32 %rd60, %r72, 4, %rd0;
st.global.b32 [%rd60], %r1;
"""


def run(assemble, body, threads=32, grid=(1, 1, 1), blocks=None, store=STORE):
    out = ptx.poisoned(threads * grid[0], np.uint32)
    program = ptx.parse(assemble(body + store, 1, threads))
    trace = ptx.launch(program, grid, threads, 0, [out], blocks=blocks)
    return out.array, trace


def test_threads_part_and_meet_again(assemble):
    body = """
    and.b32 %r2, %r0, 3;
    mov.b32 %r1, 0;
    setp.eq.b32 %p1, %r2, 0;
    @%p1 bra $zero;
    setp.eq.b32 %p2, %r2, 1;
    @!%p2 bra $more;
    mov.b32 %r1, 11;
    bra.uni $end;
    $more:
    add.s32 %r1, %r2, 100;
    bra.uni $end;
    $zero:
    mov.b32 %r1, 5;
    $end:
    shfl.sync.bfly.b32 %r3, %r1, 1, 31, -1;
    add.s32 %r1, %r1, %r3;
    """
    found, _ = run(assemble, body)
    value = [{0: 5, 1: 11, 2: 102, 3: 103}[i % 4] for i in range(32)]
    assert found.tolist() == [value[i] + value[i ^ 1] for i in range(32)]


def test_loops_of_different_lengths(assemble):
    body = """
    mov.b32 %r1, 0;
    mov.b32 %r2, 0;
    $loop:
    add.s32 %r1, %r1, %r2;
    add.s32 %r2, %r2, 1;
    setp.le.u32 %p1, %r2, %r0;
    @%p1 bra $loop;
    """
    found, trace = run(assemble, body, threads=64)
    assert found.tolist() == [i * (i + 1) // 2 for i in range(64)]
    assert trace.instructions["bra"] == 32 + 64  # warp 0 until thread 31, warp 1 until thread 63


def test_many_blocks_of_a_grid(assemble):
    body = """
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ctaid.y;
    mov.u32 %r4, %nctaid.x;
    mov.u32 %r6, %ctaid.z;
    mad.lo.s32 %r5, %r3, %r4, %r2;
    mad.lo.s32 %r5, %r6, 1000, %r5;
    setp.eq.u32 %p1, %r2, 3;
    mov.b32 %r1, %r5;
    @%p1 bra $end;
    add.s32 %r1, %r1, 5000;
    $end:
    mad.lo.s32 %r72, %r5, 32, %r0;
    mad.wide.u32 %rd60, %r72, 4, %rd0;
    st.global.b32 [%rd60], %r1;
    """
    out = ptx.poisoned(7 * 30 * 32, np.uint32)
    program = ptx.parse(assemble(body, 1))
    trace = ptx.launch(program, (7, 30, 1), 32, 0, [out])
    expected = [b + (0 if b % 7 == 3 else 5000) for b in range(210)]
    assert (out.array.reshape(210, 32) == np.array(expected)[:, None]).all()
    assert (trace.blocks, trace.threads) == (210, 32)
    assert trace.instructions["ret"] == trace.instructions["st.global.b32"] == 210
    part = ptx.poisoned(7 * 30 * 32, np.uint32)
    trace = ptx.launch(program, (7, 30, 1), 32, 0, [part], blocks=[4, 100])
    assert part.written.sum() == 2 * 32 * 4
    assert (part.array.reshape(210, 32)[[4, 100]] == out.array.reshape(210, 32)[[4, 100]]).all()


def test_early_returns_and_barriers(assemble):
    body = """
    setp.lt.u32 %p1, %r0, 32;
    @%p1 ret;
    bar.sync 0;
    mov.b32 %r1, 9;
    """
    out = ptx.poisoned(64, np.uint32)
    program = ptx.parse(assemble(body + STORE, 1, 64))
    ptx.launch(program, (1, 1, 1), 64, 0, [out])
    assert (out.array[32:] == 9).all()
    assert not out.complete


def test_threads_that_return_let_the_waiting_go_on(assemble):
    body = """
    setp.lt.u32 %p1, %r0, 32;
    @!%p1 bra $leave;
    bar.sync 0;
    mov.b32 %r1, 9;
    mad.wide.u32 %rd60, %r0, 4, %rd0;
    st.global.b32 [%rd60], %r1;
    $leave:
    """
    out = ptx.poisoned(64, np.uint32)
    ptx.launch(ptx.parse(assemble(body, 1, 64)), (1, 1, 1), 64, 0, [out])
    assert (out.array[:32] == 9).all()


def test_a_barrier_in_a_diverged_warp_is_a_fault(assemble):
    body = "setp.lt.u32 %p1, %r0, 7;\n@%p1 bra $skip;\nbar.sync 0;\n$skip:\nmov.b32 %r1, 1;"
    with pytest.raises(ptx.PtxFault, match="do not all arrive"):
        run(assemble, body)


def test_a_barrier_that_only_some_warps_reach_matches_any_other(assemble):
    body = """
    setp.lt.u32 %p1, %r0, 32;
    @%p1 bra $first;
    bar.sync 0;
    bra.uni $end;
    $first:
    bar.sync 0;
    $end:
    mov.b32 %r1, 1;
    """
    found, _ = run(assemble, body, threads=64)
    assert (found == 1).all()


def test_a_barrier_without_an_end_is_an_error(assemble):
    body = """
    mov.b32 %r1, 1;
    setp.lt.u32 %p1, %r0, 32;
    @%p1 bra $wait;
    $spin:
    bra.uni $spin;
    $wait:
    bar.sync 0;
    """
    program = ptx.parse(assemble(body + STORE, 1, 64))
    with pytest.raises(ptx.PtxError, match="still running"):
        ptx.launch(program, (1, 1, 1), 64, 0, [ptx.poisoned(64, np.uint32)], limit=1000)


def test_registers_nobody_wrote(assemble):
    with pytest.raises(ptx.PtxFault, match="reads %r1, which was never written"):
        run(assemble, "")
    with pytest.raises(ptx.PtxFault, match="%p9"):
        run(assemble, "mov.b32 %r1, 0;\n@%p9 mov.b32 %r1, 1;")
    partly = "setp.lt.u32 %p1, %r0, {};\n@%p1 mov.b32 %r1, 1;"
    with pytest.raises(ptx.PtxFault, match=r"never written \(block 0, thread 20\)"):
        run(assemble, partly.format(20))
    found, _ = run(assemble, partly.format(32))
    assert (found == 1).all()
    branch = "setp.lt.u32 %p1, %r0, 9;\n@%p1 bra $skip;\nmov.b32 %r1, 1;\n$skip:"
    with pytest.raises(ptx.PtxFault, match="thread 0"):
        run(assemble, branch)
    looping = """
    mov.b32 %r2, 0;
    $loop:
    setp.eq.b32 %p1, %r2, 0;
    @%p1 bra $first;
    add.s32 %r1, %r1, %r2;
    bra.uni $next;
    $first:
    mov.b32 %r1, 40;
    $next:
    add.s32 %r2, %r2, 1;
    setp.lt.u32 %p2, %r2, 3;
    @%p2 bra $loop;
    """
    found, _ = run(assemble, looping)
    assert (found == 43).all()


def test_every_batch_forgets_the_registers_of_the_last(assemble):
    body = "mov.u32 %r5, %ctaid.x;\nsetp.lt.u32 %p1, %r5, 99;\n@%p1 mov.b32 %r1, 1;"
    with pytest.raises(ptx.PtxFault, match="block 99"):
        run(assemble, body, grid=(100, 1, 1))


def test_scopes_of_inline_assembly(assemble):
    body = """
    { .reg .pred %q; .reg .b32 t; setp.lt.u32 %q, %r0, 4; selp.b32 t, 8, 9, %q; mov.b32 %r1, t; }
    { .reg .b32 t;
      mov.b32 t, 1; add.s32 %r1, %r1, t; }
    """
    found, _ = run(assemble, body)
    assert found.tolist() == [9] * 4 + [10] * 28


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("ret;", "bra $nowhere;\nret;"), "an unknown label"),
        (lambda t: t.replace("ret;", "add.s32 %r1, %zz, 1;\nret;"), "operand %zz"),
        (lambda t: t.replace("ret;", ".local .align 8 .b8 depot[8];\nret;"), "directive"),
        (lambda t: t.replace("ret;", "bar.sync 1;\nret;"), "this form"),
        (lambda t: t.replace("ret;", "trap;"), "trap"),
        (lambda t: t.replace("ret;", "$a:\n$a:\nret;"), "is defined twice"),
        (lambda t: t + ".func f() { ret; }", "device functions"),
        (lambda t: t.replace(".visible .entry k(", ".visible .k("), "0 entries"),
        (lambda t: t.rstrip().rstrip("}"), "no closing brace"),
        (lambda t: t.replace("ret;", "call f, ();\nret;"), "call"),
        (lambda t: t.replace("ret;", "ld.local.b32 %r1, [%r2];\nret;"), "local"),
        (lambda t: t.replace("ret;", "mov.u32 %r1, %clock;\nret;"), "%clock"),
    ],
)
def test_what_is_not_understood_is_refused(assemble, change, message):
    with pytest.raises(ptx.PtxError, match=message):
        ptx.launch(ptx.parse(change(assemble("", 0))), (1, 1, 1), 32, 0, [])


def test_the_parser_reads_what_a_launch_needs(assemble):
    text = assemble(
        "", 3, 96, ".extern .shared .align 16 .b8 smem[];\n.shared .align 8 .b8 own[12];"
    )
    program = ptx.parse("// a comment { }\n/* another\n { */" + text)
    assert (program.name, program.threads, program.target, program.version) == (
        "k",
        96,
        "sm_80",
        "8.5",
    )
    assert [p.size for p in program.parameters] == [8, 8, 8]
    assert program.shared == {"own": 0, "smem": 16}
    last = program.instructions[-1]
    assert (last.name, text.split("\n")[last.line - 3]) == ("ret", "ret;")


def test_scalars_and_structs_arrive_as_bytes(assemble):
    text = assemble(
        "ld.param.b32 %r1, [n];\nld.param.v2.b32 {%r2, %r3}, [s+4];\nadd.s32 %r1, %r1, %r3;"
        + STORE,
        1,
    )
    text = text.replace("k_param_0\n", "k_param_0,\n.param .u32 n,\n.param .align 4 .b8 s[12]\n", 1)
    out = ptx.poisoned(32, np.uint32)
    struct = np.array([1, 2, 30], dtype=np.uint32).tobytes()
    ptx.launch(ptx.parse(text), (1, 1, 1), 32, 0, [out, -7, struct])
    assert (out.array == 23).all()
