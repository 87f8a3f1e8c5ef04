"""Objects of many images as one COCO annotation file, with run lengths and scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uino_deploy.images.coco_file import runs_of_mask
from uino_deploy.runtime.predictor import Result


class InstancesFile:
    """Collects objects, image by image; `write` ends with a file that COCO's own tools read.

    Run lengths are uncompressed: column by column, background first.

    Args:
        names: the classes, numbered from 1 on.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._categories = {name: number for number, name in enumerate(names, 1)}
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, image: str, results: Sequence[Result]) -> None:
        """Add the objects of an image.

        Args:
            image: its path, as the file shall name it.
            results: one or more, of some of the classes.

        Raises:
            DependencyError: scikit-image is not installed.
        """
        height, width = results[0].mask.shape
        number = len(self._images) + 1
        self._images.append({"id": number, "file_name": image, "width": width, "height": height})
        for result in results:
            for index, each in enumerate(result.instances.objects):
                left, top, right, bottom = each.box
                runs = runs_of_mask(result.instances.mask(index))
                self._annotations.append(
                    {
                        "id": len(self._annotations) + 1,
                        "image_id": number,
                        "category_id": self._categories[result.name],
                        "bbox": [left, top, right - left, bottom - top],
                        "area": each.area,
                        "score": round(each.score, 6),
                        "iscrowd": 0,
                        "segmentation": {"size": [height, width], "counts": runs},
                    }
                )

    def write(self, path: Path) -> None:
        """Write the file."""
        document = {
            "images": self._images,
            "categories": [{"id": n, "name": name} for name, n in self._categories.items()],
            "annotations": self._annotations,
        }
        text = json.dumps(document, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
