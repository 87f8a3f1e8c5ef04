"""Results as the bodies of answers: run lengths, polygons or a label map, and objects."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from uino_deploy.images import UInt8
from uino_deploy.images.coco_file import runs_of_mask
from uino_deploy.images.outlines import outlines_of_mask
from uino_deploy.runtime import Result, label_map
from uino_deploy.runtime.batch import mask_box, palette_image
from uino_deploy.serving.messages import Object, Query, Runs, Segment


def describe_result(result: Result, query: Query) -> Segment:
    """Return one class in one image, with its mask in the form that was asked for."""
    objects = None
    if query.instances:
        objects = [
            Object(
                each.box,
                each.area,
                round(each.score, 6),
                **_form(result.instances.mask(index), query.masks),
            )
            for index, each in enumerate(result.instances.objects)
        ]
    box = mask_box(result.mask)
    return Segment(
        name=result.name,
        present=result.present,
        presence=None if result.presence is None else round(result.presence, 6),
        score=round(result.score, 6),
        area=round(float(result.mask.mean()), 6),
        box=None if box is None else (box[0], box[1], box[2], box[3]),
        instances=objects,
        **_form(result.mask, query.masks),
    )


def png_of(results: Sequence[Result]) -> str:
    """Return the label map of an image's results as a PNG in base64."""
    written = io.BytesIO()
    palette_image(label_map(results)).save(written, "PNG", compress_level=1)
    return base64.b64encode(written.getvalue()).decode()


def _form(mask: UInt8, form: str) -> dict[str, Any]:
    if form == "rle":
        return {"rle": Runs((mask.shape[0], mask.shape[1]), runs_of_mask(mask))}
    if form == "polygons":
        return {"polygons": outlines_of_mask(mask)}
    return {}
