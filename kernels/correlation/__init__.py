"""Correlation4d: the weighted, pooled 4D correlation of query and support tokens."""
