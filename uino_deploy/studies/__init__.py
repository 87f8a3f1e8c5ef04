"""Studies of the model: the ablation, and figures of its masks and of what its encoder sees."""
