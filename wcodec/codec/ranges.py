"""Parts of a remote file, each by one request: HTTP, S3, and whatever else ``fsspec`` opens.

An answer is taken for what was asked only if the server says so: which bytes it sends, of a file of
how many bytes, in which state.
"""

from __future__ import annotations

import errno
import io
import logging
import random
import re
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from wcodec.codec.urls import Url, tag_of
from wcodec.errors import CodecError

T = TypeVar("T")

TRIES: Final = 7  #: of a request; between them `_FIRST_WAIT_S`, then twice as long each time
_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 30.0  #: that a server may ask for
STALLED_S: Final = 60.0  #: without a byte of an answer, it is asked for again

_PERMANENT: Final = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    ImportError,
    MemoryError,
    CodecError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
)
_PERMANENT_NAMES: Final = {"NoCredentialsError", "PartialCredentialsError", "InvalidURL"}
_TRANSIENT_4XX: Final = {408, 425, 429}

log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What a server sends.

    Attributes
    ----------
    data
        What was asked for, or less, where the file ends before.
    nbytes
        Of the file.
    tag
        Changes when the file does; empty if that is not known.
    """

    data: bytes
    nbytes: int
    tag: str


class WrongAnswer(OSError):
    """An answer that is not what was asked for; the next one may be."""


class Ranges(Protocol):
    """Gives parts of a remote file."""

    def first(self, nbytes: int) -> Answer:
        """The first bytes, and what the file is. Perhaps no bytes."""

    def get(self, start: int, stop: int) -> Answer:
        """Bytes that are there."""


def ranges_of(url: Url) -> Ranges:
    """What reads parts of a file. Raises as `Url.filesystem`."""
    fs, _ = url.filesystem()
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if protocols & {"http", "https"} and hasattr(fs, "set_session"):
        return _Http(url)
    if "s3" in protocols and hasattr(fs, "call_s3"):
        return _S3(url)
    return _Any(url)


# ---- again ---------------------------------------------------------------------------------------
def again(url: Url, what: str, function: Callable[..., T], *args: Any) -> T:
    """Make a request until it succeeds, `TRIES` times at most, with longer and longer pauses.

    Raises
    ------
    OSError
        It names the URL. At once, if another try can mend nothing.
    """
    for n in range(TRIES):
        try:
            return function(*args)
        except Exception as e:
            if n + 1 == TRIES or not _may_pass(e):
                with url.named():
                    raise
            pause = _FIRST_WAIT_S * 2**n * random.uniform(0.5, 1.0)
            pause = max(pause, min(_asked_for(e), _LONGEST_WAIT_S))
            text = f"{type(e).__name__} {e}".strip()
            log.info("%s: %s: %s; again in %.1f s", url, what, text, pause)
            time.sleep(pause)
    raise AssertionError


def _may_pass(e: Exception) -> bool:
    if isinstance(e, _PERMANENT) or type(e).__name__ in _PERMANENT_NAMES:
        return False
    status = getattr(e, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status in _TRANSIENT_4XX
    return True


def _asked_for(e: Exception) -> float:
    """Seconds that a server asks to wait (``Retry-After``)."""
    text = str((getattr(e, "headers", None) or {}).get("Retry-After", ""))
    return float(text) if re.fullmatch(r"[0-9]{1,6}", text) else 0.0


_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]+)-([0-9]+)/([0-9]+)")


def _check_range(text: str | None, start: int, stop: int) -> int:
    """Bytes of the file, by a ``Content-Range`` that is the one that was asked for, or ends with
    the file.
    """
    found = _CONTENT_RANGE.fullmatch(text or "")
    if found is None:
        raise WrongAnswer(f"the range of an answer is {text!r}")
    first, last, nbytes = (int(n) for n in found.groups())
    if first != start or last + 1 != min(stop, nbytes):
        raise WrongAnswer(f"bytes {start}-{stop - 1} were asked for, {text!r} came")
    return nbytes


def _checked(data: bytes, wanted: int) -> bytes:
    if len(data) != wanted:
        raise WrongAnswer(f"{len(data)} bytes of {wanted} came")
    return data


# ---- kinds of servers ----------------------------------------------------------------------------
class _Http(Ranges):
    """A server of HTTP that gives ranges, asked in the session of ``fsspec``."""

    def __init__(self, url: Url) -> None:
        self._url = url

    def first(self, nbytes: int) -> Answer:
        """As `Ranges.first`."""
        return self.get(0, nbytes)

    def get(self, start: int, stop: int) -> Answer:
        """As `Ranges.get`."""
        from fsspec.asyn import sync

        fs, url = self._url.filesystem()
        answer: Answer = sync(fs.loop, self._get, fs, url, start, stop)
        return answer

    async def _get(self, fs: Any, url: str, start: int, stop: int) -> Answer:
        from aiohttp import ClientTimeout

        session, kwargs = await fs.set_session(), dict(fs.kwargs)
        headers = {
            **kwargs.pop("headers", {}),
            "Range": f"bytes={start}-{stop - 1}",
            "Accept-Encoding": "identity",
        }
        patience = ClientTimeout(total=None, sock_connect=STALLED_S, sock_read=STALLED_S)
        kwargs.setdefault("timeout", patience)
        async with session.get(fs.encode_url(url), headers=headers, **kwargs) as r:
            if r.status == 416:  # the file has become shorter, or has no bytes
                nbytes = (r.headers.get("Content-Range") or "").rpartition("/")[2]
                return Answer(b"", int(nbytes) if nbytes.isdecimal() else 0, _tag(r.headers))
            if r.status in (404, 410):
                raise FileNotFoundError(str(self._url))
            if r.status in (401, 403):
                raise PermissionError(str(self._url))
            r.raise_for_status()
            if r.status != 206:
                n = int(r.headers.get("Content-Length") or -1)
                if start or not 0 <= n <= stop:
                    raise self._no_range(r.headers)
                return Answer(_checked(await r.read(), n), n, _tag(r.headers))
            nbytes = _check_range(r.headers.get("Content-Range"), start, stop)
            data = await r.read()
            return Answer(_checked(data, min(stop, nbytes) - start), nbytes, _tag(r.headers))

    def _no_range(self, headers: Any) -> OSError:
        """What is wrong with a whole file where a part was asked for."""
        if headers.get("Accept-Ranges") == "bytes":
            return WrongAnswer("the whole file came")
        return io.UnsupportedOperation(
            errno.ESPIPE,
            "the server gives no parts of files (ranges): download the file first",
            str(self._url),
        )


def _tag(headers: Any) -> str:
    return str(headers.get("ETag") or headers.get("Last-Modified") or "")


class _S3(Ranges):
    """An object of S3, asked for in the session of ``s3fs``."""

    def __init__(self, url: Url) -> None:
        self._url = url

    def first(self, nbytes: int) -> Answer:
        """As `Ranges.first`."""
        return self.get(0, nbytes)

    def get(self, start: int, stop: int) -> Answer:
        """As `Ranges.get`."""
        from fsspec.asyn import sync

        fs, path = self._url.filesystem()
        try:
            answer: Answer = sync(fs.loop, self._get, fs, path, start, stop)
        except OSError as e:
            response = getattr(e.__cause__, "response", {})
            if str(response.get("Error", {}).get("Code")) not in ("InvalidRange", "416"):
                raise
            fs.invalidate_cache(path)  # it has no bytes there, or none at all
            info = fs.info(path)
            return Answer(b"", int(info["size"]), tag_of(info))
        return answer

    async def _get(self, fs: Any, path: str, start: int, stop: int) -> Answer:
        bucket, key, version = fs.split_path(path)
        if not key:
            raise IsADirectoryError(str(self._url))
        which = {"VersionId": version} if version else {}
        response = await fs._call_s3(
            "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **which
        )
        try:
            nbytes = _check_range(response.get("ContentRange"), start, stop)
            data = await response["Body"].read()
        finally:
            response["Body"].close()
        return Answer(_checked(data, min(stop, nbytes) - start), nbytes, response.get("ETag") or "")


class _Any(Ranges):
    """A file of any file system of ``fsspec``."""

    def __init__(self, url: Url) -> None:
        self._url = url
        self._nbytes, self._tag = 0, ""

    def first(self, nbytes: int) -> Answer:
        """As `Ranges.first`: of what is there now."""
        found = self._url.look_up()
        if found is None:
            raise FileNotFoundError(str(self._url))
        if found.is_directory:
            raise IsADirectoryError(str(self._url))
        self._nbytes, self._tag = found.nbytes, found.tag
        return Answer(b"", found.nbytes, found.tag)

    def get(self, start: int, stop: int) -> Answer:
        """As `Ranges.get`. What the file is now, it does not say."""
        fs, path = self._url.filesystem()
        # a file that is read by the block would read more than that
        how = {} if getattr(fs, "async_impl", False) else {"cache_type": "none"}
        data = fs.cat_file(path, start=start, end=stop, **how)
        if len(data) < stop - start and (found := self._url.look_up()) and found.nbytes < stop:
            return Answer(b"", found.nbytes, found.tag)  # it has been cut
        return Answer(_checked(bytes(data), stop - start), self._nbytes, self._tag)
