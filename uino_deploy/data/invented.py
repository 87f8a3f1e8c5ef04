"""Invented characters: classes of a few smooth pen strokes, drawn differently each time.

A few hundred printed glyphs are too few classes for an encoder to learn what tells any two shapes
apart, and their fonts vary less than handwriting does. A class here is a list of strokes, each a
curve through a few points; every drawing moves the points and changes the pen.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from uino_deploy.data.glyphs import fit_sprite

_CANVAS = 96
_STROKES = (0.5, 0.4, 0.1)  # how often a character has one stroke, two, three
_POINTS = (2, 4)  # points that a stroke's curve goes through, both included
_NARROW = 0.5  # least width of a character's box, of its height
_APART = 0.3  # least distance of a stroke's successive points, of the character's side
_JITTER = 0.06  # standard deviation by which a drawing moves a point
_PEN = (0.07, 0.22)  # width of the pen
_STEPS = 8  # straight pieces between two points of a curve

_Stroke = NDArray[np.float64]


@cache
def invented_character(number: int) -> tuple[_Stroke, ...]:
    """Return a class: its strokes' points [P, 2] in the unit square; the same for one number."""
    rng = np.random.default_rng([number, 7])
    count = int(rng.choice(len(_STROKES), p=_STROKES)) + 1
    box = np.array([rng.uniform(_NARROW, 1), 1.0])
    return tuple(box * _stroke(rng, long=count == 1) for _ in range(count))


def draw_invented(number: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one example of a class, with its own points and pen.

    Returns:
        Coverage [SPRITE_SIZE, SPRITE_SIZE], as `fit_sprite` makes it.
    """
    strokes = invented_character(number)
    pen = max(2, round(_CANVAS * rng.uniform(*_PEN)))
    canvas = Image.new("L", (2 * _CANVAS, 2 * _CANVAS))
    draw = ImageDraw.Draw(canvas)
    for points in strokes:
        moved = points + _JITTER * rng.standard_normal(points.shape)
        line = [(x, y) for x, y in (_curve(moved) + 0.5) * _CANVAS]
        draw.line(line, fill=255, width=pen, joint="curve")
        for x, y in (line[0], line[-1]):
            draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=255)
    return fit_sprite(canvas)


def _stroke(rng: np.random.Generator, long: bool) -> _Stroke:
    """Draw points at random, each well away from the one before; a lone stroke has more."""
    low, high = (_POINTS[0] + 1, _POINTS[1] + 2) if long else _POINTS
    points = [rng.uniform(size=2)]
    wanted = int(rng.integers(low, high, endpoint=True))
    while len(points) < wanted:
        point = rng.uniform(size=2)
        if np.hypot(*(point - points[-1])) >= _APART:
            points.append(point)
    if len(points) > 3 and rng.uniform() < 0.25:
        points.append(points[0])  # a loop
    return np.array(points)


def _curve(points: _Stroke) -> _Stroke:
    """Return the Catmull-Rom spline through points [P, 2] as [(P - 1) * _STEPS + 1, 2]."""
    if len(points) == 2:
        return points
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    before, start, end, after = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    t = (np.arange(_STEPS) / _STEPS)[:, None]
    curve = 0.5 * (
        2 * start
        + (end - before) * t
        + (2 * before - 5 * start + 4 * end - after) * t**2
        + (3 * start - before - 3 * end + after) * t**3
    )
    return np.concatenate([curve.reshape(-1, 2), points[-1:]])
