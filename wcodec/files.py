"""Files: `save_file`, `load_file` and `open` as in safetensors, and whole checkpoints to and fro.

Outputs are atomic: written under a temporary name beside the target, renamed when whole.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import math
import mmap
import os
import secrets
import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.codec import CHUNK_BUFFERS, BufferSource, Decoder, Encoder, Progress, StreamSource, ignore_progress
from wcodec.errors import DecodeError
from wcodec.reference.container import ByteSource, Index, TensorRecord
from wcodec.reference.plan import EncodeOptions
from wcodec.sources import read_safetensors_header, write_safetensors_header

AnyPath = str | os.PathLike[str]

_BUFFERED: Final = 1 << 20
_RESERVED: Final = 1 << 24  #: files of fewer bytes take room as they grow
_unfinished: Final[set[Path]] = set()  #: temporary files of outputs


@contextlib.contextmanager
def _named(temporary: Path, target: Path) -> Iterator[None]:
    """Errors about the temporary file name the target: that is the name that the caller knows."""
    try:
        yield
    except OSError as e:
        if e.filename == str(temporary):
            e.filename = str(target)
        raise


def reserve(f: BinaryIO, nbytes: int) -> None:
    """Take room for a file on the disk, if that is worth it and the file system can.

    Raises
    ------
    OSError
        The disk is full.
    """
    if nbytes < _RESERVED or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(f.fileno(), 0, nbytes)
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise


@contextlib.contextmanager
def atomic_output(path: AnyPath, nbytes: int = 0) -> Iterator[BinaryIO]:
    """Binary file that appears under `path` only if the block ends without an exception.

    Room for `nbytes` bytes is taken on the disk at once, where the file system can: writing is faster then. What is not used is
    given back.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.tmp")
    _unfinished.add(temporary)
    try:
        with _named(temporary, target), builtins.open(temporary, "xb", buffering=_BUFFERED) as f:
            reserve(f, nbytes)
            yield f
            f.flush()
            if os.fstat(f.fileno()).st_size > f.tell():
                f.truncate()
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    finally:
        _unfinished.discard(temporary)


def remove_unfinished() -> None:
    """Remove what outputs of this process have been written so far, when it is about to end at once."""
    for temporary in tuple(_unfinished):
        with contextlib.suppress(OSError):
            temporary.unlink()


class WriteBehind:
    """Writes to a file in a thread of its own, in order, while the caller makes what comes next.

    Use as a context; it ends when all is written. What is given to `write` must not change before `CHUNK_BUFFERS` more writes.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._pending = stream, deque[Future[int]]()
        self._thread = ThreadPoolExecutor(1, "wcodec-write")

    def write(self, data: Any) -> int:
        """Write later. Raises what an earlier write has raised."""
        while len(self._pending) >= CHUNK_BUFFERS - 1:
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(self._stream.write, data))
        return len(data)

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            while kind is None and self._pending:
                self._pending.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)


def map_file(path: AnyPath) -> Any:
    """The bytes of a file, mapped for reading; ``b""`` for an empty one, which cannot be mapped."""
    with builtins.open(path, "rb") as f:
        if os.fstat(f.fileno()).st_size == 0:
            return b""
        return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)


# ---- arrays to and from files ----------------------------------------------------------------------------------------------
def save_file(
    tensors: Mapping[str, NDArray[Any]],
    path: AnyPath,
    metadata: dict[str, str] | None = None,
    options: EncodeOptions | None = None,
) -> int:
    """Write arrays to a ``.wcodec`` file.

    Parameters
    ----------
    tensors
        Arrays by name; any shape, dtypes as in `wcodec.encode`.
    metadata
        Texts to keep with them.
    options
        See `EncodeOptions`.

    Returns
    -------
    Bytes of the file.

    Raises
    ------
    EncodeError
        ``unsupported_dtype``, ``bad_name``, ``resource_limit``; nothing is left behind.
    """
    encoder = Encoder(options)
    with atomic_output(path) as f:
        writer = encoder.start(f)
        for name, array in tensors.items():
            writer.add(name, array)
        return writer.finish(metadata)


def load_file(path: AnyPath) -> dict[str, NDArray[Any]]:
    """All arrays of a ``.wcodec`` file by name, in the file's order.

    Raises
    ------
    DecodeError
    """
    with open(path) as f:
        return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118


def open(file: AnyPath | BinaryIO, backend: Backend | None = None) -> File:
    """Open a ``.wcodec`` file for reading; only the index is read now.

    Parameters
    ----------
    file
        A path, which is mapped, or a seekable binary file object, such as one of ``fsspec``.
    backend
        ``None`` for the one of `wcodec.get_backend`.

    Raises
    ------
    DecodeError

    Examples
    --------
    >>> with wcodec.open("model.wcodec") as f:
    ...     rows = f.get_slice("embed.weight")[:64]
    """
    return File(file, backend)


class File:
    """An open ``.wcodec`` file; see `open`."""

    def __init__(self, file: AnyPath | BinaryIO, backend: Backend | None = None, max_nbytes: int | None = None) -> None:
        self._mapped = map_file(file) if isinstance(file, str | os.PathLike) else None
        self.source: ByteSource = StreamSource(file) if self._mapped is None else BufferSource(self._mapped)  # type: ignore[arg-type]
        self.decoder = Decoder(backend, max_nbytes)
        try:
            self.index: Index = self.decoder.read_index(self.source)
        except BaseException:
            self.close()
            raise
        self._by_name = {t.name: t for t in self.index.tensors}

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. Arrays that were read stay."""
        self.source = BufferSource(b"")
        if isinstance(self._mapped, mmap.mmap):
            with contextlib.suppress(BufferError):  # something still looks at it: the last one to go unmaps it
                self._mapped.close()
        self._mapped = None

    def keys(self) -> list[str]:
        """Names of the tensors, in the file's order."""
        return list(self._by_name)

    def metadata(self) -> dict[str, str]:
        """Texts kept with the tensors."""
        return dict(self.index.metadata)

    def record(self, name: str) -> TensorRecord:
        """What the index says of a tensor.

        Raises
        ------
        KeyError
        """
        return self._by_name[name]

    def get_tensor(self, name: str, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Decode a tensor, checked against its CRC-32; opaque bytes come as uint8.

        Raises
        ------
        KeyError, DecodeError
        """
        return self.decoder.tensor(self.source, self._by_name[name], self.index.tables, out)

    def get_slice(self, name: str) -> Slice:
        """A tensor to take parts of: ``f.get_slice(name)[r0:r1, c0:c1]``.

        Raises
        ------
        KeyError
        """
        return Slice(self, self._by_name[name])

    def restored(self, raw: bool = False) -> Iterator[Any]:
        """The original file, a piece at a time: its header, then the tensors (spec: R4.22).

        Parameters
        ----------
        raw
            Without an original header, make none either; otherwise it is that of a safetensors file.

        Raises
        ------
        DecodeError
            Possibly after some pieces.
        """
        made = self.index.source_kind is None and not raw
        yield write_safetensors_header(self.index.tensors, self.index.metadata) if made else self.index.source_header
        for t in self.index.tensors:
            for chunk in self.decoder.chunks(self.source, t, self.index.tables):
                yield chunk.reshape(-1).view(np.uint8).data


class Slice:
    """A tensor of which parts are read: only the segments that a part touches are read and decoded.

    A segment is checked against its CRC-32; the tensor's own CRC-32 needs all of them and is not.
    """

    def __init__(self, file: File, record: TensorRecord) -> None:
        self._file, self._record = file, record

    def get_shape(self) -> list[int]:
        """Shape of the whole tensor."""
        return list(self._record.shape)

    def get_dtype(self) -> str:
        """Name of the dtype as in safetensors."""
        return self._record.dtype.safetensors or self._record.dtype_name or "U8"

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Part of the tensor by integers, slices and ``...``, as NumPy takes them.

        Raises
        ------
        IndexError, TypeError
            As NumPy does.
        DecodeError
        """
        t = self._record
        picks = _picks(index, t.shape)
        shape = tuple(len(p) for p in picks if isinstance(p, range))
        rows = _flat_ids(picks[: t.row_rank], t.shape[: t.row_rank])
        cols = _flat_ids(picks[t.row_rank :], t.shape[t.row_rank :])
        if rows.size == 0 or cols.size == 0:
            return np.empty(shape, t.dtype.numpy)
        n = t.dtype.words_per_element
        cols = (cols[:, None] * n + np.arange(n)).reshape(-1)
        down, row_at = _touched(rows, t.geometry.segment_rows, t.geometry.rows)
        across, col_at = _touched(cols, t.geometry.segment_cols, t.geometry.cols)
        part, _ = t.geometry.select(down, across)
        grid = np.empty((part.rows, part.cols), t.dtype.word_type)
        self._file.decoder.grid(self._file.source, t, t.plan(self._file.index.tables), down, across, grid)
        words = np.ascontiguousarray(grid[row_at][:, col_at])
        return words.reshape(-1).view(np.uint8).view(t.dtype.numpy).reshape(shape)


def _picks(index: Any, shape: tuple[int, ...]) -> list[range | int]:
    """An index, brought to one integer or range for each dimension."""
    parts = list(index) if isinstance(index, tuple) else [index]
    dots = [i for i, p in enumerate(parts) if p is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    if len(parts) - len(dots) > len(shape):
        raise IndexError(f"too many indices: the tensor has {len(shape)} dimensions")
    at = dots[0] if dots else len(parts)
    parts[at : at + 1] = [slice(None)] * (len(shape) - len(parts) + len(dots))
    picks: list[range | int] = []
    for part, n in zip(parts, shape, strict=True):
        if isinstance(part, slice):
            picks.append(range(n)[part])
        elif hasattr(part, "__index__") and not isinstance(part, bool | np.ndarray):
            try:
                picks.append(range(n)[part])
            except IndexError:
                raise IndexError(f"index {part} is out of bounds for a dimension of size {n}") from None
        else:
            raise TypeError(f"indices are integers, slices and '...', not {type(part).__name__}")
    return picks


def _flat_ids(picks: list[range | int], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Raster ids of the elements that `picks` takes out of dimensions `shape`."""
    ids = np.zeros(1, np.int64)
    for i, pick in enumerate(picks):
        r = pick if isinstance(pick, range) else range(pick, pick + 1)
        along = np.arange(r.start, r.stop, r.step, dtype=np.int64) * math.prod(shape[i + 1 :])
        ids = (ids[:, None] + along).reshape(-1)
    return ids


def _touched(ids: NDArray[np.int64], size: int, total: int) -> tuple[NDArray[np.int64], NDArray[np.int64] | slice]:
    """Segment rows (or columns) that hold `ids`, ascending, and where the ids lie in them once they are put together."""
    of = ids // size
    segments = np.unique(of)
    sizes = np.minimum(size, total - segments * size)
    before = np.cumsum(sizes) - sizes
    at = ids - of * size + before[np.searchsorted(segments, of)]
    if at.size and (np.diff(at) == 1).all():
        return segments, slice(int(at[0]), int(at[-1]) + 1)
    return segments, at


# ---- checkpoints ------------------------------------------------------------------------------------------------------------
def encode_file(
    source: AnyPath,
    target: AnyPath,
    options: EncodeOptions | None = None,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
) -> tuple[int, int]:
    """Encode a safetensors file; `decode_file` restores it byte for byte.

    Returns
    -------
    Bytes of the source and of the target.

    Raises
    ------
    EncodeError
        ``bad_source``: not a well-formed safetensors file. Nothing is left behind.
    """
    data = map_file(source)
    view = memoryview(data)
    header = read_safetensors_header(view)
    encoder = Encoder(options, backend)
    with atomic_output(target) as stream, WriteBehind(stream) as f:
        writer = encoder.start(f, progress)
        for t in header.tensors:
            words = np.frombuffer(view[t.start : t.stop], t.dtype.word_type)
            writer.add_words(t.name, words, t.dtype, t.shape, t.dtype_name)
        return len(data), writer.finish(header.metadata, header.raw)


def decode_file(
    source: AnyPath,
    target: AnyPath,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    max_nbytes: int | None = None,
    raw: bool = False,
) -> tuple[int, int]:
    """Restore the file that `encode_file` read; from one that `save_file` wrote, a safetensors file of its arrays.

    Parameters
    ----------
    max_nbytes
        Refuse files whose tensors decode to more bytes than that.
    raw
        From a file that `save_file` wrote, the bytes of its tensors alone.

    Returns
    -------
    Bytes of the source and of the target.

    Raises
    ------
    DecodeError
        Nothing is left behind. ``resource_limit``: the disk has not the room.
    """
    with File(source, backend, max_nbytes) as f:
        room = shutil.disk_usage(Path(target).absolute().parent).free
        if f.index.data_nbytes > room:
            raise DecodeError("resource_limit", f"the tensors have {f.index.data_nbytes} bytes; the disk has room for {room}")
        total = 0
        with atomic_output(target, f.index.data_nbytes) as stream, WriteBehind(stream) as out:
            for piece in f.restored(raw):
                out.write(piece)
                total += len(piece)
                progress(len(piece))
        return f.index.file_nbytes, total


def verify_file(
    source: AnyPath, backend: Backend | None = None, progress: Progress = ignore_progress, max_nbytes: int | None = None
) -> tuple[int, int]:
    """Decode all of a file and check every checksum, keeping nothing.

    Returns
    -------
    Bytes of the file, and of what it restores.

    Raises
    ------
    DecodeError
    """
    with File(source, backend, max_nbytes) as f:
        total = 0
        for piece in f.restored():
            total += len(piece)
            progress(len(piece))
        return f.index.file_nbytes, total
