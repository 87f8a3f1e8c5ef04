"""CPU seconds of pieces: every backend in both forms, and the table of them."""

from uino_deploy.benchmarks.cpu_seconds import as_table, cpu_seconds
from uino_deploy.bundle import Bundle
from uino_deploy.pipeline import QUERY


def test_every_piece_of_every_form_is_measured(bundle_path):
    measured = cpu_seconds(Bundle.open(bundle_path), threads=1, rounds=1)
    assert list(measured)[:2] == ["onnxruntime", "onnxruntime/portable"]
    for pieces in measured.values():
        assert list(pieces) == list(QUERY.pieces)
        assert all(seconds > 0 for seconds in pieces.values())


def test_the_table_has_the_sum():
    pieces = dict.fromkeys(QUERY.pieces, 0.25)
    assert as_table({"openvino/portable": pieces}).splitlines()[2] == (
        "| openvino, portable | 0.250 | 0.250 | 0.250 | 0.250 | 1.000 |"
    )
