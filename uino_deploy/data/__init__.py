"""Procedural episodes: scenes of glyphs and of handwritten digits, drawn without any download."""
