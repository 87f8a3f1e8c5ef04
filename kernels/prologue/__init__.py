"""ScanPrologue: what feeds a scan: a depthwise convolution, SiLU and the packed projection."""
