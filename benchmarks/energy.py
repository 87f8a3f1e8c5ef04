"""Energy used over a span of time, from an NVIDIA GPU's counter or a Jetson's INA sensors.

NVML's counter and the Jetson's rails measure the whole device, including other processes.
"""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from pathlib import Path

from uino_deploy.runtime import nvml

HWMON = Path("/sys/class/hwmon")
_INTERVAL = 0.05

# The rail that feeds the whole module, as JetPack labels it on its boards.
_INPUT_RAILS = ("VDD_IN", "VIN_SYS_5V0", "VIN", "POM_5V_IN")


class EnergyMeter:
    """A meter of the joules used between `start` and `stop`."""

    def __init__(self, hwmon: Path = HWMON) -> None:
        self._rail = find_rail(hwmon)
        self._begun: float | None = None
        self._sampler: _Sampler | None = None

    def start(self) -> None:
        """Begin a span."""
        self._begun = nvml.total_joules()
        if self._begun is None and self._rail is not None:
            self._sampler = _Sampler(self._rail)

    def stop(self) -> float | None:
        """End the span; return its joules, or None if nothing measures them."""
        if self._begun is not None:
            now = nvml.total_joules()
            return None if now is None else now - self._begun
        if self._sampler is not None:
            joules = self._sampler.stop()
            self._sampler = None
            return joules
        return None


def find_rail(hwmon: Path = HWMON) -> tuple[Path, Path] | None:
    """Return the files of a Jetson's input rail: millivolts and milliamperes."""
    for label in sorted(hwmon.glob("hwmon*/in*_label")):
        try:
            name = label.read_text().strip()
        except OSError:
            continue
        number = label.name.removeprefix("in").removesuffix("_label")
        files = label.parent / f"in{number}_input", label.parent / f"curr{number}_input"
        if name in _INPUT_RAILS and all(file.is_file() for file in files):
            return files
    return None


def read_watts(rail: tuple[Path, Path]) -> float:
    """Return a rail's present power in watts."""
    millivolts, milliamperes = (float(file.read_text()) for file in rail)
    return millivolts * milliamperes / 1e6


class _Sampler:
    """A thread that integrates a rail's power by the trapezoidal rule."""

    def __init__(self, rail: tuple[Path, Path]) -> None:
        self._rail = rail
        self._points = [(time.perf_counter(), read_watts(rail))]
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> float | None:
        """Take the last sample; return the joules, or None if the rail could not be read."""
        self._finished.set()
        self._thread.join()
        try:
            self._points.append((time.perf_counter(), read_watts(self._rail)))
        except (OSError, ValueError):
            return None
        pairs = pairwise(self._points)
        return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in pairs)

    def _sample(self) -> None:
        while not self._finished.wait(_INTERVAL):
            try:
                self._points.append((time.perf_counter(), read_watts(self._rail)))
            except (OSError, ValueError):
                return
