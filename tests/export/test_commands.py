"""`export` and `verify` from the command line: refusals, output and verdicts."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from tests.export.conftest import random_model
from uino_deploy import cli
from uino_deploy.bundle import Bundle
from uino_deploy.cli import cli as group
from uino_deploy.export import verify_bundle
from uino_deploy.letters import draw_letter
from uino_deploy.model import save_checkpoint
from uino_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend
from uino_deploy.tolerances import piece_tolerance


def main(capsys, *arguments: object) -> tuple[int, str, str]:
    """Run `main`; return its exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return stopped.value.code, shown.out, shown.err


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    """Return the checkpoint that `bundle` was exported from."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_checkpoint(model, path, {})
    return path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seed", "1"], "either --checkpoint or --preset"),
        (["--preset", "tiny", "--checkpoint", "a"], "either --checkpoint or --preset"),
        (["--checkpoint", "a", "--seed", "1"], "--seed needs --preset"),
        (["--checkpoint", "a", "--variant", "comp"], "--variant needs --preset"),
        (["--preset", "huge"], "huge"),
        (["--preset", "tiny", "--precision", "int8"], "int8 is for the encoder only"),
        (["--preset", "tiny", "--precision", "decoder=fp8"], "fp8 is for the encoder only"),
        (
            ["--preset", "tiny", "--precision", "encoder=fp8", "--opset", "18"],
            "--opset 18 quantises",
        ),
        (
            ["--preset", "tiny", "--calibrate", "."],
            "needs --precision encoder=int8, encoder=fp8 or auto",
        ),
        (["--preset", "tiny", "--precision", "head=fp16"], "unknown piece 'head'"),
        (["--preset", "tiny", "--image-size", "100"], "multiple of the patch"),
        (["--preset", "tiny", "--opset", "11"], "--opset 11"),
        (["--checkpoint", "missing.safetensors"], "missing.safetensors is not a file"),
        (["--preset", "tiny", "--encoder-checkpoint", "d.pth"], "d.pth is not a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_export_refuses_what_it_cannot_do(capsys, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = main(capsys, "export", *options, "-o", "x.uino")
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_export_writes_what_it_says(capsys, tmp_path):
    """A compact variant in mixed precision; the README exports a full one."""
    model, checkpoint = random_model("comp-star"), tmp_path / "model.safetensors"
    save_checkpoint(model, checkpoint, {})
    target = tmp_path / "half.uino"
    options = ("--precision", "fp16", "--precision", "support=fp32", "--max-shots", "5")
    code, out, err = main(
        capsys, "export", "--checkpoint", checkpoint, *options, "-o", target, "--json"
    )
    document = json.loads(out)
    assert code == 0
    assert "exporting support in fp32" in err
    assert "untrained" not in err.lower()
    manifest = json.loads((target / "manifest.json").read_text())
    assert document["fingerprint"] == manifest["fingerprint"]
    assert document["precision"]["support"] == manifest["pieces"]["support"]["precision"] == "fp32"
    assert document["precision"]["decoder"] == manifest["pieces"]["decoder"]["precision"] == "fp16"
    assert manifest["provenance"]["sources"][0]["name"] == "model.safetensors"
    assert str(tmp_path) not in (target / "manifest.json").read_text()

    code, out, err = main(capsys, "verify", target, "--checkpoint", checkpoint, "--quiet")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "PASSED"
    report = verify_bundle(Bundle.open(target), OnnxRuntimeBackend(threads=1), model)
    assert report.passed, report.reason
    encoder = next(c for c in report.pieces if c.output == "deep")
    assert piece_tolerance("fp32").relative_l2 < encoder.relative_l2

    code, out, err = main(capsys, "export", "--checkpoint", checkpoint, "-o", target)
    assert code == 2
    assert "--force" in err


def test_verify_on_given_images(capsys, bundle, checkpoint, tmp_path):
    for name, seed in (("query", 1), ("shot", 2)):
        image, mask = draw_letter(seed)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        Image.fromarray(255 * mask).save(tmp_path / f"{name}_mask.png")
    shot = f"{tmp_path / 'shot.png'}:{tmp_path / 'shot_mask.png'}"
    options = ("--query", tmp_path / "query.png", "--shot", shot, "--json")
    code, out, err = main(capsys, "verify", bundle.root, "--checkpoint", checkpoint, *options)
    document = json.loads(out)
    assert code == 0
    assert (document["passed"], document["examples"], document["guilty"]) == (True, 1, [])
    assert {swap["piece"] for swap in document["swaps"]} == set(bundle.manifest.pieces)
    assert err.splitlines()[-1] == "PASSED"


def test_verify_against_the_stored_reference(capsys, bundle):
    code, out, _ = main(capsys, "verify", bundle.root, "--quiet")
    assert code == 0
    assert "PyTorch's stored outputs, 1 example" in out


def test_verify_refuses_another_model(capsys, bundle):
    code, out, err = main(capsys, "verify", bundle.root, "--untrained", "--quiet")
    assert (code, out) == (1, "")
    assert "fingerprints differ" in err


@pytest.mark.parametrize(
    "options",
    [["--query", "a.png"], ["--checkpoint", "a", "--untrained"], ["--query", "a", "--shot", "b:c"]],
    ids=" ".join,
)
def test_verify_refuses_half_a_question(bundle, options):
    done = CliRunner().invoke(group, ["verify", str(bundle.root), *options])
    assert done.exit_code == 2
