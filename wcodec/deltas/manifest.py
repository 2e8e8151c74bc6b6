"""The manifest of a chain, ``chain.json``: read as a stranger's, and written.
Spec: spec/chain.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from typing import Any, Final, NamedTuple

from wcodec.errors import DecodeError, EncodeError

MANIFEST: Final = "chain.json"
FORMAT: Final = "wcodec chain"
MAJOR: Final = 1
MINOR: Final = 0
MAX_NBYTES: Final = 1 << 26  #: of a manifest that is read
FULL: Final = "full"
DELTA: Final = "delta"
FILE_NAME: Final = re.compile(r"[0-9]{1,19}-[0-9a-f]{8}\.wcodec", re.ASCII)  #: of a version (C1)

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_LIMIT: Final = 1 << 63


class NoVersion(KeyError):
    """A chain has no such version, or it is retired."""

    def __str__(self) -> str:
        return str(self.args[0])


class Version(NamedTuple):
    """A version of a chain, as its manifest has it.

    Attributes
    ----------
    version
        Its number.
    kind
        ``"full"``, or ``"delta"``: its file holds differences from its parent.
    parent
        Number of the version that it differs from; ``None`` of a full one.
    file
        Name of its file, beside the manifest.
    nbytes, data_nbytes
        Bytes of the file, and of all tensors.
    content_hash
        Hexadecimal (R11.4 of spec/wcodec.md).
    time
        When it was written: UTC, ISO 8601.
    metadata
        Texts.
    retired
        Whether it is a version no more, and its file is there for those that differ from it.
    """

    version: int
    kind: str
    parent: int | None
    file: str
    nbytes: int
    data_nbytes: int
    content_hash: str
    time: str
    metadata: dict[str, str]
    retired: bool = False


@dataclass(frozen=True)
class Manifest:
    """What ``chain.json`` says.

    Attributes
    ----------
    generation
        Grows with each write; 0 of a chain that has none yet.
    versions
        In ascending order, retired ones among them.
    minor
        Of the format.
    """

    generation: int = 0
    versions: tuple[Version, ...] = ()
    minor: int = MINOR

    @cached_property
    def by_number(self) -> dict[int, Version]:
        """Versions by their numbers."""
        return {v.version: v for v in self.versions}

    @property
    def last(self) -> Version | None:
        """The newest version, if there is one."""
        return self.versions[-1] if self.versions else None

    @property
    def shown(self) -> list[Version]:
        """Those that are not retired."""
        return [v for v in self.versions if not v.retired]

    def find(self, number: int | None) -> Version:
        """The version of a number; of ``None``, the newest.

        Raises
        ------
        NoVersion
        """
        found = self.last if number is None else self.by_number.get(number)
        if found is None or found.retired:
            raise NoVersion(f"the chain has no version{'' if number is None else f' {number}'}")
        return found

    def path(self, v: Version) -> list[Version]:
        """The full version that `v` is made from, and all deltas from there up to it."""
        steps = [v]
        while (parent := steps[-1].parent) is not None:
            steps.append(self.by_number[parent])
        return steps[::-1]

    def write(self) -> bytes:
        """The bytes of the file (C2).

        Raises
        ------
        EncodeError
            ``bad_name``: a text is not UTF-8. ``resource_limit``
        """
        given = {
            "format": FORMAT, "major": MAJOR, "minor": self.minor, "generation": self.generation,
            "versions": [v._asdict() for v in self.versions],
        }  # fmt: skip
        try:
            raw = json.dumps(given, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:
            raise EncodeError("bad_name", "a metadata text is not UTF-8") from None
        if len(raw) > MAX_NBYTES:
            raise EncodeError(
                "resource_limit", f"a manifest of {len(raw)} bytes; {MAX_NBYTES} are read"
            )
        return raw


def now() -> str:
    """The time, as manifests have it."""
    return datetime.now(timezone.utc).strftime(_TIME)


# ---- reading -------------------------------------------------------------------------------------
def read_manifest(raw: bytes) -> Manifest:
    """Read and check a manifest.

    Raises
    ------
    DecodeError
        ``bad_magic``: it is none. ``unsupported_version``, ``resource_limit``; ``bad_value``,
        ``bad_name``, ``bad_base``: it breaks a rule (C2 to C8).
    """
    if len(raw) > MAX_NBYTES:
        raise DecodeError("resource_limit", f"a manifest of more than {MAX_NBYTES} bytes")
    try:
        found = json.loads(raw.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as e:  # not UTF-8 either, or a number of too many digits
        raise DecodeError("bad_value", f"it is not JSON ({type(e).__name__})") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DecodeError("bad_magic", f'it is no manifest: its "format" is not "{FORMAT}"')
    major, minor = (_number(found, key, 0) for key in ("major", "minor"))
    if major != MAJOR:
        raise DecodeError(
            "unsupported_version", f"it has the version {major}.{minor}; this wcodec knows {MAJOR}"
        )
    entries = _field(found, "versions", lambda value: isinstance(value, list))
    versions = tuple(map(_read_version, entries))
    _check_versions(versions)
    return Manifest(_number(found, "generation", 1), versions, minor)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise DecodeError("bad_name", "a key occurs twice")
    return out


def _field(entry: dict[str, Any], key: str, is_right: Callable[[Any], bool]) -> Any:
    """A field that has to be there."""
    value = entry.get(key)
    if key not in entry or not is_right(value):
        raise DecodeError("bad_value", f"{key!r} is missing, or not what it has to be")
    return value


def _number(entry: dict[str, Any], key: str, least: int) -> int:
    def is_right(value: Any) -> bool:
        return type(value) is int and least <= value < _LIMIT

    return int(_field(entry, key, is_right))


def _text(entry: dict[str, Any], key: str, pattern: re.Pattern[str] | None = None) -> str:
    def is_right(value: Any) -> bool:
        return isinstance(value, str) and (pattern is None or pattern.fullmatch(value) is not None)

    return str(_field(entry, key, is_right))


def _is_time(text: Any) -> bool:
    try:
        return bool(datetime.strptime(text, _TIME).strftime(_TIME) == text)
    except (TypeError, ValueError):
        return False


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _metadata(entry: dict[str, Any]) -> dict[str, str]:
    texts: dict[str, str] = _field(entry, "metadata", _are_texts)
    try:
        "".join((*texts, *texts.values())).encode()
    except UnicodeEncodeError:
        raise DecodeError("bad_name", "a metadata text is not UTF-8") from None
    return texts


def _read_version(entry: Any) -> Version:
    if not isinstance(entry, dict):
        raise DecodeError("bad_value", "a version is no object")
    name = _text(entry, "file")
    if not FILE_NAME.fullmatch(name):
        raise DecodeError("bad_name", f"{name!r} is not the name of a version's file")
    kind = str(_field(entry, "kind", lambda value: value in (FULL, DELTA)))
    return Version(
        _number(entry, "version", 1),
        kind,
        _number(entry, "parent", 1) if kind == DELTA else _field(entry, "parent", _is_null),
        name,
        _number(entry, "nbytes", 1),
        _number(entry, "data_nbytes", 0),
        _text(entry, "content_hash", _HASH),
        str(_field(entry, "time", _is_time)),
        _metadata(entry),
        bool(_field(entry, "retired", lambda value: isinstance(value, bool))),
    )


def _is_null(value: Any) -> bool:
    return value is None


def _check_versions(versions: tuple[Version, ...]) -> None:
    """What holds between versions."""
    names, before = set[str](), dict[int, Version]()
    for v in versions:
        if before and v.version <= next(reversed(before)):
            raise DecodeError("bad_value", f"version {v.version} does not follow a smaller one")
        if v.parent is not None and v.parent not in before:
            raise DecodeError(
                "bad_base", f"the parent {v.parent} of version {v.version} is not before it"
            )
        if v.file in names:
            raise DecodeError("bad_name", f"two versions have the file {v.file!r}")
        names.add(v.file)
        before[v.version] = v
    if versions and versions[-1].retired:
        raise DecodeError("bad_value", "the newest version is retired")
