"""The teacher of the bottleneck adapter: Segment Anything's embedding of an image, kept on disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from uino_deploy.files import atomic_file, safetensors_bytes, sha256
from uino_deploy.images import Float32, UInt8, load_image
from uino_deploy.model.checkpoint import load_sam_image_encoder
from uino_deploy.model.sam_encoder import SamImageEncoder

FORMAT = "uino-embedding"
VERSION = "1"

Float16 = npt.NDArray[np.float16]

# The preprocessing that a cached embedding depends on, besides the teacher's weights.
_PREPROCESSING = (
    "longest side resized with Pillow's bilinear filter; SAM's mean and std; zeros below and to "
    "the right; the embedding's part that the image covers, resized bilinearly to the whole grid; "
    "float16"
)
_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_STD = np.array([58.395, 57.12, 57.375], np.float32)


@dataclass(frozen=True)
class Prepared:
    """An image in SAM's input form.

    Attributes:
        pixels: float32 [3, S, S], normalised and padded.
        covered: height and width of the part that the image covers, as fractions of S.
    """

    pixels: Float32
    covered: tuple[float, float]


def prepare(image: UInt8, size: int) -> Prepared:
    """Resize an image's longest side to `size`, normalise it and pad it, as SAM does."""
    scale = size / max(image.shape[:2])
    height, width = (int(side * scale + 0.5) for side in image.shape[:2])
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.zeros((3, size, size), np.float32)
    normal = (np.asarray(resized, np.float32) - _MEAN) / _STD
    pixels[:, :height, :width] = normal.transpose(2, 0, 1)
    return Prepared(pixels, (height / size, width / size))


def spread(embedding: Tensor, covered: tuple[float, float]) -> Tensor:
    """Resize the covered part of an embedding [1, E, g, g] to the whole grid.

    The student sees the image squashed to a square, the teacher sees it padded to one. After this
    step, a cell covers the same part of the image in both. The paper does not say how it aligns
    them; square images are unchanged.
    """
    height, width = covered
    if covered == (1.0, 1.0):
        return embedding
    theta = torch.tensor([[[width, 0, width - 1], [0, height, height - 1]]])
    grid = F.affine_grid(theta, list(embedding.shape), align_corners=False).to(embedding.device)
    return F.grid_sample(embedding, grid, padding_mode="border", align_corners=False)


class Teacher:
    """SAM's image encoder with a cache, run once for each image.

    Args:
        checkpoint: Segment Anything's `.pth` (B, L or H).
        cache: a folder, in which each teacher has its own subfolder.
        device: the device to compute on.

    Raises:
        CheckpointError: the checkpoint is unreadable, or holds no SAM image encoder.
    """

    def __init__(self, checkpoint: Path, cache: Path, device: torch.device) -> None:
        identity = f"{FORMAT} {VERSION}\n{sha256(checkpoint)}\n{_PREPROCESSING}"
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
        self.folder = cache / self.fingerprint[:16]
        self._checkpoint = checkpoint
        self._device = device
        self._encoder: SamImageEncoder | None = None
        self.grid, self.width = self._sizes()

    def embedding(self, image: Path) -> Float32:
        """Return an image's embedding [E, g, g], from the cache if it has an intact one.

        A cached embedding that is damaged, or is of another teacher, preprocessing or image, is
        computed again.

        Raises:
            InputError: the image cannot be read.
        """
        identity = sha256(image)
        path = self.folder / f"{identity[:32]}.safetensors"
        embedding = self._read(path, identity)
        if embedding is None:
            embedding = self._embed(load_image(image))
            self._write(path, identity, embedding)
        return embedding.astype(np.float32)

    def _sizes(self) -> tuple[int, int]:
        """Return the embedding's side and channels."""
        config = self._loaded().config
        return config.grid, config.embedding

    def _loaded(self) -> SamImageEncoder:
        if self._encoder is None:
            self._encoder = load_sam_image_encoder(self._checkpoint).to(self._device)
        return self._encoder

    @torch.inference_mode()
    def _embed(self, image: UInt8) -> Float16:
        encoder = self._loaded()
        prepared = prepare(image, encoder.config.image_size)
        pixels = torch.from_numpy(prepared.pixels)[None].to(self._device)
        embedding = spread(encoder(pixels), prepared.covered)
        return embedding[0].cpu().numpy().astype(np.float16)

    def _metadata(self, identity: str, data: bytes) -> dict[str, str]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "teacher": self.fingerprint,
            "image": identity,
            "sha256": hashlib.sha256(data).hexdigest(),
        }

    def _write(
        self,
        path: Path,
        identity: str,
        embedding: Float16,
    ) -> None:
        metadata = self._metadata(identity, embedding.tobytes())
        with atomic_file(path, force=True) as temporary:
            temporary.write_bytes(safetensors_bytes({"embedding": embedding}, metadata))

    def _read(self, path: Path, identity: str) -> Float16 | None:
        if not path.is_file():
            return None
        try:
            with safe_open(path, "numpy") as file:
                metadata, embedding = file.metadata() or {}, file.get_tensor("embedding")
        except (SafetensorError, OSError):
            return None
        intact = (
            metadata == self._metadata(identity, embedding.tobytes())
            and embedding.shape == (self.width, self.grid, self.grid)
            and np.isfinite(embedding).all()
        )
        return embedding if intact else None
