"""Checkpoints of one file or several, read a tensor at a time: `WCodecCheckpoint`; whole:
`load_wcodec_checkpoint`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from functools import partial
from typing import Any, TypeAlias

import torch

from wcodec.codec.urls import Place, place_of
from wcodec.errors import DecodeError
from wcodec.files.atomic import AnyPath
from wcodec.files.shard_index import CODED, PLAIN, is_variant_of, weights_in
from wcodec.torch.loading.reader import Device, Reader

Storage: TypeAlias = Any  #: torch.UntypedStorage, or one of the older typed ones
MapLocation: TypeAlias = (
    Device | Mapping[str, str] | Callable[[Storage, str], Storage | None] | None
)


class WCodecCheckpoint(Mapping[str, torch.Tensor]):
    """The tensors of a ``.wcodec`` file, or of a folder of them, by name; each is decoded when it
    is asked for, every time anew.

    A mapping, so that ``model.load_state_dict(checkpoint)`` takes it. Iteration is in the order of
    the files; `items` and `values` decode one tensor ahead in a thread: whoever drops tensors needs
    memory for two.

    Parameters
    ----------
    path
        A file, or a folder: of the shards that its ``*.wcodec.index.json`` names,
        or of all its ``*.wcodec`` but variants of others.
    map_location
        Where tensors go, as in `torch.load`: a device; ``None`` for the CPU; a dict with a device
        for ``"cpu"``, where all tensors come from; or a function that is called with a storage on
        the CPU and ``"cpu"``, and returns the storage to use, or ``None`` for the same.
    base
        The file that the file, or each of the shards, holds differences from; or a folder with one
        that is called as each of them.
    variant
        Of a folder, which variant of the model, such as ``"fp16"``, named as transformers,
        diffusers or huggingface_hub name them; ``None`` for the weights that are no variant, or for
        the only one.

    Raises
    ------
    FileNotFoundError
        There is no such file, or none in the folder.
    DecodeError
        ``bad_name``: two shards have a tensor of one name, or the index names a path elsewhere.
        ``bad_value``: an index that is none. ``bad_range``: a tensor of the index is not in its
        shard. And what `wcodec.open` raises.
    BackendUnavailable
        As `load_file`.
    """

    def __init__(
        self,
        path: AnyPath,
        map_location: MapLocation = "cpu",
        base: AnyPath | None = None,
        variant: str | None = None,
    ) -> None:
        self.path = place_of(path)
        device, self._relocate = _located(map_location)
        self._where = dict[str, Reader]()
        with contextlib.ExitStack() as opened:
            shards, wanted = _weights(self.path, variant)
            self._readers = [opened.enter_context(_open(s, device, base)) for s in shards]
            if not wanted and variant is None:
                self._readers = _without_variants(self._readers)
            for reader in self._readers:
                self._add(reader, wanted)
            for name, shard in wanted.items():
                if name not in self._where:
                    raise DecodeError(
                        "bad_range",
                        f"the index says that the tensor is in {shard}, which does not hold it",
                        tensor=name,
                    )
            opened.pop_all()  # they stay open

    def _add(self, reader: Reader, wanted: dict[str, str]) -> None:
        for name in reader.keys():  # noqa: SIM118
            if wanted and wanted.get(name) != reader.name:
                continue
            if name in self._where:
                raise DecodeError(
                    "bad_name",
                    f"{self._where[name].name} and {reader.name} both have this tensor; name the "
                    "variant, if one of them is of one",
                    tensor=name,
                )
            self._where[name] = reader

    def close(self) -> None:
        """Let go of the files. Tensors that were read stay."""
        for reader in self._readers:
            reader.close()

    def __enter__(self) -> WCodecCheckpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- what it holds
    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def shapes(self) -> dict[str, torch.Size]:
        """Shapes by name. Nothing is decoded."""
        return {name: r.form(name).shape for name, r in self._where.items()}

    def dtypes(self) -> dict[str, torch.dtype]:
        """PyTorch's dtypes by name. Nothing is decoded."""
        return {name: r.form(name).dtype for name, r in self._where.items()}

    @property
    def metadata(self) -> dict[str, str]:
        """Texts kept with the tensors; where shards differ in one, that of the first."""
        return {
            k: v for reader in reversed(self._readers) for k, v in reader.file.metadata().items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, decoded."""
        return sum(r.record(name).nbytes for name, r in self._where.items())

    @property
    def stored_nbytes(self) -> int:
        """Bytes of the files."""
        return sum(r.file.index.file_nbytes for r in self._readers)

    # ---- tensors
    def __getitem__(self, name: str) -> torch.Tensor:
        reader = self._where.get(name)
        if reader is None:
            raise KeyError(f"{self.path.name} has no tensor {name!r}")
        return self._relocate(reader.tensor(name))

    def items(self) -> ItemsView[str, torch.Tensor]:
        """Names and tensors, one decoded ahead."""
        return _Items(self)

    def values(self) -> ValuesView[torch.Tensor]:
        """Tensors, one decoded ahead."""
        return _Values(self)

    def iterate(self) -> Iterator[tuple[str, torch.Tensor]]:
        """As ``iter(self.items())``. Raises `DecodeError`."""
        for reader, names in self.readers():
            for name, tensor in reader.iterate(names):
                yield name, self._relocate(tensor)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All tensors by name, decoded with all threads.

        Raises
        ------
        DecodeError
        """
        found = dict[str, torch.Tensor]()
        for reader, names in self.readers():
            found.update(
                (name, self._relocate(tensor)) for name, tensor in reader.tensors(names).items()
            )
        return found

    def readers(self) -> Iterator[tuple[Reader, list[str]]]:
        """The open files, and the names of the tensors that each is asked for."""
        for reader in self._readers:
            yield reader, [name for name, where in self._where.items() if where is reader]


class _Items(ItemsView[str, torch.Tensor]):
    def __init__(self, checkpoint: WCodecCheckpoint) -> None:
        super().__init__(checkpoint)
        self._checkpoint = checkpoint

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._checkpoint.iterate()


class _Values(ValuesView[torch.Tensor]):
    def __init__(self, checkpoint: WCodecCheckpoint) -> None:
        super().__init__(checkpoint)
        self._checkpoint = checkpoint

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (tensor for _, tensor in self._checkpoint.iterate())


def load_wcodec_checkpoint(
    path: AnyPath,
    map_location: MapLocation = "cpu",
    base: AnyPath | None = None,
    variant: str | None = None,
) -> dict[str, torch.Tensor]:
    """All tensors of a ``.wcodec`` file, or of a folder of them, by name: as `torch.load` gives a
    state dict that was saved.

    Parameters and errors are those of `WCodecCheckpoint`.

    Examples
    --------
    >>> model.load_state_dict(load_wcodec_checkpoint("model.wcodec", map_location="cuda"))
    """
    with WCodecCheckpoint(path, map_location, base, variant) as checkpoint:
        return checkpoint.state_dict()


# ---- files of a folder ---------------------------------------------------------------------------
def _weights(path: Place, variant: str | None) -> tuple[list[Place], dict[str, str]]:
    """The files of a checkpoint in the order of their names, and in which of them the index of a
    folder says that each tensor is. The index is a stranger's.
    """
    if not path.is_dir():
        return [path], {}
    names, weight_map = weights_in(path, variant)
    return [path / name for name in names], weight_map


def _without_variants(readers: list[Reader]) -> list[Reader]:
    """Files that are no variant of another one: called so, and with tensors of the same names."""
    return [
        r
        for r in readers
        if not any(
            is_variant_of(r.name, of.name) and set(r.keys()) == set(of.keys()) for of in readers
        )
    ]


def _open(shard: Place, device: torch.device, base: AnyPath | None) -> Reader:
    if base is not None and place_of(base).is_dir():
        found = (
            place_of(base) / (shard.name.removesuffix(CODED) + suffix) for suffix in (PLAIN, CODED)
        )
        return Reader(shard, device, next((path for path in found if path.is_file()), None))
    return Reader(shard, device, base)


# ---- map_location --------------------------------------------------------------------------------
def _located(
    map_location: MapLocation,
) -> tuple[torch.device, Callable[[torch.Tensor], torch.Tensor]]:
    """The device to decode for, and what to do with each tensor then."""
    if isinstance(map_location, Mapping):
        map_location = map_location.get("cpu", "cpu")
    if map_location is None or isinstance(map_location, str | int | torch.device):
        return torch.device("cpu" if map_location is None else map_location), _as_it_is
    return torch.device("cpu"), partial(_relocated, map_location)


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _relocated(
    function: Callable[[Storage, str], Storage | None], tensor: torch.Tensor
) -> torch.Tensor:
    """A tensor in the storage that a `map_location` returns for its own."""
    storage = function(tensor.untyped_storage(), "cpu")
    if storage is None:
        return tensor
    untyped: torch.UntypedStorage = getattr(storage, "_untyped_storage", storage)
    return torch.empty(0, dtype=tensor.dtype, device=untyped.device).set_(
        untyped, 0, tensor.shape, tensor.stride()
    )
