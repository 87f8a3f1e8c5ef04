"""The frozen encoder's tokens of images, computed one image at a time and kept on disk.

A file holds one image's tokens. Its folder, name and header tell the encoder's weights and the
pixels that the encoder saw, after all preprocessing; the header also has the tokens' hash. What
does not match is computed again. A mirrored image is an image of its own: the tokens of an image,
mirrored, are not the tokens of the mirrored image, since every token holds its position.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from uino_deploy.config import UinoConfig
from uino_deploy.files import atomic_file, safetensors_bytes
from uino_deploy.images import Float32, UInt8, preprocess_image
from uino_deploy.model.encoder import DinoVisionTransformer
from uino_deploy.training.provenance import digest_of
from uino_deploy.training.reporting import Reporter
from uino_deploy.training.schedule import Precision

MEMORY = 4 * 10**9
"""Bytes of checked tokens that a process also keeps in memory."""

FORMAT = "uino-tokens"
VERSION = "1"


class Tokens(NamedTuple):
    """What the encoder says of an image, float32.

    Attributes:
        early: [N, D], for the adapter.
        deep: [L, N, D], for the prompts.
    """

    early: Tensor
    deep: Tensor


def tokens_bytes(config: UinoConfig) -> int:
    """Return the size in bytes of one image's tokens."""
    layers = 1 + len(config.encoder.correlation_layers)
    return 4 * layers * config.tokens * config.encoder.width


class TokenSource:
    """Gives the tokens of images, from a folder if it has them.

    Equal for the same pixels, wherever they come from: bit for bit on one machine.

    Args:
        encoder: frozen; on the device to compute on.
        config: the model's.
        precision: "bf16" computes matrix products in bfloat16.
        folder: keeps the tokens, in a subfolder for each encoder; None keeps none.
        reporter: hears of damaged files.
    """

    def __init__(
        self,
        encoder: DinoVisionTransformer,
        config: UinoConfig,
        precision: Precision,
        folder: Path | None,
        reporter: Reporter,
    ) -> None:
        self._encoder = encoder
        self._config = config
        self._precision = precision
        self._reporter = reporter
        self._digests: dict[Hashable, str] = {}
        self._remembered: dict[Hashable, Tokens] = {}
        self._encoder_digest = ""
        self.folder = None
        if folder is not None:
            self._encoder_digest = _digest_of_encoder(encoder, config, precision)
            self.folder = folder / self._encoder_digest[:16]

    def tokens(self, name: Hashable, load: Callable[[], UInt8]) -> Tokens:
        """Return an image's tokens.

        Args:
            name: of the image; one name always stands for the same pixels. Once its tokens are
                kept, the image is not loaded again.
            load: gives its pixels, uint8 RGB [H, W, 3].
        """
        if self.folder is None:
            return self._encode(self._prepared(load))
        tokens = self._remembered.get(name)
        if tokens is None:
            tokens = self._kept(self.folder, name, load)
            if (len(self._remembered) + 1) * tokens_bytes(self._config) <= MEMORY:
                self._remembered[name] = tokens
        return tokens

    def _kept(self, folder: Path, name: Hashable, load: Callable[[], UInt8]) -> Tokens:
        """Return an image's tokens from its file; make the file if it has none that is whole."""
        pixels = None
        if name not in self._digests:
            pixels = self._prepared(load)
            self._digests[name] = hashlib.sha256(pixels.data).hexdigest()
        digest = self._digests[name]
        path = folder / f"{digest[:32]}.safetensors"
        tokens = self._read(path, digest)
        if tokens is None:
            tokens = self._encode(self._prepared(load) if pixels is None else pixels)
            tokens = Tokens(*(tensor.cpu() for tensor in tokens))
            self._write(path, digest, tokens)
        return tokens

    def _prepared(self, load: Callable[[], UInt8]) -> Float32:
        return preprocess_image(load(), self._config.image_size)

    def _encode(self, pixels: Float32) -> Tokens:
        device = self._encoder.pos_embed.device
        half = self._precision == "bf16"
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            early, deep = self._encoder(torch.from_numpy(pixels)[None].to(device))
        return Tokens(early[0].float(), deep[0].float())

    def _metadata(self, pixels: str, tokens: Tokens) -> dict[str, str]:
        digest = hashlib.sha256()
        for tensor in tokens:
            digest.update(tensor.contiguous().numpy().data)
        return {
            "format": FORMAT,
            "version": VERSION,
            "encoder": self._encoder_digest,
            "image": pixels,
            "sha256": digest.hexdigest(),
        }

    def _write(self, path: Path, pixels: str, tokens: Tokens) -> None:
        arrays = {name: tensor.numpy() for name, tensor in tokens._asdict().items()}
        with atomic_file(path, force=True) as temporary:
            temporary.write_bytes(safetensors_bytes(arrays, self._metadata(pixels, tokens)))

    def _read(self, path: Path, pixels: str) -> Tokens | None:
        """Return the tokens in a file; None if there is none, or it is not what it should be."""
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                tokens = Tokens(file.get_tensor("early"), file.get_tensor("deep"))
            if metadata == self._metadata(pixels, tokens) and self._fits(tokens):
                return tokens
            reason = "its contents do not match its header"
        except (SafetensorError, OSError) as error:
            reason = str(error)
        self._reporter.log(f"{path} is damaged ({reason}): computed again")
        return None

    def _fits(self, tokens: Tokens) -> bool:
        encoder = self._config.encoder
        early = (self._config.tokens, encoder.width)
        deep = (len(encoder.correlation_layers), *early)
        return (
            tokens.early.shape == early
            and tokens.deep.shape == deep
            and {tensor.dtype for tensor in tokens} == {torch.float32}
        )


def place_to_keep(
    config: UinoConfig, images: int, folder: Path, limit: int, reporter: Reporter
) -> Path | None:
    """Say how much the tokens of so many images take; return the folder if they may be kept there.

    Args:
        config: the model's.
        images: how many images the encoder will see, mirrored ones included.
        folder: where to keep them; it may hold some already.
        limit: bytes that they may take.
        reporter: hears the size first.
    """
    needed = images * tokens_bytes(config)
    words = f"the encoder's tokens of {images:,} images take {byte_size(needed)}"
    if needed > limit:
        reason = "--cache-limit 0" if limit == 0 else f"over --cache-limit, {byte_size(limit)}"
        reporter.log(f"{words}: not kept ({reason}), so every step runs the encoder")
        return None
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    kept = sum(each.stat().st_size for each in folder.glob("*/*.safetensors"))
    free = shutil.disk_usage(there).free + kept
    if needed > free:
        reporter.warn(
            f"{words}, and {there} has {byte_size(free)}: not kept, so every step runs the encoder"
        )
        return None
    reporter.log(f"{words}: kept in {folder}; delete it when no run needs it")
    return folder


def byte_size(count: int) -> str:
    """Return bytes for people: 2.94 GB (powers of ten)."""
    return f"{count / 1e9:,.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def _digest_of_encoder(
    encoder: DinoVisionTransformer, config: UinoConfig, precision: Precision
) -> str:
    """Return a SHA-256 of all that the tokens of an image depend on, besides its pixels."""
    facts = f"{FORMAT} {VERSION}\n{config.image_size} {config.encoder}"
    device = encoder.pos_embed.device.type
    weights = digest_of(encoder.state_dict())
    return hashlib.sha256(f"{facts}\n{precision} {device}\n{weights}".encode()).hexdigest()
