"""Builds the atlas of things: `uino_deploy/data/things.zip`, always the same bytes.

    npm install --prefix build/pictures emoji-datasource-google@16.0.0 \
        emoji-datasource-twitter@16.0.0 @lobehub/fluent-emoji-3d@1.1.0
    python -m venv build/photographs
    build/photographs/bin/pip install --no-deps scikit-image==0.26.0 scikit-learn==1.9.1
    python tools/make_things.py build/pictures build/photographs

What it takes, and under which licences, is told in `uino_deploy/data/things_notice.txt`.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64  # of a tile; the size at which the packages ship Noto's and Twemoji's pictures
COLUMNS = 28
PHOTOGRAPH = 512  # longer side of a photograph, at most
TOOLS = Path(__file__).resolve().parent
ATLAS = TOOLS.parent / "uino_deploy" / "data" / "things.zip"

# Categories of people, faces, hands, symbols and flags.
LEFT_OUT = {"Smileys & Emotion", "People & Body", "Component", "Symbols", "Flags"}

# Short names of what is no thing either: views and symbols, things with human faces, and most of
# the clocks and moons, which differ by a hand or a shadow.
NO_THING = set((TOOLS / "no_things.txt").read_text().split())

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


def read_things(packages: Path) -> dict[str, tuple[str, list[Image.Image]]]:
    """Return the things of all three packages: short name -> (name, its three pictures)."""
    google, twitter = (packages / f"emoji-datasource-{name}" for name in ("google", "twitter"))
    fluent = packages / "@lobehub" / "fluent-emoji-3d" / "assets"
    drawn = {each["unified"]: each for each in json.loads((twitter / "emoji.json").read_text())}
    things: dict[str, tuple[str, list[Image.Image]]] = {}
    for each in json.loads((google / "emoji.json").read_text()):
        if each["category"] in LEFT_OUT or each["short_name"] in NO_THING:
            continue
        codes = (each["unified"], each["non_qualified"] or each["unified"])
        files = [fluent / f"{code.lower().lstrip('0')}.webp" for code in codes]
        render = next((file for file in files if file.exists()), None)
        twin = drawn.get(each["unified"], {"has_img_twitter": False})
        if not (each["has_img_google"] and twin["has_img_twitter"] and render):
            continue
        pictures = [
            Image.open(google / "img" / "google" / "64" / each["image"]).convert("RGBA"),
            Image.open(twitter / "img" / "twitter" / "64" / twin["image"]).convert("RGBA"),
            Image.open(render).convert("RGBA").resize((SIDE, SIDE), Image.Resampling.BOX),
        ]
        if max(_filled(picture) for picture in pictures) <= FULL:
            things[each["short_name"]] = (each["name"].lower(), pictures)
    return dict(sorted(things.items()))


def _filled(picture: Image.Image) -> float:
    return float((np.asarray(picture)[..., 3] > 127).mean())


def group(things: dict[str, tuple[str, list[Image.Image]]]) -> dict[str, str]:
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
    for hand in range(3):
        small = np.array([_thumbnail(things[name][1][hand]) for name in names])
        square = (small**2).mean(axis=1)
        distance = square[:, None] + square - 2 * small @ small.T / small.shape[1]
        for one, other in zip(*np.nonzero(distance < CLOSE**2), strict=True):
            join(names[one], names[other])
    return {name: root(name) for name in names}


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
    things = read_things(pictures / "node_modules")
    groups = group(things)
    leaders = sorted(set(groups.values()))
    members: dict[str, bytes] = {}
    sums = {}
    for number, hand in enumerate(("noto", "twemoji", "fluent")):
        members[f"{hand}.webp"], sums[hand] = sheet([p[number] for _, p in things.values()])
    members |= {f"photographs/{name}.webp": data for name, data in photographs(environment).items()}
    index = {
        "side": SIDE,
        "columns": COLUMNS,
        "concepts": [
            {
                "name": name,
                "group": leaders.index(groups[short]),
                "split": "held-out" if held_out(groups[short]) else "base",
            }
            for short, (name, _) in things.items()
        ],
        "photographs": {Path(name).stem: split for name, split in PHOTOGRAPHS.items()},
        "alpha_sha256": sums,
    }
    members["index.json"] = json.dumps(index, indent=1).encode()
    with zipfile.ZipFile(ATLAS, "w", zipfile.ZIP_DEFLATED) as atlas:
        for name, data in sorted(members.items()):
            atlas.writestr(zipfile.ZipInfo(name), data)
    for name, data in sorted(members.items()):
        print(f"{len(data):9,} {name}")
    splits = [concept["split"] for concept in index["concepts"]]
    print(f"{ATLAS.stat().st_size:9,} {ATLAS.name}: {splits.count('base')} base and "
          f"{splits.count('held-out')} held-out concepts in {len(leaders)} groups")  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
