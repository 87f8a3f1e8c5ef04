"""The record of a benchmark: its method, its machine and its entries, in one JSON file.

Times are seconds, sizes bytes, energies joules. A value that could not be measured is null.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from uino_deploy.documents import DocumentError, decode_json
from uino_deploy.errors import InputError
from uino_deploy.files import atomic_file
from uino_deploy.inputs import read_regular

SCHEMA = "1.0"
METHOD = "1"
MAX_BYTES = 256 << 20  # of a record

# Percentile -> the fewest samples that define it: one sample must lie beyond it.
PERCENTILES = {90: 10, 95: 20, 99: 100}


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One shape of work: `batch` queries, each asked for `classes` classes of `shots` shots."""

    classes: int = 1
    shots: int = 1
    batch: int = 1

    def __str__(self) -> str:
        """Return the text used in tables and as a key."""
        return f"classes {self.classes}, shots {self.shots}, batch {self.batch}"


MAIN = Case()
"""One query, one class, one shot: the case of headlines, pieces, memory and cold starts."""


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """The method of measurement. Two records are comparable if method and machine are equal.

    Attributes:
        version: the protocol's; raised when the same values would mean another measurement.
        cases: the shapes of work.
        threads: numbers of CPU threads; each has its own processes and rounds.
        rounds: turns per runner.
        warmup: untimed queries at the start of each turn.
        seconds: minimum length of a turn, which has at least one query.
        iterations: timed queries per turn, instead of `seconds`.
        cold_starts: fresh processes per runner.
        images: SHA-256 of the images' pixels, in their order.
        episodes: held-out episodes behind the mIoU; 0 if none was drawn.
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
    """Seconds over all rounds; a percentile without enough samples is null.

    Attributes:
        median: the median of all samples.
        p90: 90 % of the samples took no longer.
        p95: likewise.
        p99: likewise.
        minimum: the shortest.
        samples: number of samples.
        rounds: the median of each round; their range is the spread.
    """

    median: float
    p90: float | None
    p95: float | None
    p99: float | None
    minimum: float
    samples: int
    rounds: list[float]

    def __post_init__(self) -> None:
        """Refuse what no clock gives: a record may come from anywhere, and a verdict rests on it.

        Raises:
            ValueError: there is no round, or a median is not above zero.
        """
        if not self.rounds or min(self.median, *self.rounds) <= 0:
            raise ValueError("a timing needs rounds, and medians above zero")

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest median of a round."""
        return min(self.rounds), max(self.rounds)


class CaseResult(msgspec.Struct, kw_only=True):
    """One case of one entry.

    Attributes:
        case: the shape of work.
        timing: all `batch` queries together, end to end; null if the runner cannot do it.
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
    """The error of one output of a piece, fed with float32 PyTorch's inputs."""

    piece: str
    output: str
    relative_l2: float
    max_abs: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether the error is within its budget."""
        return self.relative_l2 <= self.allowed


class Accuracy(msgspec.Struct, kw_only=True):
    """An entry's errors against float32 PyTorch, and their budgets.

    Attributes:
        reference: "pytorch", or "stored" for the example stored in the bundle.
        photographs: queries compared end to end; 0 against the stored example.
        logits_relative_l2: the worst of all queries and cases.
        logits_allowed: its budget.
        mask_iou: the lowest of all masks.
        mask_iou_floor: its budget; null if the weights are random and masks mean nothing.
        miou: on the demo's held-out episodes, in per cent.
        reference_miou: float32 PyTorch's on the same episodes.
        miou_drop_allowed: how much lower `miou` may be.
        pieces: the errors of each piece; empty for a peer, which has no pieces.
        failures: the errors over their budgets.
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
        device: the process's memory on a GPU.
    """

    steady: int | None
    peak: int | None
    device: int | None


class Entry(msgspec.Struct, kw_only=True):
    """One backend or peer at one precision, image size and thread count.

    Attributes:
        name: display name; unique in a record together with image size and threads.
        runner: its runner, such as "onnxruntime" or "torch-compile".
        peer: another way to run the model, not this product's.
        precision: fp32, fp16, bf16 or int8; for a bundle with several, "bf16+fp32".
        image_size: side of the square image in pixels.
        threads: CPU threads.
        about: versions and devices as the runner describes itself.
        status: "passed"; "failed" if it crashed or is over its budget; "refused" if it cannot run
            on this machine.
        reason: the reason for a failure or a refusal.
        accuracy: null if it did not run.
        cases: one result for each case.
        stages: seconds of a query's parts, one class, timed apart from `cases`.
        memory: memory of its process.
        joules: energy per query.
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
        """The key that identifies it within a record and in another."""
        return self.name, self.image_size, self.threads

    @property
    def main(self) -> Timing | None:
        """Timing of the main case; None unless the entry passed."""
        if self.status != "passed":
            return None
        return next((r.timing for r in self.cases if r.case == MAIN), None)


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine of the measurement; no field names a user, a host or a path."""

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
    """The measured model; `untrained` names the parts with random weights."""

    preset: str
    variant: str
    fingerprints: list[str]
    untrained: list[str]


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One operator of a profiled piece, with its own time only.

    Attributes:
        piece: the piece.
        operator: its name in the profiler.
        calls: number of calls in one query.
        seconds: total time of all calls in one query.
        share: its fraction of the entry's profiled time.
        attention: whether it is a fused attention.
    """

    piece: str
    operator: str
    calls: float
    seconds: float
    share: float
    attention: bool


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """The time of an entry by operator; profiling itself takes time."""

    name: str
    image_size: int
    threads: int
    layers: list[Layer]


class Record(msgspec.Struct, kw_only=True):
    """One run of `uino-deploy benchmark`.

    Attributes:
        schema: major.minor; another major is refused.
        created: UTC, ISO 8601.
        commit: the commit of the sources, with "+" if they were changed; null outside a checkout.
        versions: the versions of the packages that matter.
        method: the method of measurement.
        machine: the machine of the measurement.
        model: the measured model.
        others_cpu: fraction of the cores that other processes used while runners were timed.
        entries: every backend and peer.
        profiles: the profiles, with `--profile`.
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
        """Every entry that failed, and every backend that ran no bundle, with the reason.

        Where nothing ran at all, that is the failure.
        """
        ran = {entry.runner for entry in self.entries if entry.status != "refused"}
        if not ran:
            reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in self.entries)
            return [f"nothing was measured: {reasons or 'there was no entry'}"]
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
        InputError: the file is missing, is not a record, or has another major schema.
    """
    try:
        data = read_regular(path, "record", MAX_BYTES)
    except OSError as error:
        raise InputError(f"record {path} cannot be read: {error.strerror}") from error
    try:
        schema = decode_json(data, _SchemaOnly).schema
        if schema.partition(".")[0] != SCHEMA.partition(".")[0]:
            raise InputError(
                f"{path} has schema version {schema}; this version reads {SCHEMA}",
                "measure again, or use the uino-deploy that wrote it",
            )
        return decode_json(data, Record)
    except DocumentError as error:
        raise InputError(
            f"{path} is not a benchmark record: {error}",
            "give the record.json that `uino-deploy benchmark` wrote",
        ) from error
