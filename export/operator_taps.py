"""What our operators take and give inside an exported piece; `examples` records it in the model.

A piece's output can hide a wrong operator: a norm after it may leave of its result only what the
output does not depend on. So `verify` also compares what each operator is given and what it makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from uino_deploy.bundle import Bundle, Piece
from uino_deploy.bundle.checked import checked_copy
from uino_deploy.bundle.reference import operator_name, operator_sample
from uino_deploy.export.graph_reader import with_taps
from uino_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend
from uino_deploy.runtime.session import prepare

Array = npt.NDArray[Any]


def exported(
    bundle: Bundle, backend: OnnxRuntimeBackend, piece: Piece, feeds: Mapping[str, Array]
) -> dict[str, Array]:
    """Return samples of what each operator of an exported graph takes first and gives.

    Args:
        bundle: opened.
        backend: runs the graph.
        piece: the piece, or the whole query.
        feeds: its inputs.

    Returns:
        The samples by `operator_name`.
    """
    with checked_copy(bundle, piece) as graph:
        data, taps = with_taps(graph.read_bytes())
        graph.write_bytes(data)
        session = backend.open(graph)
    wanted = sorted({tap.tensor for tap in taps})
    if not wanted:
        return {}
    arrays = dict(zip(wanted, session.run(wanted, prepare(piece, feeds)), strict=True))
    return {operator_name(t.call, t.what): operator_sample(arrays[t.tensor]) for t in taps}
