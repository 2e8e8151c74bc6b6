"""The folder in which compiled code is kept: numba's own cache, today."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Final, NamedTuple

from wcodec.backends.numba.compiling import STAMP
from wcodec.backends.numba.differences import xor_range

SETTING: Final = "NUMBA_CACHE_DIR"  #: the environment variable that names another folder


class CacheState(NamedTuple):
    """What is known of the compiled code on disk.

    Attributes
    ----------
    folder
        Where it is; ``None`` if no folder was found that can be written.
    nbytes
        Of all files of compiled code there, those of earlier versions too.
    n_functions
        Functions whose compiled code was made from these sources.
    is_writeable
        Whether more can be kept now.
    setting
        The environment variable that names another folder.
    refused
        The folder that this variable names, if none could be made there and so it is not used.
    """

    folder: str | None
    nbytes: int
    n_functions: int
    is_writeable: bool
    setting: str
    refused: str | None

    @property
    def is_warm(self) -> bool:
        """Whether any code is there that this version can use."""
        return self.n_functions > 0


def cache_state() -> CacheState:
    """Look at the folder that all of the backend's code is kept in."""
    kernel: Any = xor_range  # all are kept in one place
    found: str | None = kernel.stats.cache_path
    wanted = os.environ.get(SETTING)
    if wanted and found is not None and Path(wanted).absolute() in Path(found).absolute().parents:
        wanted = None
    if found is None:
        return CacheState(None, 0, 0, False, SETTING, wanted)
    files = [p for p in Path(found).glob("*.nb[ci]") if p.is_file()]
    return CacheState(
        found,
        sum(p.stat().st_size for p in files),
        sum(f"-{STAMP}-" in p.name and p.suffix == ".nbi" for p in files),
        _is_writeable(found),
        SETTING,
        wanted or None,
    )


def _is_writeable(folder: str) -> bool:
    """Whether a file can be made there: permissions alone do not say, as on a read-only disk."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
