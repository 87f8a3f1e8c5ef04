"""Checks of an engine against TensorRT's silent changes, before a build and after it.

TensorRT rounds float64 to float32, uses an operator's ONNX function in place of a plugin, and
ignores unknown attributes, all without an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set

from uino_deploy.bundle import Bundle, Piece
from uino_deploy.bundle.plans import EngineLayers
from uino_deploy.config import UinoConfig
from uino_deploy.errors import BuildError, CheckFailed
from uino_deploy.export.graph_reader import Call, GraphSummary, read_graph
from uino_deploy.kernels.identity import DOMAIN
from uino_deploy.kernels.plugins.names import PLUGIN

TYPE_NAMES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "fp8": "FP8", "int8": "INT8"}

# Least share of matrix products and convolutions in the piece's type. The rest is float32 by
# design: some inside the operators' functions and the similarity's (10 of 37 in the prompt of
# `full`, 1 of 3 in that of `comp`), and up to opset 21 bfloat16's convolutions. Plugins hide most
# products: 1 of 8 remains in bfloat16 in the prompt of `full`.
# Of a quantised piece every quantised product is counted, by `check_quantised`.
_MATRIX_SHARE = {"fp32": 1.0, "fp16": 0.6, "bf16": 0.1, "fp8": 0.0, "int8": 0.0}
FP8_SINCE = 89  # the first architecture whose tensor cores multiply fp8
# The builder fuses layers, so shares shift; a silent downgrade leaves next to nothing.
_ENGINE_SHARE = 0.5


def check_graph(bundle: Bundle, piece: Piece) -> GraphSummary:
    """Refuse a graph that TensorRT would not build as written.

    Args:
        bundle: opened.
        piece: one of its pieces.

    Returns:
        A summary of the graph.

    Raises:
        BuildError: the graph has a float64 constant or cast, an operator that is not ours, or one
            of ours with attributes other than those of the bundle's model.
    """
    summary = read_graph(bundle.path(piece.model))
    again = "export the bundle again"
    if summary.doubles:
        raise BuildError(
            f"{piece.model}: {', '.join(summary.doubles)} is float64, and TensorRT would compute "
            "it in float32",
            again,
        )
    expected, seen = operator_attributes(bundle.config), Counter[str]()
    for call in summary.calls:
        where = f"{piece.model}: {call.name or 'a node'}"
        if call.operator not in expected:
            raise BuildError(
                f"{where} calls {DOMAIN}.{call.operator}, which is not an operator of this "
                f"version: {', '.join(expected)}",
                again,
            )
        calls = expected[call.operator]
        if seen[call.operator] == len(calls):
            raise BuildError(
                f"{where} calls {call.operator} once more than the bundle's model, {len(calls)} "
                "times",
                again,
            )
        _check_attributes(where, call, calls[seen[call.operator]])
        seen[call.operator] += 1
    return summary


def operator_attributes(config: UinoConfig) -> dict[str, list[dict[str, int | str]]]:
    """Return the attributes that each operator's calls must have in a model's graphs, in order."""
    kind, widths = config.prompt.hypercorrelation, config.prompt.channels[1:]
    grid = {"height": config.grid, "width": config.grid, "pool": config.prompt.pool}
    planes = [{"plane": plane, "channels": c} for c in widths for plane in (0, 1)]
    scans = planes if kind == "mhcm" else []
    calls: dict[str, list[dict[str, int]]] = {
        "Correlation4d": [] if kind == "none" else [grid],
        "ScanPrologue": scans,
        "SelectiveScan2d": [{} for _ in scans],
        "ScanEpilogue": [{"plane": scan["plane"]} for scan in scans],
        "NormMlp": [] if kind == "none" else [{} for _ in widths],
    }
    return {name: [{**own, **PLUGIN} for own in each] for name, each in calls.items()}


def _check_attributes(where: str, call: Call, expected: Mapping[str, int | str]) -> None:
    for name in sorted(expected.keys() | call.attributes.keys()):
        found, wanted = call.attributes.get(name), expected.get(name)
        if found != wanted:
            has = "lacks it" if found is None else f"has {found!r}"
            needs = "no such attribute" if wanted is None else repr(wanted)
            raise BuildError(
                f"{where} ({call.operator}): attribute {name!r}: the node {has}, the bundle's "
                f"model needs {needs}",
                "export the bundle again",
            )


def check_network(
    piece: Piece, precisions: Set[str], matrix_layers: Mapping[str, int], islands: bool = False
) -> None:
    """Refuse a parsed network whose arithmetic is not in the requested precision.

    Args:
        piece: the piece that was parsed.
        precisions: the precisions of its graphs.
        matrix_layers: number of matrix products and convolutions by type, as parsed.
        islands: any number of them may be float32, by the decision of `--precision auto`; in a
            piece that is float32 throughout, all must be.

    Raises:
        CheckFailed: too few have the requested type.
    """
    wanted = {TYPE_NAMES[precision] for precision in precisions}
    share = share_of(wanted, matrix_layers)
    least = max(_MATRIX_SHARE[precision] for precision in precisions)
    if islands and set(precisions) != {"fp32"}:
        least = 0.0
    missing = sorted(name for name in wanted if not matrix_layers.get(name))
    if share < least or missing:
        raise CheckFailed(
            f"{piece.model} is {' and '.join(sorted(precisions))}, but of the parsed network's "
            f"matrix products and convolutions {share:.0%} are {' or '.join(sorted(wanted))} "
            f"({_counts(matrix_layers)}); at least {least:.0%} must be",
            "export the bundle again and verify it",
        )


def check_quantised(
    piece: Piece,
    precisions: Set[str],
    planned: Mapping[str, str],
    matrix_layers: Mapping[str, int],
) -> None:
    """Refuse a parsed network that does not have every quantised product of its file.

    Args:
        piece: the piece that was parsed.
        precisions: the precisions of its graphs.
        planned: the quantised products of its file: name -> INT8 or FP8.
        matrix_layers: number of matrix products and convolutions by type, as parsed.

    Raises:
        CheckFailed: a product is missing, or an int8 or fp8 graph has none.
    """
    asked = Counter(planned.values())
    for precision in ("int8", "fp8"):
        kind = TYPE_NAMES[precision]
        if precision in precisions and not asked[kind]:
            raise CheckFailed(
                f"{piece.model} is {precision}, but none of its products is quantised",
                "export the bundle again and verify it",
            )
        found = matrix_layers.get(kind, 0)
        if found != asked[kind]:
            raise CheckFailed(
                f"{piece.model} has {asked[kind]} products in {kind}, the parsed network {found}",
                "export the bundle again and verify it",
            )


def check_engine(
    piece: Piece,
    precisions: Set[str],
    layers: Mapping[str, int],
    engine: EngineLayers,
    ranges: bool = False,
) -> None:
    """Refuse an engine that computes in another precision.

    Args:
        piece: the piece that was built.
        precisions: the precisions of its graphs.
        layers: number of layers by type, as parsed.
        engine: the inspector's report.
        ranges: whether sizes range: TensorRT 10.x then describes layers without their types ("N/A
            due to dynamic shapes"), and `check_network` is the only check.

    Raises:
        CheckFailed: something is missing; nothing was installed.
    """
    edges = {edge.name for edge in (*piece.inputs, *piece.outputs)}
    if engine.tensors and set(engine.tensors) != edges:
        raise CheckFailed(
            f"{piece.name}: the engine's tensors are {', '.join(sorted(engine.tensors))}, the "
            f"piece's {', '.join(sorted(edges))}"
        )
    wanted = {TYPE_NAMES[precision] for precision in precisions}
    asked, found = share_of(wanted, layers), share_of(wanted, engine.types)
    if not engine.types and ranges and engine.layers > engine.untyped:
        return
    if not engine.types:
        raise CheckFailed(
            f"{piece.name}: the inspector gives no layer's type ({engine.layers} layers), so "
            "the precision cannot be checked"
        )
    if found < _ENGINE_SHARE * asked:
        raise CheckFailed(
            f"{piece.name}: of the engine's layers, {found:.0%} compute in "
            f"{' or '.join(sorted(wanted))} ({_counts(engine.types)}), of the network's "
            f"{asked:.0%}: the builder changed the precision",
            "try another TensorRT version, or export this piece in fp32",
        )


def check_plugins(piece: Piece, calls: Sequence[Call], layers: Sequence[str]) -> dict[str, int]:
    """Refuse a parsed network in which a call of our operators is not a plugin.

    The engine does not show it: the inspector names no plugin's type, and a plugin may lie inside a
    region that Myelin compiles. The network does: the parser got no functions, so it has no other
    way to compute a call.

    Args:
        piece: the piece that was parsed.
        calls: the calls of our operators in its file.
        layers: names of the network's plugin layers, which are the nodes' names.

    Returns:
        The number of plugin layers of each operator.

    Raises:
        CheckFailed: the numbers of plugin layers and of calls differ.
    """
    asked = Counter(call.operator for call in calls)
    if len(layers) != len(calls):
        counted = Counter(call.operator for call in calls if call.name in set(layers))
        counts = ", ".join(f"{counted[name]} of {asked[name]} calls of {name}" for name in asked)
        raise CheckFailed(
            f"{piece.name}: plugins were requested, but the parsed network has {len(layers)} "
            f"plugin layers for {len(calls)} calls ({counts})",
            "check the plugins with uino-deploy selftest --gpu, or build with --plugins none",
        )
    return dict(asked)


def share_of(wanted: Set[str], types: Mapping[str, int]) -> float:
    """Return the fraction of the layers of the wanted types; 0 without layers."""
    total = sum(types.values())
    return sum(types.get(name, 0) for name in wanted) / total if total else 0.0


def _counts(types: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(types.items())) or "none"
