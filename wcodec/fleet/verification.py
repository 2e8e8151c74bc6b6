"""All encoded files under a directory or prefix, verified by many workers."""

from __future__ import annotations

from functools import partial
from typing import Any, Final, NamedTuple

from wcodec.backends import Backend
from wcodec.codec.pipelining import Progress, ignore_progress
from wcodec.codec.urls import Place, place_of, size_of
from wcodec.directories.decoding import scan_coded
from wcodec.directories.hub_header import has_hub_form
from wcodec.directories.hub_reading import verify_hub_file
from wcodec.directories.names import base_of, check_base, check_indexes
from wcodec.directories.tasks import Runner, Unit
from wcodec.directories.tree import Tree
from wcodec.errors import CodecError, DecodeError, EncodeError
from wcodec.files.atomic import AnyPath
from wcodec.files.checkpoint import verify_file
from wcodec.files.shard_index import CODED, PLAIN

_PLAIN: Final = "plain"  #: form of a safetensors file that is not encoded: nothing tells it is good


class Verified(NamedTuple):
    """What came of a file.

    Attributes
    ----------
    form
        ``"wcodec"``, ``"hub"``, or ``"plain"`` of a safetensors file with nothing to verify.
    error
        What is wrong, in one line; empty if nothing is.
    nbytes, stored_nbytes
        Of what it restores, and of the file.
    """

    file: str
    form: str
    error: str
    nbytes: int
    stored_nbytes: int

    @property
    def good(self) -> bool:
        """Whether it can be decoded, and every checksum is right."""
        return not self.error


def verify_all(
    source: AnyPath,
    runner: Runner,
    progress: Progress = ignore_progress,
    base: AnyPath | None = None,
    max_memory: int | None = None,
    shard: tuple[int, int] | None = None,
) -> list[Verified]:
    """Verify all encoded files of a directory, each byte read once; what is wrong with one does not
    keep others from being verified.

    Parameters
    ----------
    source
        A directory or URL.
    base, max_memory
        As of `wcodec.directories.verify_directory`.
    shard
        Which of several processes this is, from 1, and how many there are: each does its part.

    Returns
    -------
    What came of each file that this process was to verify, in the order of their names.

    Raises
    ------
    DecodeError
        ``bad_magic``: there are none. ``truncated``: a run that was to write them has not ended.
    EncodeError
        ``bad_option``: the base is no directory of such files.
    OSError
        It cannot be read what is there.
    """
    place, folder, done = place_of(source), None, list[Verified]()
    if is_folder := place.is_dir():
        tree = scan_coded(source)
        names = [name for name in tree.files if name.endswith((CODED, PLAIN))]
        if not names:
            raise DecodeError("bad_magic", f"there are no weights in {str(source)!r}")
        folder = check_base(base, names)
    else:
        tree, names = Tree(place.parent, {place.name: place}, {}, []), [place.name]
    i, n = shard or (1, 1)
    units = list[Unit]()
    for name in names[i - 1 :: n]:
        path = tree.files[name]
        of = base_of(folder, name) if is_folder or base is None else place_of(base)
        work = partial(_verify, name, path, of, max_memory)
        units.append(Unit(name, name, size_of(path), work, may_fail=True))

    def follow(unit: Unit, found: Any) -> list[Unit]:
        if isinstance(found, BaseException):
            text = " ".join(f"{type(found).__name__}: {found}".split())
            found = Verified(unit.key, "", text, 0, unit.nbytes)
        done.append(found)
        return []

    runner(units, follow, progress)
    if i == 1:
        try:
            check_indexes(tree, strict=True)
        except (DecodeError, EncodeError) as e:
            done.append(Verified(e.file or "", "index", f"{e.code}: {e.message}", 0, 0))
    return sorted(done)


def _verify(
    name: str,
    path: Place,
    base: Place | None,
    max_memory: int | None,
    backend: Backend,
    progress: Progress,
    again: bool,
) -> Verified:
    form, stored_nbytes = "wcodec" if name.endswith(CODED) else "hub", size_of(path)
    try:
        if form == "wcodec":
            how: Any = {"base": base, "max_memory": max_memory}
            stored_nbytes, nbytes = verify_file(path, backend, **how)
        elif has_hub_form(path):
            stored_nbytes, nbytes = verify_hub_file(path, backend, max_memory=max_memory)
        else:
            form, nbytes = _PLAIN, stored_nbytes
    except CodecError as e:
        e.file = None
        return Verified(name, form, str(e), 0, stored_nbytes)
    progress(stored_nbytes)
    return Verified(name, form, "", nbytes, stored_nbytes)
