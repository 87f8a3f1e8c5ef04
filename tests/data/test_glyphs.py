"""The glyph classes: split, distinctness, fonts, sprites."""

import unicodedata

import numpy as np
import pytest

from uino_deploy.data import glyphs
from uino_deploy.errors import InputError

BASE, HELD_OUT = glyphs.base_and_held_out()


def test_there_are_240_base_and_80_held_out_classes_and_none_is_both():
    assert (len(set(BASE)), len(set(HELD_OUT))) == (240, 80)
    assert not set(BASE) & set(HELD_OUT)


def test_no_class_is_a_digit():
    assert not [c for c in BASE + HELD_OUT if unicodedata.category(c).startswith("N")]


def test_the_split_is_the_one_the_committed_checkpoint_was_trained_with():
    assert HELD_OUT[:12] == "AIOZb\u0127\u014a\u0184\u018a\u0191\u0192\u0196"


def test_no_two_classes_look_alike_in_bold():
    drawn = np.stack([glyphs.glyph_sprite(c, "DejaVuSans-Bold", 0) > 127 for c in BASE + HELD_OUT])
    flat = drawn.reshape(len(drawn), -1).astype(np.float32)
    both, area = flat @ flat.T, flat.sum(axis=1)
    iou = both / (area[:, None] + area - both)
    np.fill_diagonal(iou, 0)
    assert 0.5 < iou.max() < 0.72


def test_every_class_is_drawn_by_at_least_the_twelve_dejavu_fonts():
    assert {len(glyphs.fonts_with(c)) for c in BASE + HELD_OUT} <= {*range(12, 17)}
    assert len(glyphs.FONTS) == len(set(glyphs.FONTS)) == 16


def test_a_sprites_ink_fills_the_longer_side_and_is_centred():
    sprite = glyphs.glyph_sprite("I", "DejaVuSans", 2)
    rows, columns = np.nonzero(sprite)
    assert sprite.shape == (glyphs.SPRITE_SIZE, glyphs.SPRITE_SIZE)
    assert (rows.min(), rows.max()) == (0, glyphs.SPRITE_SIZE - 1)
    assert abs(columns.min() - (glyphs.SPRITE_SIZE - 1 - columns.max())) <= 1


def test_a_wider_stroke_makes_thicker_ink():
    thin, thick = (glyphs.glyph_sprite("W", "DejaVuSans", stroke) for stroke in glyphs.STROKES)
    assert thick.sum(dtype=int) > 1.05 * thin.sum(dtype=int)


def test_a_matplotlib_without_the_font_is_named():
    with pytest.raises(InputError, match=r"ships no font Nonesuch\.ttf"):
        glyphs.font_path("Nonesuch")
