"""The native operators: every instruction set against float64, and who calls which form."""

import ctypes
import re
from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from tests.kernels.operands import scan_operands  # noqa: E402
from uino_deploy.errors import Degraded  # noqa: E402
from uino_deploy.kernels import correlation4d, native, selective_scan2d  # noqa: E402
from uino_deploy.kernels.correlation import naive as naive_correlation  # noqa: E402
from uino_deploy.kernels.correlation import op as correlation_op  # noqa: E402
from uino_deploy.kernels.dispatch import specified  # noqa: E402
from uino_deploy.kernels.selective_scan import naive as naive_scan  # noqa: E402
from uino_deploy.kernels.selective_scan import op as scan_op  # noqa: E402
from uino_deploy.tolerances import OPERATOR  # noqa: E402

# Tests run from a checkout that `make test` has installed, so this is a failed build, not a skip.
NATIVE = native.load()
assert isinstance(NATIVE, native.Native), NATIVE
TYPES = {name: getattr(torch, name) for name in OPERATOR}
EIGHT = settings(max_examples=8, deadline=None)


@pytest.fixture(params=range(len(NATIVE.forms)), ids=NATIVE.forms, scope="module")
def form(request):
    """Compute in one of the instruction sets that this processor has."""
    NATIVE.library.uino_choose(request.param)
    yield NATIVE.forms[request.param]
    NATIVE.library.uino_choose(0)


def error(got, wanted):
    assert got.shape == wanted.shape
    return float((got.double() - wanted).norm() / wanted.norm())


def tokens(generator, *shape):
    """Return tokens that resemble each other, so that most cosines are positive."""
    return torch.randn(shape, generator=generator) + 0.5


def correlation_operands(batch, supports, weights, shots, layers, queries, grid, channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = grid[0] * grid[1]
    query = tokens(generator, batch, layers, queries, channels)
    support = tokens(generator, supports, shots, layers, count, channels)
    return query, support, torch.rand(weights, shots, count, generator=generator) * 2 - 0.5


def check_correlation(operands, grid, pool, dtype):
    inputs = [each.to(dtype) for each in operands]
    got = correlation4d(*inputs, *grid, pool)
    assert got.dtype == dtype
    wanted = naive_correlation.correlation4d(*(each.double() for each in inputs), *grid, pool)
    assert error(got, wanted) < OPERATOR[str(dtype).removeprefix("torch.")].relative_l2


def check_scan(shape, dtype, seed=0):
    inputs = scan_operands(shape, dtype, torch.Generator().manual_seed(seed))
    got = selective_scan2d(*inputs)
    assert got.dtype == dtype
    wanted = naive_scan.selective_scan2d(*(each.double() for each in inputs))
    assert error(got, wanted) < OPERATOR[str(dtype).removeprefix("torch.")].relative_l2


# Whole and partial tiles of every instruction set; a window of one cell and one over the grid.
@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize(
    ("sizes", "grid", "pool"),
    [
        ((2, 1, 1, 2, 2, 150, (5, 7), 24), (5, 7), 3),
        ((2, 2, 1, 2, 2, 9, (6, 6), 17), (6, 6), 3),
        ((2, 1, 2, 1, 3, 33, (2, 3), 5), (2, 3), 4),
        ((1, 1, 1, 1, 1, 1, (4, 4), 1), (4, 4), 1),
    ],
    ids=str,
)
@pytest.mark.usefixtures("form", "poisoned")
def test_correlation(sizes, grid, pool, dtype):
    check_correlation(correlation_operands(*sizes), grid, pool, dtype)


# Channels in whole and partial vectors; the constant rank and states of the presets, and others.
@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize(
    "shape",
    [(3, 5, 7, 32, 2, 4), (2, 4, 3, 64, 4, 4), (2, 3, 4, 37, 3, 5), (1, 1, 6, 3, 8, 1)],
    ids=str,
)
@pytest.mark.usefixtures("form", "poisoned")
def test_scan(shape, dtype):
    check_scan(shape, dtype)


@EIGHT
@given(
    batch=st.integers(1, 3),
    shared=st.tuples(st.booleans(), st.booleans()),
    shots=st.integers(1, 2),
    layers=st.integers(1, 3),
    queries=st.integers(1, 140),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.integers(1, 50),
    pool=st.integers(1, 4),
    dtype=st.sampled_from(list(TYPES.values())),
    seed=st.integers(0, 1 << 20),
)
def test_any_correlation(batch, shared, shots, layers, queries, grid, channels, pool, dtype, seed):
    firsts = [1 if one else batch for one in shared]
    sizes = (batch, *firsts, shots, layers, queries, grid, channels, seed)
    check_correlation(correlation_operands(*sizes), grid, pool, dtype)


@EIGHT
@given(
    shape=st.tuples(
        st.integers(1, 5),
        st.integers(1, 6),
        st.integers(1, 6),
        st.integers(1, 70),
        st.integers(1, 8),
        st.integers(1, 6),
    ),
    dtype=st.sampled_from(list(TYPES.values())),
    seed=st.integers(0, 1 << 20),
)
def test_any_scan(shape, dtype, seed):
    check_scan(shape, dtype, seed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("form")
def test_half_types_are_rounded_as_torch_rounds_them(dtype):
    # One state that is forgotten at once: y is skip * x, so the kernel only widens and narrows.
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
    x = patterns[patterns.isfinite()][: 62 << 10].reshape(62, 4, 8, 32)
    packed = torch.zeros(*x.shape[:3], 4, 8, dtype=dtype)
    zeros = torch.zeros(4, 32)
    skip = torch.rand(4, 32, generator=torch.Generator().manual_seed(0)) * 0.2
    got = selective_scan2d(x, packed, zeros[..., None], zeros, zeros[..., None] - 1, skip)
    wanted = skip[0] * x.float()
    for g in (1, 2, 3):
        wanted = torch.addcmul(wanted, skip[g], x.float())
    # Sums in float32 may differ in their last bit, which moves a tie of the half type.
    assert (got.float() - wanted).abs().le(wanted.abs() * torch.finfo(dtype).eps + 1e-7).all()
    assert float((got == wanted.to(dtype)).float().mean()) > 0.999


@pytest.mark.usefixtures("form")
def test_a_number_that_is_none_is_not_swallowed():
    query, support, weight = correlation_operands(1, 1, 1, 1, 1, 3, (2, 2), 4)
    query[0, 0, 1, 2] = float("nan")
    out = correlation4d(query, support, weight, 2, 2, 1)
    assert out[0, 0, 0, 1].isnan().all()
    assert out[0, 0, 0, ::2].isfinite().all()
    x, *rest = scan_operands((1, 2, 2, 3, 2, 4), torch.float32, torch.Generator().manual_seed(0))
    x[0, 0, 1, 1] = float("nan")
    assert selective_scan2d(x, *rest)[..., 1].isnan().all()
    assert selective_scan2d(x, *rest)[..., ::2].isfinite().all()


def test_threads_change_nothing():
    # Enough work that threads are started.
    operands = correlation_operands(2, 1, 2, 1, 1, 700, (7, 9), 130)
    scans = scan_operands((40, 6, 5, 70, 2, 4), torch.float32, torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 5):
            torch.set_num_threads(count)
            found.append((correlation4d(*operands, 7, 9, 3), selective_scan2d(*scans)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_strided_tensors_are_understood():
    operands = correlation_operands(1, 1, 1, 1, 2, 6, (3, 4), 8)
    turned = [each.transpose(-1, -2).contiguous().transpose(-1, -2) for each in operands]
    got = correlation4d(*turned, 3, 4, 2)
    assert torch.equal(got, correlation4d(*operands, 3, 4, 2))
    scans = scan_operands((2, 3, 4, 8, 2, 4), torch.float32, torch.Generator().manual_seed(0))
    across = scans[0].transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(selective_scan2d(across, *scans[1:]), selective_scan2d(*scans))


def test_nothing_is_kept():
    operands = correlation_operands(1, 1, 1, 1, 2, 400, (20, 20), 128)
    scans = scan_operands((2, 20, 20, 70, 2, 4), torch.bfloat16, torch.Generator().manual_seed(0))

    def resident():
        return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    for _ in range(5):
        correlation4d(*operands, 20, 20, 3), selective_scan2d(*scans)
    before = resident()
    for _ in range(40):
        correlation4d(*operands, 20, 20, 3), selective_scan2d(*scans)
    assert resident() - before < 2000, "a call keeps memory: one takes some 1,000 kB"


def calls(monkeypatch):
    """Count the library's calls."""
    counted = Counter()

    class Counting(native.Native):
        def correlation4d(self, *arguments):
            counted["correlation"] += 1
            return native.Native.correlation4d(self, *arguments)

        def selective_scan2d(self, *arguments):
            counted["scan"] += 1
            return native.Native.selective_scan2d(self, *arguments)

    monkeypatch.setattr(native, "load", lambda: Counting(*NATIVE))
    return counted


def test_which_tensors_the_library_computes(monkeypatch):
    counted = calls(monkeypatch)
    operands = correlation_operands(1, 1, 1, 1, 1, 3, (2, 2), 4)
    scans = scan_operands((1, 2, 2, 3, 2, 4), torch.float32, torch.Generator().manual_seed(0))
    correlation4d(*operands, 2, 2, 1)
    selective_scan2d(*scans)
    assert counted == {"correlation": 1, "scan": 1}
    correlation4d(*(each.double() for each in operands), 2, 2, 1)
    selective_scan2d(*(each.double() for each in scans))
    with specified():  # references
        correlation4d(*operands, 2, 2, 1)
        selective_scan2d(*scans)
    assert counted == {"correlation": 1, "scan": 1}


def test_an_operand_of_another_device_is_refused():
    # The library would read its address. "meta" stands for a GPU; no operator is called with it.
    query, support, weight = correlation_operands(1, 1, 1, 1, 1, 3, (2, 2), 4)
    with pytest.raises(ValueError, match="weight is on meta, query is on cpu"):
        correlation_op._check(query, support, weight.to("meta"), 2, 2, 1)
    scans = scan_operands((1, 2, 2, 3, 2, 4), torch.float32, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="skip is on meta, x is on cpu"):
        scan_op._check(*scans[:-1], scans[-1].to("meta"))


@pytest.mark.filterwarnings("default::UserWarning")
def test_without_the_library_the_specification_runs_and_says_so(monkeypatch):
    operands = correlation_operands(1, 1, 1, 1, 1, 3, (2, 2), 4)
    with specified():
        wanted = correlation4d(*operands, 2, 2, 1)
    monkeypatch.setattr(native, "load", lambda: "it was not built")
    native._announce.cache_clear()
    with pytest.warns(Degraded, match="slower portable forms run: it was not built") as told:
        got = [correlation4d(*operands, 2, 2, 1) for _ in range(2)]
    assert len(told) == 1
    assert torch.equal(got[0], wanted)


def test_a_library_that_is_missing_or_broken_has_a_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    find = native.load.__wrapped__
    assert "not built" in find()
    (tmp_path / NATIVE.path.name).write_bytes(b"no library")
    assert "cannot be loaded" in find()


def test_the_choice_is_the_best_of_the_processor():
    flags = Path("/proc/cpuinfo").read_text()
    if "avx512vl" in flags and "avx512dq" in flags and "avx512bw" in flags:
        assert NATIVE.forms == ["AVX-512", "AVX2", "SSE2"]
    assert isinstance(NATIVE.library, ctypes.CDLL)
