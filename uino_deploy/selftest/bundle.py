"""Claims about a bundle on a backend: correctness, consistency, speed and memory."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from uino_deploy.bundle import Bundle
from uino_deploy.dependencies import is_importable
from uino_deploy.letters import draw_letter
from uino_deploy.pipeline import WHOLE
from uino_deploy.runtime import Predictor, Result, Support, nvml
from uino_deploy.runtime.session import Backend, Session, Value
from uino_deploy.selftest.findings import CannotCheck, Claim, Measured
from uino_deploy.selftest.setting import CHECKPOINT, Setting
from uino_deploy.tolerances import FORECAST_FACTOR
from uino_deploy.workspace import work_folder

Open = Callable[[], tuple[Bundle, Backend]]

_WARM, _TIMED, _SECONDS = 3, 20, 5.0
_ROUNDS = 10
# Growth allowed to a process that should not grow: an allocator takes whole blocks.
_SLACK = 16 << 20


def claims(setting: Setting, open_: Open) -> list[Claim]:
    """Return what is claimed of the results of any bundle on any backend: the pieces come first.

    Args:
        setting: the run.
        open_: opens the bundle and the backend.
    """
    return [
        Claim(
            "every piece and the whole model match PyTorch",
            "each piece on the reference's inputs, each in PyTorch's place where torch is here, "
            "and the whole from image to mask, after another class was served",
            lambda: _verified(setting, *open_()),
        ),
        Claim(
            "a class enrolled, saved and read again gives the same mask",
            "logits of two predictions, largest difference",
            lambda: _enrolled(*open_()),
        ),
        Claim(
            "several classes at once give the same as one at a time",
            "logits of one prediction of three classes and of three predictions",
            lambda: _several(*open_()),
        ),
    ]


def speed_claims(open_: Open) -> list[Claim]:
    """Return what is claimed of the speed and the memory of any bundle on any backend.

    They need a process of their own: PyTorch in it would count as the runtime's size.
    """
    return [
        Claim(
            "latency",
            f"median of up to {_TIMED} runs after {_WARM}, wall clock; pieces "
            "with inputs in the backend's memory, the whole model from pixels to mask",
            lambda: _latency(*open_()),
        ),
        Claim(
            "memory, which does not grow",
            f"after 3 predictions and after {3 * _ROUNDS} more",
            lambda: _memory(*open_()),
        ),
    ]


def _verified(setting: Setting, bundle: Bundle, backend: Backend) -> Iterator[Measured]:
    from uino_deploy.export import verify_bundle

    model = None
    if setting.bundle is None and is_importable("torch"):
        from uino_deploy.model.assembly import assemble_from_checkpoint

        model = assemble_from_checkpoint(CHECKPOINT).model
    # What a backend keeps of the class before would pass for this one's if it came first.
    predictor = Predictor(bundle, backend)
    predictor.predict(draw_letter(2)[0], predictor.enroll([draw_letter(1)], "letter"))
    report = verify_bundle(bundle, backend, model)
    for c in report.pieces:
        what = f"{c.piece}.{c.output}"
        yield Measured(c.relative_l2, "relative L2", c.allowed, what=what)
    for s in report.swaps:
        part = "the whole model" if s.piece == WHOLE else f"{s.piece} in PyTorch's place"
        yield Measured(
            s.logits_relative_l2, "relative L2", s.logits_allowed, what=f"{part}, logits"
        )
        yield Measured(s.mask_iou, "IoU", s.iou_floor, at_least=True, what=f"{part}, mask")
    if report.reference == "stored" and bundle.manifest.decision is not None:
        error = report.swaps[-1].logits_relative_l2
        yield from _forecast(backend, error, bundle.manifest.decision.example_error)


def _forecast(backend: Backend, error: float, forecast: float) -> Iterator[Measured]:
    """Compare the whole model's error with its forecast: on a GPU either way.

    A CPU backend may compute in float32 what the graph has in float16. A forecast of 0 has nothing
    in float16: float32's own tolerance judges.
    """
    if not forecast:
        return
    most, least = FORECAST_FACTOR * forecast, forecast / FORECAST_FACTOR
    unit, what = "relative L2", f"a miscompile, if far over the forecast {forecast:.1e}"
    yield Measured(error, unit, most, what=what)
    if backend.describe()["backend"].startswith("tensorrt"):
        what = f"another type, if far under the forecast {forecast:.1e}"
        yield Measured(error, unit, least, at_least=True, what=what)


def _enrolled(bundle: Bundle, backend: Backend) -> Iterator[Measured]:
    predictor = Predictor(bundle, backend)
    support = predictor.enroll([draw_letter(1)], "letter")  # plans are built for one shot
    with work_folder(None, "uino-selftest") as folder:
        support.save(folder / "letter.safetensors")
        again = Support.load(folder / "letter.safetensors", require_signature=False)
    query = draw_letter(3)[0]
    yield _same(predictor.predict(query, support), predictor.predict(query, again))


def _several(bundle: Bundle, backend: Backend) -> Iterator[Measured]:
    predictor = Predictor(bundle, backend)
    supports = [predictor.enroll([draw_letter(1, letter)], letter) for letter in "ARE"]
    query = draw_letter(4)[0]
    together = predictor.predict(query, supports)
    for support, one in zip(supports, together, strict=True):
        yield _same(one, predictor.predict(query, support), support.name)


def _same(one: Result, other: Result, what: str = "") -> Measured:
    """Compare two results of one engine on the same numbers; at most the order of sums differs."""
    difference = float(np.abs(one.logits - other.logits).max())
    scale = float(np.abs(one.logits).max()) or 1.0
    return Measured(difference / scale, "of the largest logit", 1e-5, what=what)


def _latency(bundle: Bundle, backend: Backend) -> Iterator[Measured]:
    from uino_deploy.bundle.reference import inputs_of, load_example

    example = load_example(bundle)
    for name in bundle.manifest.pieces:
        if name == WHOLE:  # its inputs have other names; `verify` and `predict` run it whole
            continue
        session = backend.load(bundle, name)
        feeds = session.upload(inputs_of(session.piece, example))
        yield Measured(median_ms(partial(_run, backend, session, feeds)), "ms", what=name)
    predictor = Predictor(bundle, backend)
    support, query = predictor.enroll([draw_letter(1)], "letter"), draw_letter(2)[0]
    yield Measured(
        median_ms(lambda: predictor.predict(query, support)), "ms", what="pixels to mask"
    )


def _run(backend: Backend, session: Session, feeds: Mapping[str, Value]) -> None:
    session.run_resident(feeds)
    backend.synchronise()


def median_ms(run: Callable[[], object]) -> float:
    """Return the median time of a function in milliseconds."""
    for _ in range(_WARM):
        run()
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(times) < _TIMED and (not times or time.perf_counter() < end):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return 1000 * statistics.median(times)


def _memory(bundle: Bundle, backend: Backend) -> Iterator[Measured]:
    import resource  # Windows has none

    predictor = Predictor(bundle, backend)
    support = predictor.enroll([draw_letter(1)], "letter")
    queries = [draw_letter(seed)[0] for seed in (2, 3, 4)]
    for query in queries:
        predictor.predict(query, support)
    before, held = backend.memory(), nvml.process_bytes(os.getpid())
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for query in queries * _ROUNDS:
        predictor.predict(query, support)
    after = backend.memory()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    yield Measured(1024 * resident, "bytes", what="largest resident size of the process")
    yield Measured(1024 * grown, "bytes", 4 * _SLACK, what="growth of it")
    if before is None or after is None:
        return
    yield Measured(after.engines, "bytes", what="engines on the device")
    yield Measured(after.buffers, "bytes", what="tensors on the device")
    yield Measured(after.used, "bytes", what="used on the device, by anyone")
    yield Measured(after.buffers - before.buffers, "bytes", 0, what="growth of the tensors")
    # Only this process: other programs use the device too, on a Jetson all of its memory.
    now = nvml.process_bytes(os.getpid())
    if held is None or now is None:
        held, now = before.engines + before.buffers, after.engines + after.buffers
    yield Measured(now - held, "bytes", _SLACK, what="growth of this process's use of the device")


def export_claims(setting: Setting) -> list[Claim]:
    """Return the claim that the bundled checkpoint is exported, once for all other groups."""
    return [
        Claim(
            f"{setting.precision}: the bundled checkpoint is exported",
            "five pieces and the query, checked by onnx",
            partial(_exported, setting),
        )
    ]


def _exported(setting: Setting) -> Iterator[Measured]:
    missing = [name for name in ("torch", "onnx", "onnxscript") if not is_importable(name)]
    if missing:
        raise CannotCheck(f"{', '.join(missing)} not installed; give a bundle with --bundle")
    from uino_deploy.export import export_bundle
    from uino_deploy.export.precision import parse_precision
    from uino_deploy.model.assembly import assemble_from_checkpoint

    made = assemble_from_checkpoint(CHECKPOINT)
    precision = setting.precision
    bundle = export_bundle(
        made.model, setting.exported(precision), precision=parse_precision([precision])
    )
    size = sum(entry.size for entry in bundle.manifest.files.values())
    yield Measured(size, "bytes")
