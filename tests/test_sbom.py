"""The bill of materials is valid CycloneDX and says what the packages' metadata say."""

import json
from importlib.metadata import Distribution, version

import pytest

from uino_deploy import cli, sbom


class Package(Distribution):
    """A distribution of given metadata."""

    def __init__(self, name, files=None, **metadata):
        self.files_ = dict(files or {})
        lines = [f"Name: {name}", "Version: 1.0+local"]
        for key, values in metadata.items():
            lines += [f"{key.replace('_', '-')}: {value}" for value in values]
        self.files_["METADATA"] = "\n".join(lines) + "\n"

    def read_text(self, filename):
        return self.files_.get(filename)

    def locate_file(self, path):
        raise NotImplementedError


def validate(text):
    """Check a document against CycloneDX's own schema, which the package carries."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert wrong is None, wrong


def test_the_command_writes_valid_cyclonedx(tmp_path, capsys):
    pytest.importorskip("cyclonedx")
    pytest.importorskip("jsonschema")
    path = tmp_path / "bill.json"
    with pytest.raises(SystemExit) as stopped:
        cli.main(["sbom", "-o", str(path), "--json"])
    assert stopped.value.code == 0
    text = path.read_text(encoding="utf-8")
    assert json.loads(capsys.readouterr().out) == json.loads(text)
    validate(text)
    found = {each["name"]: each for each in json.loads(text)["components"]}
    assert found["numpy"]["version"] == version("numpy")
    assert found["numpy"]["purl"] == f"pkg:pypi/numpy@{version('numpy')}"
    assert "MIT" in sbom.licence_of(found["rich"])
    assert list(found) == sorted(found)


def test_the_validator_sees_a_fault():
    pytest.importorskip("cyclonedx")
    pytest.importorskip("jsonschema")
    bill = sbom.bill_of_materials()
    bill["components"][0]["type"] = "libary"
    with pytest.raises(AssertionError, match="libary"):
        validate(json.dumps(bill))


def test_requirements_are_followed_with_the_wanted_extras_alone(monkeypatch):
    packages = {
        "uino-deploy": Package(
            "uino-deploy",
            Provides_Extra=["cpu", "dev"],
            Requires_Dist=["Foo.Bar>=1", "cpu-only; extra == 'cpu'", 'dev-only; extra == "dev"'],
        ),
        "foo-bar": Package("Foo.Bar", Requires_Dist=["deep[fast, safe] (>=2)", "absent>1"]),
        "deep": Package("deep", Requires_Dist=["quick; extra == 'fast'", "slow; extra == 'slow'"]),
        "cpu-only": Package("cpu_only", Requires_Dist=["foo.bar", "uino-deploy"]),
        **{name: Package(name) for name in ("dev-only", "quick", "slow", "unrelated")},
    }
    monkeypatch.setattr(sbom, "_installed", packages.get)
    found = sbom.bill_of_materials(["cpu"])
    assert [each["name"] for each in found["components"]] == [
        "cpu-only",
        "deep",
        "foo-bar",
        "quick",
    ]
    names = {each["name"] for each in sbom.bill_of_materials()["components"]}
    assert names == {"cpu-only", "deep", "dev-only", "foo-bar", "quick"}
    assert found["metadata"]["component"]["purl"] == "pkg:pypi/uino-deploy@1.0%2Blocal"


def test_a_project_that_runs_from_a_folder_lists_all_that_is_installed(monkeypatch):
    monkeypatch.setattr(sbom, "_installed", lambda _name: None)
    names = {each["name"] for each in sbom.bill_of_materials()["components"]}
    assert {"numpy", "pip"} <= names


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ({"License_Expression": ["MIT OR Apache-2.0"], "License": ["x"]}, "MIT OR Apache-2.0"),
        ({"License": ["BSD 3-Clause"]}, "BSD 3-Clause"),
        (
            {
                "License": ["Permission is hereby granted to everybody " * 3],
                "Classifier": ["License :: OSI Approved :: MIT License", "Topic :: Software"],
            },
            "MIT License",
        ),
        ({"License": ["UNKNOWN"], "Classifier": ["License :: OSI Approved"]}, "not stated"),
        ({}, "not stated"),
    ],
)
def test_a_licence_is_the_metadatas(metadata, licence):
    assert sbom.licence_of(sbom.component(Package("p", **metadata))) == licence


def test_a_hash_is_given_where_an_installer_kept_it():
    def of(text):
        return sbom.component(Package("p", {"direct_url.json": text})).get("hashes")

    kept = {"archive_info": {"hashes": {"sha256": "a" * 64}}}
    assert of(json.dumps(kept)) == [{"alg": "SHA-256", "content": "a" * 64}]
    for text in (None, "", "[]", "{", '{"archive_info": {"hashes": {"sha256": "short"}}}'):
        assert of(text) is None
