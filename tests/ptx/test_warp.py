"""Shuffles, votes and reductions among the threads of a warp."""

import numpy as np
import pytest

from uino_deploy import ptx


def expected_lanes(mode, offset, control):
    """PTX ISA's pseudocode of shfl.sync, for one warp: (source lanes, predicates)."""
    sources, predicates = [], []
    for lane in range(32):
        segment, clamp = control >> 8 & 31, control & 31
        last = (lane & segment) | (clamp & ~segment & 31)
        first = lane & segment
        j = {"up": lane - offset, "down": lane + offset, "bfly": lane ^ offset,
             "idx": first | (offset & ~segment & 31)}[mode]  # fmt: skip
        inside = j >= last if mode == "up" else j <= last
        sources.append(j if inside else lane)
        predicates.append(inside)
    return sources, predicates


@pytest.mark.parametrize(
    ("mode", "offset", "control"),
    [
        ("bfly", 1, 31), ("bfly", 16, 31), ("bfly", 3, 0x1C1F), ("up", 1, 0), ("up", 5, 0x1800),
        ("down", 4, 31), ("down", 2, 0x181F), ("idx", 7, 31), ("idx", 3, 0x181F), ("up", 8, 0x1000),
    ],
)  # fmt: skip
def test_shuffles(evaluate, random, mode, offset, control):
    a = random.integers(0, 2**32, 64, dtype=np.uint32)
    sources, predicates = expected_lanes(mode, offset, control)
    expected = np.concatenate([a[:32][sources], a[32:][sources]])
    text = f"shfl.sync.{mode}.b32 {{d}}, {{0}}, {offset}, {control}, -1;"
    assert (evaluate(text, np.uint32, a) == expected).all()
    offsets = np.full(64, offset, dtype=np.uint32)
    text = f"shfl.sync.{mode}.b32 {{d}}, {{0}}, {{1}}, {control}, 0xffffffff;"
    assert (evaluate(text, np.uint32, a, offsets) == expected).all()
    text = f"shfl.sync.{mode}.b32 %r30|{{d}}, {{0}}, {offset}, {control}, -1;"
    assert evaluate(text, np.bool_, a).tolist() == predicates * 2


def test_votes(evaluate):
    p = np.zeros(96, dtype=np.bool_)
    p[3], p[32:64] = True, True
    assert evaluate("vote.sync.any.pred {d}, {0}, -1;", np.bool_, p).tolist() == [1] * 64 + [0] * 32
    found = evaluate("vote.sync.all.pred {d}, {0}, -1;", np.bool_, p)
    assert found.tolist() == [0] * 32 + [1] * 32 + [0] * 32
    found = evaluate("vote.sync.uni.pred {d}, {0}, -1;", np.bool_, p)
    assert found.tolist() == [0] * 32 + [1] * 64
    found = evaluate("vote.sync.ballot.b32 {d}, {0}, -1;", np.uint32, p)
    assert found.tolist() == [8] * 32 + [2**32 - 1] * 32 + [0] * 32
    assert (evaluate("activemask.b32 {d};", np.uint32, p.astype(np.uint32)) == 2**32 - 1).all()


@pytest.mark.parametrize(
    ("operation", "kind"), [("add", "s32"), ("min", "s32"), ("max", "u32"), ("xor", "b32")]
)
def test_reductions(evaluate, random, operation, kind):
    a = random.integers(0, 2**32, 64, dtype=np.uint32)
    values = a.view(np.int32) if kind == "s32" else a
    function = {"add": np.add, "min": np.minimum, "max": np.maximum, "xor": np.bitwise_xor}[
        operation
    ]
    found = evaluate(f"redux.sync.{operation}.{kind} {{d}}, {{0}}, -1;", values.dtype.type, values)
    expected = np.repeat(function.reduce(values.reshape(2, 32), axis=1, dtype=values.dtype), 32)
    assert (found == expected).all()


def test_a_member_that_is_not_here_is_a_fault(assemble):
    body = """
    setp.gt.u32 %p1, %r0, 7;
    @%p1 bra $out;
    shfl.sync.bfly.b32 %r1, %r0, 1, 31, MEMBERS;
    $out:
    """
    program = ptx.parse(assemble(body.replace("MEMBERS", "0xff"), 0))
    ptx.launch(program, (1, 1, 1), 32, 0, [])
    program = ptx.parse(assemble(body.replace("MEMBERS", "-1"), 0))
    with pytest.raises(ptx.PtxFault, match="member mask"):
        ptx.launch(program, (1, 1, 1), 32, 0, [])
