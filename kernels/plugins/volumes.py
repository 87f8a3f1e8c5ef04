"""What the plugins of operators on a volume share: its dimensions, scalars and planes."""

from __future__ import annotations

from uino_deploy.kernels.plugins.expressions import Dimension, Expression, ceil_div, product
from uino_deploy.kernels.plugins.operator import Attributes, Constants, Scalar

SHOTS, QUERY_HEIGHT, QUERY_WIDTH, SUPPORT_HEIGHT, SUPPORT_WIDTH, CHANNELS = (
    Dimension("volume", axis) for axis in range(6)
)
WHOLE = (SHOTS, QUERY_HEIGHT, QUERY_WIDTH, SUPPORT_HEIGHT, SUPPORT_WIDTH, CHANNELS)
QUERY_CELLS = product(QUERY_HEIGHT, QUERY_WIDTH)
SUPPORT_CELLS = product(SUPPORT_HEIGHT, SUPPORT_WIDTH)
CELLS = product(product(SHOTS, QUERY_CELLS), SUPPORT_CELLS)

# The arguments of a kernel over one plane of a volume.
SCALARS = (
    Scalar("shots", lambda _: SHOTS),
    Scalar("query_height", lambda _: QUERY_HEIGHT),
    Scalar("query_width", lambda _: QUERY_WIDTH),
    Scalar("support_height", lambda _: SUPPORT_HEIGHT),
    Scalar("support_width", lambda _: SUPPORT_WIDTH),
)
PLANES = ("query", "support")


def planes(attributes: Attributes) -> tuple[Expression, Expression, Expression]:
    """Return the number of planes of a volume, and their height and width."""
    if attributes["plane"] == 0:
        return product(SHOTS, SUPPORT_CELLS), QUERY_HEIGHT, QUERY_WIDTH
    return product(SHOTS, QUERY_CELLS), SUPPORT_HEIGHT, SUPPORT_WIDTH


def grid(
    _attributes: Attributes, constants: Constants
) -> tuple[Expression, Expression, Expression]:
    """Return (blocks of cells, 1, 1), as the kernels' launchers do."""
    return ceil_div(CELLS, constants["CELLS"]), 1, 1


def check_plane(attributes: Attributes) -> None:
    """Raise ValueError for a plane that a volume does not have."""
    plane = attributes["plane"]
    if plane not in range(len(PLANES)):
        raise ValueError(f"plane {plane} is neither 0, the query's, nor 1, the support's")
