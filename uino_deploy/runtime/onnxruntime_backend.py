"""ONNX Runtime: the embedded default, on the CPU or on any of its other providers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uino_deploy.bundle import Bundle, Edge, Piece
from uino_deploy.bundle.checked import checked_copy
from uino_deploy.dependencies import install_command
from uino_deploy.errors import BundleError, DependencyError, InputError, UinoDeployError
from uino_deploy.kernels import native
from uino_deploy.runtime.onnxruntime_providers import CPU, PROVIDERS, parse_provider, select
from uino_deploy.runtime.session import Array, HostBackend, HostSession

if TYPE_CHECKING:
    import onnxruntime

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}
# Errors are raised; if also logged, they would appear beside the command's one line.
_FATAL_ONLY = 4


class OnnxRuntimeBackend(HostBackend):
    """Runs pieces in ONNX Runtime; its sessions may run in several threads at once.

    Args:
        providers: the execution providers, preferred first, each `NAME[:key=value,...]` with a
            name from `PROVIDERS` or ONNX Runtime's own. The first must really run; the others,
            and the CPU for light operators, take those that it lacks.
        threads: threads of the CPU provider; ONNX Runtime's choice (one per core) if None.
        portable: run the bundle's own functions in place of the native operators.

    Raises:
        InputError: an unknown provider, or fewer than one thread.
        DependencyError: ONNX Runtime, or its build with that provider, is not installed.
    """

    def __init__(
        self,
        providers: Sequence[str] = ("cpu",),
        threads: int | None = None,
        portable: bool = False,
    ) -> None:
        asked = [parse_provider(provider) for provider in providers]
        if not asked:
            raise InputError("no provider given", f"choose from {', '.join(PROVIDERS)}")
        if threads is not None and threads < 1:
            raise InputError(f"cannot run on {threads} threads", "use 1 or more")
        self._threads = threads
        self._runtime = _import_onnxruntime()
        self._selection = select(self._runtime, asked)
        # Other providers take the functions, which the CPU's operators would take from them.
        on_cpu = self._selection.first == CPU
        self._native = native.loaded() if on_cpu and not portable else None
        _share_arena()

    def load(self, bundle: Bundle, piece: str) -> OnnxRuntimeSession:
        """Load a piece; see `Backend.load`."""
        described = bundle.piece(piece)
        self._check_precision(bundle, described)
        with checked_copy(bundle, described) as graph:
            try:
                session = self.open(graph)
            # ONNX Runtime's exceptions have no common base but Exception.
            except Exception as error:
                reason = str(error).replace(str(graph.parent), str(bundle.root))
                raise self._cannot_load(bundle, piece, reason.strip().splitlines()[0]) from error
        self._selection.check(session, piece)
        _check_edges(bundle, described, session)
        return OnnxRuntimeSession(described, session)

    def open(self, graph: Path) -> onnxruntime.InferenceSession:
        """Open a graph that was checked, as `load` does."""
        return self._selection.open(graph, self._options())

    def portable(self) -> OnnxRuntimeBackend | None:
        """Return the backend that runs a bundle's own functions; None if this one does so."""
        if self._native is None:
            return None
        return OnnxRuntimeBackend(("cpu",), self._threads, portable=True)

    def describe(self) -> dict[str, str]:
        """Return the backend, its version, its provider, its operators and its threads."""
        return {
            "backend": "onnxruntime",
            "version": self._runtime.__version__,
            "provider": self._selection.first,
            "operators": native.describe(self._native),
            "threads": "default" if self._threads is None else str(self._threads),
        }

    def _options(self) -> onnxruntime.SessionOptions:
        options = self._runtime.SessionOptions()
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = _FATAL_ONLY
        # Each piece has its own threads, which must not spin while the next piece runs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.use_env_allocators", "1")
        # Its bytes were checked as ONNX: they must not be taken for another format.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        if self._native is not None:
            # ONNX Runtime prefers an operator to the function of that name in the model.
            options.register_custom_ops_library(str(self._native.path))
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
            options.inter_op_num_threads = 1
        return options

    def _cannot_load(self, bundle: Bundle, piece: str, reason: str) -> UinoDeployError:
        what = f"onnxruntime {self._runtime.__version__} cannot load piece {piece}"
        if self._selection.first == CPU:
            return BundleError(
                f"{bundle.root}: {what}: {reason}",
                "export the bundle again, or install a newer onnxruntime",
            )
        return DependencyError(
            f"{bundle.root}: {what} with {self._selection.first}: {reason}",
            "check the provider's options and libraries, or use --provider cpu",
        )

    def _check_precision(self, bundle: Bundle, piece: Piece) -> None:
        if piece.precision == "bf16" and self._selection.first == CPU:
            raise DependencyError(
                f"{bundle.root}: piece {piece.name} is bfloat16, which ONNX Runtime's CPU provider "
                "does not support",
                "run it with OpenVINO, or export with --precision fp32",
            )


class OnnxRuntimeSession(HostSession):
    """A piece loaded in ONNX Runtime."""

    def __init__(self, piece: Piece, session: onnxruntime.InferenceSession) -> None:
        super().__init__(piece)
        self._session = session
        self._outputs = [tensor.name for tensor in piece.outputs]

    def compute(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run the piece; see `HostSession.compute`."""
        arrays = self._session.run(self._outputs, feeds)
        return dict(zip(self._outputs, arrays, strict=True))


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise DependencyError(
            f"onnxruntime cannot be imported: {error}", install_command("cpu")
        ) from error
    # Where the caller imported it before this package, the variable came too late.
    onnxruntime.disable_telemetry_events()
    return onnxruntime


@cache
def _share_arena() -> None:
    """Let all sessions of this process share one arena of scratch memory.

    The pieces run one after the other: with separate arenas, none could use what another has freed,
    and a query took 1.6 GB instead of 1.0 (vitb14 in float32, 518 px).
    """
    import onnxruntime

    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    default = {"max_mem": 0, "arena_extend_strategy": -1}
    default |= {"initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg(default))


def _check_edges(bundle: Bundle, piece: Piece, session: onnxruntime.InferenceSession) -> None:
    """Refuse a graph whose inputs or outputs differ from the manifest's."""
    for kind, described, found in (
        ("input", piece.inputs, session.get_inputs()),
        ("output", piece.outputs, session.get_outputs()),
    ):
        wanted = {_edge(t) for t in described}
        got = {(f.name, _DTYPES.get(f.type, f.type), _shape(f.shape)) for f in found}
        if wanted != got:
            raise BundleError(
                f"{bundle.root}: {piece.model} has {kind}s {sorted(got)}, "
                f"its manifest has {sorted(wanted)}",
                "export the bundle again",
            )


def _edge(tensor: Edge) -> tuple[str, str, str]:
    return tensor.name, tensor.dtype, _shape(tensor.shape)


def _shape(dimensions: Sequence[int | str | None]) -> str:
    """Format a shape so that all dynamic dimensions look alike."""
    return "x".join(str(d) if isinstance(d, int) else "?" for d in dimensions)
