"""Directories of models, decoded: weights, indexes of shards and ``config.json`` as they were, all
else copied. Spec: hub.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from wcodec.backends import Backend, get_backend
from wcodec.codec.decoder import check_nbytes
from wcodec.codec.pipelining import Progress, ignore_progress
from wcodec.codec.urls import Place, Url, place_of, resolved, size_of
from wcodec.directories.configs import (
    remove_entry,
    rename_shards,
)
from wcodec.directories.hub_header import VERSION_TEXT, has_hub_form
from wcodec.directories.hub_reading import HubFile, decode_hub_file, verify_hub_file
from wcodec.directories.names import (
    bad_value,
    base_nbytes,
    base_of,
    check_base,
    check_indexes,
    check_names,
    config_apart,
    is_config,
    link_jobs,
    parent,
    scan_directory,
)
from wcodec.directories.resumable import STATE, DirectoryPlan
from wcodec.directories.tasks import FileTask, Report, copy_file, text_task
from wcodec.directories.tree import Tree, check_places, without_links
from wcodec.errors import DecodeError, within
from wcodec.files.atomic import AnyPath, check_room, read_bytes
from wcodec.files.checkpoint import decode_file, verify_file
from wcodec.files.file import File
from wcodec.files.shard_index import CODED, PLAIN, is_index, with_ending


@dataclass(frozen=True)
class CodedFile:
    """An encoded file of a directory, opened and checked as far as its index.

    Attributes
    ----------
    data_nbytes, nbytes
        Decoded bytes of its tensors, and of the file that it restores.
    """

    name: str
    path: Place
    is_hub: bool
    data_nbytes: int
    nbytes: int
    stored_nbytes: int
    base: Place | None


def coded_files(
    source: AnyPath,
    files: dict[str, Place],
    backend: Backend,
    max_nbytes: int | None = None,
    base: AnyPath | None = None,
    max_memory: int | None = None,
) -> dict[str, CodedFile]:
    """Those of the files of a directory that are encoded, by name.

    Raises
    ------
    DecodeError
        ``bad_magic``: there are none. ``resource_limit``: they decode to more than `max_nbytes`.
        Others: one is damaged.
    """
    names = [name for name in files if name.endswith((PLAIN, CODED))]
    folder, found = check_base(base, names) if names else None, dict[str, CodedFile]()
    for name in names:
        with within(name):
            coded = _open(name, files[name], backend, base_of(folder, name), max_memory)
        if coded is not None:
            found[name] = coded
    if not found:
        raise DecodeError(
            "bad_magic",
            "there is neither a .wcodec file nor a safetensors file in hub form in "
            f"{str(source)!r}",
        )
    check_nbytes(sum(c.data_nbytes for c in found.values()), max_nbytes)
    return found


def _open(
    name: str, path: Place, backend: Backend, base: Place | None, max_memory: int | None
) -> CodedFile | None:
    if name.endswith(CODED):
        with File(path, backend, max_memory=max_memory) as f:
            data_nbytes = f.index.data_nbytes
            return CodedFile(
                name,
                path,
                False,
                data_nbytes,
                data_nbytes + len(f.index.source_header),
                f.index.file_nbytes,
                base,
            )
    if not has_hub_form(path):
        return None
    hub = HubFile(path, backend, None, max_memory)
    return CodedFile(name, path, True, hub.data_nbytes, hub.nbytes, hub.stored_nbytes, None)


def scan_coded(source: AnyPath) -> Tree:
    """What is in an encoded directory.

    Raises
    ------
    DecodeError
        ``truncated``: a run that was to write it has not ended.
        ``bad_value``: it holds what it cannot.
    """
    return scan_directory(source, bad_value, partial(DecodeError, "truncated"), config_apart)


def plan_decode(
    source: AnyPath,
    target: AnyPath,
    backend: Backend | None = None,
    max_nbytes: int | None = None,
    base: AnyPath | None = None,
    overwrite: bool = False,
    max_memory: int | None = None,
    fsync: bool = True,
    shard: tuple[int, int] | None = None,
) -> DirectoryPlan:
    """What `decode_directory` is to do, checked as far as it can be beforehand. Raises as that."""
    check_places(source, target, base)
    backend = backend or get_backend()
    tree, place = scan_coded(source), place_of(target)
    tree = without_links(tree) if isinstance(place, Url) else tree
    coded = coded_files(source, tree.files, backend, max_nbytes, base, max_memory)
    jobs = [_decoding(name, path, coded, max_memory) for name, path in tree.files.items()]
    jobs += link_jobs(tree, CODED, PLAIN)
    check_names(jobs, tree.folders, bad_value)
    check_indexes(tree)
    key = {
        "run": "decode",
        "format": VERSION_TEXT,
        "source": resolved(source),
        "base": base and resolved(base),
    }
    return DirectoryPlan(
        tree.root, place, jobs, tree.folders, key, backend, overwrite, fsync, shard
    )


def _decoding(
    name: str,
    path: Place,
    coded: dict[str, CodedFile],
    max_memory: int | None = None,
) -> FileTask:
    """What becomes of a file."""
    if name in coded:
        return _weights(coded[name], max_memory)
    if is_index(name, CODED):
        with within(name):
            raw = read_bytes(path)
            text = rename_shards(raw, CODED.encode(), PLAIN.encode())
            if text is None:
                raise bad_value(f"the index names files that end in {PLAIN}")
        renamed = with_ending(name, CODED, PLAIN)
        return text_task(text, len(raw), (path,), renamed, name, encodes=False)
    if is_config(name) and any(c.is_hub and parent(c.name) == parent(name) for c in coded.values()):
        with within(name):
            raw = read_bytes(path)
            text = remove_entry(raw)
        return text_task(text, len(raw), (path,), name, name, encodes=False)
    return FileTask((path,), name, name, size_of(path), False, partial(copy_file, path))


def _weights(c: CodedFile, max_memory: int | None) -> FileTask:
    if c.is_hub:
        from_hub = partial(decode_hub_file, c.path, max_memory=max_memory)
        return FileTask((c.path,), c.name, c.name, c.nbytes, True, from_hub, True)
    decode = partial(decode_file, c.path, base=c.base, max_memory=max_memory)
    sources = (c.path,) if c.base is None else (c.path, c.base)
    return FileTask(
        sources,
        with_ending(c.name, CODED, PLAIN),
        c.name,
        c.nbytes + base_nbytes(c.base),
        True,
        decode,
        True,
    )


def decoding_task(
    source: AnyPath,
    is_hub: bool,
    backend: Backend,
    base: AnyPath | None = None,
    raw: bool = False,
    max_nbytes: int | None = None,
    max_memory: int | None = None,
) -> FileTask:
    """What `decode_file` does, or `decode_hub_file`, for a worker."""
    place, name = place_of(source), str(source)
    limits: dict[str, Any] = {"max_nbytes": max_nbytes, "max_memory": max_memory}
    if is_hub:
        nbytes = HubFile(place, backend, **limits).nbytes
        work = partial(decode_hub_file, place, **limits)
        return FileTask((place,), name, name, nbytes, True, work, True)
    with File(place, backend, **limits) as f:
        nbytes = f.index.data_nbytes + len(f.index.source_header)
    decode = partial(decode_file, place, base=base, raw=raw, **limits)
    of_base = None if base is None else place_of(base)
    sources = (place,) if of_base is None else (place, of_base)
    return FileTask(sources, name, name, nbytes + base_nbytes(of_base), True, decode, True)


def decode_directory(
    source: AnyPath,
    target: AnyPath,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    max_nbytes: int | None = None,
    base: AnyPath | None = None,
    overwrite: bool = False,
    max_memory: int | None = None,
    fsync: bool = True,
) -> Report:
    """Give back the directory that `encode_directory` read, of either form; ``.wcodec`` files of
    others become safetensors files too.

    A run that was interrupted goes on where it stopped.

    Parameters
    ----------
    max_nbytes
        Refuse a directory whose tensors decode to more bytes than that.
    max_memory
        As of `wcodec.Decoder`, for each file.
    base, overwrite, fsync
        As of `encode_directory`.

    Raises
    ------
    DecodeError
        A file is damaged; what its place is stays empty.
        ``resource_limit``: the disk has not the room.
    EncodeError
        ``bad_option``: as for the target or the base. ``output_exists``
    """
    plan = plan_decode(source, target, backend, max_nbytes, base, overwrite, max_memory, fsync)
    check_plan_room(plan)
    return plan.run(progress)


def check_plan_room(plan: DirectoryPlan) -> None:
    """Refuse to decode more than the disk has room for.
    Raises `DecodeError`: ``resource_limit``.
    """
    if isinstance(plan.target, Url):
        return
    place = plan.target.absolute()
    while not place.exists():
        place = place.parent
    check_room(place / STATE, plan.nbytes)


def verify_directory(
    source: AnyPath,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    max_nbytes: int | None = None,
    base: AnyPath | None = None,
    max_memory: int | None = None,
) -> Report:
    """Decode all encoded files of a directory, check every checksum and that the shards of indexes
    are there, keeping nothing.

    Raises
    ------
    DecodeError, EncodeError
        As `decode_directory`. ``truncated``: a shard is missing.
    """
    backend = backend or get_backend()
    tree = scan_coded(source)
    coded = coded_files(source, tree.files, backend, max_nbytes, base, max_memory)
    check_indexes(tree, strict=True)
    for name, path in tree.files.items():
        if is_config(name):
            _decoding(name, path, coded)
    nbytes = stored_nbytes = 0
    for c in coded.values():
        check: Callable[..., tuple[int, int]] = (
            verify_hub_file if c.is_hub else partial(verify_file, base=c.base)
        )
        with within(c.name):
            stored, plain = check(c.path, backend, progress, max_memory=max_memory)
        nbytes, stored_nbytes = nbytes + plain, stored_nbytes + stored
    return Report(len(coded), 0, 0, nbytes, stored_nbytes)
