"""The backend protocol: load a piece of a bundle and run it on named arrays.

A piece's results can stay in the backend's memory and feed the next piece from there, so one
query's features serve any number of classes without a copy to the host and back.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from uino_deploy.bundle import Bundle, Edge, Piece
from uino_deploy.errors import DependencyError, InputError
from uino_deploy.pipeline import Route

Array = npt.NDArray[Any]
Item = TypeVar("Item")
Done = TypeVar("Done")


class Resident(Protocol):
    """An array in a backend's memory, kept as long as it is referenced."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each dimension."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The elements' type."""

    def to_host(self) -> Array:
        """Return a copy in host memory, waiting until it is computed."""

    def last_to_host(self) -> Array:
        """Return a copy of the array at [0, -1] alone in host memory, likewise."""

    def rows(self) -> Sequence[Resident]:
        """Return an array [1, ...] for each index of the first dimension, in the same memory."""


# An input of a session: a host array, or a resident output of a session of the same backend.
Value: TypeAlias = Array | Resident
AnyValue = TypeVar("AnyValue", bound=Value)


@dataclass(frozen=True)
class DeviceMemory:
    """A backend's share of a device's memory, in bytes.

    Attributes:
        engines: memory of the loaded pieces: weights, code and scratch memory.
        buffers: tensors that the backend holds, in use or kept for the next run.
        used: in use on the device, by any process.
        total: the device's memory.
    """

    engines: int
    buffers: int
    used: int
    total: int


class LayerTime(NamedTuple):
    """The time of one layer of a piece in one run, from the backend's own profiler.

    Attributes:
        name: the layer's name.
        operator: its operator; its name if the profiler reports only that.
        seconds: its time in seconds.
    """

    name: str
    operator: str
    seconds: float


class Session(Protocol):
    """A loaded piece; several threads may run it, at once or, on a GPU, in turn."""

    @property
    def piece(self) -> Piece:
        """The piece's description: the names, shapes and types of its inputs and outputs."""

    def run(self, feeds: Mapping[str, Value]) -> dict[str, Array]:
        """Run the piece and wait for it.

        Args:
            feeds: a value for each input; a host array's float type is converted to the input's.

        Returns:
            An array for each output, by name, in the host's memory.

        Raises:
            InputError: an input is missing, unknown, or of a shape that the piece does not accept.
        """

    def run_resident(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Start the piece and leave its outputs in the backend's memory.

        It may return before they are computed; `Backend.synchronise` and every copy to the host
        wait. Arguments and errors are those of `run`.
        """

    def upload(self, feeds: Mapping[str, Array]) -> dict[str, Value]:
        """Convert some of the inputs once and move them to the backend's memory.

        Returns:
            Values for those inputs that `run` and `run_resident` accept any number of times. They
            may share memory with the given arrays, which must not change.

        Raises:
            InputError: an input is unknown, or of a shape that the piece does not accept.
        """


def feeds_of(route: Route, session: Session, known: Mapping[str, AnyValue]) -> dict[str, AnyValue]:
    """Return the route's tensors that a piece takes, under the piece's names."""
    names = {edge.name: route.name(edge.name) for edge in session.piece.inputs}
    return {edge: known[name] for edge, name in names.items() if name in known}


def run_pieces(
    route: Route, sessions: Iterable[Session], known: Mapping[str, Value]
) -> dict[str, Value]:
    """Run some pieces of a route in order, each on the tensors known so far.

    Args:
        route: the names of the tensors.
        sessions: the loaded pieces, in the route's order.
        known: the tensors that the pieces take and none of them produces; extra ones are allowed.

    Returns:
        The known tensors and all outputs, which stay in the backend's memory.

    Raises:
        InputError: an input is missing or of a shape that its piece does not accept.
    """
    tensors = dict(known)
    for session in sessions:
        tensors |= route.named(session.run_resident(feeds_of(route, session, tensors)))
    return tensors


def run_to_host(
    route: Route, sessions: Iterable[Session], known: Mapping[str, Value]
) -> dict[str, Array]:
    """Run some pieces of a route as `run_pieces` does; return the last one's outputs as arrays."""
    *first, last = sessions
    made = last.run(feeds_of(route, last, run_pieces(route, first, known)))
    return route.named(made)


class Backend(Protocol):
    """A way to run pieces."""

    def load(self, bundle: Bundle, piece: str) -> Session:
        """Load a piece.

        Raises:
            BundleError: the bundle has no such piece, or its graph cannot be loaded or differs from
                the manifest.
            DependencyError: something that the backend or the piece's precision needs is missing.
        """

    def load_all(self, bundle: Bundle, pieces: Sequence[str]) -> dict[str, Session]:
        """Load several pieces, in parallel if that is faster; errors are those of `load`."""

    def describe(self) -> dict[str, str]:
        """Return a description of the backend: its version, device and threads."""

    def synchronise(self) -> None:
        """Wait until all started work is done."""

    def each(self, work: Callable[[Item], Done], items: Sequence[Item]) -> list[Done]:
        """Run pieces for each item, such as each class in an image; several at once if faster.

        Args:
            work: runs loaded pieces for one item; it may be called from several threads.
            items: the items to run `work` on.
        """

    def memory(self) -> DeviceMemory | None:
        """Return the use of the device's memory; None if the backend has only host memory."""


class HostBackend(Backend):
    """The common part of backends whose arrays are numpy's."""

    def load_all(self, bundle: Bundle, pieces: Sequence[str]) -> dict[str, Session]:
        """Load several pieces at once; see `Backend.load_all`."""
        with ThreadPoolExecutor() as pool:
            loaded = pool.map(lambda piece: self.load(bundle, piece), pieces)
            return dict(zip(pieces, loaded, strict=True))

    def synchronise(self) -> None:
        """Return at once: `run` waits already."""

    def each(self, work: Callable[[Item], Done], items: Sequence[Item]) -> list[Done]:
        """Do the work for one item after the other; see `Backend.each`."""
        return [work(item) for item in items]

    def memory(self) -> DeviceMemory | None:
        """Return None: the backend has only host memory."""
        return None


class HostSession(ABC):
    """A session whose inputs and outputs are numpy arrays: "resident" means the host's memory."""

    def __init__(self, piece: Piece) -> None:
        self._piece = piece
        self._owner = os.getpid()

    @property
    def piece(self) -> Piece:
        """The piece's description."""
        return self._piece

    @abstractmethod
    def compute(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run the piece on arrays from `prepare`; return all outputs by name."""

    def run(self, feeds: Mapping[str, Value]) -> dict[str, Array]:
        """Run the piece; see `Session.run`.

        Raises:
            InputError: see `Session.run`.
            DependencyError: this process was forked from the one that loaded the piece.
        """
        refuse_fork(self._owner)
        return self.compute(prepare(self._piece, feeds))

    def run_resident(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Run the piece; see `Session.run_resident`."""
        return dict(self.run(feeds))

    def upload(self, feeds: Mapping[str, Array]) -> dict[str, Value]:
        """Convert inputs; see `Session.upload`."""
        return dict(convert(self._piece, feeds))


def refuse_fork(owner: int) -> None:
    """Refuse to run in a process what another one, its parent, has started.

    A fork copies the memory of a runtime without its threads: what then waits for them hangs.

    Raises:
        DependencyError: `owner`, a process's number, is not this process.
    """
    if os.getpid() != owner:
        raise DependencyError(
            "this process was forked from one that runs the bundle, and has none of its threads",
            "start processes with multiprocessing's spawn, or load the bundle after the fork alone",
        )


def prepare(piece: Piece, feeds: Mapping[str, Value]) -> dict[str, Array]:
    """Check feeds against a piece's inputs; return them as contiguous host arrays of its types.

    Raises:
        InputError: an input is missing, unknown, or of a shape that the piece does not accept.
    """
    check_complete(piece, feeds)
    return convert(piece, {name: to_host(value) for name, value in feeds.items()})


def convert(piece: Piece, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Check some of a piece's inputs and convert them to its types, contiguous.

    Raises:
        InputError: an input is unknown, or of a shape that the piece does not accept.
    """
    edges = {tensor.name: tensor for tensor in piece.inputs}
    if not feeds.keys() <= edges.keys():
        raise InputError(f"piece {piece.name} takes {list(edges)}, not {sorted(feeds)}")
    for name, array in feeds.items():
        check_shape(piece, edges[name], array.shape)
    return {
        name: np.ascontiguousarray(array, dtype=edges[name].dtype) for name, array in feeds.items()
    }


def check_complete(piece: Piece, feeds: Mapping[str, Value]) -> None:
    """Refuse feeds that are not exactly the inputs of a piece.

    Raises:
        InputError: an input is missing or unknown.
    """
    names = [tensor.name for tensor in piece.inputs]
    if set(names) != feeds.keys():
        raise InputError(f"piece {piece.name} takes {names}, not {sorted(feeds)}")


def check_shape(piece: Piece, tensor: Edge, shape: tuple[int, ...]) -> None:
    """Refuse a shape that an input does not accept; a named dimension accepts any size.

    Raises:
        InputError: the input does not accept the shape.
    """
    fits = len(shape) == len(tensor.shape) and all(
        isinstance(wanted, str) or wanted == got
        for wanted, got in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise InputError(
            f"piece {piece.name} takes {tensor.name} of shape {tensor.shape}, not {list(shape)}"
        )


def to_host(value: Value) -> Array:
    """Return a value as a host array; a host array is returned as it is."""
    return value if isinstance(value, np.ndarray) else value.to_host()


def rows_of(value: Value) -> Sequence[Value]:
    """Return an array [1, ...] for each index of a value's first dimension, without the host."""
    if isinstance(value, np.ndarray):
        return [value[index : index + 1] for index in range(len(value))]
    return value.rows()


def last_to_host(value: Value) -> Array:
    """Return a value's [0, -1] as a host array, without copying the rest from a device."""
    return value[0, -1] if isinstance(value, np.ndarray) else value.last_to_host()
