"""Each elementwise instruction against numpy, on ordinary and on awkward values."""

from fractions import Fraction

import numpy as np
import pytest

from uino_deploy.ptx import UnsupportedPtx
from uino_deploy.ptx.floats import round_bf16, round_f16, round_tf32, widen_bf16

AWKWARD = np.array(
    [0.0, -0.0, 1.0, -1.5, 3.25, np.inf, -np.inf, np.nan, 1e-40, -1e-41, 65504.0, 65520.0, 1e-7],
    dtype=np.float32,
)


def floats(random, count=200):
    values = random.normal(scale=10.0, size=count).astype(np.float32)
    values[: len(AWKWARD)] = AWKWARD
    return values


def halves(random, count=64):
    with np.errstate(over="ignore"):
        return floats(random, count).astype(np.float16)


def words(random, dtype, count=200):
    info = np.iinfo(dtype)
    values = random.integers(info.min, info.max, size=count, dtype=dtype, endpoint=True)
    values[:5] = [info.min, info.max, 0, 1, 7]
    return values


def bits(values):
    return np.asarray(values).view(f"u{np.asarray(values).dtype.itemsize}")


def same(found, expected):
    """Equal bits, any NaN being as good as another."""
    found, expected = np.asarray(found), np.asarray(expected)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(bits(found)[~nan], bits(expected)[~nan])


@pytest.mark.parametrize(
    ("instruction", "function"),
    [
        ("add.f32 {d}, {0}, {1};", np.add),
        ("add.rn.f32 {d}, {0}, {1};", np.add),
        ("sub.f32 {d}, {0}, {1};", np.subtract),
        ("mul.f32 {d}, {0}, {1};", np.multiply),
        ("div.rn.f32 {d}, {0}, {1};", np.divide),
        ("div.full.f32 {d}, {0}, {1};", np.divide),
        ("div.approx.f32 {d}, {0}, {1};", np.divide),
        ("min.f32 {d}, {0}, {1};", np.fmin),
        ("max.f32 {d}, {0}, {1};", np.fmax),
        ("max.NaN.f32 {d}, {0}, {1};", np.maximum),
        ("min.NaN.f32 {d}, {0}, {1};", np.minimum),
    ],
)
def test_two_floats(evaluate, random, instruction, function):
    a, b = floats(random), floats(random)[::-1].copy()
    with np.errstate(all="ignore"):
        same(evaluate(instruction, np.float32, a, b), function(a, b))


@pytest.mark.parametrize(
    ("instruction", "function"),
    [
        ("abs.f32 {d}, {0};", np.abs),
        ("neg.f32 {d}, {0};", np.negative),
        ("ex2.approx.f32 {d}, {0};", np.exp2),
        ("lg2.approx.f32 {d}, {0};", np.log2),
        ("sqrt.rn.f32 {d}, {0};", np.sqrt),
        ("rsqrt.approx.f32 {d}, {0};", lambda x: 1 / np.sqrt(x)),
        ("rcp.rn.f32 {d}, {0};", lambda x: 1 / x),
        ("sin.approx.f32 {d}, {0};", np.sin),
        ("cos.approx.f32 {d}, {0};", np.cos),
        ("tanh.approx.f32 {d}, {0};", np.tanh),
    ],
)
def test_one_float(evaluate, random, instruction, function):
    a = floats(random)
    with np.errstate(all="ignore"):
        same(
            evaluate(instruction, np.float32, a), function(a.astype(np.float64)).astype(np.float32)
        )


def test_ftz_flushes_sources_and_results(evaluate):
    a = np.array([1e-40, -1e-40, 2e-38, 1.0], dtype=np.float32)
    b = np.array([1.0, 1.0, 0.25, 1.0], dtype=np.float32)
    same(
        evaluate("mul.rn.ftz.f32 {d}, {0}, {1};", np.float32, a, b),
        np.array([0.0, -0.0, 0.0, 1.0], dtype=np.float32),
    )
    kept = evaluate("mul.rn.f32 {d}, {0}, {1};", np.float32, a, b)
    assert kept[0] == np.float32(1e-40)
    flushed = evaluate("fma.rn.ftz.f32 {d}, {0}, {1}, {0};", np.float32, a, b)
    same(flushed, np.array([0.0, -0.0, 2.5e-38, 2.0], dtype=np.float32))
    same(evaluate("abs.ftz.f32 {d}, {0};", np.float32, a)[:1], np.zeros(1, np.float32))


def test_sat_clamps_to_the_unit_interval(evaluate):
    a = np.array([-1.0, 0.5, 2.0, np.nan], dtype=np.float32)
    found = evaluate("add.sat.f32 {d}, {0}, 0f00000000;", np.float32, a)
    same(found, np.array([0.0, 0.5, 1.0, 0.0], dtype=np.float32))


def test_fma_rounds_once(evaluate, random):
    a = np.float32(1) + random.integers(1, 2**20, 64).astype(np.float32) * np.float32(2.0**-23)
    c = -(a * a)
    found = evaluate("fma.rn.f32 {d}, {0}, {0}, {1};", np.float32, a, c)
    exact = a.astype(np.float64) ** 2 + c.astype(np.float64)
    assert np.any(exact != 0)
    np.testing.assert_array_equal(found, exact.astype(np.float32))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_a_narrow_source_beside_a_float32_one(evaluate, random, kind):
    """From sm_100 on; the narrow number is widened, and the result rounds once."""
    wide, narrow, factor = floats(random, 64), *(halves(random) for _ in range(2))
    if kind == "bf16":
        narrow, factor = (round_bf16(floats(random, 64)) for _ in range(2))
    a, b = (widen_bf16(v) if kind == "bf16" else v.astype(np.float32) for v in (narrow, factor))
    with np.errstate(all="ignore"):
        found = evaluate(f"add.rn.f32.{kind} {{d}}, {{0}}, {{1}};", np.float32, narrow, wide)
        same(found, a + wide)
        found = evaluate(f"sub.rn.f32.{kind} {{d}}, {{0}}, {{1}};", np.float32, narrow, wide)
        same(found, a - wide)
        text = f"fma.rn.f32.{kind} {{d}}, {{0}}, {{1}}, {{2}};"
        exact = a.astype(np.float64) * b + wide
        same(evaluate(text, np.float32, narrow, factor, wide), exact.astype(np.float32))


def test_max_of_three(evaluate, random):
    a, b, c = (floats(random) for _ in range(3))
    found = evaluate("max.f32 {d}, {0}, {1}, {2};", np.float32, a, b, c)
    same(found, np.fmax(np.fmax(a, b), c))


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64", "s16", "u16"])
@pytest.mark.parametrize("name", ["add", "sub", "min", "max", "mul.lo", "div", "rem"])
def test_integers(evaluate, random, name, kind):
    dtype = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{int(kind[1:]) // 8}").type
    a, b = words(random, dtype), words(random, dtype)[::-1].copy()
    b[b == 0] = 3
    b[: b.size // 2] = np.maximum(b[: b.size // 2] % 50, 1)
    b[b == np.array(-1).astype(dtype)] = 2  # the most negative number by -1 overflows
    found = evaluate(f"{name}.{kind} {{d}}, {{0}}, {{1}};", dtype, a, b)
    exact = {
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "min": min,
        "max": max,
        "mul.lo": lambda x, y: x * y,
        "div": lambda x, y: abs(x) // abs(y) * (1 if x * y >= 0 else -1),
        "rem": lambda x, y: abs(x) % abs(y) * (1 if x >= 0 else -1),
    }[name]
    mask = (1 << int(kind[1:])) - 1
    expected = [exact(x, y) & mask for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert bits(found).tolist() == expected


@pytest.mark.parametrize("kind", ["s32", "u32"])
def test_wide_and_high_products(evaluate, random, kind):
    dtype, wide = (np.int32, np.int64) if kind == "s32" else (np.uint32, np.uint64)
    a, b = words(random, dtype), words(random, dtype)[::-1].copy()
    c = words(random, wide)
    exact = [x * y for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    found = evaluate(f"mul.wide.{kind} {{d}}, {{0}}, {{1}};", wide, a, b)
    assert found.tolist() == exact
    found = evaluate(f"mul.hi.{kind} {{d}}, {{0}}, {{1}};", dtype, a, b)
    assert found.tolist() == [x >> 32 for x in exact]
    found = evaluate(f"mad.wide.{kind} {{d}}, {{0}}, {{1}}, {{2}};", wide, a, b, c)
    total = [(x + y) & (2**64 - 1) for x, y in zip(exact, c.tolist(), strict=True)]
    assert bits(found).tolist() == total
    found = evaluate(f"mad.lo.{kind} {{d}}, {{0}}, {{1}}, {{0}};", dtype, a, b)
    total = [(x + y) & (2**32 - 1) for x, y in zip(exact, a.tolist(), strict=True)]
    assert bits(found).tolist() == total


def test_division_by_zero_is_all_ones(evaluate):
    a, zero = np.array([5, -5], dtype=np.int32), np.zeros(2, dtype=np.int32)
    assert evaluate("div.s32 {d}, {0}, {1};", np.int32, a, zero).tolist() == [-1, -1]


@pytest.mark.parametrize("kind", ["b16", "b32", "b64"])
def test_logic_and_shifts(evaluate, random, kind):
    width = int(kind[1:])
    dtype = np.dtype(f"u{width // 8}").type
    a, b = words(random, dtype), words(random, dtype)[::-1].copy()
    mask = (1 << width) - 1
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    for name, function in (
        ("and", lambda x, y: x & y),
        ("or", lambda x, y: x | y),
        ("xor", lambda x, y: x ^ y),
    ):
        found = evaluate(f"{name}.{kind} {{d}}, {{0}}, {{1}};", dtype, a, b)
        assert found.tolist() == [function(x, y) for x, y in pairs]
    assert evaluate(f"not.{kind} {{d}}, {{0}};", dtype, a).tolist() == [x ^ mask for x, _ in pairs]
    amount = np.resize(np.array([0, 1, 5, width - 1, width, 70, 200, 2**31], np.uint32), a.size)
    shifts = list(zip(a.tolist(), amount.tolist(), strict=True))
    found = evaluate(f"shl.{kind} {{d}}, {{0}}, {{1}};", dtype, a, amount)
    assert found.tolist() == [(x << min(n, 99)) & mask for x, n in shifts]
    found = evaluate(f"shr.u{width} {{d}}, {{0}}, {{1}};", dtype, a, amount)
    assert found.tolist() == [x >> min(n, 99) for x, n in shifts]
    signed = a.view(f"i{width // 8}")
    found = evaluate(f"shr.s{width} {{d}}, {{0}}, {{1}};", signed.dtype.type, signed, amount)
    assert found.tolist() == [
        x >> min(n, 99) for x, n in zip(signed.tolist(), amount.tolist(), strict=True)
    ]
    assert evaluate(f"shl.{kind} {{d}}, {{0}}, 3;", dtype, a).tolist() == [
        x << 3 & mask for x, _ in pairs
    ]
    found = evaluate(f"shr.s{width} {{d}}, {{0}}, 3;", signed.dtype.type, signed)
    assert found.tolist() == [x >> 3 for x in signed.tolist()]


def test_predicate_logic_and_selection(evaluate, random):
    p, q = random.random(100) < 0.5, random.random(100) < 0.5
    a, b = words(random, np.uint32, 100), words(random, np.uint32, 100)
    assert (evaluate("and.pred {d}, {0}, {1};", np.bool_, p, q) == (p & q)).all()
    assert (evaluate("or.pred {d}, {0}, {1};", np.bool_, p, q) == (p | q)).all()
    assert (evaluate("xor.pred {d}, {0}, {1};", np.bool_, p, q) == (p ^ q)).all()
    assert (evaluate("not.pred {d}, {0};", np.bool_, p) == ~p).all()
    found = evaluate("selp.b32 {d}, {0}, {1}, {2};", np.uint32, a, b, p)
    assert (found == np.where(p, a, b)).all()
    found = evaluate("selp.f32 {d}, 0f3F800000, 0fC0000000, {0};", np.float32, p)
    assert (found == np.where(p, 1.0, -2.0)).all()


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_comparisons(evaluate, random, name):
    operator = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}[name]
    function = eval(f"lambda x, y: x {operator} y")  # the operator is one of six above
    a = random.integers(-3, 4, 100).astype(np.int32)
    b = random.integers(-3, 4, 100).astype(np.int32)
    assert (
        evaluate(f"setp.{name}.s32 {{d}}, {{0}}, {{1}};", np.bool_, a, b) == function(a, b)
    ).all()
    u, v = a.view(np.uint32), b.view(np.uint32)
    assert (
        evaluate(f"setp.{name}.u32 {{d}}, {{0}}, {{1}};", np.bool_, u, v) == function(u, v)
    ).all()
    x, y = a.astype(np.float32), b.astype(np.float32)
    x[:10], y[5:15] = np.nan, np.nan
    nan = np.isnan(x) | np.isnan(y)
    ordered = evaluate(f"setp.{name}.f32 {{d}}, {{0}}, {{1}};", np.bool_, x, y)
    assert (ordered == (function(x, y) & ~nan)).all()
    unordered = evaluate(f"setp.{name}u.f32 {{d}}, {{0}}, {{1}};", np.bool_, x, y)
    assert (unordered == (function(x, y) | nan)).all()
    half = evaluate(
        f"setp.{name}.f16 {{d}}, {{0}}, {{1}};", np.bool_, x.astype("f2"), y.astype("f2")
    )
    assert (half == ordered).all()
    brain = [round_bf16(v) for v in (x, y)]
    assert (evaluate(f"setp.{name}.bf16 {{d}}, {{0}}, {{1}};", np.bool_, *brain) == ordered).all()


def test_comparisons_for_nan_and_combined(evaluate):
    x = np.array([1.0, np.nan, 2.0, np.nan], dtype=np.float32)
    p = np.array([True, True, False, False])
    assert evaluate("setp.num.f32 {d}, {0}, {0};", np.bool_, x).tolist() == [1, 0, 1, 0]
    assert evaluate("setp.nan.f32 {d}, {0}, {0};", np.bool_, x).tolist() == [0, 1, 0, 1]
    found = evaluate("setp.eq.and.f32 {d}, {0}, {0}, {1};", np.bool_, x, p)
    assert found.tolist() == [1, 0, 0, 0]
    found = evaluate("setp.eq.f32 %p5|{d}, {0}, {0};", np.bool_, x)
    assert found.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("name", ["add", "sub", "mul", "min", "max"])
def test_half_arithmetic(evaluate, random, name):
    function = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "min": np.fmin}.get(
        name, np.fmax
    )
    a, b = halves(random), halves(random)
    with np.errstate(all="ignore"):
        expected = function(a.astype(np.float32), b.astype(np.float32)).astype(np.float16)
        same(evaluate(f"{name}.f16 {{d}}, {{0}}, {{1}};", np.float16, a, b), expected)
        packed = evaluate(
            f"{name}.f16x2 {{d}}, {{0}}, {{1}};", np.uint32, a.view(np.uint32), b.view(np.uint32)
        )
        same(packed.view(np.float16), expected)
    x, y = (round_bf16(floats(random, 64)) for _ in range(2))
    with np.errstate(all="ignore"):
        expected = widen_bf16(round_bf16(function(widen_bf16(x), widen_bf16(y))))
        same(widen_bf16(evaluate(f"{name}.bf16 {{d}}, {{0}}, {{1}};", np.uint16, x, y)), expected)
        packed = evaluate(
            f"{name}.bf16x2 {{d}}, {{0}}, {{1}};", np.uint32, x.view(np.uint32), y.view(np.uint32)
        )
        same(widen_bf16(packed.view(np.uint16)), expected)


def test_packed_fma(evaluate, random):
    a, b, c = (random.normal(size=64).astype(np.float32) for _ in range(3))
    expected = (a.astype(np.float64) * b + c).astype(np.float32)
    found = evaluate(
        "fma.rn.f32x2 {d}, {0}, {1}, {2};", np.uint64, *(v.view("u8") for v in (a, b, c))
    )
    same(found.view(np.float32), expected)
    for name, function in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply)):
        found = evaluate(
            f"{name}.f32x2 {{d}}, {{0}}, {{1}};", np.uint64, a.view("u8"), b.view("u8")
        )
        same(found.view(np.float32), function(a, b))
    h = [v.astype(np.float16) for v in (a, b, c)]
    wide = [v.astype(np.float64) for v in h]
    expected = (wide[0] * wide[1] + wide[2]).astype(np.float16)
    found = evaluate("fma.rn.f16x2 {d}, {0}, {1}, {2};", np.uint32, *(v.view("u4") for v in h))
    same(found.view(np.float16), expected)
    g = [round_bf16(v) for v in (a, b, c)]
    wide = [widen_bf16(v).astype(np.float64) for v in g]
    expected = widen_bf16(round_bf16((wide[0] * wide[1] + wide[2]).astype(np.float32)))
    found = evaluate("fma.rn.bf16x2 {d}, {0}, {1}, {2};", np.uint32, *(v.view("u4") for v in g))
    same(widen_bf16(found.view(np.uint16)), expected)


def test_bf16_rounding_against_its_neighbours(random):
    values = random.normal(size=2000).astype(np.float32)
    rounded = round_bf16(values)
    error = np.abs(widen_bf16(rounded).astype(np.float64) - values)
    for step in (-1, 1):
        neighbour = widen_bf16((rounded.astype(np.int32) + step).astype(np.uint16))
        assert (error <= np.abs(neighbour.astype(np.float64) - values)).all()
    tie = np.array([0x3F808000, 0x3F818000], dtype=np.uint32).view(np.float32)
    assert round_bf16(tie).tolist() == [0x3F80, 0x3F82]
    assert round_bf16(tie, "rz").tolist() == [0x3F80, 0x3F81]


def test_f16_and_tf32_rounding():
    values = np.array([1.0 + 2**-11, 1.0 + 3 * 2**-11, -1.0 - 2**-11, 70000.0], dtype=np.float32)
    with np.errstate(over="ignore"):
        assert round_f16(values, "rz").tolist() == [1.0, 1.0 + 2**-10, -1.0, 65504.0]
        assert round_f16(values).tolist() == [1.0, 1.0 + 2**-9, -1.0, np.inf]
    ties = np.array([1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-11], dtype=np.float32)
    assert round_tf32(ties, "rna").tolist() == [1 + 2**-10, 1 + 2**-9, -1 - 2**-10]
    assert round_tf32(ties, "rn").tolist() == [1.0, 1 + 2**-9, -1.0]
    assert round_tf32(ties, "rz").tolist() == [1.0, 1 + 2**-10, -1.0]


@pytest.mark.parametrize(
    "instruction",
    [
        "frob.f32 {d}, {0};",
        "add.rm.f32 {d}, {0}, {0};",
        "mul.f32.whatever {d}, {0}, {0};",
        "mul.s32 {d}, {0}, {0};",
        "add {d}, {0}, {0};",
        "add.sat.s32 {d}, {0}, {0};",
        "fma.rn.relu.f16x2 {d}, {0}, {0}, {0};",
        "add.f64 {d}, {0}, {0};",
        "add.f32 {d}, {0};",
    ],
)
def test_what_is_unknown_is_refused_with_its_line(evaluate, instruction):
    with pytest.raises(UnsupportedPtx) as caught:
        evaluate(instruction, np.float32, np.zeros(32, np.float32))
    assert 15 < caught.value.line < 25
    assert instruction.split(" ")[0] in str(caught.value)


def toward_zero(a, b):
    """The exact sum, in rational numbers, cut to float32: independent of float64's rounding."""
    exact = Fraction(float(a)) + Fraction(float(b))
    nearest = np.float32(float(exact)) if exact else np.float32(a) + np.float32(b)
    if abs(Fraction(float(nearest))) > abs(exact):
        nearest = np.nextafter(nearest, np.float32(0))
    return nearest


def test_sums_rounded_to_zero(evaluate, random):
    a = random.normal(size=200).astype(np.float32)
    b = (random.normal(size=200) * 2.0 ** random.integers(-60, 4, 200)).astype(np.float32)
    a[:4], b[:4] = [1, 1, -1, 0], [2**-30, -(2.0**-70), 2.0**-70, 3]  # float64 would round to 1
    expected = np.array([toward_zero(x, y) for x, y in zip(a, b, strict=True)])
    same(evaluate("add.rz.f32 {d}, {0}, {1};", np.float32, a, b), expected)
    assert expected[1] < 1
    large = np.full(2, 3e38, dtype=np.float32)
    found = evaluate("add.rz.ftz.f32 {d}, {0}, {1};", np.float32, large, large)
    assert (found == np.finfo(np.float32).max).all()
    awkward = np.array([np.inf, -np.inf, np.nan, 1e-40], dtype=np.float32)
    found = evaluate("add.rz.ftz.f32 {d}, {0}, {1};", np.float32, awkward, np.zeros_like(awkward))
    same(found, np.array([np.inf, -np.inf, np.nan, 0], dtype=np.float32))


def test_only_float32_sums_round_to_zero(evaluate):
    with pytest.raises(UnsupportedPtx, match=r"add\.rz\.f16"):
        evaluate("add.rz.f16 {d}, {0}, {0};", np.float16, np.ones(2, dtype=np.float16))
