"""The numba backend with its kernels on an emulated CPU of the architecture aarch64.

``backend.py`` compiles kernels and native functions for such a CPU when it is imported, and links
them with ``harness.c`` by Debian's ``gcc-aarch64-linux-gnu``. From then on ``qemu-aarch64`` of
``qemu-user`` runs them; all else stays on the CPU at hand. The environment names the CPU
(`environment`), before numba's modules are imported.

    python -m pytest -p aarch64_emulator.backend tests/backends/test_numba_transform.py
    python -m wcodec conformance --backend aarch64_emulator.backend:NumbaBackend
"""

from __future__ import annotations

import shutil

from kernels import CPUS

from wcodec.backends.numba import ir

COMPILER, SYMBOLS = "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-nm"
EMULATOR = "qemu-aarch64"
TARGETS = [name for name, target in ir.TARGETS.items() if target.variant == "neon"]


def environment(target: str) -> dict[str, str]:
    """What names one of `TARGETS`."""
    features = ",".join(f"+{f}" for f in sorted(ir.TARGETS[target].needs))
    return {"NUMBA_CPU_NAME": CPUS[target], "NUMBA_CPU_FEATURES": features}


def missing() -> str:
    """Commands that this machine lacks."""
    return ", ".join(name for name in (COMPILER, SYMBOLS, EMULATOR) if shutil.which(name) is None)
