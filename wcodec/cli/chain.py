"""`wcodec chain`: the versions of a run of training. Spec: spec/chain.md."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from wcodec.cli.common import DONE, backend_of, limits_of, progress_of, say, show, typed
from wcodec.cli.outputs import check_target
from wcodec.codec.opening import OpenedFile, open_source
from wcodec.deltas.chain import Chain
from wcodec.deltas.manifest import NoVersion, Version
from wcodec.deltas.states import State, decoded, take
from wcodec.directories.hub_header import InputKind, is_hub, kind_of
from wcodec.errors import EncodeError, within
from wcodec.files.atomic import atomic_output
from wcodec.files.file import File
from wcodec.files.safetensors_header import (
    SourceTensor,
    Stated,
    read_safetensors_header,
    restored_header,
)
from wcodec.files.saving import Taken, write_tensors
from wcodec.files.shard_index import PLAIN
from wcodec.inspect.report import percent_text, printable, size_text, table_text
from wcodec.reference.planes import OPAQUE

Report = tuple[str, dict[str, Any]]  #: of what was done: in words, and for programs


def _done(args: argparse.Namespace, work: Callable[[Chain], Report]) -> int:
    """Do something with the chain, and say what."""
    start = time.perf_counter()
    chain = _chain(args)
    try:
        line, report = work(chain)
    except NoVersion as e:
        with within(args.chain):
            raise EncodeError("bad_option", str(e)) from None
    seconds = time.perf_counter() - start
    line = f"{typed(args.chain)}: {line}, {seconds:.1f} s"
    say(args, line, {"chain": args.chain, **report, "seconds": seconds})
    return DONE


def _chain(args: argparse.Namespace) -> Chain:
    """The chain that is named; leaves with 2 where nothing serves such a URL."""
    try:
        return Chain(args.chain, backend_of(args), **limits_of(args))
    except (ImportError, ValueError) as e:
        args.error(f"{args.chain}: {e}")
        raise


def _of_version(v: Version) -> Report:
    sizes = f"{size_text(v.data_nbytes)} -> {size_text(v.nbytes)}"
    line = f"version {v.version}, {v.kind}, {sizes} ({percent_text(v.nbytes, v.data_nbytes)})"
    return line, v._asdict()


# ---- add, list -----------------------------------------------------------------------------------
def add(args: argparse.Namespace) -> int:
    """`wcodec chain add`."""

    def work(chain: Chain) -> Report:
        state, metadata = _read(args)
        number = chain.append(state, {**metadata, **dict(args.metadata)}, args.full)
        return _of_version(chain.find(number))

    return _done(args, work)


def _read(args: argparse.Namespace) -> tuple[State, dict[str, str]]:
    """The tensors and texts of a file.

    Raises
    ------
    DecodeError, EncodeError, OSError
    """
    if kind_of(args.input) is InputKind.WCODEC:
        with File(args.input, backend_of(args), **limits_of(args)) as file:
            return decoded(file), file.metadata()
    with within(args.input):
        if is_hub(args.input):
            raise EncodeError("bad_source", "it is in hub form: decode it first (wcodec decode)")
        source = open_source(args.input, EncodeError, is_checked=True)
        header = read_safetensors_header(source)
        return {t.name: _taken(source, t) for t in header.tensors}, header.metadata


def _taken(source: OpenedFile, t: SourceTensor) -> Taken:
    words = source.read(t.start, t.nbytes).view(t.dtype.word_type)
    stated = Stated(t.dtype_name, t.stated_shape, 0) if t.dtype is OPAQUE else None
    return Taken(words, t.dtype, t.shape, stated)


def list_versions(args: argparse.Namespace) -> int:
    """`wcodec chain list`."""
    versions = _chain(args).versions()
    rows = [["version", "kind", "time", "bytes", "of", "metadata"]]
    for v in versions:
        texts = printable(" ".join(f"{key}={text}" for key, text in v.metadata.items()))
        sizes = [size_text(v.nbytes), size_text(v.data_nbytes)]
        rows.append([str(v.version), v.kind, v.time, *sizes, texts])
    show(args, [v._asdict() for v in versions], table_text(rows, left=len(rows[0])))
    return DONE


# ---- get -----------------------------------------------------------------------------------------
def get(args: argparse.Namespace) -> int:
    """`wcodec chain get`."""
    check_target(args, "-o", args.output)

    def work(chain: Chain) -> Report:
        v = chain.find(args.version)
        state = chain.state(v.version)
        if args.output.endswith(PLAIN):
            _write_plain(args, state, v.metadata)
        else:
            write_tensors(
                state, take, args.output, v.metadata, None, None, args.fsync, backend_of(args)
            )
        line = f"version {v.version} -> {typed(args.output)}: {size_text(v.data_nbytes)}"
        return line, {"version": v.version, "output": args.output, "data_nbytes": v.data_nbytes}

    return _done(args, work)


def _write_plain(args: argparse.Namespace, state: State, metadata: dict[str, str]) -> None:
    """Write a safetensors file."""
    entries = [
        (name, t.dtype.safetensors or "U8", t.shape, t.words.nbytes)
        if t.stated is None
        else (name, t.stated.dtype, t.stated.shape, t.words.nbytes)
        for name, t in state.items()
    ]
    header = restored_header(entries, metadata)
    with atomic_output(args.output, overwrite=args.force, fsync=args.fsync) as f:
        f.write(header)
        for t in state.values():
            f.write(t.words.data)


# ---- verify, prune, pack -------------------------------------------------------------------------
def verify(args: argparse.Namespace) -> int:
    """`wcodec chain verify`."""

    def work(chain: Chain) -> Report:
        there = chain.versions(retired=True)
        with progress_of(args, sum(v.data_nbytes for v in there)) as progress:
            versions = chain.verify(progress)
        nbytes = sum(v.nbytes for v in there)
        line = f"good, {_counted(len(versions), 'version')}, {size_text(nbytes)}"
        return line, {"good": True, "n_versions": len(versions), "nbytes": nbytes}

    return _done(args, work)


def prune(args: argparse.Namespace) -> int:
    """`wcodec chain prune`."""
    if not (args.keep_last or args.keep_every or args.keep):
        args.error("say what to keep: --keep-last, --keep-every or --keep")

    def work(chain: Chain) -> Report:
        done = chain.prune(args.keep_last, args.keep_every, args.keep)
        n = len(done.versions), len(done.files)
        line = f"{_counted(n[0], 'version')} and {_counted(n[1], 'file')} removed"
        return line, done._asdict()

    return _done(args, work)


def pack(args: argparse.Namespace) -> int:
    """`wcodec chain pack`."""
    return _done(args, lambda chain: _of_version(chain.pack(args.version)))


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
