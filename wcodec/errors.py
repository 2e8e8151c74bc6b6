"""The errors of wcodec, and the closed list of codes that a decoder may give.

Spec: chapter 13, decoder duties and error codes.
"""

from __future__ import annotations

import os
from typing import ClassVar, Final

#: What a decoder may say of a file. `malformed`: the bytes break a rule of the format.
#: `unsupported`: a rule of a later version, or an extension. `limit`: legal, but larger than this
#: decoder was told to accept.
DECODE_CODES: Final[dict[str, str]] = {
    "truncated": "malformed: the file ends before its structures do",
    "bad_magic": "malformed: a magic number is wrong; this is not a wcodec file",
    "bad_checksum": "malformed: a CRC-32 does not match its bytes",
    "bad_range": (
        "malformed: an offset, a size or a count leaves the bounds that the format sets it"
    ),
    "bad_value": "malformed: a field holds a value that the format does not allow there",
    "bad_table": "malformed: a frequency table breaks a rule of chapter 9",
    "bad_stream": (
        "malformed: a rANS stream does not end in its final state with every word consumed"
    ),
    "bad_patch": "malformed: a patch lies outside its segment or out of order",
    "bad_name": "malformed: a name or text is not UTF-8, or a name occurs twice",
    "bad_base": (
        "base: the checkpoint that the file holds differences from is not given, or is another one"
    ),
    "unsupported_version": (
        "unsupported: the file has a format version that this decoder does not know"
    ),
    "unsupported_record": (
        "unsupported: a must-understand record of a type that this decoder does not know"
    ),
    "unsupported_coder": (
        "unsupported: a coder, layout, dtype or order id that is reserved for later versions"
    ),
    "resource_limit": "limit: decoding needs more memory than the machine has or the caller allows",
}

#: What may come to light while a file is read, whatever it holds.
INPUT_CODES: Final[dict[str, str]] = {
    "truncated": "input: the file was cut while it was read",
    "changed": "input: the file was written to, or another one took its place, while it was read",
}

#: What an encoder may say of its input.
ENCODE_CODES: Final[dict[str, str]] = {
    "unsupported_dtype": "the array's dtype has no id in the format",
    "bad_source": "the input file is not a well-formed checkpoint",
    "bad_option": "an encoder option is out of its range or does not fit the others",
    "bad_name": "a tensor name or metadata text cannot be stored",
    "resource_limit": "the tensor exceeds a limit of the format",
    "output_exists": "something has the output's name already, and was not asked to be replaced",
}


class WcodecError(Exception):
    """Base of all errors raised by wcodec."""


class CodecError(WcodecError):
    """An error with a code out of a closed list, and where it was found.

    Parameters
    ----------
    code
        One of the codes of the class.
    message
        One line that says what is wrong.
    tensor
        Name of the tensor concerned, if one is known.
    offset
        Byte offset in the file, if one is known.

    Attributes
    ----------
    file
        What the file is called that the error is about, if that is known; see `within`.
    """

    codes: ClassVar[dict[str, str]] = {}

    def __init__(
        self, code: str, message: str, *, tensor: str | None = None, offset: int | None = None
    ) -> None:
        if code not in self.codes:
            raise ValueError(f"{code!r} is not a code of {type(self).__name__}")
        self.code, self.message, self.tensor, self.offset = code, message, tensor, offset
        self.file: str | None = None
        super().__init__(code, message, tensor, offset)

    @property
    def where(self) -> str:
        """Tensor and offset in words; empty if neither is known."""
        parts = [] if self.tensor is None else [f"tensor {self.tensor!r}"]
        return ", ".join(parts + ([] if self.offset is None else [f"offset {self.offset}"]))

    def __str__(self) -> str:
        file = "" if self.file is None else f"in {self.file!r}: "
        return f"{self.code}: {file}{self.message}" + (f" ({self.where})" if self.where else "")

    def __reduce__(self) -> tuple[object, ...]:
        return (
            _rebuild,
            (type(self), self.code, self.message, self.tensor, self.offset, self.file),
        )


def _rebuild(
    cls: type[CodecError],
    code: str,
    message: str,
    tensor: str | None,
    offset: int | None,
    file: str | None,
) -> CodecError:
    e = cls(code, message, tensor=tensor, offset=offset)
    e.file = file
    return e


class within:  # noqa: N801 (a context, used as a function)
    """Context in which errors say where they are.

    Parameters
    ----------
    file
        The file that they are about; ``None`` for what has no name, such as a file object. Of
        several contexts, one in another, the outermost names it.
    base
        The base of differences that they are about, named in the message.
    tensor
        The tensor that they are about, in place of one that is named; empty or ``None`` for none.
    offset
        Where in the file the bytes start that their offsets count from.
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | None = None,
        *,
        base: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
        offset: int = 0,
    ) -> None:
        self._file, self._base = file, base
        self._tensor, self._offset = tensor, offset

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if not isinstance(error, CodecError):
            return
        if self._base is not None:
            error.message = f"in the base {str(self._base)!r}: {error.message}"
            error.file = None
        if self._file is not None:
            error.file = os.fspath(self._file)
        if self._tensor is not None:
            error.tensor = self._tensor or error.tensor or None
        if error.offset is not None:
            error.offset += self._offset
        error.args = (error.code, error.message, error.tensor, error.offset)


class named:  # noqa: N801 (as `within`)
    """Context in which errors of the system are about this path, whatever they name."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(self._path)) from None


class DecodeError(CodecError):
    """The file cannot be decoded. `code` is a key of `DECODE_CODES` or `INPUT_CODES`."""

    codes = INPUT_CODES | DECODE_CODES


class EncodeError(CodecError):
    """The input cannot be encoded. `code` is a key of `ENCODE_CODES` or `INPUT_CODES`."""

    codes = INPUT_CODES | ENCODE_CODES


class MissingPackage(WcodecError, ImportError):
    """Something needs a package that is not installed; the message says which."""


class BackendUnavailable(WcodecError):
    """A backend was named that this machine cannot run; the message says what to install."""


class BackendMisconfigured(BackendUnavailable):
    """An environment variable asks a backend for what it does not have. No other backend is taken
    instead.
    """
