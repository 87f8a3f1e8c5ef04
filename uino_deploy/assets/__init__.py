"""Data shipped with the package: the trained demo checkpoint."""
