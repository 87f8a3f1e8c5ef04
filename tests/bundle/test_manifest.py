"""A bundle is refused when anything in it is not what its manifest says."""

import json
import os
import shutil

import msgspec
import pytest

from uino_deploy.bundle import (
    MANIFEST,
    SCHEMA,
    Bundle,
    Edge,
    Manifest,
    Piece,
    Preprocess,
    Provenance,
    Source,
    model_fingerprint,
    write_manifest,
)
from uino_deploy.bundle.manifest import OPERATORS
from uino_deploy.config import UinoConfig
from uino_deploy.errors import BundleError
from uino_deploy.kernels import identity


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "a.uino"
    folder.mkdir()
    (folder / "encoder.onnx").write_bytes(b"graph")
    (folder / "encoder.weights").write_bytes(b"weights" * 1000)
    (folder / "reference.safetensors").write_bytes(b"numbers")
    (folder / ".report.json.tmp-1").write_bytes(b"another command's")
    config = UinoConfig.from_preset("tiny").to_dict()
    image = Edge(name="image", shape=["batch", 3, 112, 112], dtype="float32")
    source = Source(role="encoder", name="dino.pth", sha256="0" * 64, trained=True)
    manifest = Manifest(
        model=config,
        fingerprint=model_fingerprint(config, {"encoder": "0" * 64}),
        preprocess=Preprocess(size=112),
        opset=18,
        pieces={
            "encoder": Piece(
                name="encoder", model="encoder.onnx", precision="fp32", inputs=[image], outputs=[]
            )
        },
        reference="reference.safetensors",
        provenance=Provenance(created_by="tests", versions={"onnx": "1"}, sources=[source]),
        licences=["Apache-2.0"],
    )
    write_manifest(folder, manifest)
    return folder


def rewrite(bundle, change):
    """Change the manifest as an attacker or an editor would, past `write_manifest`."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    change(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def refused(bundle, *words):
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert caught.value.exit_code == 2


def test_what_is_written_is_read_again(bundle):
    opened = Bundle.open(bundle)
    assert opened.manifest.schema == SCHEMA
    assert opened.config == UinoConfig.from_preset("tiny")
    assert sorted(opened.manifest.files) == [
        "encoder.onnx",
        "encoder.weights",
        "reference.safetensors",
    ]
    assert opened.manifest.provenance.sources[0].name == "dino.pth"
    assert opened.piece("encoder").inputs[0].shape == ["batch", 3, 112, 112]
    assert opened.path("encoder.onnx").read_bytes() == b"graph"


def test_writing_again_gives_the_same_bytes(bundle):
    before = (bundle / MANIFEST).read_bytes()
    write_manifest(bundle, Bundle.open(bundle).manifest)
    assert (bundle / MANIFEST).read_bytes() == before


@pytest.mark.parametrize("said", [1, 3, None])
def test_graphs_of_other_operators_are_refused_with_the_command(bundle, said):
    def change(manifest):
        manifest["operators"] = said
        if said is None:  # as every manifest before version 2
            del manifest["operators"]

    rewrite(bundle, change)
    command = f"uino-deploy export --encoder-checkpoint dino.pth -o {bundle} --force"
    refused(bundle, f"calls version {said or 1} of our operators", "version 2", command)


def test_a_variant_without_operators_is_read_whatever_their_version(bundle):
    def change(manifest):
        manifest["operators"] = 1
        manifest["model"] = UinoConfig.from_preset("tiny", "comp").to_dict()

    rewrite(bundle, change)
    assert Bundle.open(bundle).manifest.operators == 1


def test_the_version_of_the_operators_is_the_domains():
    assert OPERATORS == identity.VERSION


def test_a_changed_byte(bundle):
    weights = bytearray((bundle / "encoder.weights").read_bytes())
    weights[3000] ^= 1
    (bundle / "encoder.weights").write_bytes(weights)
    refused(bundle, "encoder.weights", "SHA-256")
    assert Bundle.open(bundle, verify=False)


def test_a_truncated_file_is_found_even_without_hashing(bundle):
    os.truncate(bundle / "encoder.weights", 100)
    with pytest.raises(BundleError, match="100 bytes"):
        Bundle.open(bundle, verify=False)


def test_a_missing_file(bundle):
    (bundle / "encoder.weights").unlink()
    refused(bundle, "encoder.weights is missing")


@pytest.mark.parametrize("version", ["2.0", "0.9", "", "soon"])
def test_another_major_schema(bundle, version):
    rewrite(bundle, lambda manifest: manifest.update(schema=version, other="unknown"))
    refused(bundle, "schema version", SCHEMA)


def test_a_newer_minor_schema_with_new_fields_is_read(bundle):
    rewrite(bundle, lambda manifest: manifest.update(schema="1.7", novelty={"a": 1}))
    assert Bundle.open(bundle).manifest.schema == "1.7"


@pytest.mark.parametrize(
    "path",
    ["../secret", "/etc/passwd", "plans/../../secret", "C:\\secret", "..\\secret", "", ".", "a//b"],
)
@pytest.mark.parametrize("section", ["files", "piece", "reference", "report"])
def test_a_path_that_climbs_out(bundle, tmp_path, path, section):
    (tmp_path / "secret").write_text("not ours")

    def change(manifest):
        entry = dict(manifest["files"]["encoder.onnx"])
        if section == "piece":
            manifest["pieces"]["encoder"]["model"] = path
        elif section != "files":
            manifest[section] = path
        manifest["files"][path] = entry

    rewrite(bundle, change)
    refused(bundle, "inside the bundle")


def test_a_link_out(bundle, tmp_path):
    shutil.move(bundle / "encoder.weights", tmp_path / "elsewhere")
    (bundle / "encoder.weights").symlink_to(tmp_path / "elsewhere")
    assert Bundle.open(bundle)
    assert Bundle.open(bundle, verify=False)


@pytest.mark.parametrize("verify", [True, False])
def test_a_link_out_to_other_bytes(bundle, tmp_path, verify):
    """They are hashed even where the bundle's own files are not."""
    data = (bundle / "encoder.weights").read_bytes()
    (bundle / "encoder.weights").unlink()
    (tmp_path / "secret").write_bytes(bytes(len(data)))
    (bundle / "encoder.weights").symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match=r"encoder\.weights was changed"):
        Bundle.open(bundle, verify=verify)


@pytest.mark.parametrize("target", ["/dev/zero", "encoder.weights", "nowhere", "."])
def test_a_link_to_no_regular_file(bundle, target):
    (bundle / "encoder.weights").unlink()
    (bundle / "encoder.weights").symlink_to(target)
    refused(bundle, "encoder.weights is missing")


def test_a_manifest_in_a_cache_is_not_written_through_its_link(bundle, tmp_path):
    text = (bundle / "manifest.json").read_bytes()
    shutil.move(bundle / "manifest.json", tmp_path / "blob")
    (bundle / "manifest.json").symlink_to(tmp_path / "blob")
    Bundle.open(bundle).add((), report=None)
    assert (tmp_path / "blob").read_bytes() == text
    assert not (bundle / "manifest.json").is_symlink()


def test_a_link_out_is_not_listed(bundle, tmp_path):
    (tmp_path / "secret").write_bytes(b"1")
    (bundle / "new").symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match="new is a link that leaves the bundle; copy"):
        Bundle.open(bundle).add(["new"])


def test_a_linked_folder_out(bundle, tmp_path):
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "p").write_bytes(b"")
    (bundle / "plans").symlink_to(tmp_path / "plans")
    entry = {"sha256": "0", "size": 0}
    rewrite(bundle, lambda manifest: manifest["files"].update({"plans/p": entry}))
    refused(bundle, "plans/p was changed")


def test_a_link_inside_is_fine(bundle):
    shutil.move(bundle / "encoder.weights", bundle / "blob")
    (bundle / "encoder.weights").symlink_to("blob")
    assert Bundle.open(bundle)


def test_a_bundle_behind_a_link_is_fine(bundle, tmp_path):
    (tmp_path / "latest.uino").symlink_to(bundle)
    assert Bundle.open(tmp_path / "latest.uino")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("pieces"), "pieces"),
        (lambda m: m.update(opset="new"), "opset"),
        (lambda m: m["files"].pop("encoder.onnx"), "does not list"),
        (lambda m: m["files"].pop("reference.safetensors"), "does not list"),
        (lambda m: m["pieces"].update(adapter=m["pieces"]["encoder"]), "adapter"),
        (lambda m: m["model"].pop("encoder"), "configuration"),
        (lambda m: m["model"].update(image_size=113), "113"),
        (lambda m: m["pieces"]["encoder"].update(precision="int3"), "int3"),
    ],
)
def test_a_manifest_that_is_wrong_inside(bundle, change, words):
    rewrite(bundle, change)
    refused(bundle, MANIFEST, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m, n: m.update(opset=n), "$.opset"),
        (lambda m, n: m["preprocess"].update(size=n), "$.preprocess.size"),
        (lambda m, n: m["preprocess"].update(std=[0.2, n, 0.2]), "$.preprocess.std"),
        (lambda m, n: m.update(limits={"shots": n}), "$.limits"),
        (lambda m, n: m["pieces"]["encoder"]["inputs"][0].update(shape=["batch", n]), "shape"),
        (lambda m, n: m["model"].update(image_size=n), "image"),
        (lambda m, n: m["model"]["encoder"].update(depth=n), "depth"),
    ],
)
@pytest.mark.parametrize("number", [-1, 0, 10**12, 1e300, "NaN"])
def test_a_number_that_no_bundle_can_have(bundle, change, words, number):
    rewrite(bundle, lambda manifest: change(manifest, float(number) if number == "NaN" else number))
    refused(bundle, MANIFEST, "" if number == "NaN" else words)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b'{"schema": 1}', b"null"])
def test_a_manifest_that_is_none(bundle, text):
    (bundle / MANIFEST).write_bytes(text)
    refused(bundle, MANIFEST)


def test_what_is_no_bundle(tmp_path):
    refused(tmp_path / "nothing.uino", "does not exist")
    refused(tmp_path, "is not a bundle", MANIFEST)


def test_only_listed_files_are_given_out(bundle):
    opened = Bundle.open(bundle)
    (bundle / "extra.onnx").write_bytes(b"nobody checked this")
    with pytest.raises(BundleError, match="not listed"):
        opened.path("extra.onnx")
    with pytest.raises(BundleError, match="no piece 'decoder'"):
        opened.piece("decoder")


def test_added_files_are_hashed_and_the_rest_keeps_its_hash(bundle):
    opened = Bundle.open(bundle)
    (bundle / "plans" / "tensorrt-sm_87").mkdir(parents=True)
    plan = "plans/tensorrt-sm_87/encoder.plan"
    (bundle / plan).write_bytes(b"engine")
    (bundle / "encoder.weights").write_bytes(b"Weights" * 1000)
    added = opened.add([plan], plans={"tensorrt-sm_87": {"encoder": plan}})
    assert added.path(plan).read_bytes() == b"engine"
    refused(bundle, "encoder.weights", "SHA-256")  # damage is not made good by adding
    (bundle / "encoder.weights").write_bytes(b"weights" * 1000)
    assert Bundle.open(bundle).manifest == added.manifest


@pytest.mark.parametrize("name", ["missing.plan", "../outside"])
def test_adding_what_is_not_inside_changes_nothing(bundle, tmp_path, name):
    (tmp_path / "outside").write_text("x")
    before = (bundle / MANIFEST).read_bytes()
    with pytest.raises(BundleError):
        Bundle.open(bundle).add([name])
    assert (bundle / MANIFEST).read_bytes() == before


def test_a_manifest_is_replaced_whole(bundle, monkeypatch):
    before = (bundle / MANIFEST).read_bytes()
    opened = Bundle.open(bundle)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="space"):
        opened.add(["encoder.onnx"], report=None)
    assert (bundle / MANIFEST).read_bytes() == before
    assert not [path for path in bundle.iterdir() if path.name.startswith(f".{MANIFEST}")]


def test_writing_refuses_a_section_without_its_file(bundle):
    manifest = Bundle.open(bundle).manifest
    with pytest.raises(BundleError, match=r"report\.json"):
        write_manifest(bundle, msgspec.structs.replace(manifest, report="report.json"))


def test_fingerprints_depend_on_what_they_name():
    model = UinoConfig.from_preset("tiny").to_dict()
    other = UinoConfig.from_preset("tiny", image_size=126).to_dict()
    one = model_fingerprint(model, {"encoder": "a"})
    assert one == model_fingerprint(dict(reversed(model.items())), {"encoder": "a"})
    assert one != model_fingerprint(model, {"encoder": "b"})
    assert one != model_fingerprint(other, {"encoder": "a"})
    assert Preprocess(size=112).fingerprint != Preprocess(size=126).fingerprint


@pytest.mark.parametrize("section", ["model", "kernels", "plans"])
def test_a_section_that_is_nested_too_deeply_is_refused(bundle, section):
    deep = json.loads("[" * 300 + "]" * 300)
    rewrite(bundle, lambda manifest: manifest.setdefault(section, {}).update(deep=deep))
    with pytest.raises(BundleError, match="nested too deeply"):
        Bundle.open(bundle)


def test_a_list_of_software_must_be_listed_itself(bundle):
    assert Bundle.open(bundle).manifest.provenance.sbom is None, "as in bundles of earlier versions"
    rewrite(bundle, lambda manifest: manifest["provenance"].update(sbom="sbom.cdx.json"))
    refused(bundle, "names 'sbom.cdx.json' but does not list its hash")
