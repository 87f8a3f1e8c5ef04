"""`kernels build` into a bundle: its own folder, listed and hashed, whole at every instant."""

import json

import pytest

from uino_deploy.bundle import MANIFEST, Bundle, Manifest, Preprocess, Provenance, write_manifest
from uino_deploy.cli import main
from uino_deploy.config import UinoConfig
from uino_deploy.kernels.compiler import build, install
from uino_deploy.kernels.compiler.build import Compiled, read

CONFIG = UinoConfig.from_preset("tiny", image_size=56)


def compiled(arch, text="ptx"):
    record = {
        **{"name": f"scan-{arch}", "arch": arch, "registers": 1, "spill_bytes": 0},
        **{"shared_bytes": 0, "plugin": True},
        "ptx_sha256": build.hashlib.sha256(text.encode()).hexdigest(),
        "cubin_sha256": build.hashlib.sha256(b"cubin").hexdigest(),
    }
    return Compiled(record["name"], text, b"cubin", record)


@pytest.fixture
def bundle(tmp_path):
    root = tmp_path / "model.uino"
    root.mkdir()
    (root / "reference.safetensors").write_bytes(b"numbers")
    manifest = Manifest(
        model=CONFIG.to_dict(),
        fingerprint="0" * 64,
        preprocess=Preprocess(size=56),
        opset=18,
        pieces={},
        reference="reference.safetensors",
        provenance=Provenance(created_by="tests", versions={}),
    )
    write_manifest(root, manifest)
    return root


def test_kernels_are_listed_and_read_back(bundle):
    install.install(bundle, "sm_87", [compiled("sm_87")])
    install.install(bundle, "sm_120", [compiled("sm_120")])
    opened = Bundle.open(bundle)
    assert opened.manifest.kernels == {"sm_87": "kernels/sm_87", "sm_120": "kernels/sm_120"}
    assert read(opened.path("kernels/sm_87/kernels.json").parent) == [compiled("sm_87")]
    assert not [path for path in bundle.iterdir() if path.name.startswith(".")]


def test_a_second_build_replaces_the_first_and_leaves_nothing_of_it(bundle):
    install.install(bundle, "sm_87", [compiled("sm_87"), compiled("sm_89")])
    install.install(bundle, "sm_87", [compiled("sm_87", "other")])
    opened = Bundle.open(bundle)
    assert len([name for name in opened.manifest.files if name.startswith("kernels/")]) == 4
    assert not (bundle / "kernels/sm_87/scan-sm_89.ptx").exists()
    assert opened.path("kernels/sm_87/scan-sm_87.ptx").read_text() == "other"


@pytest.mark.parametrize("step", ["rmtree", "replace"])
def test_a_build_that_is_cut_off_leaves_a_bundle_that_opens(bundle, monkeypatch, step):
    install.install(bundle, "sm_87", [compiled("sm_87")])

    def cut(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(install.shutil if step == "rmtree" else install.os, step, cut)
        with pytest.raises(KeyboardInterrupt):
            install.install(bundle, "sm_87", [compiled("sm_87", "other")])
    Bundle.open(bundle)
    install.install(bundle, "sm_87", [compiled("sm_87", "other")])
    assert read(bundle / "kernels/sm_87")[0].ptx == "other"


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["uino-deploy", "kernels", "build", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_the_command_builds_the_bundles_own_model(bundle, monkeypatch, capsys):
    asked = []

    def compile_models(target, configs):
        asked.append((target.arch, target.cuda, configs))
        return [compiled(target.arch)]

    monkeypatch.setattr(install, "compile_models", compile_models)
    command = ("--arch", "sm_87", "--bundle", bundle)
    assert run(monkeypatch, *command, "--json") == 0
    assert asked == [("sm_87", "12.6", [CONFIG])]
    assert json.loads(capsys.readouterr().out)["bundle"] == str(bundle)
    assert run(monkeypatch, *command) == 2
    assert "has kernels for sm_87; use --force" in capsys.readouterr().err
    assert run(monkeypatch, *command, "--force") == 0
    assert "sm_87" in json.loads((bundle / MANIFEST).read_text())["kernels"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either -o FOLDER or --bundle BUNDLE"),
        (("-o", "a", "--bundle", "b"), "either -o FOLDER or --bundle BUNDLE"),
        (("--bundle", "b", "--preset", "tiny"), "cannot be combined with --bundle"),
        (("--bundle", "nowhere.uino"), "does not exist"),
    ],
)
def test_what_does_not_fit_together_is_a_usage_error(arguments, message, monkeypatch, capsys):
    assert run(monkeypatch, "--arch", "sm_87", *arguments) == 2
    assert message in capsys.readouterr().err
