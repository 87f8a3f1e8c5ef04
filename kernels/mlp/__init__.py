"""NormMlp: a residual pointwise MLP behind a LayerNorm."""
