"""Conversions, packing, byte and bit fields, against numpy and plain Python."""

import numpy as np
import pytest

from uino_deploy.ptx import UnsupportedPtx
from uino_deploy.ptx.floats import round_bf16, round_tf32, widen_bf16

VALUES = np.array(
    [
        0.0,
        -0.0,
        0.5,
        1.5,
        2.5,
        -0.5,
        -1.5,
        3.7,
        -3.7,
        1e10,
        -1e10,
        np.inf,
        -np.inf,
        np.nan,
        70000.0,
    ],
    dtype=np.float32,
)


def words(random, count=64):
    return random.integers(0, 2**32, size=count, dtype=np.uint32)


@pytest.mark.parametrize(
    ("mode", "function"),
    [("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)],
)
def test_floats_to_integers_clamp_and_nan_is_zero(evaluate, mode, function):
    rounded = np.nan_to_num(function(VALUES.astype(np.float64)), nan=0.0)
    for kind, dtype in (("s32", np.int32), ("u32", np.uint32), ("s64", np.int64)):
        limits = np.iinfo(dtype)
        expected = [
            min(max(int(v), limits.min), limits.max)
            if abs(v) < 1e300
            else (limits.max if v > 0 else limits.min)
            for v in rounded.tolist()
        ]
        found = evaluate(f"cvt.{mode}.{kind}.f32 {{d}}, {{0}};", dtype, VALUES)
        assert found.tolist() == expected
    found = evaluate(f"cvt.{mode}.f32.f32 {{d}}, {{0}};", np.float32, VALUES)
    np.testing.assert_array_equal(found, function(VALUES))


def test_integers_to_floats_and_integers(evaluate, random):
    words32 = words(random)
    signed = words32.view(np.int32)
    assert (evaluate("cvt.rn.f32.s32 {d}, {0};", np.float32, signed) == signed.astype("f4")).all()
    assert (evaluate("cvt.rn.f32.u32 {d}, {0};", np.float32, words32) == words32.astype("f4")).all()
    assert (evaluate("cvt.s64.s32 {d}, {0};", np.int64, signed) == signed).all()
    assert (evaluate("cvt.u64.u32 {d}, {0};", np.uint64, words32) == words32).all()
    assert (evaluate("cvt.u16.u32 {d}, {0};", np.uint16, words32) == words32 % 65536).all()
    assert (
        evaluate("cvt.u32.u16 {d}, {0};", np.uint32, words32.view("u2")) == words32.view("u2")
    ).all()
    assert (
        evaluate("cvt.s32.s16 {d}, {0};", np.int32, words32.view("i2")) == words32.view("i2")
    ).all()
    assert (evaluate("cvt.s32.s8 {d}, {0};", np.int32, signed) == signed.astype(np.int8)).all()
    found = evaluate("cvt.sat.u16.s32 {d}, {0};", np.uint16, signed)
    assert (found == np.clip(signed, 0, 65535)).all()
    zero = np.array([0.3, -7.9, 1e9], dtype=np.float32)
    rounded = evaluate("cvt.rz.f32.s64 {d}, {0};", np.float32, np.array([2**24 + 1, -(2**25) - 3]))
    assert rounded.tolist() == [2**24, -(2**25)]
    assert evaluate("cvt.rzi.s32.f32 {d}, {0};", np.int32, zero).tolist() == [0, -7, 10**9]


def test_floats_to_floats(evaluate, random):
    a = random.normal(size=64).astype(np.float32)
    assert (evaluate("cvt.rn.f16.f32 {d}, {0};", np.float16, a) == a.astype(np.float16)).all()
    assert (evaluate("cvt.rn.bf16.f32 {d}, {0};", np.uint16, a) == round_bf16(a)).all()
    assert (evaluate("cvt.rz.bf16.f32 {d}, {0};", np.uint16, a) == a.view("u4") >> 16).all()
    assert (evaluate("cvt.rna.tf32.f32 {d}, {0};", np.float32, a) == round_tf32(a)).all()
    half = a.astype(np.float16)
    assert (evaluate("cvt.f32.f16 {d}, {0};", np.float32, half) == half.astype("f4")).all()
    brain = round_bf16(a)
    assert (evaluate("cvt.f32.bf16 {d}, {0};", np.float32, brain) == widen_bf16(brain)).all()
    assert (evaluate("cvt.f64.f32 {d}, {0};", np.float64, a) == a.astype("f8")).all()
    wide = random.normal(size=64)
    assert (evaluate("cvt.rn.f32.f64 {d}, {0};", np.float32, wide) == wide.astype("f4")).all()
    tiny = np.array([1e-40], dtype=np.float32)
    assert evaluate("cvt.ftz.f64.f32 {d}, {0};", np.float64, tiny)[0] == 0
    big = np.array([1e9, -1e9, -2.0], dtype=np.float32)
    found = evaluate("cvt.rn.satfinite.f16.f32 {d}, {0};", np.float16, big)
    assert found.tolist() == [65504.0, -65504.0, -2.0]
    assert evaluate("cvt.rn.relu.f16.f32 {d}, {0};", np.float16, big)[2] == 0


def test_packed_pairs_hold_the_first_source_above(evaluate, random):
    a, b = (random.normal(size=64).astype(np.float32) for _ in range(2))
    found = evaluate("cvt.rn.f16x2.f32 {d}, {0}, {1};", np.uint32, a, b).view(np.float16)
    assert (found[1::2] == a.astype("f2")).all()
    assert (found[0::2] == b.astype("f2")).all()
    found = evaluate("cvt.rn.bf16x2.f32 {d}, {0}, {1};", np.uint32, a, b).view(np.uint16)
    assert (found[1::2] == round_bf16(a)).all()
    assert (found[0::2] == round_bf16(b)).all()


def test_moves_pack_and_unpack(evaluate, random):
    a, b = words(random), words(random)
    found = evaluate("mov.b64 {d}, {{{0}, {1}}};", np.uint64, a, b)
    assert (found == a + (b.astype(np.uint64) << np.uint64(32))).all()
    assert (evaluate("mov.b64 {{_, {d}}}, {0};", np.uint32, found) == b).all()
    assert (evaluate("mov.b64 {{{d}, _}}, {0};", np.uint32, found) == a).all()
    low, high = a.view(np.uint16)[::2].copy(), a.view(np.uint16)[1::2].copy()
    assert (evaluate("mov.b32 {d}, {{{0}, {1}}};", np.uint32, low, high) == a).all()
    assert (evaluate("mov.b32 {{{d}, %rs30}}, {0};", np.uint16, a) == low).all()
    assert (evaluate("mov.f32 {d}, 0f3FC00000;", np.float32, a) == 1.5).all()
    assert (evaluate("mov.b16 {d}, 0x41A0;", np.uint16, a) == 0x41A0).all()
    assert (evaluate("mov.b32 {d}, -1;", np.uint32, a) == 0xFFFFFFFF).all()


def test_bit_fields(evaluate, random):
    a = words(random)
    for start, length in ((0, 8), (5, 7), (31, 1), (28, 10), (4, 0), (40, 3)):
        field = [(x >> start) & ((1 << length) - 1) for x in a.tolist()]
        found = evaluate(f"bfe.u32 {{d}}, {{0}}, {start}, {length};", np.uint32, a)
        assert found.tolist() == field
        found = evaluate(f"bfe.s32 {{d}}, {{0}}, {start}, {length};", np.int32, a.view(np.int32))
        expected = []
        for x in a.tolist():
            top = min(start + length - 1, 31)
            sign = x >> top & 1 if length else 0
            value = 0
            for bit in range(32):
                at = start + bit
                value |= (x >> at & 1 if bit < length and at < 32 else sign) << bit
            expected.append(value)
        assert found.view(np.uint32).tolist() == expected
    b = words(random)
    found = evaluate("bfi.b32 {d}, {0}, {1}, 6, 9;", np.uint32, a, b)
    assert found.tolist() == [
        (y & ~(511 << 6)) | ((x & 511) << 6) for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]


def test_bytes_and_tables(evaluate, random):
    a, b, c = words(random), words(random), words(random)
    triples = list(zip(a.tolist(), b.tolist(), c.tolist(), strict=True))
    found = evaluate("prmt.b32 {d}, {0}, {1}, 0x7610;", np.uint32, a, b)
    assert found.tolist() == [(x & 0xFFFF) | (y & 0xFFFF0000) for x, y, _ in triples]
    found = evaluate("prmt.b32 {d}, {0}, 0, 0x7701U;", np.uint32, a)
    assert found.tolist() == [(x >> 8 & 0xFF) | (x & 0xFF) << 8 for x in a.tolist()]
    found = evaluate("prmt.b32 {d}, {0}, 0, 0xBA98;", np.uint32, a)
    assert found.tolist() == [
        sum((0xFF << 8 * i) * (x >> (8 * i + 7) & 1) for i in range(4)) for x in a.tolist()
    ]
    table = 0xCA  # a ? b : c
    found = evaluate(f"lop3.b32 {{d}}, {{0}}, {{1}}, {{2}}, {table};", np.uint32, a, b, c)
    assert found.tolist() == [(x & y) | (~x & z) for x, y, z in triples]


def test_funnel_shifts_and_counts(evaluate, random):
    a, b = words(random), words(random)
    n = random.integers(0, 32, 64).astype(np.uint32)
    both = [(x | y << 32, k) for x, y, k in zip(a.tolist(), b.tolist(), n.tolist(), strict=True)]
    found = evaluate("shf.l.wrap.b32 {d}, {0}, {1}, {2};", np.uint32, a, b, n)
    assert found.tolist() == [(w << k >> 32) & 0xFFFFFFFF for w, k in both]
    found = evaluate("shf.r.wrap.b32 {d}, {0}, {1}, {2};", np.uint32, a, b, n)
    assert found.tolist() == [(w >> k) & 0xFFFFFFFF for w, k in both]
    assert evaluate("popc.b32 {d}, {0};", np.uint32, a).tolist() == [
        x.bit_count() for x in a.tolist()
    ]
    small = a >> n
    assert evaluate("clz.b32 {d}, {0};", np.uint32, small).tolist() == [
        32 - x.bit_length() for x in small.tolist()
    ]
    assert evaluate("brev.b32 {d}, {0};", np.uint32, a).tolist() == [
        int(f"{x:032b}"[::-1], 2) for x in a.tolist()
    ]


@pytest.mark.parametrize(
    "instruction",
    ["cvt.f32.f16.f16 {d}, {0};", "cvt.rn.satfinite.e4m3x2.f32 {d}, {0}, {0};",
     "cvt.s32.f32 {d}, {0};", "setp.weird.f32 %p1, {0}, {0};", "cvta.to.shared.u64 {d}, {0};"],
)  # fmt: skip
def test_unknown_forms_are_refused(evaluate, instruction):
    with pytest.raises(UnsupportedPtx):
        evaluate(instruction, np.float32, np.zeros(32, np.float32))
