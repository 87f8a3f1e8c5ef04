"""Forecasts of precision: the error that rounding each node of a bundle brings to its masks."""
