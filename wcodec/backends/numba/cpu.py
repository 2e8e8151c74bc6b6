"""What this machine's CPU is called. Needs no numba."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_name() -> str:
    """Name of the CPU as the system has it, or of its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
