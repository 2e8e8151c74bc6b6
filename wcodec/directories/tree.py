"""What is in a directory: files, links to them, folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from wcodec.errors import CodecError, EncodeError
from wcodec.files.atomic import (
    AnyPath,
)


class Tree(NamedTuple):
    """What is in a directory, by names with ``/``, in order.

    Attributes
    ----------
    root
        The directory.
    files
        Where each file is.
    links
        Other names of these files, and which: what is there under several names, by whatever links,
        is one file.
    folders
        Directories, each before what is in it.
    """

    root: Path
    files: dict[str, Path]
    links: dict[str, str]
    folders: list[str]


def scan_tree(
    root: Path,
    refuse: Callable[[str], CodecError],
    prefer: tuple[str, ...],
    apart: Callable[[str], str],
    skip: Iterable[str] = (".git", ".cache"),
) -> Tree:
    """What is in a directory. Links to files are followed;
    other things than files and directories are refused.

    Parameters
    ----------
    prefer
        Endings of names: of several names of a file one that ends so is the first,
        then one that is no link.
    apart
        Of a name under which a file becomes something else than under others, what it depends on:
        only names of the same are one file. Empty of all other names.
    """
    found, folders, left = list[tuple[bool, bool, str, tuple[int, int]]](), list[str](), [""]
    while left:
        folder = left.pop()
        with os.scandir(root / folder) as entries:
            inside = sorted(entries, key=lambda e: e.name)
        for entry in inside:
            name = f"{folder}/{entry.name}".lstrip("/")
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in skip:
                    folders.append(name)
                    left.append(name)
            elif entry.is_file():
                s = entry.stat()
                found.append(
                    (not name.endswith(prefer), entry.is_symlink(), name, (s.st_dev, s.st_ino))
                )
            elif entry.is_dir():
                raise refuse(
                    f"{name!r} is a link to a directory: put the directory there, or remove it"
                )
            else:
                raise refuse(
                    f"{name!r} is "
                    f"{'a broken link' if entry.is_symlink() else 'neither a file nor a directory'}"
                )
    first, links = dict[tuple[tuple[int, int], str], str](), dict[str, str]()
    for *_, name, inode in sorted(found):
        if (of := first.setdefault((inode, apart(name)), name)) != name:
            links[name] = of
        # names that depend on nothing are links to whichever is first
        first.setdefault((inode, ""), name)
    files = {name for name in first.values() if name not in links}
    return Tree(
        root,
        {name: root / name for name in sorted(files)},
        dict(sorted(links.items())),
        sorted(folders),
    )


def check_places(source: AnyPath, target: AnyPath, base: AnyPath | None = None) -> None:
    """Refuse a target that is the source or the base, or holds it, or lies in the source.

    Raises
    ------
    EncodeError
        ``bad_option``
    """
    to = Path(target).resolve()
    for read, what in ((source, "input"), (base, "base")):
        if read is None:
            continue
        place = Path(read).resolve()
        if place == to or (to.exists() and place.exists() and place.samefile(to)):
            message = f"{what} and output are the same directory: {str(read)!r}"
        elif place in to.parents and what == "input":
            message = f"the output lies in the input: {str(target)!r}"
        elif to in place.parents:
            message = f"the {what} lies in the output: {str(target)!r}"
        else:
            continue
        raise EncodeError("bad_option", message)
