"""The gate on a device: an error that is far from its forecast. It needs no onnx.

A forecast says how far the logits of a bundle in half types are from float32. A machine that is
much further off, or much nearer, does not compute what the graph says: it miscompiles, or it
computes in another type.
"""

from __future__ import annotations

from uino_deploy.tolerances import FORECAST_FACTOR


def departs(measured: float, forecast: float) -> str:
    """Return what is suspicious about an error that was forecast; "" if nothing is.

    Args:
        measured: relative L2 error of the logits on the machine; not finite if they are not.
        forecast: that of the forecast, on the same example; 0 if nothing is in a half type, and
            float32's own tolerance judges.
    """
    if not forecast:
        return ""
    if measured <= FORECAST_FACTOR * forecast and FORECAST_FACTOR * measured >= forecast:
        return ""
    how = "more" if not measured <= forecast else "less"
    why = "a miscompile" if how == "more" else "another type than the graph's"
    return (
        f"the logits differ by {measured:.1e} relative L2, {how} than {FORECAST_FACTOR:g} times "
        f"off the forecast {forecast:.1e}: suspect {why}"
    )
