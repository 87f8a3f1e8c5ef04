"""The bodies of answers as types; `uino_deploy.serving.openapi` describes them from here."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec


class Runs(msgspec.Struct):
    """A mask as COCO's uncompressed run lengths: column by column, background first."""

    size: tuple[int, int]
    counts: list[int]


class Object(msgspec.Struct, omit_defaults=True):
    """One object of a class: its box (left, top, right, bottom), pixels, score and mask."""

    box: tuple[int, int, int, int]
    area: int
    score: float
    rle: Runs | None = None
    polygons: list[list[float]] | None = None


class Segment(msgspec.Struct, omit_defaults=True):
    """One class in the image.

    `presence` (0 to 1) and `present` are null for a class enrolled without a calibration; the mask
    of an absent class is empty. `score` is the mask's predicted IoU. `area` is a share of the
    image, `box` is left, top, right, bottom, null for an empty mask. `polygons` are outlines
    x, y, x, y, ...: a pixel is the class's where its centre lies inside an odd number of them.
    """

    name: str
    present: bool | None
    presence: float | None
    score: float
    area: float
    box: tuple[int, int, int, int] | None
    rle: Runs | None = None
    polygons: list[list[float]] | None = None
    instances: list[Object] | None = None


class Segmented(msgspec.Struct, omit_defaults=True):
    """The answer to an image; `label_map` is a PNG in base64: 0, and 1 + the index of the class.

    `seconds` holds the time of each step: waiting, decoding, encoding (shared by `batch` images),
    predicting all classes, writing the masks.
    """

    width: int
    height: int
    classes: list[Segment]
    model: str
    batch: int
    seconds: dict[str, float]
    label_map: str | None = None


class Class(msgspec.Struct):
    """An enrolled class."""

    name: str
    shots: int
    calibrated: bool
    model: str
    precision: str


class Classes(msgspec.Struct):
    """The names of the enrolled classes, sorted."""

    classes: list[str]


class State(msgspec.Struct):
    """Whether the service is alive, or ready: loaded and not about to stop."""

    status: str


class Failure(msgspec.Struct):
    """Why a request failed, in one line."""

    error: str


class Query(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters of a segmentation, described where each is declared."""

    classes: Annotated[str, msgspec.Meta(description="Names with commas between.")] = ""
    threshold: Annotated[float, msgspec.Meta(description="Logits above it are foreground.")] = 0.0
    min_score: Annotated[
        float,
        msgspec.Meta(
            description="Least presence of a class that counts as present; 0 keeps every mask."
        ),
    ] = 0.5
    masks: Annotated[
        Literal["rle", "polygons", "png", "none"],
        msgspec.Meta(
            description="Run lengths, outlines, one label map for all classes, or no masks."
        ),
    ] = "rle"
    instances: Annotated[
        bool, msgspec.Meta(description="Also part each class into its objects.")
    ] = False
