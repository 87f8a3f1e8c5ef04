"""ScanEpilogue: what ends a scan: LayerNorm, gate, output projection and residual."""
