"""A required signature is the right key's, of the very bytes that are used, wherever they load."""

import os
import shutil
import stat
import subprocess

import pytest

pytest.importorskip("cryptography")

from click import Group

from tests.runtime.conftest import write_fake_bundle
from uino_deploy import cli
from uino_deploy.bundle import MANIFEST, Bundle, manifest, write_manifest
from uino_deploy.bundle import support as support_module
from uino_deploy.bundle.sign import new_key_pair, sign_all
from uino_deploy.bundle.signature import VARIABLE, check_signature, signature_path
from uino_deploy.cli.sign import PASSPHRASE
from uino_deploy.errors import BundleError, InputError, OutputExists, SignatureError
from uino_deploy.runtime import Predictor, Support, segment_folder


@pytest.fixture(autouse=True)
def no_requirement(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(PASSPHRASE, raising=False)


@pytest.fixture
def unsigned(fake_bundle, tmp_path):
    """Return a copy of the bundle, to change."""
    return shutil.copytree(fake_bundle, tmp_path / "model.uino")


@pytest.fixture
def keys(tmp_path):
    """Return a private key's file and its public key's."""
    return tmp_path / "fleet.pem", new_key_pair(tmp_path / "fleet.pem")


@pytest.fixture
def support(unsigned, red_square, tmp_path):
    path = tmp_path / "red.safetensors"
    Predictor.load(unsigned, threads=1).enroll([red_square], "red").save(path)
    return path


@pytest.fixture
def signed(unsigned, support, keys):
    """Return the signed bundle and support, and the public key."""
    sign_all([unsigned, support], keys[0])
    return unsigned, support, keys[1]


def predict(run, bundle, support, image, output, *more):
    arguments = [bundle, image, "--support", support, "-o", output, "--threads", 1, "--no-overlay"]
    return run("predict", *arguments, *more)


def refused(stderr, *words):
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    for word in words:
        assert str(word) in stderr


def test_signed_by_the_command_and_used_by_the_command(run, unsigned, support, red_files, tmp_path):
    key, public = tmp_path / "k.pem", tmp_path / "k.pub.pem"
    assert run("sign", "--new-key", key)[0] == 0
    code, out, err = run("sign", unsigned, support, "--key", key)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{unsigned}: {unsigned / MANIFEST}.sig",
        f"{support}: {support}.sig",
    ]
    output = tmp_path / "found"
    required = ("--require-signature", public)
    code, _, err = predict(run, unsigned, support, red_files[0], output, *required)
    assert (code, err) == (0, "segmenting: 1/1\n")
    assert (output / "results.jsonl").is_file()
    assert VARIABLE not in os.environ, "the option holds for one command"


# --- what is wrong with a signature; `place` is its file, `signed` what it is of


def missing(place, signed, other):
    place.unlink()


def of_another_key(place, signed, other):
    shutil.copyfile(signature_path(other["key"]), place)


def of_another_thing(place, signed, other):
    shutil.copyfile(signature_path(other["thing"]), place)


def truncated(place, signed, other):
    place.write_bytes(place.read_bytes()[:63])


def empty(place, signed, other):
    place.write_bytes(b"")


def too_long(place, signed, other):
    place.write_bytes(place.read_bytes() + b"\n")


def altered_signature(place, signed, other):
    data = bytearray(place.read_bytes())
    data[17] ^= 1
    place.write_bytes(data)


def altered_content(place, signed, other):
    signed.write_bytes(signed.read_bytes() + b" ")


def dangling_link(place, signed, other):
    place.unlink()
    place.symlink_to("nowhere")


def link_to_a_pipe(place, signed, other):
    os.mkfifo(signed.with_name("pipe"))
    place.unlink()
    place.symlink_to("pipe")


def looping_link(place, signed, other):
    place.unlink()
    place.symlink_to(place.name)


def a_folder(place, signed, other):
    place.unlink()
    place.mkdir()


FAULTS = {
    missing: "is not signed",
    of_another_key: "its signature is not of these bytes by the key",
    of_another_thing: "its signature is not of these bytes by the key",
    truncated: "has 63 bytes, not 64",
    empty: "has 0 bytes, not 64",
    too_long: "has 65 bytes, not 64",
    altered_signature: "its signature is not of these bytes by the key",
    altered_content: "its signature is not of these bytes by the key",
    dangling_link: "is a link that leads nowhere",
    link_to_a_pipe: "it is a named pipe",
    looping_link: "cannot be read",
    a_folder: "it is a folder",
}


@pytest.mark.parametrize("what", ["bundle", "support"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_wrong_signature_is_one_line_and_leaves_nothing(
    run, signed, red_files, tmp_path, fault, what
):
    bundle, support, public = signed
    target = bundle / MANIFEST if what == "bundle" else support
    # The same bytes signed by another key, and the same key's signature of other bytes.
    same = tmp_path / "same"
    same.write_bytes(target.read_bytes())
    new_key_pair(tmp_path / "other.pem")
    if what == "bundle":
        copy = shutil.copytree(bundle, tmp_path / "copy.uino")
        sign_all([copy], tmp_path / "other.pem", force=True)
        shutil.copyfile(signature_path(copy / MANIFEST), signature_path(same))
        another = write_fake_bundle(tmp_path / "another.uino", weights="1" * 64) / MANIFEST
        sign_all([another.parent], tmp_path / "fleet.pem")
    else:
        sign_all([same], tmp_path / "other.pem")
        another = tmp_path / "another.safetensors"
        enrolled = Support.load(support)
        Support(**{**vars(enrolled), "name": "blue"}).save(another)
        sign_all([another], tmp_path / "fleet.pem")
    fault(signature_path(target), target, {"key": same, "thing": another})
    output = tmp_path / "found"
    required = ("--require-signature", public)
    code, out, err = predict(run, bundle, support, red_files[0], output, *required)
    assert (code, out) == (2, "")
    refused(err, FAULTS[fault], target.name)
    assert not output.exists()


COMMANDS = {
    "predict": ["{bundle}", "x.png", "--support", "s", "-o", "out"],
    "enroll": ["{bundle}", "--shot", "{image}:{mask}", "--name", "a", "-o", "out"],
    "evaluate": ["{bundle}", "--dataset", "digits", "--episodes", "1"],
    "verify": ["{bundle}"],
    "precision": ["{bundle}"],
    "figure grid": ["{bundle}", "--dataset", "digits", "-o", "out.png"],
    "inspect": ["{bundle}"],
    "benchmark": ["{bundle}"],
    "build": ["{bundle}", "--backend", "tensorrt-rtx", "--arch", "sm_89", "--dry-run"],
    "selftest": ["--bundle", "{bundle}"],
    "serve": ["{bundle}", "--classes", "classes"],
    "triton-repository": [
        "{bundle}",
        "--classes",
        "classes",
        "--backend",
        "onnxruntime",
        "-o",
        "out",
    ],
    "kernels build": ["--bundle", "{bundle}", "--arch", "sm_87"],
}
# They hold no bundle and no support: checkpoints, records and data sets.
WITHOUT = {
    "demo",
    "export",
    "compare",
    "figure similarity",
    "distill",
    "train",
    "ablate",
    "doctor",
    "sign",
}
WITHOUT |= {"sbom", "kernels report"}


def test_every_command_either_loads_nothing_signed_or_has_the_option():
    found = {}
    for name, target in cli.COMMANDS.items():
        module, attribute = target.split(":")
        command = getattr(__import__(module, fromlist=[attribute]), attribute)
        inner = command.commands.items() if isinstance(command, Group) else [("", command)]
        found |= {f"{name} {leaf}".strip(): each for leaf, each in inner}
    asking = {
        name
        for name, each in found.items()
        if "--require-signature" in {flag for option in each.params for flag in option.opts}
    }
    assert asking == set(COMMANDS)
    assert set(found) - asking == WITHOUT


@pytest.mark.parametrize("how", ["option", "environment"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_loads_a_bundle_refuses_an_unsigned_one(
    run, monkeypatch, unsigned, red_files, keys, tmp_path, command, how
):
    monkeypatch.chdir(tmp_path)
    image, mask = red_files
    words = [each.format(bundle=unsigned, image=image, mask=mask) for each in COMMANDS[command]]
    if how == "option":
        words += ["--require-signature", keys[1]]
    else:
        monkeypatch.setenv(VARIABLE, str(keys[1]))
    code, out, err = run(*command.split(), *words)
    assert (code, out) == (2, "")
    refused(err, f"{unsigned / MANIFEST} is not signed")
    assert not (tmp_path / "out").exists()


def test_inspect_refuses_an_unsigned_support_and_says_what_has_no_signature(
    run, support, keys, tmp_path
):
    code, _, err = run("inspect", support, "--require-signature", keys[1])
    assert code == 2
    refused(err, f"{support} is not signed")
    checkpoint = "uino_deploy/assets/tiny.safetensors"
    code, _, err = run("inspect", checkpoint, "--require-signature", keys[1])
    assert code == 0
    assert "is a checkpoint, which has no signature to check" in err


def test_from_python_the_key_holds_for_the_supports_as_well(signed, red_files, tmp_path):
    bundle, support, public = signed
    predictor = Predictor.load(bundle, threads=1, require_signature=public)
    segment_folder(predictor, red_files[0], [support], tmp_path / "found")
    signature_path(support).unlink()
    with pytest.raises(SignatureError, match="is not signed"):
        segment_folder(predictor, red_files[0], [support], tmp_path / "more")
    with pytest.raises(SignatureError):
        Support.load(support, require_signature=public)
    Support.load(support)


def test_the_environment_holds_unless_an_argument_says_another(signed, monkeypatch, tmp_path):
    bundle, _, public = signed
    other = new_key_pair(tmp_path / "other.pem")
    monkeypatch.setenv(VARIABLE, str(other))
    with pytest.raises(SignatureError):
        Predictor.load(bundle)
    Predictor.load(bundle, require_signature=public)
    Predictor.load(bundle, require_signature=False)


@pytest.mark.parametrize("key", ["", "missing.pem"])
def test_a_slip_in_the_environment_does_not_switch_it_off(signed, monkeypatch, key):
    monkeypatch.setenv(VARIABLE, key)
    with pytest.raises(InputError, match=VARIABLE if not key else "cannot be read"):
        Predictor.load(signed[0])


def test_without_the_package_nothing_loads(run, signed, red_files, monkeypatch, tmp_path):
    bundle, support, public = signed
    monkeypatch.setattr(
        "uino_deploy.dependencies.is_importable", lambda module: module != "cryptography"
    )
    monkeypatch.setenv(VARIABLE, str(public))
    code, _, err = predict(run, bundle, support, red_files[0], tmp_path / "found")
    assert code == 3
    refused(err, "cryptography is not installed", ".[signing]")
    monkeypatch.delenv(VARIABLE)
    assert predict(run, bundle, support, red_files[0], tmp_path / "found")[0] == 0


# --- what is verified is what is used


def test_the_manifest_that_was_verified_is_the_one_that_is_used(signed, monkeypatch):
    bundle, _, public = signed
    right = Bundle.open(bundle).manifest
    check = manifest.check_signature

    def exchange(data, path, required):
        check(data, path, required)
        (bundle / MANIFEST).write_text("{}")

    monkeypatch.setattr(manifest, "check_signature", exchange)
    assert Bundle.open(bundle, require_signature=public).manifest == right


def test_the_support_that_was_verified_is_the_one_that_is_used(signed, monkeypatch):
    _, path, public = signed
    right = Support.load(path)
    check = support_module.check_signature

    def exchange(data, path, required):
        check(data, path, required)
        path.write_bytes(b"another's")

    monkeypatch.setattr(support_module, "check_signature", exchange)
    assert Support.load(path, require_signature=public).tensors.keys() == right.tensors.keys()


def test_no_bit_of_a_signature_or_of_what_it_signs_can_change(signed):
    bundle, _, public = signed
    path = bundle / MANIFEST
    data, place = path.read_bytes(), signature_path(path)
    right = place.read_bytes()
    check_signature(data, path, public)
    for bit in range(8 * len(right)):
        place.write_bytes(flipped(right, bit))
        with pytest.raises(SignatureError):
            check_signature(data, path, public)
    place.write_bytes(right)
    for bit in range(0, 8 * len(data), 97):
        with pytest.raises(SignatureError):
            check_signature(flipped(data, bit), path, public)


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_file_of_a_signed_bundle_is_held_by_its_manifest(signed):
    bundle, _, public = signed
    (bundle / "decoder.onnx").write_bytes((bundle / "decoder.onnx").read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match=r"decoder\.onnx"):
        Bundle.open(bundle, require_signature=public)


def test_a_cache_of_links_loads_and_is_not_written_through(signed, keys, tmp_path):
    bundle, _, public = signed
    cache = tmp_path / "snapshot.uino"
    cache.mkdir()
    for each in bundle.iterdir():
        (cache / each.name).symlink_to(each)
    Predictor.load(cache, require_signature=public)
    place = signature_path(bundle / MANIFEST)
    before = place.read_bytes()
    new_key_pair(tmp_path / "other.pem")
    sign_all([cache], tmp_path / "other.pem", force=True)
    assert place.read_bytes() == before
    assert not signature_path(cache / MANIFEST).is_symlink()


# --- signing


def test_openssl_reads_and_makes_the_same_signatures(signed, keys, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    bundle, _, public = signed
    path = bundle / MANIFEST
    verify = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", path]
    subprocess.run([*verify, "-sigfile", signature_path(path)], check=True, capture_output=True)
    sign = ["openssl", "pkeyutl", "-sign", "-inkey", keys[0], "-rawin", "-in", path]
    subprocess.run([*sign, "-out", tmp_path / "sig"], check=True, capture_output=True)
    assert (tmp_path / "sig").read_bytes() == signature_path(path).read_bytes()


def test_only_the_owner_reads_a_private_key_and_it_is_never_replaced(run, tmp_path):
    path = tmp_path / "deep" / "fleet.pem"
    before = os.umask(0)
    try:
        public = new_key_pair(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert public == path.with_name("fleet.pub.pem")
    kept = path.read_bytes()
    code, _, err = run("sign", "--new-key", path, "--force")
    assert code == 2
    refused(err, "exists", "keys are kept")
    assert path.read_bytes() == kept


def test_a_key_that_others_can_read_is_said(run, signed, keys):
    keys[0].chmod(0o644)
    code, _, err = run("sign", signed[0], "--key", keys[0], "--force")
    assert code == 0
    assert err.startswith("warning: the private key ")
    assert "chmod 600" in err


def test_an_encrypted_key_needs_its_passphrase(run, unsigned, monkeypatch, tmp_path):
    key = tmp_path / "k.pem"
    monkeypatch.setenv(PASSPHRASE, "wonder")
    assert run("sign", "--new-key", key, "--passphrase")[0] == 0
    assert b"ENCRYPTED" in key.read_bytes()
    assert run("sign", unsigned, "--key", key)[0] == 0
    Bundle.open(unsigned, require_signature=tmp_path / "k.pub.pem")
    for given, words in (
        ("wrong", "no private key that this passphrase opens"),
        (None, "terminal"),
    ):
        if given is None:
            monkeypatch.delenv(PASSPHRASE)
        else:
            monkeypatch.setenv(PASSPHRASE, given)
        code, _, err = run("sign", unsigned, "--key", key, "--force")
        assert code == 2
        refused(err, words)


def test_the_wrong_kind_of_key_is_named(run, unsigned, keys, tmp_path):
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    curve = generate_private_key(SECP256R1())
    pem = s.Encoding.PEM
    (tmp_path / "ec.pem").write_bytes(
        curve.private_bytes(pem, s.PrivateFormat.PKCS8, s.NoEncryption())
    )
    (tmp_path / "ec.pem").chmod(0o600)
    (tmp_path / "ec.pub.pem").write_bytes(
        curve.public_key().public_bytes(pem, s.PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "text").write_text("not a key")
    (tmp_path / "text").chmod(0o600)
    keys[1].chmod(0o600)
    for name, words in {
        keys[0]: "holds a private key",
        tmp_path / "ec.pub.pem": "is not Ed25519",
        tmp_path / "text": "holds no public key in PEM",
        tmp_path: "it is a folder",
    }.items():
        code, _, err = run("inspect", unsigned, "--require-signature", name)
        assert code == 2
        refused(err, words)
    for name in (tmp_path / "ec.pem", keys[1], tmp_path / "text"):
        code, _, err = run("sign", unsigned, "--key", name)
        assert code == 2
        refused(err, name)
    assert not signature_path(unsigned / MANIFEST).exists()


def test_nothing_damaged_is_signed(run, unsigned, support, keys, tmp_path):
    (unsigned / "encoder.onnx").write_bytes(b"")
    support.write_bytes(support.read_bytes()[:-4])
    for target in (unsigned, support, tmp_path / "missing", keys[1]):
        code, _, err = run("sign", target, "--key", keys[0])
        assert code == 2
        refused(err, target)
        assert not signature_path(target).exists()
    assert not signature_path(unsigned / MANIFEST).exists()


def test_a_signature_is_replaced_by_force_alone(run, signed, keys):
    bundle = signed[0]
    code, _, err = run("sign", bundle, "--key", keys[0])
    assert code == 2
    refused(err, "exists", "--force")
    with pytest.raises(OutputExists):
        sign_all([bundle], keys[0])
    assert run("sign", bundle, "--key", keys[0], "--force")[0] == 0


@pytest.mark.parametrize(
    "words",
    [[], ["--key", "k"], ["x"], ["x", "--key", "k", "--passphrase"], ["x", "--new-key", "k"]],
)
def test_contradictions_are_usage_errors(run, words):
    code, _, err = run("sign", *words)
    assert code == 2
    refused(err, "see 'uino-deploy sign --help'")


# --- what changes what was signed says so


def test_build_says_that_the_bundle_needs_signing_again(run, signed, monkeypatch):
    from uino_deploy.export import engines

    bundle, _, public = signed

    def build(opened, *_arguments, **_options):
        (bundle / "new.plan").write_bytes(b"plan")
        opened.add(["new.plan"])
        raise engines.CheckFailed("wrong")

    monkeypatch.setattr(engines, "build_engines", build)
    words = ["build", bundle, "--backend", "tensorrt-rtx", "--arch", "sm_89"]
    code, _, err = run(*words, "--require-signature", public)
    assert code == 1
    assert f"{signature_path(bundle / MANIFEST)} no longer fits" in err
    assert "sign --force" in err
    with pytest.raises(SignatureError):
        Bundle.open(bundle, require_signature=public)


def test_enrolling_again_says_that_the_support_needs_signing_again(run, signed, red_files):
    bundle, support, _ = signed
    image, mask = red_files
    words = ["enroll", bundle, "--shot", f"{image}:{mask}", "--name", "blue", "-o", support]
    code, _, err = run(*words, "--threads", 1, "--force")
    assert code == 0
    assert f"{signature_path(support)} no longer fits" in err


def test_a_manifest_lists_no_signature(signed):
    bundle = signed[0]
    listed = write_manifest(bundle, Bundle.open(bundle).manifest)
    assert "decoder.onnx" in listed.files
    assert signature_path(MANIFEST).name not in listed.files
