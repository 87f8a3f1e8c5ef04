"""What was checked is what is used: a file that changes after the check is refused."""

import stat

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.runtime.conftest import write_fake_bundle
from uino_deploy.bundle import MANIFEST, Bundle, Manifest, manifest, write_manifest
from uino_deploy.bundle.checked import checked_copy, piece_files
from uino_deploy.documents import decode_json
from uino_deploy.errors import BundleError


@pytest.fixture
def bundle(tmp_path):
    """A bundle whose adapter has a weight file."""
    root = write_fake_bundle(tmp_path / "b.uino")
    model = onnx.load(root / "adapter.onnx")
    shift = numpy_helper.from_array(np.ones((1, 3, 4, 4), np.float32), "shift")
    model.graph.initializer.append(shift)
    model.graph.node[-1].output[0] = "plain"
    model.graph.node.append(helper.make_node("Add", ["plain", "shift"], ["embedding"]))
    onnx.save(
        model, root / "adapter.onnx", save_as_external_data=True, location="w", size_threshold=100
    )
    write_manifest(root, decode_json((root / MANIFEST).read_bytes(), Manifest))
    return Bundle.open(root)


def test_the_copy_is_private_whole_and_gone_afterwards(bundle):
    piece = bundle.piece("adapter")
    assert piece_files(bundle, piece) == ["adapter.onnx", "w"]
    with checked_copy(bundle, piece) as graph:
        assert graph.read_bytes() == bundle.read("adapter.onnx")
        assert (graph.parent / "w").read_bytes() == bundle.read("w")
        assert stat.S_IMODE(graph.parent.stat().st_mode) == 0o700
    assert not graph.parent.exists()


@pytest.mark.parametrize("name", ["adapter.onnx", "w"])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_file_changed_after_the_check_is_refused(bundle, name, how):
    path = bundle.root / name
    data = path.read_bytes()
    path.unlink() if how == "gone" else path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=f"{name} was changed"):
        bundle.read(name)
    with (
        pytest.raises(BundleError, match=f"{name} was changed"),
        checked_copy(bundle, bundle.piece("adapter")),
    ):
        pass


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_no_backend_loads_a_changed_file(bundle, backend):
    pytest.importorskip(backend)
    from uino_deploy.runtime.backends import open_backend

    runs = open_backend(backend).load(bundle, "adapter")
    features = np.zeros((1, 16, 3), np.float32)
    np.testing.assert_array_equal(runs.run({"early": features})["embedding"], 1)
    path = bundle.root / "w"
    path.write_bytes(bytes(len(path.read_bytes())))
    np.testing.assert_array_equal(runs.run({"early": features})["embedding"], 1)
    with pytest.raises(BundleError, match="w was changed"):
        open_backend(backend).load(bundle, "adapter").run({"early": np.zeros((3, 16, 3), "f")})


def test_limits_are_stated(bundle, monkeypatch):
    monkeypatch.setattr(manifest, "MOST_BUNDLE_BYTES", 1000)
    with pytest.raises(BundleError, match="the most is 1,000; raise"):
        Bundle.open(bundle.root)
    monkeypatch.setattr(manifest, "MOST_MANIFEST_BYTES", 100)
    with pytest.raises(BundleError, match="the most is 100; raise"):
        Bundle.open(bundle.root)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-2] + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
        lambda text: text.replace('"size": ', '"size": -'),
        lambda text: text.replace('"opset": ', '"opset": ' + "1" * 5000),
        lambda text: text[: len(text) // 2],
    ],
)
def test_a_manifest_that_cannot_be_is_refused_in_a_line(bundle, damage):
    path = bundle.root / MANIFEST
    path.write_text(damage(path.read_text()))
    with pytest.raises(BundleError) as refused:
        Bundle.open(bundle.root)
    assert "\n" not in str(refused.value)
