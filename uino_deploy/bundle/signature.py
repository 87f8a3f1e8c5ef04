"""Signatures: Ed25519 over a file's exact bytes, in a file beside it; and when one is required.

The signature of FILE is FILE.sig: 64 bytes and nothing else, as `openssl pkeyutl -sign -rawin`
writes them. A bundle is signed by its manifest, which holds the hash of every other file; so both
kinds of thing that are signed are one sequence of bytes, read once, checked and then used.

A required signature is refused by whoever reads the file, so a caller need not think of it: the
environment variable `UINO_DEPLOY_REQUIRE_SIGNATURE` names the public key for all that a process and
its children load.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from uino_deploy.dependencies import require
from uino_deploy.errors import InputError, SignatureError
from uino_deploy.inputs import notice, printable, read_regular

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

VARIABLE = "UINO_DEPLOY_REQUIRE_SIGNATURE"
SIGNATURE_BYTES = 64
MOST_KEY_BYTES = 64 << 10

Required = str | Path | Literal[False] | None
"""The public key's file; None for the one that the environment variable names, if it is set; False
for none, which is for what this very process has just made."""


def signature_path(path: str | Path) -> Path:
    """Return where the signature of a file lies."""
    return Path(f"{path}.sig")


def check_signature(data: bytes, path: str | Path, required: Required = None) -> None:
    """Refuse bytes that a required key did not sign.

    Args:
        data: what was read from the file; the caller goes on with these bytes.
        path: the file.
        required: see `Required`.

    Raises:
        SignatureError: the signature is missing, no signature, or not of these bytes by this key.
        InputError: the public key cannot be read.
        DependencyError: the package cryptography is missing.
    """
    name = _required_key(required)
    if name is None:
        return
    key = read_public_key(name)
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(_read_signature(path), data)
    except InvalidSignature as error:
        raise SignatureError(
            f"{printable(path)}: its signature is not of these bytes by the key {printable(name)}",
            "it was changed after it was signed, as `build` does, or another key signed it: take "
            "it again from whom you trust, or sign it again",
        ) from error


def is_required(required: Required = None) -> bool:
    """Return whether a signature is required, by the caller or by the environment."""
    return _required_key(required) is not None


def note_unchecked(path: str | Path, what: str) -> None:
    """Say that a file is used although signatures are required, since its kind has none."""
    if is_required():
        notice("signature", f"{printable(path)} is {what}, which has no signature to check")


def read_public_key(path: str | Path) -> Ed25519PublicKey:
    """Read an Ed25519 public key in PEM.

    Raises:
        InputError: the file is missing, is no public key, or of another algorithm.
        DependencyError: the package cryptography is missing.
    """
    data = read_key_file(path, "public key")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if b"PRIVATE KEY" in data:
        raise InputError(
            f"{printable(path)} holds a private key", "give its public key, and keep this one away"
        )
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{printable(path)} holds no public key in PEM",
            "`uino-deploy sign --new-key` writes a pair of keys",
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{printable(path)} holds a key that is not Ed25519")
    return key


def read_key_file(path: str | Path, what: str) -> bytes:
    """Return the bytes of a key's file, once the package that reads keys is known to be here.

    Raises:
        InputError: the file cannot be read.
        DependencyError: the package cryptography is missing.
    """
    require("signing", "cryptography")
    try:
        return read_regular(path, what, MOST_KEY_BYTES)
    except OSError as error:
        raise InputError(f"{what} {printable(path)} cannot be read: {error.strerror}") from error


def _required_key(required: Required) -> str | Path | None:
    """Return the public key's file; None if no signature is required.

    Raises:
        InputError: the environment variable is set and empty: a slip must not switch it off.
    """
    if required is not None:
        return None if required is False else required
    name = os.environ.get(VARIABLE)
    if name == "":
        raise InputError(f"{VARIABLE} is empty", "name a public key's file, or unset it")
    return name


def _read_signature(path: str | Path) -> bytes:
    place = signature_path(path)
    again = "take it from whom you trust, or sign with `uino-deploy sign`"
    try:
        data = read_regular(place, "signature", MOST_KEY_BYTES)
    except FileNotFoundError as error:
        how = "is a link that leads nowhere" if place.is_symlink() else "does not exist"
        raise SignatureError(
            f"{printable(path)} is not signed: {printable(place)} {how}", again
        ) from error
    except InputError as error:
        raise SignatureError(error.what, again) from error
    except OSError as error:
        raise SignatureError(
            f"signature {printable(place)} cannot be read: {error.strerror}", again
        ) from error
    if len(data) != SIGNATURE_BYTES:
        raise SignatureError(
            f"signature {printable(place)} has {len(data)} bytes, not {SIGNATURE_BYTES}", again
        )
    return data
