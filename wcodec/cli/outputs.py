"""Where the outputs of `wcodec encode`, `decode` and `repack` go."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from wcodec.codec.urls import Url, place_of, resolved, url_of
from wcodec.directories.tree import check_places
from wcodec.errors import EncodeError
from wcodec.files.atomic import AnyPath, check_output
from wcodec.files.plain import is_pipe


@dataclass(frozen=True)
class Outputs:
    """Where the outputs of all inputs go.

    Attributes
    ----------
    targets
        Output of each input, both as they can be typed.
    folder
        The directory of ``--output-dir``, if it is given.
    """

    targets: dict[str, str]
    folder: str | None

    @contextlib.contextmanager
    def made(self) -> Iterator[None]:
        """While outputs are written, their directory is there;
        one that was made for them stays if anything is in it.
        """
        if self.folder is None:
            yield
            return
        if url_of(self.folder) is not None:
            yield
            return
        is_new = not os.path.isdir(self.folder)
        os.makedirs(self.folder, exist_ok=True)
        try:
            yield
        finally:
            if is_new:
                with contextlib.suppress(OSError):
                    os.rmdir(self.folder)


def _check_inputs(args: argparse.Namespace) -> None:
    """Refuse, before anything is done, an input that is not there. Raises `OSError`."""
    hint = "; an output is named by -o" if len(args.inputs) > 1 else ""
    for path in args.inputs:
        url = url_of(path)
        try:
            if url is None:
                os.stat(place_of(path))
            elif not url.exists():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        except FileNotFoundError as e:
            raise FileNotFoundError(e.errno, str(e.strerror) + hint, path) from None


def take_output(args: argparse.Namespace) -> None:
    """Of two places of which one is a URL, and no output is named, the second one is the output."""
    places = args.inputs
    is_named = args.output is not None or args.output_dir is not None
    if len(places) == 2 and not is_named and any(map(url_of, places)):
        args.inputs, args.output = places[:1], places[1]


def plan_outputs(args: argparse.Namespace, name_of: Callable[[str], str]) -> Outputs:
    """Decide where outputs go. Leaves with 2 where that would destroy an input,
    a base or each other, or is not said.

    Parameters
    ----------
    name_of
        The name of an output from that of its input, beside it or in the directory of
        ``--output-dir``; the same if it has to be said.
    """
    if args.output is not None and len(args.inputs) > 1:
        args.error("-o names the output of one input; --output-dir takes those of several")
    folder = None if args.output_dir is None else place_of(args.output_dir)
    if isinstance(folder, Path) and folder.exists() and not folder.is_dir():
        args.error(f"--output-dir: not a directory: {args.output_dir}")
    _check_inputs(args)
    targets = dict[str, str]()
    for source in args.inputs:
        targets[source] = _target(args, source, name_of)
    read = {
        _inode(path): path
        for path in (*args.inputs, *([args.base] if args.base else []))
        if url_of(path) is None and os.path.exists(path)
    }
    made, places = dict[str, str](), {resolved(path): path for path in read.values()}
    for source, target in targets.items():
        if url_of(target) is not None:
            _check_url(args, source, target, made)
            continue
        if place_of(source).is_dir():
            inside = os.path.realpath(target) + os.sep
            for place, path in places.items():
                if path != source and place.startswith(inside):
                    args.error(f"the output {target} holds {path}, which is read: name another one")
        if os.path.exists(target) and _inode(target) in read:
            args.error(
                f"the output {target} is {read[_inode(target)]}, which is read: name another one"
            )
        _check_alone(args, source, target, made)
        _check_kind(args, source, target)
    return Outputs(targets, args.output_dir)


def _check_alone(args: argparse.Namespace, source: str, target: str, made: dict[str, str]) -> None:
    """Leave with 2 where two inputs would get one output."""
    other = made.setdefault(resolved(target), source)
    if other != source:
        args.error(f"{other} and {source} would both become {target}")


def _check_url(args: argparse.Namespace, source: str, target: str, made: dict[str, str]) -> None:
    """Leave with 2 where an output at a URL would be an input, or one of another kind."""
    _check_alone(args, source, target, made)
    if url_of(target) in [url_of(path) for path in args.inputs]:
        args.error(f"the output {target} is read: name another one")
    found = place_of(target).is_dir()
    if found and not place_of(source).is_dir():
        args.error(f"the output {target} is a directory; --output-dir names one")
    try:
        check_places(source, target)
    except EncodeError as e:
        args.error(e.message)


def _target(args: argparse.Namespace, source: str, name_of: Callable[[str], str]) -> str:
    if args.output is not None:
        return str(args.output)
    if is_pipe(source):
        args.error(f"name the output of {source}, which has no name of its own: -o OUT")
    place = place_of(source)
    own = place.name if isinstance(place, Url) else os.path.basename(os.path.abspath(place))
    name = own if place.is_dir() else name_of(own)
    if args.output_dir is not None:
        return str(place_of(args.output_dir) / name)
    if name == own or isinstance(place, Url):
        args.error(f"name the output of {source}: -o OUT, or --output-dir DIR")
    return os.path.join(os.path.dirname(source), name)


def _inode(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _check_kind(args: argparse.Namespace, source: str, target: str) -> None:
    """Leave with 2 where a file would become a directory or a device, or the other way round, or a
    directory lies in the other.
    """
    is_folder = place_of(source).is_dir()
    if is_folder:
        try:
            check_places(source, target)
        except EncodeError as e:
            args.error(e.message)
    if os.path.exists(target) and not (
        os.path.isdir(target) if is_folder else os.path.isfile(target)
    ):
        what = (
            "not a directory"
            if is_folder
            else "a directory; --output-dir names one"
            if os.path.isdir(target)
            else "not a regular file"
        )
        args.error(f"the output {target} is {what}")


def check_target(
    args: argparse.Namespace, what: str, target: str, inputs: Iterable[AnyPath] = ()
) -> None:
    """Leave with 2 where a report or figure would replace what is read for it,
    or something that is no file.

    Raises
    ------
    EncodeError
        ``output_exists``
    """
    try:
        check_output(target, args.force, inputs)
    except EncodeError as e:
        if e.code == "bad_option":
            args.error(f"{what}: {e.message}")
        raise
