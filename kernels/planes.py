"""The two layouts of a hypercorrelation: a volume, and the planes of one of its two images."""

from collections.abc import Mapping, Sequence

from torch import Tensor


def to_planes(volume: Tensor, plane: int) -> Tensor:
    """Lay a volume out plane by plane; a view where strides allow it.

    Args:
        volume: [S, hq, wq, hs, ws, C].
        plane: 0 for the query's planes, one for each support cell; 1 for the support's.

    Returns:
        [S*hs*ws, hq, wq, C] for plane 0, [S*hq*wq, hs, ws, C] for plane 1.
    """
    if plane == 0:
        volume = volume.permute(0, 3, 4, 1, 2, 5)
    return volume.flatten(0, 2)


def from_planes(planes: Tensor, plane: int, cells: Sequence[int]) -> Tensor:
    """Lay planes out as the volume that `to_planes` takes; a view of contiguous planes.

    Args:
        planes: [S*hs*ws, hq, wq, C] for plane 0, [S*hq*wq, hs, ws, C] for plane 1.
        plane: 0 or 1.
        cells: (S, hq, wq, hs, ws).

    Returns:
        [S, hq, wq, hs, ws, C].
    """
    shots, hq, wq, hs, ws = cells
    if plane == 0:
        return planes.reshape(shots, hs, ws, hq, wq, -1).permute(0, 3, 4, 1, 2, 5)
    return planes.reshape(shots, hq, wq, hs, ws, -1)


def planes_shape(volume: Sequence[int], plane: int) -> tuple[int, int, int]:
    """Return (planes, height, width) of a volume [S, hq, wq, hs, ws, ...]."""
    shots, hq, wq, hs, ws = volume[:5]
    return (shots * hs * ws, hq, wq) if plane == 0 else (shots * hq * wq, hs, ws)


def check_plane(plane: int) -> None:
    """Raise ValueError unless `plane` is 0 or 1."""
    if plane not in (0, 1):
        raise ValueError(f"plane is {plane}, expected 0 (the query's) or 1 (the support's)")


def check_operands(volume: Tensor, operands: Mapping[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    """Hold operands to the shapes they must have, and to the volume's type.

    Raises:
        ValueError: one does not fit, or the volume has not six dimensions.
    """
    if volume.ndim != 6:
        raise ValueError(f"volume has shape {tuple(volume.shape)}, expected [S, hq, wq, hs, ws, D]")
    for name, (tensor, expected) in operands.items():
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")
        if tensor.dtype != volume.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, expected {volume.dtype}")
