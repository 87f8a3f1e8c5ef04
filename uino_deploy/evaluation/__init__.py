"""Judge checkpoints and bundles on episodes; compare two runs on the same ones."""
