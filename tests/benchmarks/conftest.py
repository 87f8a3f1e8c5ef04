"""Records made by hand, and one bundle of the bundled checkpoint, for all tests of the harness."""

from pathlib import Path

import pytest

import uino_deploy.assets
from uino_deploy.benchmarks.record import (
    MAIN,
    Accuracy,
    Case,
    CaseResult,
    Entry,
    Machine,
    Memory,
    Method,
    Model,
    PieceError,
    Record,
)
from uino_deploy.benchmarks.statistics import summarise

ASSET = Path(uino_deploy.assets.__file__).parent / "tiny.safetensors"
TEN = Case(classes=10)


def make_accuracy() -> Accuracy:
    piece = PieceError(piece="encoder", output="deep", relative_l2=1e-6, max_abs=1e-5, allowed=1e-4)
    return Accuracy(
        reference="pytorch",
        photographs=2,
        logits_relative_l2=2e-6,
        logits_allowed=5e-4,
        mask_iou=1.0,
        mask_iou_floor=0.995,
        miou=67.0,
        reference_miou=67.1,
        miou_drop_allowed=0.1,
        pieces=[piece],
        failures=[],
    )


def make_entry(name: str = "onnxruntime fp32", scale: float = 1.0, peer: bool = False) -> Entry:
    """An entry of three rounds around 100 ms times `scale`, and ten classes at 250 ms."""
    rounds = [[0.098, 0.099, 0.1], [0.1, 0.101, 0.102], [0.099, 0.1, 0.103]]
    timing = summarise([[scale * sample for sample in one] for one in rounds])
    ten = summarise([[2.5 * scale * sample for sample in one] for one in rounds])
    return Entry(
        name=name,
        runner=name.split(maxsplit=1)[0],
        peer=peer,
        precision="fp32",
        image_size=112,
        threads=2,
        about={"onnxruntime": "1.32.0"},
        status="passed",
        accuracy=make_accuracy(),
        cases=[
            CaseResult(
                case=case,
                timing=found,
                queries_per_second=1 / found.median,
                logits_relative_l2=2e-6,
                mask_iou=1.0,
            )
            for case, found in ((MAIN, timing), (TEN, ten))
        ],
        stages={"encoder": timing, "decoder": summarise([[0.01], [0.011]])},
        memory=Memory(steady=100_000_000, peak=150_000_000, device=None),
        cold_start=summarise([[0.5], [0.6]]),
    )


def make_record(entries: list[Entry] | None = None) -> Record:
    return Record(
        created="2026-01-02T03:04:05+00:00",
        commit="0123456789ab",
        versions={"python": "3.11.0", "onnxruntime": "1.32.0"},
        method=Method(
            cases=[MAIN, TEN],
            threads=[2],
            rounds=3,
            warmup=1,
            seconds=2.0,
            iterations=None,
            cold_starts=2,
            images=["00", "11"],
            episodes=200,
        ),
        machine=Machine(
            system="Linux x86_64",
            processor="Test CPU",
            cores=2,
            memory=8_000_000_000,
            board=None,
            governor="performance",
            power_mode=None,
            clock_limit_mhz=None,
            gpus=[],
            gpu_clocks=[],
        ),
        model=Model(preset="tiny", variant="full", fingerprints=["ff"], untrained=[]),
        others_cpu=0.01,
        entries=[make_entry()] if entries is None else entries,
    )


@pytest.fixture
def record() -> Record:
    return make_record()


@pytest.fixture
def entry_of():
    """The function that makes an entry."""
    return make_entry


@pytest.fixture
def record_of():
    """The function that makes a record of entries."""
    return make_record


@pytest.fixture(scope="session")
def bundle_path(made_once) -> Path:
    """The bundled checkpoint's bundle; do not change it."""
    from uino_deploy.export import export_bundle
    from uino_deploy.model.assembly import assemble_from_checkpoint

    def make(path: Path) -> None:
        made = assemble_from_checkpoint(ASSET)
        export_bundle(made.model, path, sources=made.sources)

    return Path(made_once("benchmark.uino", make))
