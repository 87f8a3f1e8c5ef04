"""SelectiveScan2d in OpenVINO's own operators, for static shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from uino_deploy.kernels.identity import DIRECTIONS
from uino_deploy.kernels.openvino_nodes import constant, float32, integers

# Sequences in a tile: their states and one step's operands fit a core's L2 cache.
_TILE = 64
_BEFORE_THE_FIRST = -(1 << 63) + 1  # the end of a slice that runs backwards through all


def selective_scan2d(node: Any) -> list[Any]:
    """Convert the node: x [S,H,W,D], packed [S,H,W,4,P] and weights -> y [S,H,W,D]."""
    import openvino.opset13 as op

    x = node.get_input(0)
    y = _Scan([node.get_input(i) for i in range(6)]).expand()
    return [op.convert(y, x.get_element_type()).output(0)]


class _Scan:
    """One scan.

    A TensorIterator runs over tiles [c, 4, s, .] of c steps of s sequences, small enough for the
    cache, and its body holds the unrolled steps. Many short sequences are scanned whole, some at a
    time; few long ones are scanned all together, a row at a time, and carry their state on.
    """

    def __init__(self, operands: list[Any]) -> None:
        import openvino.opset13 as op

        x, packed, dt_weight, dt_bias, A, skip = operands
        self.sequences, self.height, self.width, self.channels = x.get_shape()
        self.rank, self.states = dt_weight.get_shape()[2], A.get_shape()[2]
        self.x, self.packed = float32(x), float32(packed)
        self.weights = (
            op.unsqueeze(_transpose(A, 0, 2, 1), integers(1)),  # [4, 1, N, D]
            _transpose(dt_weight, 0, 2, 1),  # [4, R, D]
            op.unsqueeze(dt_bias, integers(1)),  # [4, 1, D]
        )
        self.skip = op.reduce_sum(skip, integers(0), keep_dims=False)  # [D]

    def expand(self) -> Any:
        """Return the sum of the directions [S, H, W, D] in float32."""
        import openvino.opset13 as op

        y = self._wide() if self.sequences > self.height * self.width else self._tall()
        return op.add(y, op.multiply(self.x, self.skip))

    def _wide(self) -> Any:
        """Scan some sequences at a time, each from its first step to its last."""
        loop = _Loop()
        count = max(s for s in range(1, _TILE + 1) if self.sequences % s == 0)
        x, packed = loop.tiles(self.x, count), loop.tiles(self.packed, count)
        state = constant(np.zeros(self._state_shape(count), np.float32))
        _, y = self._steps(self._visited(x), self._visited_packed(packed), state, loop)
        return loop.run([(self._at_cells(_directions(y)), False)])[0]

    def _tall(self) -> Any:
        """Scan a row of steps at a time, all sequences together, and carry the state on."""
        loop = _Loop()
        x, packed = (
            [loop.tiles(t, self.width, backward=g >= 2) for g, t in enumerate(visited)]
            for visited in (self._visited(self.x), self._visited_packed(self.packed))
        )
        zeros = constant(np.zeros(self._state_shape(self.sequences), np.float32))
        state = loop.carried(zeros)
        last, y = self._steps(x, packed, state, loop)
        loop.carry(last)
        ys = loop.run([(part, g >= 2) for g, part in enumerate(_directions(y))])
        return self._at_cells(ys)

    def _state_shape(self, sequences: int) -> list[int]:
        return [DIRECTIONS, sequences, self.states, self.channels]

    def _visited(self, x: Any) -> list[Any]:
        """Map [s,H,W,D] -> for each direction [H*W,s,D], the reversed ones not yet reversed."""
        rows, columns = self._by_row(x), self._by_column(x)
        return [rows, columns, rows, columns]

    def _visited_packed(self, packed: Any) -> list[Any]:
        """Map [s,H,W,4,P] -> for each direction [H*W,s,R+2N], reversed ones not yet reversed."""
        import openvino.opset13 as op

        columns, steps, axes = self.rank + 2 * self.states, integers(1, 1), integers(3, 4)
        parts = [
            op.slice(packed, integers(g, 0), integers(g + 1, columns), steps, axes)
            for g in range(DIRECTIONS)
        ]
        planes = [op.squeeze(part, integers(3)) for part in parts]
        return [self._by_column(p) if g % 2 else self._by_row(p) for g, p in enumerate(planes)]

    def _by_row(self, planes: Any) -> Any:
        """Map [s,H,W,n] -> [H*W,s,n]."""
        sequences, *_, size = _shape(planes)
        return _transpose(_reshape(planes, [sequences, -1, size]), 1, 0, 2)

    def _by_column(self, planes: Any) -> Any:
        """Map [s,H,W,n] -> [W*H,s,n]."""
        sequences, *_, size = _shape(planes)
        rows = _reshape(self._by_row(planes), [self.height, self.width, sequences * size])
        return _reshape(_transpose(rows, 1, 0, 2), [-1, sequences, size])

    def _steps(self, x: list[Any], packed: list[Any], state: Any, loop: _Loop) -> tuple[Any, Any]:
        """Scan a tile.

        Args:
            x: for each direction [c,s,D], the reversed ones not yet reversed.
            packed: likewise [c,s,R+2N].
            state: [4,s,N,D] before the tile.
            loop: the loop whose body this is.

        Returns:
            The state after the tile, and y [c,4,s,D] by visiting step.
        """
        import openvino.opset13 as op

        decay, raise_dt, bias = (loop.whole(weight) for weight in self.weights)
        inputs = _in_order(x)
        sizes = integers(self.rank, self.states, self.states)
        dt, B, C = op.variadic_split(_in_order(packed), integers(3), sizes).outputs()
        delta = op.softplus(op.add(op.matmul(dt, raise_dt, False, False), bias))
        added = op.multiply(delta, inputs)
        count, _, sequences, _ = _shape(inputs)
        wide, narrow = [DIRECTIONS, sequences, 1, -1], [DIRECTIONS, sequences, -1, 1]
        ys = []
        for delta_t, added_t, B_t, C_t in zip(
            *(_split(t, 0, count) for t in (delta, added, B, C)), strict=True
        ):
            kept = op.multiply(op.exp(op.multiply(_reshape(delta_t, wide), decay)), state)
            new = op.multiply(_reshape(added_t, wide), _reshape(B_t, narrow))
            state = op.add(kept, new)
            read = op.multiply(state, _reshape(C_t, narrow))
            y = op.reduce_sum(read, integers(2), keep_dims=False)
            ys.append(op.unsqueeze(y, integers(0)))
        return state, op.concat(ys, 0)

    def _at_cells(self, ys: Sequence[Any]) -> Any:
        """Map each direction's [H*W,s,D], by row or column, -> their sum [s,H,W,D]."""
        import openvino.opset13 as op

        rows, columns = op.add(ys[0], ys[2]), op.add(ys[1], ys[3])
        return op.add(self._from_row(rows), self._from_column(columns))

    def _from_row(self, steps: Any) -> Any:
        """Map [H*W,s,D] -> [s,H,W,D]."""
        plane = _reshape(steps, [self.height, self.width, *_shape(steps)[1:]])
        return _transpose(plane, 2, 0, 1, 3)

    def _from_column(self, steps: Any) -> Any:
        """Map [W*H,s,D] -> [s,H,W,D]."""
        plane = _reshape(steps, [self.width, self.height, *_shape(steps)[1:]])
        return _transpose(plane, 2, 1, 0, 3)


class _Loop:
    """A TensorIterator under construction: what its body reads and what it collects."""

    def __init__(self) -> None:
        import openvino.opset13 as op

        self._iterator = op.tensor_iterator()
        self._tiles: list[tuple[Any, Any, int, bool]] = []
        self._whole: list[tuple[Any, Any]] = []
        self._state: tuple[Any, Any] | None = None
        self._next: Any = None

    def tiles(self, tensor: Any, size: int, backward: bool = False) -> Any:
        """Return the body's tile of `size` along axis 0, the last one first if `backward`."""
        inner = _parameter([size, *_shape(tensor)[1:]])
        self._tiles.append((inner, tensor, size, backward))
        return inner

    def whole(self, tensor: Any) -> Any:
        """Return a tensor that is the same in every iteration."""
        inner = _parameter(_shape(tensor))
        self._whole.append((inner, tensor))
        return inner

    def carried(self, first: Any) -> Any:
        """Return a tensor that is `first` at first, and then the value given to `carry`."""
        inner = _parameter(_shape(first))
        self._state = inner, first
        return inner

    def carry(self, value: Any) -> None:
        """Set the carried tensor's value for the next iteration."""
        self._next = value

    def run(self, collected: Sequence[tuple[Any, bool]]) -> list[Any]:
        """Close the loop.

        Args:
            collected: tiles of results, and whether they come last one first.

        Returns:
            The results, joined along axis 0.
        """
        import openvino

        parameters = [inner for inner, *_ in (*self._tiles, *self._whole)]
        results = [tile for tile, _ in collected]
        if self._state is not None:
            parameters.append(self._state[0])
            results.append(self._next)
        self._iterator.set_body(openvino.Model(results, parameters, "tile"))
        for inner, tensor, size, backward in self._tiles:
            self._iterator.set_sliced_input(inner, _output(tensor), *_bounds(size, backward), 0)
        for inner, tensor in self._whole:
            self._iterator.set_invariant_input(inner, _output(tensor))
        if self._state is not None:
            inner, first = self._state
            self._iterator.set_merged_input(inner, _output(first), _output(self._next))
        return [
            self._iterator.get_concatenated_slices(
                _output(tile), *_bounds(_shape(tile)[0], backward), 0
            )
            for tile, backward in collected
        ]


def _bounds(size: int, backward: bool) -> tuple[int, int, int, int]:
    """Return start, stride, part size and end of a tensor's tiles."""
    return (-1, -size, size, 0) if backward else (0, size, size, -1)


def _in_order(directions: Sequence[Any]) -> Any:
    """Map each direction's [c,s,n], two not yet reversed -> [c,4,s,n] by visiting step."""
    import openvino.opset13 as op

    turned = [_reversed(t) if g >= 2 else t for g, t in enumerate(directions)]
    return op.concat([op.unsqueeze(t, integers(1)) for t in turned], 1)


def _directions(steps: Any) -> list[Any]:
    """Map [c,4,s,n] by visiting step -> each direction's [c,s,n], reversed ones turned back."""
    import openvino.opset13 as op

    parts = [op.squeeze(part, integers(1)) for part in _split(steps, 1, DIRECTIONS)]
    return [_reversed(t) if g >= 2 else t for g, t in enumerate(parts)]


def _reversed(steps: Any) -> Any:
    import openvino.opset13 as op

    last, end, first = integers(-1), integers(_BEFORE_THE_FIRST), integers(0)
    return op.slice(steps, last, end, last, first)


def _split(tensor: Any, axis: int, parts: int) -> list[Any]:
    import openvino.opset13 as op

    outputs: list[Any] = op.split(tensor, constant(np.int64(axis)), parts).outputs()
    return outputs


def _reshape(tensor: Any, shape: Sequence[int]) -> Any:
    import openvino.opset13 as op

    return op.reshape(tensor, integers(*shape), False)


def _transpose(tensor: Any, *order: int) -> Any:
    import openvino.opset13 as op

    return op.transpose(tensor, integers(*order))


def _parameter(shape: Sequence[int]) -> Any:
    import openvino
    import openvino.opset13 as op

    return op.parameter(list(shape), openvino.Type.f32)


def _output(tensor: Any) -> Any:
    """Return a node's first output; return an output as it is."""
    return tensor.output(0) if hasattr(tensor, "outputs") else tensor


def _shape(tensor: Any) -> list[int]:
    return [int(size) for size in _output(tensor).get_shape()]
