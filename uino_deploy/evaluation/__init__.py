"""Judge checkpoints and bundles on a data set's episodes; compare two runs on the same ones."""
