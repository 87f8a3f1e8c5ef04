"""The README's picture, drawn from what `make demo` leaves.

python docs/images/make_example.py build/demo docs/images/example.png
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SUPPORT = "u0041"
QUERIES = ("059_u0041", "123_u0041", "208_u0041")
SIDE = 150
GAP = 10
HEADER = 22


def draw(demo: Path) -> Image.Image:
    """Return the picture: images above, masks below, the support in the first column.

    Args:
        demo: The folder that `uino-deploy demo -o` wrote.
    """
    shots = demo / "shots"
    columns = [("support", shots / f"{SUPPORT}.png", shots / f"{SUPPORT}_mask.png")]
    columns += [
        ("query", demo / "queries" / f"{name}.png", demo / "masks" / f"{name}.png")
        for name in QUERIES
    ]
    width = GAP + len(columns) * (SIDE + GAP) + GAP
    picture = Image.new("RGB", (width, 2 * (HEADER + SIDE) + GAP), "white")
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=14)
    for index, (title, image, mask) in enumerate(columns):
        left = GAP + index * (SIDE + GAP) + (GAP if index else 0)
        caption = "its mask, given" if index == 0 else "mask, predicted"
        for row, (text, file) in enumerate(((title, image), (caption, mask))):
            top = row * (HEADER + SIDE)
            pen.text((left, top + 3), text, fill="black", font=font)
            panel = Image.open(file).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            picture.paste(panel, (left, top + HEADER))
    # The drawings are noisy: in 128 colours the file is a third of its size in full colour.
    return picture.quantize(128, dither=Image.Dither.NONE)


if __name__ == "__main__":
    draw(Path(sys.argv[1])).save(sys.argv[2], optimize=True)
