"""Machine code that is kept on disk, for later runs.

Files may be damaged: each begins with a checksum of the rest. Those of other users, but for root,
are not run. Where none can be written, code is compiled in each process, and that is said once.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

_DIGEST_NBYTES: Final = 32  #: of SHA-256, before the code in a file
_log = logging.getLogger("wcodec")
#: folders that were complained of, for damage or for what the system says
_warned: Final = set[tuple[Path, bool]]()
_UNFINISHED: Final = "unfinished-"


class CacheState(NamedTuple):
    """What is known of the machine code on disk.

    Attributes
    ----------
    folder
        Where it is.
    nbytes
        Of all code there, that for other CPUs and of other versions too.
    n_functions
        Pieces of code there that can be used now.
    is_writeable
        Whether more can be kept.
    """

    folder: str
    nbytes: int
    n_functions: int
    is_writeable: bool

    @property
    def is_warm(self) -> bool:
        """Whether any code is there that can be used now."""
        return self.n_functions > 0


class CodeCache:
    """A folder of machine code.

    Parameters
    ----------
    folder
        It is made when something is kept.
    what
        What is kept there, in words.
    """

    def __init__(self, folder: Path, what: str) -> None:
        self.folder, self._what = folder, what

    def load(self, name: str, key: object) -> bytes | None:
        """The code that was kept under a name and a key; none if it is not there, or damaged."""
        path = self._path(name, key)
        try:
            with open(path, "rb") as f:
                if os.fstat(f.fileno()).st_uid not in (0, os.geteuid()):
                    raise PermissionError(f"{path.name} is another user's")
                kept = f.read()
        except FileNotFoundError:
            return None
        except OSError as e:
            self._warn("cannot be used", e)
            return None
        digest, code = kept[:_DIGEST_NBYTES], kept[_DIGEST_NBYTES:]
        if code and hashlib.sha256(code).digest() == digest:
            return code
        self._warn("is damaged, and made anew", path.name)
        return None

    def keep(self, name: str, key: object, code: bytes) -> None:
        """Write a file whole or not at all."""
        path = self._path(name, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f"{_UNFINISHED}{os.getpid()}-{secrets.token_hex(8)}")
            try:
                with open(unfinished, "xb") as f:
                    f.write(hashlib.sha256(code).digest() + code)
                os.replace(unfinished, path)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
        except OSError as e:
            self._warn("is not kept, and compiled in each process", e)

    def state(self, key: object) -> CacheState:
        """What is there, and of that under a key. Tries whether a file can be made."""
        nbytes = n_functions = 0
        for path in self.folder.glob("*-*"):
            if path.name.startswith(_UNFINISHED):
                continue
            with contextlib.suppress(FileNotFoundError):  # another process may be writing
                nbytes += path.stat().st_size
                n_functions += path.name.endswith(_suffix(key))
        return CacheState(str(self.folder), nbytes, n_functions, self._is_writeable())

    def _is_writeable(self) -> bool:
        """Permissions alone do not say: a disk can be read-only."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                return True
        except OSError:
            return False

    def _path(self, name: str, key: object) -> Path:
        return self.folder / f"{name}{_suffix(key)}"

    def _warn(self, what: str, why: object) -> None:
        about = self.folder, isinstance(why, OSError)
        if about not in _warned:
            _log.warning("%s %s: %s: %s", self._what, what, self.folder, why)
        _warned.add(about)


def _suffix(key: object) -> str:
    return f"-{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}"


def cache_folder(name: str) -> Path:
    """``wcodec/<name>`` in ``$XDG_CACHE_HOME`` or ``~/.cache``; of a user without a home in the
    folder for temporary files.
    """
    try:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        parent = Path(tempfile.gettempdir()) / f"cache-{os.geteuid()}"
    return parent / "wcodec" / name
