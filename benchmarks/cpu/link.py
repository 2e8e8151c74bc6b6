"""A link of a stated bandwidth and latency, as a file system of ``fsspec``: its files are maps of
local ones. All requests share the bandwidth; each waits for the latency besides.
"""

from __future__ import annotations

import mmap
import threading
import time
from typing import Any, ClassVar

import fsspec
from fsspec.spec import AbstractFileSystem


class LinkFileSystem(AbstractFileSystem):
    """Files behind a link, ``link://NAME``."""

    protocol = "link"
    cachable = False
    files: ClassVar[dict[str, mmap.mmap | bytes]] = {}
    bytes_per_s: ClassVar[float] = 1e9
    latency_s: ClassVar[float] = 0.03
    requests: ClassVar[list[int]] = []
    _free_at: ClassVar[float] = 0.0
    _lock: ClassVar[Any] = threading.Lock()

    @classmethod
    def serve(cls, name: str, path: Any) -> str:
        """Put a local file behind the link. Returns its URL."""
        with open(path, "rb") as f:
            cls.files[name] = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        return f"link://{name}"

    @classmethod
    def be(cls, bytes_per_s: float, latency_s: float) -> None:
        """Have a link of such a kind from now on."""
        cls.bytes_per_s, cls.latency_s = bytes_per_s, latency_s
        cls._free_at = 0.0
        cls.requests.clear()

    @classmethod
    def _pass(cls, nbytes: int) -> None:
        """Wait until so many bytes have come."""
        now = time.monotonic()
        with cls._lock:
            cls._free_at = max(now + cls.latency_s, cls._free_at) + nbytes / cls.bytes_per_s
            due = cls._free_at
            cls.requests.append(nbytes)
        time.sleep(max(0.0, due - time.monotonic()))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """What is known of a file: a request."""
        name = self._strip_protocol(path)
        if name not in self.files:
            raise FileNotFoundError(path)
        self._pass(0)
        return {"name": name, "size": len(self.files[name]), "type": "file", "ETag": name}

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        """Bytes of a file: a request."""
        data = bytes(self.files[self._strip_protocol(path)][start:end])
        self._pass(len(data))
        return data


fsspec.register_implementation("link", LinkFileSystem, clobber=True)
