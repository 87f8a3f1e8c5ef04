"""`uino-deploy sign`: sign bundles and supports, or make the keys for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from uino_deploy.cli._console import Output
from uino_deploy.cli._options import FILE, force_option, output_options

PASSPHRASE = "UINO_DEPLOY_KEY_PASSPHRASE"  # noqa: S105 - the variable's name


@click.command()
@click.argument("targets", type=FILE, nargs=-1, metavar="BUNDLE_OR_SUPPORT...")
@click.option("--key", type=FILE, metavar="PRIVATE.pem", help="Private key to sign with.")
@click.option(
    "--new-key",
    type=FILE,
    metavar="PRIVATE.pem",
    help="Write a new private key here and its public key beside it, as NAME.pub.pem.",
)
@click.option(
    "--passphrase",
    "encrypt",
    is_flag=True,
    help=f"Encrypt the new key; asks, or reads {PASSPHRASE}.",
)
@force_option
@output_options
def sign(
    targets: tuple[Path, ...],
    key: Path | None,
    new_key: Path | None,
    encrypt: bool,
    force: bool,
    output: Output,
) -> None:
    """Sign bundles and supports with an Ed25519 key.

    Each is checked first. A bundle's signature is manifest.json.sig inside it: the manifest holds
    the hash of every file. A support's is FILE.sig beside it. Commands that load them take
    --require-signature PUBLIC.pem. `build` and `kernels build` change a bundle, which then has to
    be signed again.

    \b
    Examples:
      uino-deploy sign --new-key fleet.pem
      uino-deploy sign model.uino bottle.safetensors --key fleet.pem
    """
    if (key is None) == (new_key is None):
        raise click.UsageError("give either --key, to sign, or --new-key, to make a key")
    if new_key is not None:
        if targets:
            raise click.UsageError("--new-key only makes a key: sign in a second call, with --key")
        _make_key(new_key, encrypt, output)
        return
    if encrypt:
        raise click.UsageError("--passphrase is for --new-key; an encrypted key asks for its own")
    if not targets:
        raise click.UsageError("name a bundle or a support to sign")
    from uino_deploy.bundle.sign import sign_all

    assert key is not None
    made = sign_all(targets, key, lambda: _ask(key, confirm=False), force)
    for target, signature in zip(targets, made, strict=True):
        output.text(f"{target}: {signature}")
    output.document({"key": str(key), "signatures": [str(each) for each in made]})


def _make_key(path: Path, encrypt: bool, output: Output) -> None:
    from uino_deploy.bundle.sign import new_key_pair

    public = new_key_pair(path, _ask(path, confirm=True) if encrypt else None)
    output.text(f"private key {path}: keep it from everyone")
    output.text(f"public key {public}: give it to every machine that loads")
    output.document({"private": str(path), "public": str(public)})


def _ask(key: Path, confirm: bool) -> str:
    """Return a key's passphrase from the environment, or from the person at the terminal."""
    from uino_deploy.errors import InputError

    given = os.environ.get(PASSPHRASE)
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise InputError(f"{key} needs a passphrase and there is no terminal", f"set {PASSPHRASE}")
    asked: str = click.prompt(
        f"passphrase of {key}", hide_input=True, confirmation_prompt=confirm, err=True
    )
    return asked
