"""Machine code of the kernels, compiled when it is needed and kept on disk: the same that audits and tests look at.

CuPy's own compiler adds options behind ours: ``-ftz=true``, by which products lose subnormal numbers, among them.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from wcodec.backends.cuda.compiler import OPTIONS, compile_cubin, load_nvrtc
from wcodec.backends.cuda.runtime import read_source
from wcodec.errors import BackendUnavailable, EncodeError
from wcodec.outputs import atomic_output

_DIGEST_NBYTES: Final = 32  #: of SHA-256, before the code in a file
_log = logging.getLogger("wcodec")
_compile_log = logging.getLogger("wcodec.compile")


def cache_folder() -> Path:
    """Where machine code is kept: ``wcodec/cuda`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wcodec" / "cuda"


def architecture_for(capability: int) -> int:
    """The architecture to compile for: the device's, or the newest one before it whose code it runs.

    Parameters
    ----------
    capability
        Compute capability of the device without the point: 90.

    Raises
    ------
    BackendUnavailable
        The device is newer than NVRTC.
    """
    known: tuple[int, ...] = load_nvrtc().getSupportedArchs()
    fitting = [arch for arch in known if arch <= capability and arch // 10 == capability // 10]
    if not fitting:
        raise BackendUnavailable(f"NVRTC compiles for compute capabilities {', '.join(map(str, known))}, and this GPU has {capability}")
    return max(fitting)


def cubin_of(source: str, arch: int) -> bytes:
    """Machine code of a source for an architecture, from disk if it is there.

    A file that is damaged is written anew. Where none can be written, the code is compiled each time, and that is said once.

    Raises
    ------
    BackendUnavailable
        NVRTC does not take it, with its log.
    """
    text = read_source(source)
    key = hashlib.sha256(repr((text, OPTIONS, arch, load_nvrtc().getVersion())).encode()).hexdigest()
    path = cache_folder() / f"{source}-sm_{arch}-{key[:32]}.cubin"
    try:
        kept = path.read_bytes()
    except OSError:
        kept = b""
    digest, code = kept[:_DIGEST_NBYTES], kept[_DIGEST_NBYTES:]
    if code and hashlib.sha256(code).digest() == digest:
        return code
    _compile_log.info("cuda: compiling %s for sm_%d; the machine code is kept for later runs", source, arch)
    code = compile_cubin(text, arch)
    _keep(path, hashlib.sha256(code).digest() + code)
    return code


def compile_all(sources: Iterable[str], arch: int, n_threads: int | None = None) -> None:
    """Compile what is not there yet, in threads: NVRTC lets go of the GIL."""
    with ThreadPoolExecutor(n_threads or len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda source: cubin_of(source, arch), sources))


_warned = False


def _keep(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    global _warned
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic_output(path, overwrite=True) as f:
            f.write(data)
    except (OSError, EncodeError) as e:  # the latter: something else than a file stands there
        if not _warned:
            _log.warning("machine code of CUDA kernels is not kept, and compiled in each process: %s: %s", path.parent, e)
        _warned = True
