"""The page, the tables and the CSV: no speed without accuracy, nothing from outside."""

import re
import xml.etree.ElementTree as ET

import msgspec
import pytest

from uino_deploy.benchmarks import tables
from uino_deploy.benchmarks.latency_csv import append_rows, read_rows, renew, rows_of, table_of
from uino_deploy.benchmarks.page import render, write_outputs
from uino_deploy.benchmarks.record import MAIN, Layer, Profile, load_record
from uino_deploy.errors import InputError, OutputExists


@pytest.fixture
def full_record(record_of, entry_of):
    """A record with a peer, a failure, a refusal and a profile."""
    failed = entry_of("onnxruntime <int8>")
    failed.status, failed.reason = "failed", "the logits differ by 9.00e-01"
    failed.cases, failed.stages, failed.memory, failed.cold_start = [], {}, None, None
    refused = entry_of("openvino bf16")
    refused.status, refused.reason, refused.accuracy = "refused", "openvino is not installed", None
    refused.cases, refused.stages, refused.memory = [], {}, None
    record = record_of([entry_of(), entry_of("PyTorch eager fp32", 2.0, True), failed, refused])
    layer = Layer(
        piece="encoder", operator="MatMul", calls=12, seconds=0.05, share=0.7, attention=False
    )
    record.profiles = [Profile(name="onnxruntime fp32", image_size=112, threads=2, layers=[layer])]
    record.others_cpu = 0.4
    return record


def svgs(page: str) -> list[ET.Element]:
    return [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_the_page_says_all_and_needs_nothing(full_record):
    page = render(full_record)
    assert len(svgs(page)) >= 6
    for text in ("FAILED: 2 of 4", "9.00e-01", "openvino is not installed", "MatMul", "DISTURBED"):
        assert text in page
    assert "onnxruntime &lt;int8&gt;" in page
    assert "<int8>" not in page
    assert not re.search(r"https?://|<script|src=|@import|url\((?!#)", page)


def test_every_chart_has_the_fastest_first(record_of, entry_of):
    entries = [entry_of("onnxruntime fp32", 2.0), entry_of("openvino fp32", 1.0)]
    for chart in re.findall(r"<figure.*?</figure>", render(record_of(entries)), re.DOTALL):
        assert chart.index("openvino fp32") < chart.index("onnxruntime fp32")


def test_the_image_and_the_mask_are_decoded_in_parts_of_their_own(record_of, entry_of):
    entry = entry_of()
    entry.stages["decode"] = entry.stages["decoder"]
    page = render(record_of([entry]))
    assert "decode image" in page
    assert "mask decoder" in page


def test_numbers_in_charts_are_finite(full_record):
    assert "nan" not in render(full_record).lower().replace("finance", "")


def test_an_entry_that_failed_shows_no_speed(full_record):
    header, rows = tables.entry_rows(full_record)
    (failed,) = [row for row in rows if "int8" in row[0]]
    assert failed[header.index("ms")] == tables.NOTHING
    assert failed[-1].startswith("FAILED: the logits")
    csv_row = next(row for row in rows_of(full_record) if "int8" in row["entry"])
    assert (csv_row["median_ms"], csv_row["status"]) == ("", "failed")


def test_sizes_and_threads_have_columns_and_lines_of_their_own(record_of, entry_of):
    entries = [entry_of(scale=scale) for scale in (1, 2, 4)]
    entries[1].image_size, entries[2].threads = 224, 1
    record = record_of(entries)
    header, rows = tables.entry_rows(record)
    assert [row[header.index("px")] for row in rows] == ["112", "224", "112"]
    assert [row[header.index("threads")] for row in rows] == ["2", "2", "1"]
    page = render(record)
    for caption in ("One query over image size, px", "One query over threads", "224 px, 2 threads"):
        assert caption in page


def test_speeds_are_multiples_of_pytorchs_where_it_ran(record, record_of, entry_of):
    assert "x PyTorch" not in tables.entry_rows(record)[0]
    peer = entry_of("PyTorch eager fp32", 3.0, True)
    peer.runner = tables.BASELINE
    header, rows = tables.entry_rows(record_of([entry_of(), peer]))
    assert [row[header.index("x PyTorch")] for row in rows] == ["3.00", "1.00"]


def test_scaling_is_relative_to_the_main_case(full_record):
    header, rows = tables.scaling_rows(full_record)
    assert rows[0][header.index("of the main")] == "2.50"
    assert tables.attention_lines(full_record) == ["onnxruntime fp32: attention not fused"]


def test_outputs_appear_whole_and_only_once(full_record, tmp_path):
    traces = tmp_path / "traces"
    traces.mkdir()
    (traces / "one.json").write_text("{}")
    out = tmp_path / "out"
    write_outputs(out, full_record, traces, force=False)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names == {"record.json", "report.html", "traces/one.json"}
    assert load_record(out / "record.json") == full_record
    with pytest.raises(OutputExists):
        write_outputs(out, full_record, traces, force=False)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("")
    with pytest.raises(OutputExists, match="not this command's"):
        write_outputs(other, full_record, traces, force=True)


def test_rows_are_appended_and_replaced_by_their_key(record, tmp_path):
    path = append_rows(tmp_path, record)
    assert len(read_rows(path)) == 2
    append_rows(tmp_path, record)
    assert len(read_rows(path)) == 2
    later = msgspec.structs.replace(record, commit="ba9876543210")
    append_rows(tmp_path, later)
    assert len(read_rows(path)) == 4


def test_a_foreign_csv_is_refused(record, tmp_path):
    (tmp_path / "latency.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="other columns"):
        append_rows(tmp_path, record)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"passed", b"\xff"),
        (b"passed", b"passed,"),
        (b"tiny,full,112,", b""),
        (b",1,1,1,", b",1,1,x,"),
        (b",1,1,1,", b",1,01,1,"),
        (b",1,1,1,", b",1,,1,"),
        (b",100,", b",nan,"),
        (b",100,", b",0,"),
        (b",100,", b",1e999,"),
        (b"Test CPU", b"a" * 200_000),
    ],
)
def test_a_damaged_csv_is_refused(record, tmp_path, old, new):
    path = append_rows(tmp_path, record)
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    with pytest.raises(InputError, match="is damaged"):
        read_rows(path)


def test_tables_show_the_latest_of_each_entry(record, record_of, entry_of, tmp_path):
    append_rows(tmp_path, record)
    later = record_of([entry_of(scale=3.0)])
    later.created, later.commit = "2027-01-01T00:00:00+00:00", "ffff"
    later.others_cpu = 0.3
    text = table_of(read_rows(append_rows(tmp_path, later)))
    main, _, others = text.partition("| classes |")
    assert main.count("onnxruntime fp32 (disturbed)") == main.count("onnxruntime fp32") == 1
    assert "| 300 |" in main
    assert "| 10 | 1 | 1 | onnxruntime fp32 | 750 | 2.50 | 50 |" in others
    page = "before\n<!-- benchmark begins -->\nobsolete\n<!-- benchmark ends -->\nafter\n"
    renewed = renew(page, read_rows(tmp_path / "latency.csv"))
    assert "obsolete" not in renewed
    assert renewed.startswith("before\n")
    assert renewed.endswith("after\n")
    assert renew(renewed, read_rows(tmp_path / "latency.csv")) == renewed
    with pytest.raises(InputError, match="no marked section"):
        renew("nothing", [])


def test_the_readme_shows_the_data():
    from pathlib import Path

    from uino_deploy.benchmarks import latency_csv

    readme = Path(latency_csv.__file__).resolve().parent / "README.md"
    known = readme.parent / "data" / latency_csv.FILE
    text = readme.read_text(encoding="utf-8")
    assert renew(text, read_rows(known)) == text
    for name in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (readme.parent / name).exists(), name


def test_the_main_case_is_the_default():
    assert (MAIN.classes, MAIN.shots, MAIN.batch) == (1, 1, 1)
