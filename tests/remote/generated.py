"""Checkpoints of many gigabytes that are nowhere: files whose bytes are made when they are read,
and files that only count what is written.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from typing import Any, ClassVar

import fsspec
import numpy as np
from fsspec.spec import AbstractFileSystem

_WORDS = np.random.default_rng(0).standard_normal(1 << 21, dtype=np.float32) * np.float32(0.02)
NOISE = (_WORDS.view(np.uint32) >> 16).astype(np.uint16).tobytes()  #: bf16, 4 MiB


class Checkpoint:
    """A safetensors file of bf16 tensors: zeros, but for some that are Gaussian noise, repeated."""

    def __init__(self, n: int, nbytes: int, noisy: tuple[int, ...] = ()) -> None:
        self.n, self.nbytes, self.noisy = n, nbytes, noisy
        header = {
            f"layers.{i:03}.weight": {
                "dtype": "BF16", "shape": [nbytes // 8192, 4096],
                "data_offsets": [i * nbytes, (i + 1) * nbytes],
            } for i in range(n)
        }  # fmt: skip
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        self.head = struct.pack("<Q", len(raw)) + raw

    def __len__(self) -> int:
        return len(self.head) + self.n * self.nbytes

    def read(self, start: int, stop: int) -> bytes:
        """Some bytes."""
        pieces = [self.head[start:stop]]
        at = max(start, len(self.head)) - len(self.head)
        end = max(stop, len(self.head)) - len(self.head)
        while at < end:
            i = at // self.nbytes
            last = min(end, (i + 1) * self.nbytes)
            if i in self.noisy:
                last = min(last, at - at % len(NOISE) + len(NOISE))
                first = at % len(NOISE)
                pieces.append(NOISE[first : first + last - at])
            else:
                pieces.append(bytes(last - at))
            at = last
        return b"".join(pieces)

    def sha256(self) -> str:
        """Of the whole file."""
        found = hashlib.sha256()
        for at in range(0, len(self), 1 << 23):
            found.update(self.read(at, min(len(self), at + (1 << 23))))
        return found.hexdigest()


class Sink(io.RawIOBase):
    """Takes bytes, and keeps their number and SHA-256."""

    def __init__(self, name: str) -> None:
        self.name, self.nbytes, self.hash = name, 0, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        n = memoryview(data).nbytes
        self.nbytes += n
        self.hash.update(data)
        return n

    def close(self) -> None:
        if not self.closed:
            GeneratedFileSystem.written[self.name] = self.nbytes, self.hash.hexdigest()
        super().close()


class GeneratedFileSystem(AbstractFileSystem):
    """``gen://NAME`` are files that are made when they are read; ``gen://sink/NAME`` count."""

    protocol = "gen"
    cachable = False
    files: ClassVar[dict[str, Checkpoint]] = {}
    written: ClassVar[dict[str, tuple[int, str]]] = {}

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """What is known of a file."""
        name = self._strip_protocol(path)
        if name not in self.files:
            raise FileNotFoundError(path)
        return {"name": name, "size": len(self.files[name]), "type": "file", "ETag": name}

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        """Bytes of a file."""
        return self.files[self._strip_protocol(path)].read(start, end)

    def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        """A sink."""
        assert mode == "wb"
        return Sink(self._strip_protocol(path))

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        """Give a sink its name."""
        self.written[self._strip_protocol(path2)] = self.written.pop(self._strip_protocol(path1))


fsspec.register_implementation("gen", GeneratedFileSystem, clobber=True)
