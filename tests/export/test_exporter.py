"""A bundle is written whole, or not at all."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from uino_deploy.bundle import Bundle
from uino_deploy.bundle.reference import inputs_of, load_example, outputs_of
from uino_deploy.errors import InputError, OutputExists
from uino_deploy.export import exporter

EXPORT = [sys.executable, "-m", "uino_deploy", "export", "--preset", "tiny", "--seed", "0"]


def test_the_bundle_says_what_went_in(bundle, model):
    opened = Bundle.open(bundle.root)
    assert opened.config == model.config
    assert opened.manifest.provenance.untrained == ["encoder"]
    assert opened.manifest.provenance.seed == 7
    assert opened.manifest.fingerprint == exporter.fingerprint(model)
    assert set(opened.manifest.provenance.versions) >= {"torch", "onnx", "python"}
    listed = set(opened.manifest.files) | {"manifest.json"}
    files = {p.relative_to(bundle.root).as_posix() for p in bundle.root.rglob("*") if p.is_file()}
    assert listed == {name for name in files if not name.startswith(".cache/")}


def test_the_bundle_lists_the_software_that_made_it(bundle):
    bill = json.loads(bundle.read(bundle.manifest.provenance.sbom))
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "uino-deploy"
    found = {each["name"]: each["version"] for each in bill["components"]}
    for name in ("torch", "onnx", "numpy"):
        assert found[name] == bundle.manifest.provenance.versions[name]
    assert {"pytest", "ruff"}.isdisjoint(found), "what exports, not what tests"


def test_the_reference_covers_every_piece(bundle):
    example = load_example(bundle)
    for piece in bundle.manifest.pieces.values():
        tensors = {**inputs_of(piece, example), **outputs_of(piece, example)}
        for edge in (*piece.inputs, *piece.outputs):
            assert tensors[edge.name].ndim == len(edge.shape)


def test_the_fingerprint_tells_models_apart(model):
    from tests.export.conftest import random_model

    before = exporter.fingerprint(model)
    other = random_model()
    assert exporter.fingerprint(other) == before
    other.encoder.cls_token.data[0, 0, 0] += 1
    assert exporter.fingerprint(other) != before


def test_a_support_of_a_bundle_of_older_operators_is_still_taken():
    """A fingerprint names configuration and weights, not graphs; this one was computed before."""
    from tests.export.conftest import random_model

    ones = random_model()
    for tensor in ones.state_dict().values():
        tensor.fill_(1)
    before_version_2 = "8986f7df07e62dc662acf131678002ec5acc374c5e9f76e57173e6169f22c30d"
    assert exporter.fingerprint(ones) == before_version_2


@pytest.mark.parametrize("options", [{"opset": 17}, {"max_shots": 0}, {"max_batch": -1}])
def test_impossible_options_are_refused(model, tmp_path, options):
    with pytest.raises(InputError):
        exporter.export_bundle(model, tmp_path / "x.uino", **options)
    assert not list(tmp_path.iterdir())


def test_an_existing_bundle_is_kept(model, tmp_path):
    target = tmp_path / "x.uino"
    target.mkdir()
    (target / "mine").write_text("keep")
    with pytest.raises(OutputExists):
        exporter.export_bundle(model, target)
    assert (target / "mine").read_text() == "keep"


def test_a_failing_disk_leaves_nothing(model, tmp_path, monkeypatch):
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(exporter, "write_piece", full)
    with pytest.raises(OSError, match="No space left"):
        exporter.export_bundle(model, tmp_path / "x.uino")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands in for the full disk: writing fails half way."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    run = "from uino_deploy.cli import main; main()"
    arguments = [*EXPORT[3:], "-o", tmp_path / "x.uino"]
    done = subprocess.run(
        [sys.executable, "-c", limit + run, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_export_leaves_nothing(tmp_path):
    code = (
        "import signal\n"
        # A shell that starts the tests in the background has them ignore SIGINT.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from uino_deploy.cli import main\nmain()\n"
    )
    command = [sys.executable, "-c", code, *EXPORT[3:], "-o", str(tmp_path / "x.uino")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".x.uino*/*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())
