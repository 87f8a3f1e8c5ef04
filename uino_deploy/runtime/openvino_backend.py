"""OpenVINO: the fast path on x86 and Arm processors, in float32, bfloat16 and int8."""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uino_deploy.bundle import Bundle, Edge, Piece
from uino_deploy.bundle.checked import checked_copy, piece_files
from uino_deploy.config import UinoConfig
from uino_deploy.dependencies import install_command
from uino_deploy.errors import BundleError, DependencyError, InputError
from uino_deploy.files import atomic_file, sha256
from uino_deploy.kernels import identity, native, openvino_nodes
from uino_deploy.kernels.correlation import openvino as correlation
from uino_deploy.kernels.epilogue import openvino as epilogue
from uino_deploy.kernels.mlp import openvino as norm_mlp
from uino_deploy.kernels.prologue import openvino as prologue
from uino_deploy.kernels.selective_scan import openvino as selective_scan
from uino_deploy.runtime.mapped_file import give_back, map_file
from uino_deploy.runtime.session import (
    Array,
    Done,
    HostBackend,
    HostSession,
    Item,
    LayerTime,
    refuse_fork,
)
from uino_deploy.runtime.user_key import made_private, owned, user_key

CACHE = ".cache/openvino"
_DEVICE = "CPU"
_DIGEST = hashlib.sha256().digest_size
_DTYPES = {"f32": "float32", "f16": "float16"}
# Layers that only hold or convert numbers, and the types that the others compute in.
_PASSIVE = {"Const", "Input", "Output", "Reorder", "Convert"}
_TYPES = {"f32", "bf16", "f16", "i8", "u8"}
# The types that each precision may compute in; one of the first two must occur.
_COMPUTED = {
    "fp32": ("f32", "f32"),
    "fp16": ("f16", "f32"),
    "bf16": ("bf16", "bf16", "f32"),
    "int8": ("i8", "u8", "f32", "bf16"),
    "fp8": ("f32", "f32"),  # operands are rounded to fp8, as the file says, then multiplied
}
# Of the encoder for one image: with fewer multiply-adds, one thread is as fast as several.
_SMALL_WORK = 2e9
# The scans' many short steps are worth several threads if the query has that many tokens (448 px).
_SCANNED_TOKENS = 1024
# Number of compiled pieces that a session keeps, one for each set of input shapes.
_KEPT_SHAPES = 4
# Our operators' OpenVINO forms, and the files that they are written in.
_CONVERTERS = {
    "Correlation4d": correlation.correlation4d,
    "NormMlp": norm_mlp.norm_mlp,
    "ScanEpilogue": epilogue.scan_epilogue,
    "ScanPrologue": prologue.scan_prologue,
    "SelectiveScan2d": selective_scan.selective_scan2d,
}
_SOURCES = (
    *(
        str(module.__file__)
        for module in (
            *(identity, openvino_nodes),
            *(correlation, norm_mlp, epilogue, prologue, selective_scan),
        )
    ),
    # Compiled pieces hold the native operators' attributes; importing it imports OpenVINO.
    str(Path(native.__file__).with_name("openvino.py")),
)


class OpenVinoBackend(HostBackend):
    """Runs pieces in OpenVINO on the processor, each in the precision of its file.

    A piece is compiled for each batch size and number of shots on first use: OpenVINO is much
    faster with static shapes. Compiled pieces are cached in the bundle's folder, under `.cache`,
    if that is writable, and reused by the same OpenVINO on the same processor. Each is signed with
    the user's own key (`user_key`) for the bundle's hashes, so a cache that came with a bundle or
    from another user is not used.

    Several threads may run a session at once, each with its own request. That of a small piece
    uses one thread, that of a large one all (`spreads`).

    Args:
        threads: CPU threads; one per core if None.
        cache: keep compiled pieces.
        profile: time the layers of every run, at some cost; see `OpenVinoSession.layers`.
        portable: run all our operators in OpenVINO's own, none in the native library.

    Raises:
        InputError: fewer than one thread.
        DependencyError: OpenVINO is not installed, or cannot run on this processor.
    """

    def __init__(
        self,
        threads: int | None = None,
        cache: bool = True,
        profile: bool = False,
        portable: bool = False,
    ) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"cannot run on {threads} threads", "use 1 or more")
        self._threads = threads
        self._cache = cache
        self._profile = profile
        self._thread = thread = threading.local()
        free = iter(range(self.lanes))
        # Its threads stay: new ones at every call would each be made known to OpenVINO.
        self._pool = ThreadPoolExecutor(
            self.lanes, initializer=lambda: setattr(thread, "lane", next(free))
        )
        self._openvino = _import_openvino()
        self._native = None if portable else native.loaded()
        self._core, owner = _core(self._openvino)
        refuse_fork(owner)
        if _DEVICE not in self._core.available_devices:
            raise DependencyError(
                f"openvino {self._version} has no CPU device on this machine", "reinstall openvino"
            )

    @property
    def _version(self) -> str:
        return str(self._openvino.__version__)

    @property
    def _capabilities(self) -> list[str]:
        return list(self._core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"))

    def load(self, bundle: Bundle, piece: str) -> OpenVinoSession:
        """Load a piece; see `Backend.load`."""
        described = bundle.piece(piece)
        self._check_precision(bundle, described)
        return OpenVinoSession(self, bundle, described, piece_files(bundle, described))

    def describe(self) -> dict[str, str]:
        """Return the backend, its version, its device, its operators and its threads."""
        return {
            "backend": "openvino",
            "version": self._version,
            "operators": native.describe(self._native),
            "device": str(self._core.get_property(_DEVICE, "FULL_DEVICE_NAME")).strip(),
            "threads": "default" if self._threads is None else str(self._threads),
        }

    def shared(self, array: Array) -> Any:
        """Return a tensor that shares an array's memory."""
        return self._openvino.Tensor(array, shared_memory=True)

    def each(self, work: Callable[[Item], Done], items: Sequence[Item]) -> list[Done]:
        """Do the work for several items at once, each on one thread; see `Backend.each`.

        A class's pieces are small: spread over two threads, one spends as much time on
        synchronisation as on its work.
        """
        if min(self.lanes, len(items)) < 2:
            return super().each(work, items)
        return list(self._pool.map(work, items))

    @property
    def lanes(self) -> int:
        """Number of requests that run at once in `each`: one per thread."""
        return self._threads or _cores()

    @property
    def lane(self) -> int | None:
        """Index of the calling thread's request; None outside `each`."""
        return getattr(self._thread, "lane", None)

    def spreads(self, bundle: Bundle, piece: Piece) -> bool:
        """Return whether a request of the calling thread is spread over all threads.

        Not in `each`, and not if the piece's layers are short: on a busy machine they are done
        before a second thread wakes, and oneTBB keeps what it hands to a thread that never comes
        until the piece is released: at 224 px the scans would keep megabytes a run.
        """
        if self.lane is not None:
            return False
        if piece.name == "prompt":
            return bundle.config.tokens >= _SCANNED_TOKENS
        return _work(bundle.config) >= _SMALL_WORK

    def compile(
        self, bundle: Bundle, piece: Piece, files: list[str], shapes: Mapping[str, tuple[int, ...]]
    ) -> Compiled:
        """Compile a piece for static shapes, or load it from the cache.

        Raises:
            BundleError: OpenVINO cannot read the piece, or its edges differ from the manifest's.
            DependencyError: OpenVINO would not compute in the piece's precision.
        """
        kept = self._kept(bundle, piece, files, shapes)
        compiled = None if kept is None else self._import(kept, bundle, piece)
        if compiled is None:
            try:
                with checked_copy(bundle, piece) as graph:
                    threads = self._operator_threads(bundle, piece)
                    model = _read(graph, shapes, threads)
                    made = self._core.compile_model(model, _DEVICE, self._options(bundle, piece))
                compiled = Compiled(None, made)
            except (InputError, DependencyError):
                raise
            # OpenVINO's exceptions have no common base but Exception.
            except Exception as error:
                raise _unreadable(bundle, piece, error) from error
            if kept is not None:
                self._keep(compiled.model, kept)
                # Imported from its file, a piece takes a third less memory than freshly compiled.
                compiled = self._import(kept, bundle, piece) or compiled
        _check_edges(bundle, piece, compiled.model)
        self._check_computed(bundle, piece, compiled.model)
        return compiled

    def _operator_threads(self, bundle: Bundle, piece: Piece) -> int | None:
        """Number of threads of a native operator: one request's; None without the library."""
        if self._native is None:
            return None
        return self.lanes if self.spreads(bundle, piece) else 1

    def _options(self, bundle: Bundle, piece: Piece) -> dict[str, Any]:
        # The file states each tensor's type, and OpenVINO must not lower any; but the float32 part
        # of an int8 piece is computed in bfloat16.
        lowered = piece.precision == "int8" and "BF16" in self._capabilities
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if lowered else "f32",
        }
        if self._profile:
            options["PERF_COUNT"] = True
        spreads = self.spreads(bundle, piece)
        if spreads:
            options["PERFORMANCE_HINT"] = "LATENCY"
        else:
            options["NUM_STREAMS"] = str(self.lanes)
        if self._threads is not None or not spreads:
            options["INFERENCE_NUM_THREADS"] = self.lanes
        return options

    def _check_precision(self, bundle: Bundle, piece: Piece) -> None:
        told = piece.quantisation
        if piece.precision == "fp16" or (told is not None and told.rest == "fp16"):
            raise DependencyError(
                f"{bundle.root}: piece {piece.name} is float16, which OpenVINO computes in "
                "float32 on a processor",
                "export with --precision bf16 or fp32, or run it with --backend onnxruntime",
            )
        if piece.precision == "bf16" and "BF16" not in self._capabilities:
            raise DependencyError(
                f"{bundle.root}: piece {piece.name} is bfloat16, which this processor does not "
                "compute",
                "export with --precision fp32",
            )

    def _check_computed(self, bundle: Bundle, piece: Piece, compiled: Any) -> None:
        """Refuse a piece that OpenVINO does not compute in the types of its file."""
        computed = _computed_types(compiled)
        asked = bundle.precisions(piece)
        allowed = {kind for precision in asked for kind in _COMPUTED[precision]}
        missing = [p for p in asked if computed and not computed & set(_COMPUTED[p][:2])]
        if computed - allowed or missing:
            raise DependencyError(
                f"{bundle.root}: openvino {self._version} computes piece {piece.name} in "
                f"{', '.join(sorted(computed))}, not in {' and '.join(sorted(asked))}",
                "export the bundle in another precision",
            )

    def _kept(
        self, bundle: Bundle, piece: Piece, files: list[str], shapes: Mapping[str, tuple[int, ...]]
    ) -> Path | None:
        """Return the path in the cache; its name covers everything the compilation depends on."""
        if not self._cache:
            return None
        told = [
            self._version,
            self.describe()["device"],
            [sha256(Path(source)) for source in _SOURCES],
            self._operator_threads(bundle, piece),
            sorted(self._options(bundle, piece).items()),
            sorted(shapes.items()),
            [bundle.manifest.files[name].sha256 for name in files],
        ]
        key = hashlib.sha256(repr(told).encode()).hexdigest()
        return bundle.root / CACHE / f"{piece.name}-{key}.blob"

    def _import(self, path: Path, bundle: Bundle, piece: Piece) -> Compiled | None:
        """Return a piece from the cache, or None if it is missing, damaged or not this user's."""
        key = user_key()
        if key is None or not path.is_file() or path.stat().st_size <= _DIGEST:
            return None
        if not owned(path.parent):
            return None
        # OpenVINO needs writable memory.
        file = map_file(path)
        data = np.frombuffer(file, np.uint8)
        blob, digest = data[:-_DIGEST], data[-_DIGEST:]
        if not hmac.compare_digest(_signature(key, path, blob.data), digest.tobytes()):
            return None
        memory = self.shared(blob)
        try:
            model = self._core.import_model(memory, _DEVICE, self._options(bundle, piece))
        except Exception:  # the cache is only a shortcut: compile again
            return None
        give_back(file)  # the model keeps the weights in its own form
        return Compiled(memory, model)

    def _keep(self, compiled: Any, path: Path) -> None:
        """Cache a compiled piece; where that fails, it is compiled again next time."""
        key = user_key()
        if key is None:
            return
        blob = compiled.export_model().getbuffer()
        try:
            above = path.parent.parent
            above.mkdir(exist_ok=True)
            # A link that came with the bundle could lead anywhere.
            if above.is_symlink() or not made_private(path.parent):
                return
            with atomic_file(path, force=True) as temporary, temporary.open("wb") as file:
                file.write(blob)
                file.write(_signature(key, path, blob))
        except OSError:
            return


class Compiled(NamedTuple):
    """A compiled piece, and the memory of its weights if it came from the cache.

    A tuple releases its last item first, so the model never outlives its weights.
    """

    memory: Any
    model: Any


class OpenVinoSession(HostSession):
    """A piece loaded in OpenVINO, compiled for each set of input shapes."""

    def __init__(
        self, backend: OpenVinoBackend, bundle: Bundle, piece: Piece, files: list[str]
    ) -> None:
        super().__init__(piece)
        self._backend = backend
        self._bundle = bundle
        self._files = files
        self._compiled: dict[Any, tuple[Compiled, list[Any]]] = {}
        self._lock = threading.Lock()
        self._last: tuple[Compiled | None, Any] = None, None
        self._compiled_for(_smallest(piece))

    def compute(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run the piece on arrays from `prepare`; neither they nor the results are copied."""
        with self._request({name: array.shape for name, array in feeds.items()}) as request:
            results = {
                tensor.name: np.empty(request.get_tensor(tensor.name).shape, tensor.dtype)
                for tensor in self.piece.outputs
            }
            for name, array in (*feeds.items(), *results.items()):
                request.set_tensor(name, self._backend.shared(array))
            request.infer()
        return results

    def layers(self) -> list[LayerTime]:
        """Return the layers of the last run, in their order; the backend was made to profile."""
        _compiled, request = self._last
        of = _originals(request.get_compiled_model())
        return [
            LayerTime(node.node_name, _kind(node, of), node.real_time.total_seconds())
            for node in request.profiling_info
            if node.real_time
        ]

    @contextmanager
    def _request(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Any]:
        """Yield a request that no other thread uses; it is used again after a run that succeeds."""
        with self._lock:
            # Held while it runs: another thread's shapes may evict this entry.
            compiled, free = self._compiled_for(shapes)
            request = free.pop() if free else compiled.model.create_infer_request()
        yield request
        with self._lock:
            free.append(request)
            self._last = compiled, request

    def _compiled_for(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Compiled, list[Any]]:
        """Return the piece for some shapes, and its requests that are free."""
        key = (self._backend.spreads(self._bundle, self.piece), *sorted(shapes.items()))
        if key not in self._compiled:
            if len(self._compiled) == _KEPT_SHAPES:
                self._compiled.pop(next(iter(self._compiled)))
            made = self._backend.compile(self._bundle, self.piece, self._files, shapes)
            self._compiled[key] = made, []
        return self._compiled[key]


def _work(config: UinoConfig) -> float:
    """Return the multiply-adds of the encoder's linear layers for one image."""
    encoder = config.encoder
    return (4 + 2 * encoder.mlp_ratio) * encoder.width**2 * encoder.depth * config.tokens


def _smallest(piece: Piece) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one query and one shot."""
    return {
        tensor.name: tuple(1 if isinstance(d, str) else d for d in tensor.shape)
        for tensor in piece.inputs
    }


def save_static(
    bundle: Bundle, piece: Piece, shapes: Mapping[str, Sequence[int]], path: Path
) -> None:
    """Write a piece as OpenVINO's own two files, in which our operators are its standard ones.

    Args:
        bundle: opened.
        piece: the piece.
        shapes: the static shape of each input.
        path: the `.xml`; the weights lie beside it.

    Raises:
        BundleError: OpenVINO cannot read the piece.
        DependencyError: OpenVINO is not installed.
    """
    openvino = _import_openvino()
    with checked_copy(bundle, piece) as graph:
        try:
            model = _read(graph, {name: tuple(shape) for name, shape in shapes.items()})
        except Exception as error:
            raise _unreadable(bundle, piece, error) from error
        openvino.save_model(model, str(path), compress_to_fp16=False)


def _unreadable(bundle: Bundle, piece: Piece, error: Exception) -> BundleError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return BundleError(
        f"{bundle.root}: openvino {_import_openvino().__version__} cannot load piece "
        f"{piece.name}: {lines[-1] if lines else type(error).__name__}",
        "export the bundle again, or install a newer openvino",
    )


def _read(
    graph: Path, shapes: Mapping[str, tuple[int, ...]], native_threads: int | None = None
) -> Any:
    """Read an ONNX file with static shapes and convert our operators.

    Args:
        graph: the file.
        shapes: of its inputs.
        native_threads: of the native operators; None for OpenVINO's own operators throughout.
    """
    from openvino import PartialShape
    from openvino.frontend import FrontEndManager
    from openvino.frontend.onnx import ConversionExtension

    reader = FrontEndManager().load_by_framework("onnx")
    converters = _CONVERTERS
    if native_threads is not None:
        converters = {**converters, **_native_converters(native_threads)}
    for name, convert in converters.items():
        reader.add_extension(ConversionExtension(name, identity.DOMAIN, convert))
    loaded = reader.load(str(graph))
    for name, shape in shapes.items():
        place = loaded.get_place_by_tensor_name(name)
        if place is None:
            raise ValueError(f"the graph has no input {name!r}")
        loaded.set_partial_shape(place, PartialShape(list(shape)))
    return reader.convert(loaded)


def _native_converters(threads: int) -> dict[str, Callable[[Any], list[Any]]]:
    from uino_deploy.kernels.native import openvino as operators

    return {
        "Correlation4d": partial(operators.correlation4d, threads=threads),
        "SelectiveScan2d": partial(operators.selective_scan2d, threads=threads),
    }


def _signature(key: bytes, path: Path, blob: memoryview) -> bytes:
    """Sign a compiled piece for its name, which stands for all that it was compiled from."""
    signed = hmac.new(key, path.name.encode() + b"\0", hashlib.sha256)
    signed.update(blob)
    return signed.digest()


def _originals(compiled: Any) -> dict[str, str]:
    """Return, for each layer of a compiled piece, the graph nodes that it comes from."""
    layers = compiled.get_runtime_model().get_ops()
    return {
        layer.get_friendly_name(): str(layer.get_rt_info()["originalLayersNames"].value).lower()
        for layer in layers
    }


def _kind(node: Any, originals: Mapping[str, str]) -> str:
    """Return a layer's kind; for a fused subgraph, whether it is a whole attention."""
    of = originals.get(node.node_name, "")
    if node.node_type == "Subgraph" and "softmax" in of and of.count("matmul") > 1:
        return "Subgraph (attention)"
    return str(node.node_type)


def _computed_types(compiled: Any) -> set[str]:
    """Return the element types that the layers of a compiled piece really compute in."""
    layers = (layer.get_rt_info() for layer in compiled.get_runtime_model().get_ops())
    return {
        layer["runtimePrecision"].value
        for layer in layers
        if layer["layerType"].value not in _PASSIVE
    } & _TYPES


def _check_edges(bundle: Bundle, piece: Piece, compiled: Any) -> None:
    """Refuse a graph whose inputs or outputs differ from the manifest's."""
    for kind, described, ports in (
        ("input", piece.inputs, compiled.inputs),
        ("output", piece.outputs, compiled.outputs),
    ):
        # A port that only casts or renames has several tensor names.
        fits = [any(_fits(tensor, port) for port in ports) for tensor in described]
        if len(ports) != len(described) or not all(fits):
            got = [f"{'/'.join(sorted(p.names))} {p.element_type} {list(p.shape)}" for p in ports]
            wanted = [f"{t.name} {t.dtype} {t.shape}" for t in described]
            raise BundleError(
                f"{bundle.root}: {piece.model} has {kind}s {got}, its manifest has {wanted}",
                "export the bundle again",
            )


def _fits(tensor: Edge, port: Any) -> bool:
    kind = port.element_type.to_string()
    return (
        tensor.name in port.names
        and _DTYPES.get(kind, kind) == tensor.dtype
        and len(port.shape) == len(tensor.shape)
        and all(
            isinstance(wanted, str) or wanted == got
            for wanted, got in zip(tensor.shape, port.shape, strict=True)
        )
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: the cores that this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def _core(openvino: Any) -> tuple[Any, int]:
    """Return the process's one OpenVINO core, and the number of the process that made it.

    It is never released: OpenVINO gives the thread that creates it a signal stack, and frees that
    with the core; the next signal that Python handles would then kill the process.
    """
    core = openvino.Core()
    if isinstance(native.load(), native.Native):
        from uino_deploy.kernels.native import openvino as operators

        for operator in (operators.Correlation4d, operators.SelectiveScan2d):
            core.add_extension(operator)  # for models that come from the cache
    return core, os.getpid()


def _import_openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise DependencyError(
            f"openvino cannot be imported: {error}", install_command("openvino")
        ) from error
    return openvino
