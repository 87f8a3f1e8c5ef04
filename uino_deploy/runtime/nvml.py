"""Queries to NVIDIA's management library through ctypes; None without the library.

Names and layouts are those of nvml.h, which NVIDIA keeps binary compatible.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

_LIBRARY = "libnvidia-ml.so.1"
_SUCCESS = 0
_NOT_AVAILABLE = 2**64 - 1
_CLOCK_SM, _CLOCK_MEMORY = 1, 2
_MOST_PROCESSES = 1024


class _ProcessInfo(ctypes.Structure):
    """nvmlProcessInfo_v2_t."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


@dataclass(frozen=True)
class Gpu:
    """One card: its name, and its current and maximum clocks in MHz."""

    name: str
    clocks: str


def gpus() -> list[Gpu]:
    """Return the cards of this machine; an empty list without the library."""
    return [Gpu(_name(device), _clocks(device)) for device in _devices()]


def total_joules() -> float | None:
    """Return the energy that all cards have used since their driver was loaded."""
    totals = []
    for device in _devices():
        millijoules = ctypes.c_ulonglong()
        if _call("nvmlDeviceGetTotalEnergyConsumption", device, ctypes.byref(millijoules)):
            totals.append(millijoules.value / 1000)
    return sum(totals) if totals else None


def process_bytes(process: int) -> int | None:
    """Return the memory that a process holds on all cards; None if no card reports it."""
    known = []
    for device in _devices():
        count = ctypes.c_uint(_MOST_PROCESSES)
        infos = (_ProcessInfo * _MOST_PROCESSES)()
        name = "nvmlDeviceGetComputeRunningProcesses_v2"
        if _call(name, device, ctypes.byref(count), infos):
            mine = [infos[i].used for i in range(count.value) if infos[i].pid == process]
            known += [used for used in mine if used != _NOT_AVAILABLE]
    return sum(known) if known else None


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    return library if library.nvmlInit_v2() == _SUCCESS else None


@cache
def _devices() -> tuple[ctypes.c_void_p, ...]:
    count = ctypes.c_uint()
    if not _call("nvmlDeviceGetCount_v2", ctypes.byref(count)):
        return ()
    devices = []
    for index in range(count.value):
        device = ctypes.c_void_p()
        if _call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device)):
            devices.append(device)
    return tuple(devices)


def _call(name: str, *arguments: object) -> bool:
    """Call a function; False if the library or the function is missing, or the call fails."""
    library = _library()
    function = getattr(library, name, None) if library is not None else None
    return function is not None and function(*arguments) == _SUCCESS


def _name(device: ctypes.c_void_p) -> str:
    text = ctypes.create_string_buffer(96)
    named = _call("nvmlDeviceGetName", device, text, ctypes.c_uint(len(text)))
    return text.value.decode(errors="replace") if named else "unknown GPU"


def _clocks(device: ctypes.c_void_p) -> str:
    """Return "SM now/most, memory now/most MHz", as far as the card reports them."""
    parts = []
    for title, kind in (("SM", _CLOCK_SM), ("memory", _CLOCK_MEMORY)):
        values = []
        for name in ("nvmlDeviceGetClockInfo", "nvmlDeviceGetMaxClockInfo"):
            value = ctypes.c_uint()
            read = _call(name, device, ctypes.c_int(kind), ctypes.byref(value))
            values.append(str(value.value) if read else "?")
        parts.append(f"{title} {'/'.join(values)} MHz")
    return ", ".join(parts)
