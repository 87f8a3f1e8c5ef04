"""ScanEpilogue: LayerNorm, gate, output projection and residual, after a scan."""
