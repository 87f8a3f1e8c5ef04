"""What a benchmark leaves: one record, its method, its machine and its entries, as one JSON file.

Times are seconds, sizes bytes, energies joules. A value that could not be measured is null.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from uino_deploy.documents import DocumentError, decode_json
from uino_deploy.errors import InputError
from uino_deploy.files import atomic_file

SCHEMA = "1.0"
METHOD = "1"

# Percentile -> the fewest samples that can tell it: one sample must lie beyond it.
PERCENTILES = {90: 10, 95: 20, 99: 100}


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One shape of work: `batch` queries, each asked for `classes` classes of `shots` shots."""

    classes: int = 1
    shots: int = 1
    batch: int = 1

    def __str__(self) -> str:
        """Return it for people and for keys."""
        return f"classes {self.classes}, shots {self.shots}, batch {self.batch}"


MAIN = Case()
"""One query, one class, one shot: what headlines, pieces, memory and cold starts speak of."""


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """How it was measured. Two records are comparable where this and the machine are equal.

    Attributes:
        version: of this protocol; raised when the same words would mean another measurement.
        cases: the shapes of work.
        threads: CPU threads; each count has its own processes and its own rounds.
        rounds: how often every runner had its turn.
        warmup: untimed queries at the start of each turn.
        seconds: how long a turn lasts at least, with one query at least.
        iterations: timed queries of a turn, instead of `seconds`.
        cold_starts: fresh processes started for each runner.
        images: SHA-256 of the images' pixels, in their order.
        episodes: held-out episodes behind the mIoU; 0 where none was drawn.
    """

    version: str = METHOD
    cases: list[Case]
    threads: list[int]
    rounds: int
    warmup: int
    seconds: float | None
    iterations: int | None
    cold_starts: int
    images: list[str]
    episodes: int


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds over all rounds together; a percentile needs enough samples, else it is null.

    Attributes:
        median: of all samples.
        p90: that share of the samples took no longer.
        p95: likewise.
        p99: likewise.
        minimum: the shortest.
        samples: how many.
        rounds: the median of each round: their range is the spread.
    """

    median: float
    p90: float | None
    p95: float | None
    p99: float | None
    minimum: float
    samples: int
    rounds: list[float]

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest median of a round."""
        return min(self.rounds), max(self.rounds)


class CaseResult(msgspec.Struct, kw_only=True):
    """One case of one entry.

    Attributes:
        case: the shape of work.
        timing: of all `batch` queries together, end to end; null where the runner cannot do it.
        queries_per_second: batch / median.
        logits_relative_l2: against float32 PyTorch on the same work.
        mask_iou: likewise, the lowest of all masks.
        note: why there is no timing.
    """

    case: Case
    timing: Timing | None
    queries_per_second: float | None
    logits_relative_l2: float | None
    mask_iou: float | None
    note: str = ""


class PieceError(msgspec.Struct, frozen=True, kw_only=True):
    """An output of one piece, fed with float32 PyTorch's inputs, against float32 PyTorch's."""

    piece: str
    output: str
    relative_l2: float
    max_abs: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether it is within its budget."""
        return self.relative_l2 <= self.allowed


class Accuracy(msgspec.Struct, kw_only=True):
    """How far an entry is from float32 PyTorch, and how far it may be.

    Attributes:
        reference: "pytorch", or "stored" for the example that the bundle carries.
        photographs: queries compared end to end; 0 against the stored example.
        logits_relative_l2: the worst of all queries and cases.
        logits_allowed: its budget.
        mask_iou: the lowest of all masks.
        mask_iou_floor: its budget; null where the weights are random, and a mask says nothing.
        miou: on the demo's held-out episodes, in per cent.
        reference_miou: float32 PyTorch's on the same episodes.
        miou_drop_allowed: how much lower `miou` may be.
        pieces: each piece by itself; empty for a peer, which has none.
        failures: what is over its budget.
    """

    reference: Literal["pytorch", "stored"]
    photographs: int
    logits_relative_l2: float
    logits_allowed: float
    mask_iou: float | None
    mask_iou_floor: float | None
    miou: float | None
    reference_miou: float | None
    miou_drop_allowed: float | None
    pieces: list[PieceError]
    failures: list[str]


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one entry's own process.

    Attributes:
        steady: resident set between queries, after the first round of the main case.
        peak: largest resident set from the process's start until then.
        device: what the process holds of a GPU.
    """

    steady: int | None
    peak: int | None
    device: int | None


class Entry(msgspec.Struct, kw_only=True):
    """One backend or peer at one precision, image size and thread count.

    Attributes:
        name: for people; unique in a record together with image size and threads.
        runner: what ran it, such as "onnxruntime" or "torch-compile".
        peer: another way to run the model, not this product's.
        precision: fp32, fp16, bf16 or int8; for a bundle with several, "bf16+fp32".
        image_size: side of the square image in pixels.
        threads: of the CPU.
        about: versions and devices as the runner describes itself.
        status: "passed"; "failed" where it crashed or is over its budget; "refused" where it cannot
            run here.
        reason: of a failure or a refusal.
        accuracy: null where it did not run.
        cases: one result for each case.
        stages: seconds of a query's parts, one class, timed apart from `cases`.
        memory: of its process.
        joules: energy of one query.
        cold_start: from the start of a process to the first mask, caches filled.
        cold_start_uncached: likewise with its compiled-model cache deleted; null without one.
    """

    name: str
    runner: str
    peer: bool
    precision: str
    image_size: int
    threads: int
    about: dict[str, str]
    status: Literal["passed", "failed", "refused"]
    reason: str = ""
    accuracy: Accuracy | None = None
    cases: list[CaseResult] = msgspec.field(default_factory=list)
    stages: dict[str, Timing] = msgspec.field(default_factory=dict)
    memory: Memory | None = None
    joules: float | None = None
    cold_start: Timing | None = None
    cold_start_uncached: Timing | None = None

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells it apart within a record and finds it in another."""
        return self.name, self.image_size, self.threads

    @property
    def main(self) -> Timing | None:
        """Timing of the main case; None unless the entry passed."""
        if self.status != "passed":
            return None
        return next((r.timing for r in self.cases if r.case == MAIN), None)


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured; nothing in it names a user, a host or a path."""

    system: str
    processor: str
    cores: int
    memory: int | None
    board: str | None
    governor: str | None
    power_mode: str | None
    clock_limit_mhz: float | None
    gpus: list[str]
    gpu_clocks: list[str]


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured; `untrained` names the parts that hold random weights."""

    preset: str
    variant: str
    fingerprints: list[str]
    untrained: list[str]


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One operator of one profiled piece, its own time only.

    Attributes:
        piece: the piece.
        operator: as the profiler calls it.
        calls: in one query.
        seconds: in one query, all calls together.
        share: of all that was profiled of this entry.
        attention: it is a fused attention.
    """

    piece: str
    operator: str
    calls: float
    seconds: float
    share: float
    attention: bool


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of an entry goes, operator by operator; profiling itself costs time."""

    name: str
    image_size: int
    threads: int
    layers: list[Layer]


class Record(msgspec.Struct, kw_only=True):
    """One run of `uino-deploy benchmark`.

    Attributes:
        schema: major.minor; another major is refused.
        created: UTC, ISO 8601.
        commit: of the sources, with "+" where they were changed; null outside a checkout.
        versions: of the packages that matter.
        method: how it was measured.
        machine: where.
        model: what.
        others_cpu: share of the cores that other processes used while runners were timed.
        entries: every backend and peer.
        profiles: with `--profile`.
    """

    schema: str = SCHEMA
    created: str
    commit: str | None
    versions: dict[str, str]
    method: Method
    machine: Machine
    model: Model
    others_cpu: float | None
    entries: list[Entry]
    profiles: list[Profile] = msgspec.field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """Every entry that failed, and every backend that ran no bundle, with the reason."""
        ran = {entry.runner for entry in self.entries if entry.status != "refused"}
        return [
            f"{entry.name}: {entry.reason}"
            for entry in self.entries
            if entry.status == "failed" or not (entry.peer or entry.runner in ran)
        ]


def save_record(path: Path, record: Record, force: bool = False) -> None:
    """Write a record as indented JSON, atomically."""
    text = msgspec.json.format(msgspec.json.encode(record), indent=2)
    with atomic_file(path, force) as temporary:
        temporary.write_bytes(text + b"\n")


class _SchemaOnly(msgspec.Struct):
    schema: str


def load_record(path: Path) -> Record:
    """Read a record.

    Raises:
        InputError: the file is missing, no record, or of another major schema.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"record {path} cannot be read: {error.strerror}") from error
    try:
        schema = decode_json(data, _SchemaOnly).schema
        if schema.partition(".")[0] != SCHEMA.partition(".")[0]:
            raise InputError(
                f"{path} has schema version {schema}; this program reads {SCHEMA}",
                "measure again, or use the uino-deploy that wrote it",
            )
        return decode_json(data, Record)
    except DocumentError as error:
        raise InputError(
            f"{path} is not a benchmark's record: {error}",
            "give the record.json that `uino-deploy benchmark` wrote",
        ) from error
