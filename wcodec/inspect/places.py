"""Files in directories and at URLs, whatever else is there: what cannot be read is noted."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from wcodec.codec.urls import Place, Url, place_of
from wcodec.errors import BackendUnavailable, CodecError, WcodecError
from wcodec.files.atomic import AnyPath
from wcodec.inspect.weights import is_named_weights

Inode = tuple[int, int]


class Found(NamedTuple):
    """A file.

    Attributes
    ----------
    label
        Its path or URL.
    is_given
        Whether it was named itself, and not a directory that it is in.
    """

    label: str
    place: Place
    nbytes: int
    is_given: bool


class Failures:
    """What could not be read.

    Attributes
    ----------
    listed
        For each file its path or URL, the code of the error, if it has one, and a text.
    """

    def __init__(self) -> None:
        self.listed = list[dict[str, Any]]()

    @contextlib.contextmanager
    def noted(self, label: str) -> Iterator[None]:
        """Context whose errors about a file are noted, and end it."""
        try:
            yield
        except BackendUnavailable:
            raise
        except MemoryError:
            self.add(label, "resource_limit", "there is not enough memory")
        except CodecError as e:
            where = f" ({e.where})" if e.where else ""
            self.add(label, e.code, e.message + where)
        except (WcodecError, OSError) as e:
            text = str(e)
            if isinstance(e, OSError):
                text = e.strerror or text
            self.add(label, None, text)

    def add(self, label: str, code: str | None, text: str) -> None:
        """Note an error of a file; once, whatever else is wrong with it."""
        if all(one["file"] != label for one in self.listed):
            self.listed.append({"file": label, "code": code, "error": text})


def find_files(places: Iterable[AnyPath], failures: Failures) -> list[Found]:
    """All files that are there, each once, in the order of the places, and of their names: of two,
    numbers count as such. A file with several names in a directory has the one that says what it
    is. Links to directories are not followed.
    """
    found, seen = list[Found](), set[Inode | str]()
    for given in places:
        place = place_of(given)
        with failures.noted(str(place)):
            inside = _remote(place) if isinstance(place, Url) else _local(place, failures)
            for key, one in inside:
                if key not in seen:
                    seen.add(key)
                    found.append(one)
    return found


def natural(name: str) -> list[tuple[int, str]]:
    """What names are sorted by: numbers in them by their values."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(p) if p.isdecimal() and len(p) < 20 else 0, p) for p in parts]


def _remote(url: Url) -> list[tuple[Inode | str, Found]]:
    known = url.look_up()
    if known is None:
        raise FileNotFoundError(2, os.strerror(2), str(url))
    if not known.is_directory:
        url.known = known
        return [(str(url), Found(str(url), url, known.nbytes, True))]
    inside = list[tuple[Inode | str, Found]]()
    for _, one in sorted(url.files().items(), key=lambda item: natural(item[0])):
        nbytes = one.known.nbytes if one.known is not None else 0
        inside.append((str(one), Found(str(one), one, nbytes, False)))
    return inside


def _local(root: Path, failures: Failures) -> list[tuple[Inode | str, Found]]:
    is_given = not root.is_dir()
    names = [(root, False)] if is_given else _walk(root, failures)
    inside = list[tuple[tuple[bool, bool, list[tuple[int, str]]], Inode, Found]]()
    for path, is_link in names:
        with failures.noted(str(path)):
            about = os.stat(path)
            if not stat.S_ISREG(about.st_mode):
                if is_link and stat.S_ISDIR(about.st_mode):
                    continue
                raise OSError(0, "neither a file nor a directory", str(path))
            order = not is_named_weights(path.name), is_link, natural(str(path))
            one = Found(str(path), path, about.st_size, is_given)
            inside.append((order, (about.st_dev, about.st_ino), one))
    first = dict[Inode, tuple[list[tuple[int, str]], Found]]()
    for order, inode, one in sorted(inside, key=lambda item: item[0]):
        first.setdefault(inode, (order[2], one))
    return [(k, one) for k, (_, one) in sorted(first.items(), key=lambda item: item[1][0])]


def _walk(root: Path, failures: Failures) -> Iterator[tuple[Path, bool]]:
    """All that is no directory, and whether it is a link."""
    left = [root]
    while left:
        folder = left.pop()
        with failures.noted(str(folder)), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    left.append(folder / entry.name)
                else:
                    yield folder / entry.name, entry.is_symlink()
