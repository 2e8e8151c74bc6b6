"""Many threads that read one open file at once, by every way there is to read it.

``python tests/faults/readers.py --minutes 10`` does so for a while (``make soak``).
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import wcodec
import wcodec.torch
from wcodec.backends import use_backend
from wcodec.torch.dtypes import to_array

N_THREADS = 16


def make_file(folder: Path) -> tuple[Path, dict[str, np.ndarray[Any, Any]]]:
    """A file with tensors of one and of many segments, small ones, twins, contexts and differences
    from a base; and these.
    """
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "large": rng.standard_normal((300, 500)).astype(np.float32),
        "bytes": rng.integers(0, 9, (400, 300), dtype=np.uint8),
        "ragged": rng.standard_normal((3, 67, 131)).astype(np.float16),
        "raw": rng.integers(0, 256, 50_000, dtype=np.uint8),
        **{f"small.{i}": rng.standard_normal((5, i)).astype(np.float32) for i in range(20)},
        "scalar": np.array(1.5),
    }
    arrays["twin"] = arrays["large"]
    base = dict(arrays)
    for name in ("large", "bytes"):
        arrays[name] = arrays[name].copy()
        arrays[name][::7] += 1
    wcodec.save_file(base, folder / "base.wcodec", {"of": "base"})
    wcodec.save_file(arrays, folder / "x.wcodec", {"of": "x"}, base=folder / "base.wcodec")
    return folder / "x.wcodec", arrays


class Readers:
    """An open file and what is in it; each method reads in one way, and compares."""

    def __init__(self, path: Path, arrays: dict[str, np.ndarray[Any, Any]], plain: bytes) -> None:
        self.arrays, self.plain = arrays, plain
        self.file, self.tensors = wcodec.open(path), wcodec.torch.safe_open(path)
        self.ways: list[Callable[[random.Random], None]] = [
            getattr(self, name) for name in dir(type(self)) if name.startswith("by_")
        ]

    def name(self, rng: random.Random) -> str:
        """One of the tensors; more often a large one."""
        return rng.choice([*self.arrays, *["large", "bytes", "ragged", "twin", "raw"] * 5])

    def same(self, name: str, array: Any, part: Any = ...) -> None:
        """Compare what was read of a tensor."""
        due = self.arrays[name][part]
        if array.shape != due.shape or array.tobytes() != due.tobytes():
            raise AssertionError(f"other bytes of {name!r}[{part}]")

    def part(self, rng: random.Random, name: str) -> Any:
        """Slices of a tensor."""
        return tuple(
            slice(start, rng.randrange(start, n) + 1)
            for n in self.arrays[name].shape
            for start in [rng.randrange(n)]
        )

    def by_tensor(self, rng: random.Random) -> None:
        name = self.name(rng)
        self.same(name, self.file.get_tensor(name))

    def by_slice(self, rng: random.Random) -> None:
        name = rng.choice(["large", "bytes", "ragged", "twin", "raw"])
        part = self.part(rng, name)
        self.same(name, self.file.get_slice(name)[part], part)

    def by_restored(self, rng: random.Random) -> None:
        if b"".join(bytes(piece) for piece in self.file.restored()) != self.plain:
            raise AssertionError("another file was restored")

    def by_chunks(self, rng: random.Random) -> None:
        name = self.name(rng)
        pieces = [chunk.tobytes() for chunk in self.file.chunks(self.file.record(name))]
        if b"".join(pieces) != self.arrays[name].tobytes():
            raise AssertionError(f"other chunks of {name!r}")

    def by_extract(self, rng: random.Random) -> None:
        name = self.name(rng)
        self.same(name, wcodec.decode(self.file.extract(name)))

    def by_metadata(self, rng: random.Random) -> None:
        found = self.file.metadata(), self.file.keys(), self.tensors.metadata()
        if found != ({"of": "x"}, list(self.arrays), {"of": "x"}):
            raise AssertionError("other metadata")

    def by_torch(self, rng: random.Random) -> None:
        name = self.name(rng)
        self.same(name, to_array(self.tensors.get_tensor(name), name))

    def by_torch_slice(self, rng: random.Random) -> None:
        name = rng.choice(["large", "bytes", "ragged", "twin"])
        part = self.part(rng, name)
        self.same(name, to_array(self.tensors.get_slice(name)[part], name), part)

    def by_torch_all(self, rng: random.Random) -> None:
        for name, tensor in self.tensors.get_tensors().items():
            self.same(name, to_array(tensor, name))


def read_in_threads(
    folder: Path, backend: str, goes_on: Callable[[int], bool], n_threads: int = N_THREADS
) -> Counter[str]:
    """Read one file in many threads at once.

    Parameters
    ----------
    goes_on
        Whether a thread reads again, by how often it has.

    Returns
    -------
    How often each way was taken.

    Raises
    ------
    AssertionError
        Other bytes were read.
    """
    taken, wrong = [Counter[str]() for _ in range(n_threads)], list[BaseException]()
    with use_backend(backend):
        path, arrays = make_file(folder)
        wcodec.files.decode_file(path, folder / "plain", overwrite=True)
        readers = Readers(path, arrays, (folder / "plain").read_bytes())
        start = threading.Barrier(n_threads)

        def read(seed: int) -> None:
            rng = random.Random(seed)
            start.wait()
            try:
                for i in itertools.count(seed):
                    if wrong or not goes_on(i - seed):
                        return
                    way = readers.ways[i % len(readers.ways)]
                    way(rng)
                    taken[seed][way.__name__] += 1
            except BaseException as e:
                wrong.append(e)

        threads = [threading.Thread(target=read, args=(i,)) for i in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        readers.file.close()
        readers.tensors.__exit__()
    if wrong:
        raise wrong[0]
    return sum(taken, Counter[str]())


def main() -> int:
    """Read with each backend for some minutes, in turn."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    end, taken = time.monotonic() + 60 * parser.parse_args().minutes, Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for backend in itertools.cycle(("numba", "reference")):
            stop = min(end, time.monotonic() + 30)
            taken += read_in_threads(Path(folder), backend, lambda _, t=stop: time.monotonic() < t)
            if time.monotonic() >= end:
                break
    print(f"{N_THREADS} threads read the right bytes {taken.total()} times: {dict(taken)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
