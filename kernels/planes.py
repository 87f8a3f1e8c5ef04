"""The two layouts of a hypercorrelation: a volume, and the planes of one of its two images."""

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


def from_planes(planes: Tensor, plane: int, cells: tuple[int, ...]) -> Tensor:
    """Lay planes out as the volume that `to_planes` takes; a view.

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
