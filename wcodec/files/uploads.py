"""Outputs at URLs, sent while they are made. Nothing is under the name before it is whole."""

from __future__ import annotations

import contextlib
import errno
import io
import secrets
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Final, Protocol, cast

from wcodec.codec.ranges import again
from wcodec.codec.urls import Url
from wcodec.errors import EncodeError
from wcodec.processes import Task, Workers

PART_NBYTES: Final = 1 << 25  #: of an upload, to begin with
_DOUBLED: Final = 2000  #: parts, after which they are twice as large: S3 takes 10,000
PARTS_AT_ONCE: Final = 4
#: file systems whose files get their names when they are whole
_COMMITTING: Final = {"gs", "gcs", "az", "abfs", "abfss", "adl", "hf", "oss", "ftp", "webhdfs"}


class _Upload(Protocol):
    """An object that is being sent."""

    def write(self, data: Any, /) -> int:
        """Send bytes, now or later."""

    def commit(self) -> None:
        """Give the object its name."""

    def discard(self) -> None:
        """Forget what was sent."""


@contextmanager
def remote_output(url: Url, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Binary file that appears at a URL only if the block ends without an exception.

    Parameters
    ----------
    overwrite
        Whether an object that is there may be replaced.

    Raises
    ------
    EncodeError
        ``output_exists``
    OSError
        It cannot be written there.
    """
    refuse_existing(url, overwrite)
    fs, _ = url.filesystem()
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    kind = _S3 if "s3" in protocols and hasattr(fs, "call_s3") else _Any
    upload = kind(url, PART_NBYTES, overwrite)
    out = _Counted(upload)
    try:
        yield cast(BinaryIO, out)
        refuse_existing(url, overwrite)
        upload.commit()
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to be told
            upload.discard()
        raise


def refuse_existing(url: Url, overwrite: bool) -> None:
    """Refuse to write where something is. Raises as `remote_output`."""
    found = None if overwrite else url.look_up()
    if found is not None and found.is_directory:
        raise EncodeError("bad_option", f"the output {str(url)!r} is a directory")
    if found is not None:
        raise EncodeError(
            "output_exists",
            f"{str(url)!r} exists and is not replaced unasked: -f does that (overwrite=True)",
        )


class _Counted(io.RawIOBase):
    """What is written, from front to back."""

    def __init__(self, upload: _Upload) -> None:
        self._upload, self._n = upload, 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        n = memoryview(data).nbytes
        self._upload.write(data)
        self._n += n
        return n

    def tell(self) -> int:
        return self._n


class _Any(_Upload):
    """By a file of ``fsspec``: one that gets its name when it is committed; or, of file systems
    that have no such, one under another name until then.
    """

    def __init__(self, url: Url, part: int, overwrite: bool) -> None:
        self._url, (self._fs, self._path) = url, url.filesystem()
        commits = _commits(self._fs)
        with url.named():
            self._temporary = "" if commits else _beside(self._path)
            try:
                self._file = self._fs.open(
                    self._temporary or self._path, "wb", block_size=part, autocommit=not commits
                )
            except (NotImplementedError, TypeError) as e:
                text = f"{type(self._fs).__name__} writes no files"
                raise OSError(errno.EROFS, text) from e

    def write(self, data: Any, /) -> int:
        """As `_Upload.write`."""
        with self._url.named():
            self._file.write(data if isinstance(data, bytes | bytearray) else bytes(data))
        return 0

    def commit(self) -> None:
        """As `_Upload.commit`."""
        with self._url.named():
            self._file.close()
            if self._temporary:
                self._fs.mv(self._temporary, self._path)
            else:
                self._file.commit()
            self._fs.invalidate_cache(self._url.parent.filesystem()[1])

    def discard(self) -> None:
        """As `_Upload.discard`."""
        if self._temporary:
            self._file.close()
            self._fs.rm_file(self._temporary)
        else:
            self._file.closed = True  # first: closed by whatever comes, it would send what it has
            self._file.discard()


def _commits(fs: Any) -> bool:
    """Whether files of a file system, opened with ``autocommit=False``, get their names when they
    are committed, or closed.
    """
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    return bool(protocols & _COMMITTING)


def _beside(path: str) -> str:
    """Another name in the same directory, of which a crash leaves nothing but an odd file."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name[:58]}.{secrets.token_hex(4)}.wcodec-tmp"


class _S3(_Upload):
    """By an upload of parts to S3, some at once; an object of one part by one request."""

    def __init__(self, url: Url, part: int, overwrite: bool) -> None:
        self._url, self._part, self._overwrite = url, part, overwrite
        self._buffer, self._id = bytearray(), ""
        self._workers = Workers(PARTS_AT_ONCE, "wcodec-upload")
        self._under_way, self._sent = deque[Task[dict[str, Any]]](), list[dict[str, Any]]()

    def _call(self, method: str, **more: Any) -> dict[str, Any]:
        fs, path = self._url.filesystem()
        bucket, key, _ = fs.split_path(path)
        found: dict[str, Any] = fs.call_s3(method, Bucket=bucket, Key=key, **more)
        return found

    def write(self, data: Any, /) -> int:
        """As `_Upload.write`."""
        self._buffer += data
        while len(self._buffer) >= (part := self._part << self._number // _DOUBLED):
            self._send(bytes(memoryview(self._buffer)[:part]))
            del self._buffer[:part]
        return 0

    @property
    def _number(self) -> int:
        """Parts so far."""
        return len(self._sent) + len(self._under_way)

    def _send(self, data: bytes) -> None:
        if not self._id:
            started = again(self._url, "an upload", self._call, "create_multipart_upload")
            self._id = started["UploadId"]
        number = self._number + 1
        self._under_way.append(self._workers.begin(self._send_part, number, data))
        if len(self._under_way) > PARTS_AT_ONCE:
            self._sent.append(self._under_way.popleft().result())

    def _send_part(self, number: int, data: bytes) -> dict[str, Any]:
        def send() -> dict[str, Any]:
            return self._call("upload_part", PartNumber=number, UploadId=self._id, Body=data)

        answer = again(self._url, f"part {number}", send)
        sums = {k: v for k, v in answer.items() if k == "ETag" or k.startswith("Checksum")}
        return {"PartNumber": number, **{k: v for k, v in sums.items() if k != "ChecksumType"}}

    def commit(self) -> None:
        """As `_Upload.commit`."""
        how: dict[str, Any] = {} if self._overwrite else {"IfNoneMatch": "*"}
        fs, path = self._url.filesystem()
        with self._url.named():
            if not self._id:
                self._call("put_object", Body=bytes(self._buffer), **how)
            else:
                if self._buffer:
                    self._send(bytes(self._buffer))
                self._sent += [task.result() for task in self._under_way]
                parts = {"Parts": self._sent}
                self._call(
                    "complete_multipart_upload", UploadId=self._id, MultipartUpload=parts, **how
                )
            fs.invalidate_cache(path)
        self._workers.close()

    def discard(self) -> None:
        """As `_Upload.discard`."""
        for task in self._under_way:
            task.settle()
        self._workers.close()
        if self._id:
            self._call("abort_multipart_upload", UploadId=self._id)
