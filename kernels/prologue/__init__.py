"""ScanPrologue: LayerNorm, input projection, depthwise convolution, SiLU, packed projection."""
