"""The CUDA backend on the emulator: ``--backend cuda_emulator.backend:EmulatedCuda``, with this
folder's parent on the path.
"""

from __future__ import annotations

import os

from wcodec.backends.cuda.backend import CudaBackend
from wcodec.backends.cuda.runtime import Runtime

from .streams import LazyRuntime


class EmulatedCuda(CudaBackend):
    """`CudaBackend` on emulated devices.

    The environment variable ``WCODEC_EMULATOR`` says how kernels run, as words: ``sanitize``,
    ``races`` or ``coverage``, and ``reverse`` or ``shuffled`` with a seed, such as
    ``"sanitize shuffled 3"``.
    """

    name = "cuda-emulated"

    def _runtime(self, device: int | None) -> Runtime:
        words = os.environ.get("WCODEC_EMULATOR", "").split()
        order = next((w for w in words if w in ("forward", "reverse", "shuffled")), "forward")
        seed = next((int(w) for w in words if w.isdecimal()), 0)
        return LazyRuntime(
            device or 0,
            sanitize="sanitize" in words,
            races="races" in words,
            coverage="coverage" in words,
            order=order,
            seed=seed,
        )
