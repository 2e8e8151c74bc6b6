"""What is in a directory: files, links to them, folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from wcodec.codec.urls import Place, Url, place_of
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

    root: Place
    files: dict[str, Place]
    links: dict[str, str]
    folders: list[str]


_SKIP: Final = (".git", ".cache")  #: directories that are no part of a model


def remote_tree(root: Url) -> Tree:
    """What is at a URL: there are no links, and directories are parts of names."""
    files = {
        name: url
        for name, url in root.files().items()
        if not set(name.split("/")[:-1]) & set(_SKIP)
    }
    folders = {p.as_posix() for name in files for p in PurePosixPath(name).parents} - {"."}
    return Tree(root, dict(files), {}, sorted(folders))


def without_links(tree: Tree) -> Tree:
    """The same, where each name is of a file of its own."""
    files = tree.files | {name: tree.files[of] for name, of in tree.links.items()}
    return Tree(tree.root, dict(sorted(files.items())), {}, tree.folders)


def scan_tree(
    root: Path,
    refuse: Callable[[str], CodecError],
    prefer: tuple[str, ...],
    apart: Callable[[str], str],
    skip: Iterable[str] = _SKIP,
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
    to = _comparable(target)
    for read, what in ((source, "input"), (base, "base")):
        if read is None or isinstance(place_of(read), Url) != isinstance(place_of(target), Url):
            continue
        place = _comparable(read)
        if place == to or (to.exists() and place.exists() and place.samefile(to)):
            message = f"{what} and output are the same directory: {str(read)!r}"
        elif place in to.parents and what == "input":
            message = f"the output lies in the input: {str(target)!r}"
        elif to in place.parents:
            message = f"the {what} lies in the output: {str(target)!r}"
        else:
            continue
        raise EncodeError("bad_option", message)


def _comparable(path: AnyPath) -> Path:
    """A place as what can be compared with another one; a URL is a path without its options."""
    place = place_of(path)
    return Path(place.rstrip("/")) if isinstance(place, Url) else place.resolve()
