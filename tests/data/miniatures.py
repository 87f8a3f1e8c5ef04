"""Miniature data sets in the real layouts: JPEG images, palette PNG, SBD's .mat, COCO's json.

VOC's folders and lists are those of the VOC 2012 development kit; `GTcls` and `Segmentation`, the
folder `dataset/cls` and the lists those of SBD's benchmark.tgz, as torchvision's SBDataset reads
them; COCO's keys those of its "Data format" page, as pycocotools reads them.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

VOID = 255


def write_jpeg(path: Path, seed: int, height: int = 40, width: int = 60) -> None:
    """Write a noisy picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


def labelled(number: int, other: int, height: int = 40, width: int = 60) -> np.ndarray:
    """Return a label plane: a box of one class with a void border, and a box of another."""
    labels = np.zeros((height, width), np.uint8)
    labels[8:28, 5:30] = VOID
    labels[10:26, 7:28] = number
    labels[5:20, 40:55] = other
    return labels


def write_palette(path: Path, labels: np.ndarray) -> None:
    """Write class numbers as VOC does: a palette PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(path)


def make_voc(root: Path, per_class: int = 3, sbd: str = "mat") -> Path:
    """Write VOC 2012 with `per_class` validation and training images of each class, and SBD.

    Args:
        root: the folder to fill.
        per_class: images of each class as the main object, in each part.
        sbd: "mat" for SBD's own layout, "png" for SegmentationClassAug, "none".
    """
    from scipy.io import savemat

    voc = root / "VOC2012"
    lists: dict[str, list[str]] = {"train": [], "val": [], "sbd": []}
    for part, names in lists.items():
        for number in range(1, 21):
            for index in range(per_class):
                name = f"2008_{part}_{number:02d}_{index}"
                names.append(name)
                write_jpeg(voc / "JPEGImages" / f"{name}.jpg", 1000 * number + index)
                labels = labelled(number, number % 20 + 1)
                if part != "sbd":
                    write_palette(voc / "SegmentationClass" / f"{name}.png", labels)
                elif sbd == "png":
                    write_palette(voc / "SegmentationClassAug" / f"{name}.png", labels)
                elif sbd == "mat":
                    path = root / "SBD" / "dataset" / "cls" / f"{name}.mat"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    labels[labels == VOID] = 0
                    savemat(path, {"GTcls": {"Segmentation": labels}})
    sets = voc / "ImageSets" / "Segmentation"
    sets.mkdir(parents=True)
    for part in ("train", "val"):
        (sets / f"{part}.txt").write_text("\n".join(lists[part]) + "\n")
    if sbd == "mat":  # SBD's own lists overlap VOC's validation images
        names = lists["sbd"]
        (root / "SBD" / "dataset" / "train.txt").write_text("\n".join(names[::2]))
        (root / "SBD" / "dataset" / "val.txt").write_text(
            "\n".join([*names[1::2], lists["val"][0]])
        )
    return root


def polygon(x: float, y: float, width: float, height: float) -> list[float]:
    """Return a rectangle as COCO writes polygons."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def runs_of(mask: np.ndarray) -> list[int]:
    """Return a mask's uncompressed run lengths: column by column, background first."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *edges, len(flat)]).tolist()
    return [0, *lengths] if flat[0] else lengths


def make_coco(root: Path, classes: int = 8, per_class: int = 3) -> Path:
    """Write COCO 2014: polygons, two-part polygons, both kinds of run lengths, and crowds."""
    from pycocotools import mask as tools

    categories = [{"id": 3 * c + 1, "name": f"thing{c}"} for c in range(classes)]
    for part in ("train2014", "val2014"):
        images, annotations = [], []
        for c, category in enumerate(categories):
            for index in range(per_class):
                number = 100 * c + index + 1
                name = f"COCO_{part}_{number:012d}.jpg"
                write_jpeg(root / part / name, number, 48, 64)
                images.append({"id": number, "file_name": name, "height": 48, "width": 64})
                box = np.zeros((48, 64), np.uint8)
                box[30:40, 10:25] = 1
                crowd = {"counts": runs_of(box), "size": [48, 64]}
                packed = tools.encode(np.asfortranarray(box))
                packed = {"counts": packed["counts"].decode(), "size": packed["size"]}
                kinds = [
                    ([polygon(3, 4, 20, 15), polygon(40, 30, 9.5, 8.25)], 0),
                    (crowd, 1),
                    (packed, 0),
                ]
                for segmentation, iscrowd in kinds[: index + 1]:
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": number,
                            "category_id": category["id"],
                            "segmentation": segmentation,
                            "iscrowd": iscrowd,
                            "area": 1.0,
                            "bbox": [0, 0, 1, 1],
                        }
                    )
        path = root / "annotations" / f"instances_{part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {"info": {}, "images": images, "annotations": annotations}
        path.write_text(json.dumps({**document, "categories": categories[::-1]}))
    return root


def make_fss(root: Path, names: tuple[str, ...] = ("bus", "abacus", "swan")) -> Path:
    """Write classes of FSS-1000, ten images each."""
    for c, name in enumerate(names):
        for index in range(1, 11):
            write_jpeg(root / name / f"{index}.jpg", 50 * c + index, 32, 32)
            mask = np.zeros((32, 32, 3), np.uint8)
            mask[4 : 10 + index, 6:20] = 255
            mask[4 : 10 + index, 20] = 100  # a blurred edge: below the cut
            Image.fromarray(mask).save(root / name / f"{index}.png")
    return root


def make_folder(root: Path, count: int = 10, names: tuple[str, ...] = ()) -> Path:
    """Write a user's own images and masks; with names one folder for each class."""
    for home in [root / name for name in names] or [root]:
        for index in range(count):
            write_jpeg(home / "images" / f"{index:03d}.jpg", index)
            mask = np.zeros((40, 60), np.uint8)
            mask[5 + index : 25, 10:40] = 255
            (home / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(home / "masks" / f"{index:03d}.png")
    return root
