"""The ledger's arithmetic: shapes, occupancy, floors, bytes by hand, and its pages."""

import pytest

from uino_deploy.config import UinoConfig
from uino_deploy.errors import InputError
from uino_deploy.kernels.compiler.shapes import CorrelationShape, ScanShape, scan_shapes
from uino_deploy.kernels.compiler.variants import correlation_variant, scan_variant
from uino_deploy.kernels.ledger import traffic, unfused
from uino_deploy.kernels.ledger.boards import Board, floor_us, occupancy
from uino_deploy.kernels.ledger.page import page, renew

CORRELATION = CorrelationShape(1, 1, 2, 130, 64, 5, 5, 3)
SCAN = ScanShape(2, 3, 4, 32, 4, 2)


def test_the_default_presets_scans():
    found = scan_shapes(UinoConfig.from_preset("vitb14"))
    assert [(s.sequences, s.length, s.channels, s.rank) for s in found] == [
        (49, 1369, 32, 2),
        (1369, 49, 32, 2),
        (16, 1369, 64, 4),
        (1369, 16, 64, 4),
    ]


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "warps", "share"),
    [
        ("sm_80", 128, 49152, 8, 0.25),  # two blocks by registers
        ("sm_87", 152, 49152, 8, 8 / 48),  # one block by registers
        ("sm_86", 32, 49152, 4, 8 / 48),  # two blocks by shared memory
        ("sm_75", 16, 1024, 1, 0.5),  # 16 blocks at most
    ],
)
def test_occupancy_is_the_tightest_limit(arch, registers, shared, warps, share):
    assert occupancy(arch, registers, shared, warps) == pytest.approx(share)


def test_a_floor_is_the_slower_of_memory_and_arithmetic():
    board = Board("b", "sm_80", 1000, 100, "made up")
    assert floor_us(board, 10**9, 0) == pytest.approx(1000)
    assert floor_us(board, 0, 10**12) == pytest.approx(10_000)


def test_compulsory_bytes_by_hand():
    variant = scan_variant(SCAN, "float16")
    cells = 2 * 3 * 4
    parameters = 4 * 4 * 32 * (2 + 1 + 4 + 1)
    arrays = 2 * cells * (32 + 4 * (2 + 4 + 4) + 4 * 32) + parameters
    assert traffic.distinct_bytes(variant, SCAN) == arrays
    assert traffic.compulsory_bytes(variant, SCAN) == arrays + 3 * 2 * cells * 32


def test_the_unfused_product_reads_an_operand_for_each_tile_of_the_other():
    variant = correlation_variant(CORRELATION, "float16", 87)
    once, at_tile = unfused.correlation_bytes(variant, CORRELATION)
    query, support = 2 * 2 * 130 * 64, 2 * 2 * 25 * 64
    assert at_tile - once == support  # 130 queries are two tiles, 25 supports one
    assert once > 3 * (query + support)  # norm, division, product


def test_the_unfused_scan_moves_more_for_each_step():
    shorter = ScanShape(2, 3, 2, 32, 4, 2)
    variant = scan_variant(SCAN, "float32")
    moved, half = (unfused.scan_bytes(variant, s) for s in (SCAN, shorter))
    assert half < moved < 2.1 * half


RECORD = {
    **{"op": "scan<", "config": "c", "arch": "sm_87", "dtype": "float16"},
    "shape": {"sequences": 2, "height": 3, "width": 4, "channels": 5},
    **{"registers": 9, "spill_bytes": 0, "shared_bytes": 1, "occupancy": 0.5, "programs": 3},
    **{"serial_steps": 4, "requested_bytes": None, "written_bytes": None, "counted_on": None},
    **{"compulsory_bytes": 2_000_000, "unfused_bytes": 3_000_000, "floor_us": {"board": 1.0}},
}


def test_the_page_escapes_and_leaves_out_what_was_not_counted():
    text = page([RECORD])
    assert "scan&lt; c" in text
    assert ">asked<" not in text
    assert ">must<" in text


def test_the_table_replaces_what_stood_between_the_marks():
    text = "a\n<!-- ledger begins -->\nold\n<!-- ledger ends -->\nb\n"
    new = renew(text, [RECORD])
    assert "old" not in new
    assert "| scan< c | sm_87 |" in new
    assert new.startswith("a\n")
    assert new.endswith("b\n")
    assert renew(new, [RECORD]) == new


def test_a_text_without_marks_is_refused():
    with pytest.raises(InputError, match="no place for the ledger"):
        renew("a", [RECORD])
