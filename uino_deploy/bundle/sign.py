"""Signing: a pair of keys in two files, and the signature of a bundle or a support."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uino_deploy.bundle.manifest import MANIFEST, Bundle, read_manifest
from uino_deploy.bundle.signature import read_key_file, signature_path
from uino_deploy.bundle.support import parse_support, read_support
from uino_deploy.dependencies import require
from uino_deploy.errors import Degraded, InputError, OutputExists
from uino_deploy.files import atomic_file
from uino_deploy.inputs import printable
from uino_deploy.workspace import locked

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Ask = Callable[[], str]
"""Returns a passphrase; called when one is needed."""


def new_key_pair(path: str | Path, passphrase: str | None = None) -> Path:
    """Write a new private key, which only its owner can read, and its public key.

    A private key is never replaced: what it signed could not be signed again.

    Args:
        path: the private key's file, PKCS #8 in PEM.
        passphrase: encrypts it; None leaves it plain.

    Returns:
        The public key's file: `fleet.pub.pem` beside `fleet.pem`.

    Raises:
        OutputExists: one of the two files exists.
        InputError: the passphrase is empty, or the folder cannot be written to.
        DependencyError: the package cryptography is missing.
    """
    require("signing", "cryptography")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if passphrase == "":
        raise InputError("the passphrase is empty", "give one, or none at all")
    private = Path(path)
    public = private.with_name(f"{private.stem}.pub.pem")
    for each in (private, public):
        if os.path.lexists(each):
            raise OutputExists(f"{printable(each)} exists", "name another file: keys are kept")
    pem, key = serialization.Encoding.PEM, Ed25519PrivateKey.generate()
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        protection = serialization.BestAvailableEncryption(passphrase.encode())
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, protection)
    shown = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    with atomic_file(public) as temporary:
        temporary.write_bytes(shown)
    try:
        _write_private(private, secret)
    except BaseException:
        public.unlink(missing_ok=True)
        raise
    return public


def sign_all(
    targets: Sequence[str | Path], key: str | Path, ask: Ask | None = None, force: bool = False
) -> list[Path]:
    """Check bundles and supports, and write the signature of each.

    Args:
        targets: bundles' folders and supports' files.
        key: the private key's file, Ed25519 in PEM.
        ask: called for the passphrase if the key is encrypted.
        force: replace a signature.

    Returns:
        The signatures' files: `manifest.json.sig` in a bundle, `FILE.sig` beside a support.

    Raises:
        BundleError: a bundle is damaged.
        InputError: a support is damaged, or the key or its passphrase is wrong.
        OutputExists: one is signed already and `force` is not given.
        DependencyError: the package cryptography is missing.
    """
    private = read_private_key(key, ask)
    return [_sign(Path(target), private, force) for target in targets]


def _sign(target: Path, private: Ed25519PrivateKey, force: bool) -> Path:
    if not target.exists():
        raise InputError(f"{printable(target)} does not exist", "name a bundle or a support")
    if not target.is_dir():
        data = read_support(target)
        parse_support(data, target)
        return _write_signature(target, private.sign(data), force)
    # No other command changes the manifest between its check and its signature.
    with locked(target):
        bundle = Bundle.open(target, require_signature=False)
        data, manifest = read_manifest(target)
        if manifest != bundle.manifest:
            raise InputError(f"{printable(target)} changed while it was checked", "sign it again")
        return _write_signature(target / MANIFEST, private.sign(data), force)


def read_private_key(path: str | Path, ask: Ask | None = None) -> Ed25519PrivateKey:
    """Read an Ed25519 private key in PEM; arguments as for `sign_all`.

    Raises:
        InputError: the file is missing, is no private key or of another algorithm, or the
            passphrase is wrong or missing.
        DependencyError: the package cryptography is missing.
    """
    data = read_key_file(path, "private key")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    _warn_of_readers(path)
    passphrase = None
    if b"ENCRYPTED" in data:
        if ask is None:
            raise InputError(f"{printable(path)} is encrypted", "give its passphrase")
        passphrase = ask().encode()
    try:
        key = load_pem_private_key(data, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        what = "no private key in PEM"
        if passphrase is not None:
            what = "no private key that this passphrase opens"
        raise InputError(
            f"{printable(path)} holds {what}", "`uino-deploy sign --new-key` writes one"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{printable(path)} holds a key that is not Ed25519")
    return key


def _write_private(path: Path, secret: bytes) -> None:
    """Write a file that never had other readers; it must not exist."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise OutputExists(f"{printable(path)} exists", "name another file") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _warn_of_readers(path: str | Path) -> None:
    if os.name == "posix" and stat.S_IMODE(os.stat(path).st_mode) & 0o077:
        what = f"the private key {printable(path)} can be read by other users"
        warnings.warn(f"{what}: chmod 600 it", Degraded, stacklevel=2)


def _write_signature(path: Path, signature: bytes, force: bool) -> Path:
    place = signature_path(path)
    # In a cache of links, the link is replaced and never what it leads to.
    with atomic_file(place, force, through=False) as temporary:
        temporary.write_bytes(signature)
    return place
