"""Storage of ``torch.distributed.checkpoint`` as ``.wcodec`` files: a file for each rank, and
PyTorch's ``.metadata``, a pickle, which is written last. Like any pickle, it runs code of whoever
wrote it: load only checkpoints that you trust.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from wcodec.errors import DecodeError, EncodeError
from wcodec.files.atomic import AnyPath, atomic_output
from wcodec.files.file import MAX_BASES, File
from wcodec.planner.options import EncodeOptions
from wcodec.torch.loading.files import save_file
from wcodec.torch.loading.reader import Reader

METADATA: Final = ".metadata"  #: PyTorch's name of it
BASE_KEY: Final = "wcodec.checkpoint.base"  #: text of a file: the way to the base's directory


class WCodecStorageWriter(StorageWriter):
    """Writes a checkpoint of ``torch.distributed.checkpoint``: a rank its tensors into one
    ``.wcodec`` file, the coordinator ``.metadata`` last; without that, it is no checkpoint.

    Parameters
    ----------
    path
        The directory; ``checkpoint_id`` of `save` takes its place. It must not hold a checkpoint.
    base
        The directory of an earlier checkpoint of this writer, of the same sharding: what is stored
        is the difference from it. It is needed to load this one, where it now is relative to it.
    options, fsync
        As of `wcodec.torch.save_file`.

    Raises
    ------
    EncodeError
        When it writes. ``output_exists``: there is a checkpoint. ``bad_option``: the base is none,
        or has `MAX_BASES` bases already. And as `wcodec.torch.save_file`.

    Examples
    --------
    >>> dcp.save(state, storage_writer=WCodecStorageWriter("step-2", base="step-1"))
    """

    def __init__(
        self,
        path: AnyPath,
        *,
        base: AnyPath | None = None,
        options: EncodeOptions | None = None,
        fsync: bool = True,
    ) -> None:
        super().__init__()
        self.path, self.base = Path(path), None if base is None else Path(base)
        self.options, self.fsync = options, fsync
        self._save_id, self._rank = uuid.uuid4().hex, None
        self._collective = True

    def __getstate__(self) -> dict[str, Any]:
        """For the process that saves in the background: its working directory may be another."""
        base = None if self.base is None else self.base.absolute()
        return {**self.__dict__, "path": self.path.absolute(), "base": base}

    @property
    def checkpoint_id(self) -> AnyPath:
        """The directory."""
        return self.path

    def reset(self, checkpoint_id: AnyPath | None = None) -> None:
        """As of `StorageWriter`."""
        if checkpoint_id:
            self.path = Path(checkpoint_id)
        self._save_id = uuid.uuid4().hex

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """As of `StorageWriter`."""
        self._rank = kwargs.get("rank")
        self._collective = kwargs.get("use_collectives", True)

    def _metadata_path(self) -> Path:
        return self.path / (METADATA if self._collective else f"__{self._rank}{METADATA}")

    def _is_taken(self) -> bool:
        """Whether a checkpoint is there; a rank that saves on its own may find those of others."""
        if self._collective:
            return any(self.path.glob(f"*{METADATA}"))
        return self._metadata_path().exists() or (self.path / METADATA).exists()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As of `StorageWriter`. Raises `EncodeError`."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self._is_taken():
            raise EncodeError("output_exists", f"{str(self.path)!r} holds a checkpoint")
        names = (METADATA, f"__{self._rank}{METADATA}")  # of all ranks, or this one's own
        if self.base is not None and not any((self.base / name).is_file() for name in names):
            raise EncodeError("bad_option", f"the base {str(self.base)!r} is no checkpoint")
        if self._collective:
            return plan
        return dataclasses.replace(plan, storage_data=f"__{self._rank}_0.wcodec")

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """As of `StorageWriter`: each rank's plan gets the name of its file. A rank that saves on
        its own is the only one here, and has that name already.
        """
        if not self._collective:
            return plans
        return [dataclasses.replace(p, storage_data=f"__{i}_0.wcodec") for i, p in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """As of `StorageWriter`. What is contiguous on the CPU is encoded from where it lies."""
        file, items = str(plan.storage_data), _Items(plan.items, planner)
        if items:
            path = self.path / file
            there = None if self.base is None else self.base / file
            if there is None or not there.is_file():  # the rank had nothing to write there
                save_file(items, path, None, self.options, fsync=self.fsync)
            else:
                way = os.path.relpath(os.path.realpath(there.parent), os.path.realpath(self.path))
                with opened(there) as (base, n_bases):
                    if n_bases >= MAX_BASES:
                        raise EncodeError(
                            "bad_option",
                            f"the base {str(self.base)!r} has {n_bases} bases already: write a "
                            "checkpoint without one",
                        )
                    save_file(
                        items, path, {BASE_KEY: way}, self.options, base.file, fsync=self.fsync
                    )
        done: Future[list[WriteResult]] = Future()
        done.set_result(
            [
                WriteResult(item.index, items.nbytes[name], (file, name))
                for name, item in items.by_name.items()
            ]
        )
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """As of `StorageWriter`: from now on, the directory is a checkpoint."""
        metadata.storage_data = {r.index: r.storage_data for some in results for r in some}
        metadata.storage_meta = self.storage_meta()
        with atomic_output(self._metadata_path(), overwrite=False, fsync=self.fsync) as f:
            pickle.dump(metadata, f)

    def storage_meta(self) -> StorageMeta:
        """As of `StorageWriter`."""
        return StorageMeta(checkpoint_id=str(self.path), save_id=self._save_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: AnyPath) -> bool:
        """Whether it can be a directory here: it is no URL."""
        return "://" not in os.fspath(checkpoint_id)


class _Items(Mapping[str, torch.Tensor]):
    """What a rank writes, as tensors by name, each resolved when it is asked for."""

    def __init__(self, items: list[WriteItem], planner: SavePlanner) -> None:
        self.by_name, self.nbytes = dict[str, WriteItem](), dict[str, int]()
        self._planner = planner
        for item in items:
            name = item.index.fqn
            if item.type == WriteItemType.SHARD:
                name += f"@{','.join(map(str, item.index.offset or ()))}"
            while name in self.by_name:
                name += "'"
            self.by_name[name] = item

    def __getitem__(self, name: str) -> torch.Tensor:
        item = self.by_name[name]
        data = self._planner.resolve_data(item)
        if item.type == WriteItemType.BYTE_IO:
            buffer = data.getbuffer()
            if buffer:
                data = torch.frombuffer(buffer, dtype=torch.uint8)
            else:
                data = torch.empty(0, dtype=torch.uint8)
        self.nbytes[name] = data.nbytes
        return data.detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)


@contextmanager
def opened(path: Path) -> Iterator[tuple[Reader, int]]:
    """A rank's file with its bases, and how many these are.

    Raises
    ------
    DecodeError
        ``bad_base``: one is not there or another one, or there are more than `MAX_BASES`.
    """
    reader = Reader(path)
    try:
        yield reader, _open_bases(reader.file)
    finally:
        reader.close()


def base_path(file: File) -> Path | None:
    """The file that a rank's file holds differences from, if it does.

    Raises
    ------
    DecodeError
        ``bad_base``: it does not say where that is.
    """
    if not file.needs_base:
        return None
    path, way = Path(file.path or ""), file.metadata().get(BASE_KEY)
    if way is None or os.path.isabs(way):  # the writer's are relative
        raise DecodeError("bad_base", f"{str(path)!r} names no relative path to its base")
    return Path(os.path.realpath(path.parent), way, path.name)


@contextmanager
def quiet_if_alone() -> Iterator[None]:
    """Without PyTorch's warning that one process saves or loads on its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _open_bases(file: File) -> int:
    n_bases = 0
    while (there := base_path(file)) is not None:
        if n_bases >= MAX_BASES:
            raise DecodeError("bad_base", f"more than {MAX_BASES} checkpoints, each of the next")
        if not there.is_file():
            raise DecodeError(
                "bad_base",
                f"{str(file.path)!r} holds differences from {str(there)!r}: put it there",
            )
        base = File(there, depth=n_bases + 1)
        try:
            file.take_base(base)
        except BaseException:
            base.close()
            raise
        file, n_bases = base, n_bases + 1
    return n_bases


class WCodecStorageReader(StorageReader):
    """Reads what `WCodecStorageWriter` wrote, for any sharding.

    Parameters
    ----------
    path
        The directory; ``checkpoint_id`` of `load` takes its place. Its ``.metadata`` is a pickle,
        and the files say where their bases are: trust whoever wrote them.

    Raises
    ------
    DecodeError
        When it reads: a file is damaged, or a base is missing or another one (``bad_base``).
    """

    def __init__(self, path: AnyPath) -> None:
        super().__init__()
        self.path, self._load_id = Path(path), uuid.uuid4().hex
        self._stored: dict[Any, tuple[str, str]] = {}

    @property
    def checkpoint_id(self) -> AnyPath:
        """The directory."""
        return self.path

    def reset(self, checkpoint_id: AnyPath | None = None) -> None:
        """As of `StorageReader`."""
        if checkpoint_id:
            self.path = Path(checkpoint_id)
        self._stored, self._load_id = {}, uuid.uuid4().hex

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """As of `StorageReader`. Raises `FileNotFoundError`: this is no checkpoint."""
        rank = kwargs.get("rank")
        with open(self.path / (METADATA if rank is None else f"__{rank}{METADATA}"), "rb") as f:
            metadata: Metadata = pickle.load(f)
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self._load_id
        return metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """As of `StorageReader`."""
        self._stored = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As of `StorageReader`."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As of `StorageReader`."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """As of `StorageReader`. A part of a tensor that is wanted alone is decoded alone."""
        wanted = dict[str, dict[str, list[ReadItem]]]()
        for item in plan.items:
            file, name = self._stored[item.storage_index]
            wanted.setdefault(file, {}).setdefault(name, []).append(item)
        for file, by_name in wanted.items():
            with opened(self.path / file) as (reader, _):
                for name, items in by_name.items():
                    _read(reader, name, items, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: AnyPath) -> bool:
        """Whether it can be a directory here: it is no URL."""
        return "://" not in os.fspath(checkpoint_id)


def _read(reader: Reader, name: str, items: list[ReadItem], planner: LoadPlanner) -> None:
    """Give the planner all that it wants of one stored tensor."""
    if items[0].type == LoadItemType.BYTE_IO:
        data = reader.tensor(name).numpy().tobytes()
        for item in items:
            planner.load_bytes(item, io.BytesIO(data))
        return
    shape = tuple(reader.form(name).shape)
    is_part = len(items) == 1 and tuple(items[0].lengths) != shape
    whole = None if is_part else reader.tensor(name)
    for item in items:
        place = tuple(
            slice(a, a + n) for a, n in zip(item.storage_offsets, item.lengths, strict=True)
        )
        part = reader.slice(name)[place] if whole is None else whole[place]
        target = planner.resolve_tensor(item).detach()
        if target.shape != part.shape:
            raise ValueError(
                f"{item.storage_index}: {tuple(part.shape)} do not fit {tuple(target.shape)}"
            )
        target.copy_(part)
        planner.commit_tensor(item, target)
