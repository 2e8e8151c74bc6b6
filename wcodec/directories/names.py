"""What is in the directory of a model, what its files are called, encoded and decoded,
and what they refer to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath
from typing import Final

from wcodec.codec.urls import Place, Url, place_of, size_of
from wcodec.directories.resumable import is_state
from wcodec.directories.tasks import FileTask, make_link
from wcodec.directories.tree import Tree, remote_tree, scan_tree
from wcodec.errors import CodecError, DecodeError, EncodeError, within
from wcodec.files.atomic import AnyPath, read_bytes
from wcodec.files.shard_index import CODED, PLAIN, is_index, parse_weight_map, with_ending

FORMS: Final = ("wcodec", "hub")


def bad_source(message: str) -> EncodeError:
    return EncodeError("bad_source", message)


def bad_value(message: str) -> DecodeError:
    return DecodeError("bad_value", message)


def parent(name: str) -> str:
    return PurePosixPath(name).parent.as_posix()


def is_config(name: str) -> bool:
    return PurePosixPath(name).name == "config.json"


#: What is in a cache of Hugging Face, and in a repository of it.
#: A directory with anything else is no cache.
_CACHE: Final = re.compile(
    r"(models|datasets|spaces)--.*|blobs|refs|snapshots|hub|xet|assets|datasets|modules|accelerate"
    r"|\.no_exist|\.locks|\.DS_Store"
    r"|token|stored_tokens|version(_diffusers_cache)?\.txt|CACHEDIR\.TAG|\.gitignore"
)


def find_model(source: AnyPath, refuse: Callable[[str], CodecError]) -> Place:
    """The directory of a model: `source`, or the only snapshot in a cache of Hugging Face,
    or in a repository of one.
    """
    root = place_of(source)
    if isinstance(root, Url):
        return root
    patterns = [
        "models--*/snapshots/*/",
        "hub/models--*/snapshots/*/",
        *(["snapshots/*/"] if (root / "blobs").is_dir() else []),
    ]
    snapshots = sorted(p for pattern in patterns for p in root.glob(pattern) if p.is_dir())
    if not snapshots or not all(_CACHE.fullmatch(name) for name in os.listdir(root)):
        return root
    if len(snapshots) > 1:
        names = ", ".join(str(p) for p in snapshots)
        raise refuse(
            f"a cache of Hugging Face with {len(snapshots)} snapshots; name one of them: {names}"
        )
    return snapshots[0]


def scan_directory(
    source: AnyPath,
    refuse: Callable[[str], CodecError],
    unfinished: Callable[[str], CodecError],
    apart: Callable[[str], str],
) -> Tree:
    root = find_model(source, refuse)
    if isinstance(root, Url):
        tree = remote_tree(root)
    else:
        tree = scan_tree(root, refuse, (PLAIN, CODED), apart)
    for name in tree.files:
        if is_state(name):
            raise unfinished(f"{name!r}: the directory is unfinished; run what writes it again")
    return tree


def config_apart(name: str) -> str:
    """Each ``config.json`` is a file of its own:
    in hub form what becomes of it depends on the weights beside it.
    """
    return parent(name) if is_config(name) else ""


def check_names(
    jobs: list[FileTask], folders: list[str], refuse: Callable[[str], CodecError]
) -> None:
    """Refuse two files, or a file and a directory, that would get one name."""
    names = dict[str, str]()
    for j in jobs:
        if (other := names.setdefault(j.name, j.label)) != j.label or j.name in folders:
            raise refuse(
                f"{j.label!r} and {other if other != j.label else j.name!r} would both become "
                f"{j.name!r}"
            )


def link_jobs(tree: Tree, old: str, new: str) -> list[FileTask]:
    """Links to files of the same directory, with the names that these get."""
    return [
        FileTask(
            (tree.files[of],),
            to,
            name,
            0,
            False,
            partial(make_link, os.path.relpath(with_ending(of, old, new), parent(to))),
        )
        for name, of in tree.links.items()
        for to in [with_ending(name, old, new)]
    ]


def base_of(base: Place | None, name: str) -> Place | None:
    """The file of a base directory that one of these weights differs from:
    the one of the same name.
    """
    if base is not None:
        stem = name[: -len(PLAIN)] if name.endswith(PLAIN) else name[: -len(CODED)]
        for path in (base / (stem + PLAIN), base / (stem + CODED)):
            if path.is_file():
                return path
    return None


def check_base(base: AnyPath | None, names: list[str]) -> Place | None:
    """Refuse what is no directory with a file of the same name as one of these weights."""
    if base is None:
        return None
    place = place_of(base)
    if not place.is_dir():
        raise EncodeError(
            "bad_option", f"the base of a directory is a directory; {str(base)!r} is none"
        )
    if not any(base_of(place, name) for name in names):
        raise EncodeError(
            "bad_option",
            f"the base {str(base)!r} has no file that is called as one of these: {names[0]!r}",
        )
    return place


def base_nbytes(base: Place | None) -> int:
    """Bytes of progress to find out which base it is: those of a safetensors file."""
    return size_of(base) if base is not None and base.name.endswith(PLAIN) else 0


def check_indexes(tree: Tree, strict: bool = False) -> None:
    """Whether all shards are there that indexes name. Without `strict`, an index that is none, and
    names of files elsewhere, are let pass as the texts that they are.

    Raises
    ------
    DecodeError
        ``truncated``; ``bad_value``: not an index.
    """
    for name, path in tree.files.items():
        if is_index(name, PLAIN) or is_index(name, CODED):
            with within(name):
                here = {
                    PurePosixPath(n).name
                    for n in (*tree.files, *tree.links)
                    if parent(n) == parent(name)
                }
                try:
                    missing = sorted(set(parse_weight_map(read_bytes(path)).values()) - here)
                except DecodeError:
                    if strict:
                        raise
                    continue
                for other in missing:
                    if strict or "/" not in other:
                        raise DecodeError(
                            "truncated", f"the index names {other!r}, which is not there"
                        )
