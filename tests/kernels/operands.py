"""Random operands of the scan, as the model's own are distributed."""

import torch


def scan_operands(shape, dtype, generator, bias=-3, decay=-4):
    """Return the six inputs of SelectiveScan2d in the operator's order.

    Args:
        shape: sequences, height, width, channels, rank and states.
        dtype: the type of x and packed; the parameters are float32.
        generator: where the numbers come from.
        bias: added to dt_bias: the smaller, the shorter the steps.
        decay: the fastest decay of a state.
    """
    sequences, height, width, channels, rank, states = shape
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    plane = (sequences, height, width)
    used = rank + 2 * states
    own = [draw(*plane, channels), draw(*plane, 4, used + -used % 8)]
    parameters = [draw(4, channels, rank), draw(4, channels) + bias]
    parameters += [decay * torch.rand(4, channels, states, generator=generator), draw(4, channels)]
    return [t.to(dtype) for t in own] + parameters
