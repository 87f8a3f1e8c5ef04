"""SelectiveScan2d: the four-direction selective scan, and its one-dimensional form."""
