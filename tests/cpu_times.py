"""Lists the tests that use the most CPU time: `pytest -p tests.cpu_times`.

CPU time says the same on a busy machine, and it includes the processes that a test starts and waits
for. A fixture counts for the first test that asks for it.
"""

import os
from collections import defaultdict

import pytest

SHOWN = 20
PROPERTY = "cpu_seconds"


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Note when each test begins."""
    item.cpu_mark = cpu_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Add what a phase used to its report, which xdist carries to the first process."""
    report = yield
    now = cpu_seconds()
    report.user_properties.append((PROPERTY, now - item.cpu_mark))
    item.cpu_mark = now
    return report


def pytest_terminal_summary(terminalreporter):
    """Print the listing, and the sum over every process of the run."""
    used = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == PROPERTY:
                    used[report.nodeid] += value
    terminalreporter.section(f"slowest {SHOWN}, in seconds of CPU time")
    for test in sorted(used, key=used.__getitem__, reverse=True)[:SHOWN]:
        terminalreporter.line(f"{used[test]:7.2f}  {test}")
    terminalreporter.line(f"{cpu_seconds() / 60:7.2f}  minutes in all")
