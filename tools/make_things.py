"""Builds the atlas of things: `uino_deploy/data/things.zip`, always the same bytes.

    npm install --prefix build/pictures emoji-datasource-google@16.0.0 \
        emoji-datasource-twitter@16.0.0 @lobehub/fluent-emoji-3d@1.1.0 emojione@2.2.7
    python -m venv build/photographs
    build/photographs/bin/pip install --no-deps scikit-image==0.26.0 scikit-learn==1.9.1
    python tools/make_things.py build/pictures build/photographs

What it takes, and under which licences, is told in `uino_deploy/data/things_notice.txt`.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64  # of a tile; the size at which the packages ship Noto's and Twemoji's pictures
COLUMNS = 28
PHOTOGRAPH = 512  # longer side of a photograph, at most
TOOLS = Path(__file__).resolve().parent
ATLAS = TOOLS.parent / "uino_deploy" / "data" / "things.zip"

FLUENT = Path("@lobehub", "fluent-emoji-3d", "assets")
EMOJIONE = Path("emojione", "assets", "png")
TESTED = ("noto", "twemoji", "fluent")  # the hands of the tests
TRAINED = ("noto", "twemoji", "emojione")

# Name of a sheet, who drew it, and the splits whose concepts it shows. Nothing is ever added to the
# first three, so that their colours, and with them the tests' scenes, stay as they are.
SHEETS = (
    ("noto", "noto", ("base", "held-out")),
    ("twemoji", "twemoji", ("base", "held-out")),
    ("fluent", "fluent", ("base", "held-out")),
    ("emojione", "emojione", ("base", "extra")),
    ("noto-extra", "noto", ("extra",)),
    ("twemoji-extra", "twemoji", ("extra",)),
)

# Categories of people, faces, hands, symbols and flags.
LEFT_OUT = {"Smileys & Emotion", "People & Body", "Component", "Symbols", "Flags"}

# Short names of what is no thing either: views and symbols, things with human faces, and most of
# the clocks and moons, which differ by a hand or a shadow.
NO_THING = set((TOOLS / "no_things.txt").read_text().split())

# Of the categories left out, the extra concepts are drawn, which train only. They are not people
# again as man or woman, turned, or with other hair, families, hearts of a colour, nor those listed:
# what shows a held-out thing, and near-duplicates of another extra concept.
VARIANT = re.compile(
    r"(^|[-_])(wo)?m[ae]n([-_]|$)|(^|[-_])(fe)?male[-_]|_facing_right$|family|_heart$"
    r"|^(person_with_blond|(red|white)_haired|curly|bald|blond)"
)
NO_EXTRA = set((TOOLS / "no_extras.txt").read_text().split())
FLAGS = 100  # extra concepts that are flags, at most

FULL = 0.93  # a picture that fills its tile by more than this is a sign or a view

# Near-duplicates by meaning, a line each. A concept and its near-duplicates are on one side of the
# split, and none is a distractor of another.
ALIKE = (TOOLS / "things_alike.txt").read_text().splitlines()
CLOSE = 0.12  # root mean square between thumbnails of pictures that look alike

# Photograph -> the split that draws it. All are in the wheels; each states its licence, see the
# notice. (The motorcycle pair, the moon and the page in scikit-image's wheel state none.)
PHOTOGRAPHS = {
    "astronaut.png": "base",
    "camera.png": "base",
    "china.jpg": "base",
    "clock_motion.png": "base",
    "grass.png": "base",
    "gravel.png": "base",
    "hubble_deep_field.jpg": "base",
    "ihc.png": "base",
    "retina.jpg": "base",
    "brick.png": "held-out",
    "chelsea.png": "held-out",
    "coffee.png": "held-out",
    "coins.png": "held-out",
    "flower.jpg": "held-out",
    "rocket.jpg": "held-out",
}


@dataclass(frozen=True)
class Concept:
    """A concept as the packages have it.

    Attributes:
        name: for people.
        category: of Unicode.
        pictures: hand -> RGBA; Noto's and Twemoji's always.
    """

    name: str
    category: str
    family: str
    pictures: dict[str, Image.Image]


def read_concepts(packages: Path) -> dict[str, Concept]:
    """Return what both Noto and Twemoji have, by short name."""
    google, twitter = (packages / f"emoji-datasource-{name}" for name in ("google", "twitter"))
    drawn = {each["unified"]: each for each in json.loads((twitter / "emoji.json").read_text())}
    concepts = {}
    for each in json.loads((google / "emoji.json").read_text()):
        twin = drawn.get(each["unified"], {"has_img_twitter": False})
        if not (each["has_img_google"] and twin["has_img_twitter"]):
            continue
        codes = [code.lower() for code in (each["unified"], each["non_qualified"]) if code]
        pictures = {
            "noto": google / "img" / "google" / "64" / each["image"],
            "twemoji": twitter / "img" / "twitter" / "64" / twin["image"],
        }
        for code in codes:
            pictures |= {
                hand: file
                for hand, file in (
                    ("fluent", packages / FLUENT / f"{code.lstrip('0')}.webp"),
                    ("emojione", packages / EMOJIONE / f"{code}.png"),
                )
                if hand not in pictures and file.exists()
            }
        concepts[each["short_name"]] = Concept(
            each["name"].lower(),
            each["category"],
            each["subcategory"],
            {hand: _picture(file) for hand, file in pictures.items()},
        )
    return dict(sorted(concepts.items()))


def _picture(file: Path) -> Image.Image:
    picture = Image.open(file).convert("RGBA")
    return picture if picture.width == SIDE else picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def things(concepts: dict[str, Concept]) -> dict[str, Concept]:
    """Return the concepts that are things and have a Fluent picture."""
    return {
        short: concept
        for short, concept in concepts.items()
        if concept.category not in LEFT_OUT
        and short not in NO_THING
        and "fluent" in concept.pictures
        and max(_filled(concept.pictures[hand]) for hand in TESTED) <= FULL
    }


def extras(concepts: dict[str, Concept], known: dict[str, Concept]) -> dict[str, Concept]:
    """Return the concepts of the other categories that look like none of `known` nor each other."""
    chosen: dict[str, Concept] = {}
    seen = {hand: _thumbnails(known.values(), hand) for hand in TRAINED}
    flags = 0
    for short, concept in concepts.items():
        if (
            concept.category not in LEFT_OUT - {"Component"}
            or short in NO_EXTRA
            or VARIANT.search(short)
            or max(_filled(concept.pictures[hand]) for hand in TRAINED[:2]) > FULL
            or (concept.category == "Flags" and flags == FLAGS)
        ):
            continue
        own = {hand: _thumbnails([concept], hand) for hand in TRAINED}
        if any((_distances(own[hand], seen[hand]) < CLOSE**2).any() for hand in TRAINED):
            continue
        seen = {hand: np.concatenate([seen[hand], own[hand]]) for hand in TRAINED}
        flags += concept.category == "Flags"
        chosen[short] = concept
    return chosen


def _filled(picture: Image.Image) -> float:
    return float((np.asarray(picture)[..., 3] > 127).mean())


def group(things: dict[str, Concept]) -> dict[str, str]:
    """Return for each short name that of its group: the first, by alphabet, of all alike."""
    leader = {name: name for name in things}

    def root(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    def join(one: str, other: str) -> None:
        first, second = sorted((root(one), root(other)))
        leader[second] = first

    for line in ALIKE:
        known = [name for name in line.split() if name in things]
        for name in known[1:]:
            join(known[0], name)
    names = list(things)
    for hand in TESTED:
        small = _thumbnails(things.values(), hand)
        for one, other in zip(*np.nonzero(_distances(small, small) < CLOSE**2), strict=True):
            join(names[one], names[other])
    return {name: root(name) for name in names}


def _distances(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the mean square between the thumbnails of two lists, [N, M]."""
    squares = [(each**2).mean(axis=1) for each in (ones, others)]
    return squares[0][:, None] + squares[1] - 2 * ones @ others.T / ones.shape[1]


def _thumbnails(concepts: Iterable[Concept], hand: str) -> np.ndarray:
    """Return the thumbnails of the concepts that a hand has drawn, [N, 1024]."""
    small = [_thumbnail(each.pictures[hand]) for each in concepts if hand in each.pictures]
    return np.array(small).reshape(-1, 16 * 16 * 4)


def _thumbnail(picture: Image.Image) -> np.ndarray:
    cut = picture.crop(picture.getchannel("A").getbbox()).convert("RGBa")
    return np.asarray(cut.resize((16, 16), Image.Resampling.BOX), dtype=float).ravel() / 255


def held_out(leader: str) -> bool:
    """Whether a group is held out: a quarter of them, by the hash of its first short name."""
    return hashlib.sha256(leader.encode()).digest()[0] < 64


def sheet(pictures: list[Image.Image]) -> tuple[bytes, str]:
    """Return pictures as one WebP of `COLUMNS` tiles a row, and the SHA-256 of their alpha.

    Raises:
        RuntimeError: the file's alpha differs from the pictures'.
    """
    rows = -(-len(pictures) // COLUMNS)
    whole = Image.new("RGBA", (COLUMNS * SIDE, rows * SIDE))
    for index, picture in enumerate(pictures):
        whole.paste(picture, (index % COLUMNS * SIDE, index // COLUMNS * SIDE))
    data = webp(whole, quality=90, alpha_quality=100)
    alpha = whole.getchannel("A").tobytes()
    if Image.open(io.BytesIO(data)).convert("RGBA").getchannel("A").tobytes() != alpha:
        raise RuntimeError("WebP changed the alpha")
    return data, hashlib.sha256(alpha).hexdigest()


def webp(image: Image.Image, **options: int) -> bytes:
    """Return an image as a WebP file."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", method=6, **options)
    return buffer.getvalue()


def photographs(environment: Path) -> dict[str, bytes]:
    """Return the photographs as WebP files, by name without extension."""
    files = {}
    for name in PHOTOGRAPHS:
        found = [*environment.rglob(f"skimage/data/{name}")]
        found += environment.rglob(f"sklearn/datasets/images/{name}")
        image = Image.open(found[0]).convert("RGB")
        image.thumbnail((PHOTOGRAPH, PHOTOGRAPH), Image.Resampling.LANCZOS)
        files[Path(name).stem] = webp(image, quality=85)
    return files


def main(pictures: Path, environment: Path) -> None:
    """Write the atlas and say what it holds."""
    everything = read_concepts(pictures / "node_modules")
    known = things(everything)
    groups = group(known)
    more = extras(everything, known)
    leaders = [*sorted(set(groups.values())), *more]
    groups |= {short: short for short in more}
    concepts = known | more
    splits = [
        "extra" if short in more else "held-out" if held_out(groups[short]) else "base"
        for short in concepts
    ]
    members: dict[str, bytes] = {}
    sheets = {}
    for name, hand, drawn in SHEETS:
        tiles = {
            number: concept.pictures[hand]
            for number, (concept, split) in enumerate(zip(concepts.values(), splits, strict=True))
            if split in drawn and hand in concept.pictures
        }
        members[f"{name}.webp"], alpha = sheet(list(tiles.values()))
        sheets[name] = {"hand": hand, "concepts": list(tiles), "alpha_sha256": alpha}
    members |= {f"photographs/{name}.webp": data for name, data in photographs(environment).items()}
    index = {
        "side": SIDE,
        "columns": COLUMNS,
        "concepts": [
            {
                "name": concept.name,
                "group": leaders.index(groups[short]),
                "family": concept.family,
                "split": split,
            }
            for (short, concept), split in zip(concepts.items(), splits, strict=True)
        ],
        "photographs": {Path(name).stem: split for name, split in PHOTOGRAPHS.items()},
        "sheets": sheets,
    }
    members["index.json"] = json.dumps(index).encode()
    with zipfile.ZipFile(ATLAS, "w") as atlas:
        for name, data in sorted(members.items()):
            atlas.writestr(zipfile.ZipInfo(name), data)
    for name, data in sorted(members.items()):
        count = f": {len(sheets[Path(name).stem]['concepts'])}" if Path(name).stem in sheets else ""
        print(f"{len(data):9,} {name}{count}")
    counts = ", ".join(f"{count} {split}" for split, count in sorted(Counter(splits).items()))
    print(f"{ATLAS.stat().st_size:9,} {ATLAS.name}: {counts} concepts")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
