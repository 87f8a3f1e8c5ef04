"""Memory, energy and the machine's description, read from files laid out like the kernel's."""

import os
from pathlib import Path

import pytest

from uino_deploy.benchmarks import energy, machine
from uino_deploy.benchmarks.resources import OthersCpu, resident_bytes
from uino_deploy.runtime import nvml


def test_this_process_has_a_resident_set():
    steady, peak = resident_bytes()
    assert steady is not None
    assert peak is not None
    assert 1_000_000 < steady <= peak


def test_memory_is_null_where_it_cannot_be_read(tmp_path):
    assert resident_bytes(tmp_path) == (None, None)


def proc(root: Path, busy: int, idle: int, ours: int) -> None:
    (root / "7").mkdir(exist_ok=True, parents=True)
    (root / str(os.getpid())).mkdir(exist_ok=True)
    (root / "stat").write_text(f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2 3\n")
    fields = " ".join(["S", *["0"] * 10, str(ours), "0", "0"])
    (root / "7" / "stat").write_text(f"7 (a name) with) {fields}\n")
    (root / str(os.getpid()) / "stat").write_text(f"8 (x) {fields.replace(str(ours), '0')}\n")


def test_what_others_use_is_what_is_not_ours(tmp_path):
    meter = OthersCpu(tmp_path)
    assert meter.share is None
    proc(tmp_path, busy=1000, idle=1000, ours=100)
    meter.start([7])
    proc(tmp_path, busy=1150, idle=1050, ours=200)
    meter.stop([7])
    assert meter.share == pytest.approx(50 / 200)


def rail(root: Path, label: str = "VDD_IN") -> Path:
    folder = root / "hwmon3"
    folder.mkdir(parents=True)
    (folder / "in1_label").write_text(f"{label}\n")
    (folder / "in1_input").write_text("5000\n")
    (folder / "curr1_input").write_text("2000\n")
    return folder


def test_a_jetsons_rail_is_integrated(tmp_path, monkeypatch):
    monkeypatch.setattr(nvml, "total_joules", lambda: None)
    rail(tmp_path)
    found = energy.find_rail(tmp_path)
    assert found is not None
    assert energy.read_watts(found) == pytest.approx(10.0)
    now = [0.0]
    monkeypatch.setattr(energy.time, "perf_counter", lambda: now[0])
    meter = energy.EnergyMeter(tmp_path)
    meter.start()
    now[0] = 3.0
    assert meter.stop() == pytest.approx(30.0)


def test_other_rails_are_not_the_whole_module(tmp_path):
    rail(tmp_path, "VDD_CPU_GPU_CV")
    assert energy.find_rail(tmp_path) is None


def test_a_gpus_counter_wins(monkeypatch, tmp_path):
    joules = iter([100.0, 142.0])
    monkeypatch.setattr(nvml, "total_joules", lambda: next(joules))
    meter = energy.EnergyMeter(tmp_path)
    meter.start()
    assert meter.stop() == pytest.approx(42.0)


def test_energy_is_null_where_nothing_measures_it(monkeypatch, tmp_path):
    monkeypatch.setattr(nvml, "total_joules", lambda: None)
    meter = energy.EnergyMeter(tmp_path)
    meter.start()
    assert meter.stop() is None


def test_without_the_library_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(nvml, "_library", lambda: None)
    nvml._devices.cache_clear()
    try:
        assert nvml.gpus() == []
        assert nvml.total_joules() is None
        assert nvml.process_bytes(1) is None
    finally:
        nvml._devices.cache_clear()


def test_the_machine_is_described_without_naming_its_owner(tmp_path):
    files = {
        "proc/cpuinfo": "processor: 0\nCPU implementer : 0x41\nCPU part : 0xd42\n",
        "proc/meminfo": "MemTotal: 64000 kB\n",
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin\0",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "2201600\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = machine.describe_machine(tmp_path)
    assert found.processor == "CPU implementer 0x41 CPU part 0xd42"
    assert found.board == "NVIDIA Jetson AGX Orin"
    assert (found.governor, found.clock_limit_mhz) == ("schedutil", 2201.6)
    assert found.memory == 64_000 * 1024


def test_unknown_facts_are_null(tmp_path):
    found = machine.describe_machine(tmp_path)
    assert (found.board, found.governor, found.memory) == (None, None, None)


def test_the_commit_is_null_outside_a_checkout(tmp_path):
    assert machine.commit(tmp_path) is None
