"""The packages' exports, and that importing them needs no heavy package."""

import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from uino_deploy.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent

# Package -> the names that users may rely on. A change here is a change of the public interface.
PUBLIC = {
    "uino_deploy": ["UinoConfig", "UinoFSS", "__version__"],
    "uino_deploy.evaluation": ["Report", "evaluate"],
    "uino_deploy.benchmarks": ["benchmark_bundles", "compare_records", "load_record"],
    "uino_deploy.export": [
        "Origin",
        "build_engines",
        "export_bundle",
        "export_checkpoint",
        "verify_bundle",
    ],
    "uino_deploy.kernels": [
        "correlation4d",
        "norm_mlp",
        "scan_epilogue",
        "scan_prologue",
        "selective_scan2d",
        "selective_scan_fn",
    ],
    "uino_deploy.model": [
        "DinoVisionTransformer",
        "MaskDecoder",
        "UinoFSS",
        "load_checkpoint",
        "load_dinov2",
        "load_sam_decoder",
        "parameter_counts",
        "save_checkpoint",
    ],
    "uino_deploy.selftest": ["Finding", "Report", "run_selftest"],
    "uino_deploy.training": ["distill", "train", "train_recipe"],
    "uino_deploy.studies": ["ablate", "draw_grid", "draw_similarity"],
    "uino_deploy.runtime": [
        "Encoded",
        "Predictor",
        "Result",
        "Support",
        "label_map",
        "read_negatives",
        "read_shots",
        "segment_folder",
    ],
}

# What a device without torch and onnx imports; onnxruntime only when a piece is loaded.
LIGHT = [
    "uino_deploy",
    "uino_deploy.benchmarks.bundles",
    "uino_deploy.benchmarks.compare",
    "uino_deploy.benchmarks.harness",
    "uino_deploy.benchmarks.ledger.page",
    "uino_deploy.benchmarks.page",
    "uino_deploy.benchmarks.profile",
    "uino_deploy.benchmarks.runners.bundle",
    "uino_deploy.benchmarks.worker",
    "uino_deploy.bundle",
    "uino_deploy.bundle.plans",
    "uino_deploy.bundle.reference",
    "uino_deploy.bundle.support",
    "uino_deploy.child",
    *sorted(target.split(":")[0] for target in COMMANDS.values()),
    "uino_deploy.charts",
    "uino_deploy.config",
    "uino_deploy.dependencies",
    "uino_deploy.doctor",
    "uino_deploy.errors",
    "uino_deploy.evaluation",
    "uino_deploy.export.checkpoints",
    "uino_deploy.export.verify",
    "uino_deploy.files",
    "uino_deploy.images",
    "uino_deploy.inspection",
    "uino_deploy.kernels",
    "uino_deploy.page",
    "uino_deploy.runtime",
    "uino_deploy.runtime.openvino_backend",
    "uino_deploy.selftest.operators",
    "uino_deploy.serving.settings",
    "uino_deploy.serving.triton_repository",
    "uino_deploy.tolerances",
]


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_are_exact_sorted_and_present(package):
    module = importlib.import_module(package)
    assert module.__all__ == PUBLIC[package]
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


def run_without(blocked: list[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter where importing the blocked packages fails."""
    block = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
    return subprocess.run(
        [sys.executable, "-c", block + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


def test_light_modules_import_where_nothing_heavy_is_installed():
    blocked = ["torch", "triton", "onnx", "onnxscript", "onnxruntime", "tensorrt", "openvino"]
    blocked += ["jinja2", "matplotlib", "sklearn", "transformers", "cryptography"]
    code = "import importlib\n" + "\n".join(f"importlib.import_module({m!r})" for m in LIGHT)
    done = run_without(blocked, code)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_no_third_party_package():
    code = """
        import uino_deploy
        outside = {name.split(".")[0] for name in sys.modules}
        assert not outside & {"torch", "numpy", "PIL", "click", "rich"}, outside
    """
    done = run_without([], code)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error():
    module = importlib.import_module("uino_deploy")
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name
