"""An open ``.wcodec`` file whose tensors come as those of PyTorch, on any device."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch

from wcodec.backends import get_backend, load_backend
from wcodec.codec.pipelining import map_ahead
from wcodec.directories.hub_header import is_hub
from wcodec.errors import BackendUnavailable, DecodeError, within
from wcodec.files.atomic import AnyPath
from wcodec.files.file import File
from wcodec.files.slices import Slice
from wcodec.reference.tensors import TensorRecord
from wcodec.torch import dtypes
from wcodec.torch.loading.decoding import decode_into, empty

Device: TypeAlias = str | int | torch.device


# ---- devices -------------------------------------------------------------------------------------
def decodes_itself(device: torch.device) -> bool:
    """Whether tensors for a device are decoded there. Else they are decoded on the host and moved.

    That is so for GPUs, unless another backend was chosen than ``"auto"`` would take.

    Raises
    ------
    BackendUnavailable
        It would be, and cannot.
    """
    if device.type != "cuda" or get_backend().name != load_backend("auto").name:
        return False
    if not torch.cuda.is_available():
        raise BackendUnavailable(
            f"device {str(device)!r}: this PyTorch finds no GPU; "
            "install one that is built for CUDA, and wcodec[cuda]"
        )
    return True


@contextlib.contextmanager
def _explained(path: AnyPath | None) -> Iterator[None]:
    """A file of safetensors is no ``.wcodec`` file, but there is something to do about it."""
    try:
        yield
    except DecodeError as e:
        if e.code != "bad_magic" or path is None or _start(path)[8:9] != b"{":
            raise
        what = "that is not compressed: safetensors.torch.load_file reads it"
        if is_hub(path):
            what = (
                "in hub form: wcodec.transformers loads its directory, "
                "and `wcodec decode` makes a plain one of it"
            )
        raise DecodeError(e.code, f"this is a safetensors file {what}", offset=e.offset) from None


class Reader:
    """An open ``.wcodec`` file. Use as a context, or `close` it.

    Parameters
    ----------
    path
        A path, or a seekable binary file object, whose tensors are decoded on the host.
    device
        Where tensors go.
    base, max_nbytes, max_memory
        As of `wcodec.open`.

    Attributes
    ----------
    decodes_itself
        Whether whole tensors are decoded on the device.

    Raises
    ------
    BackendUnavailable
        The device is a GPU, and what decodes there is missing.
    DecodeError
    """

    def __init__(
        self,
        path: AnyPath | BinaryIO,
        device: Device = "cpu",
        base: AnyPath | None = None,
        *,
        max_nbytes: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        self.path = path if isinstance(path, str | os.PathLike) else None
        self.name = "" if self.path is None else os.path.basename(self.path)
        self.device, self._base = torch.device(device), base
        self.decodes_itself = decodes_itself(self.device) and self.path is not None
        with within(self.name or None), _explained(self.path):
            self.file = File(path, None, max_nbytes, base, max_memory=max_memory)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. Tensors that were read stay."""
        self.file.close()

    # ---- what it holds
    def keys(self) -> list[str]:
        """Names of the tensors, in the file's order."""
        return self.file.keys()

    def record(self, name: str) -> TensorRecord:
        """What the index says of a tensor.

        Raises
        ------
        KeyError
        """
        try:
            return self.file.record(name)
        except KeyError:
            raise KeyError(f"{self.name or 'the file'} has no tensor {name!r}") from None

    def form(self, name: str) -> dtypes.Form:
        """Dtype and shape of a tensor.

        Raises
        ------
        KeyError
        DecodeError
            ``unsupported_coder``: PyTorch has no such dtype.
        """
        t = self.record(name)
        with within(self.name or None):
            return dtypes.form_of(t, self.file.stated.get(name))

    # ---- tensors
    def tensors(self, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """Tensors by name, in the order of `names`, or all in that of the file.

        Raises
        ------
        KeyError, DecodeError
        """
        ahead = self.file.all_ahead() if names is None else contextlib.nullcontext()
        names = self.keys() if names is None else list(names)
        forms = {name: self.form(name) for name in names}
        if self.device.type == "meta":
            return {n: torch.empty(f.shape, dtype=f.dtype, device="meta") for n, f in forms.items()}
        with within(self.name or None), ahead:
            found = (
                self._from_device(list(forms))
                if self.decodes_itself
                else self._from_host({name: self.record(name) for name in forms})
            )
        return {name: dtypes.formed(t, forms[name]) for name, t in found.items()}

    def _from_device(self, names: list[str]) -> dict[str, torch.Tensor]:
        import wcodec.cuda
        from wcodec.torch.loading.device_memory import DeviceMemory

        assert self.path is not None
        loader, memory = wcodec.cuda.shared_loader(_number(self.device)), DeviceMemory(self.device)
        with memory.in_use(loader.runtimes[0]):
            found = loader.load_open(self.file, names, allocate=memory.allocate)
        return {name: memory.tensor(t) for name, t in found.items()}

    def _from_host(self, records: dict[str, TensorRecord]) -> dict[str, torch.Tensor]:
        out = {name: empty(t) for name, t in records.items()}
        decode_into(
            self.file,
            [
                (self.file.original(t), dtypes.out_array(out[name], t.dtype))
                for name, t in records.items()
            ],
        )
        return (
            out
            if self.device.type == "cpu"
            else {name: out.pop(name).to(self.device) for name in records}
        )

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor. Raises as `tensors`."""
        return self.tensors([name])[name]

    def iterate(self, names: Sequence[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors one after another, each decoded while the caller has the one before:
        memory for two, if they are dropped.

        Raises as `tensors`.
        """
        names = self.keys() if names is None else list(names)
        if self.decodes_itself:
            with within(self.name or None):
                yield from self._iterate_device(names)
        else:
            # one is made while the caller has the one before
            n_threads = 0 if self.file.decoder.backend.threads == 1 else 1
            yield from zip(names, map_ahead(self.tensor, names, n_threads, 1), strict=True)

    def _iterate_device(self, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        import wcodec.cuda
        from wcodec.torch.loading.device_memory import DeviceMemory

        assert self.path is not None
        memory, forms = DeviceMemory(self.device), {name: self.form(name) for name in names}
        with (
            wcodec.cuda.Loader(_number(self.device)) as loader,
            contextlib.closing(
                loader.iterate_open(self.file, names, allocate=memory.allocate)
            ) as tensors,
        ):
            while True:
                with memory.in_use(loader.runtimes[0]):  # not while the caller has a tensor
                    t = next(tensors, None)
                if t is None:
                    return
                yield t.name, dtypes.formed(memory.tensor(t), forms[t.name])

    def slice(self, name: str) -> TensorSlice:
        """A tensor to take parts of.

        Raises
        ------
        KeyError
        """
        self.record(name)
        return TensorSlice(self, name)


class TensorSlice:
    """A tensor of which parts are read: ``s[64:128]``. Only segments that a part touches are read
    and decoded, on the host.

    The CRC-32 of each segment is checked; that of the tensor needs all of them.
    """

    def __init__(self, reader: Reader, name: str) -> None:
        self._reader, self._name = reader, name
        self._slice: Slice = reader.file.get_slice(name)

    def get_shape(self) -> list[int]:
        """Shape of the whole tensor, as in safetensors: of float4, in elements of half a byte."""
        return self._slice.get_shape()

    def get_dtype(self) -> str:
        """Name of the dtype as in safetensors, such as ``"BF16"``."""
        return self._slice.get_dtype()

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Part of the tensor by integers, slices and ``...``, which count as `get_shape` does. Of
        float4, that has two elements in a byte, parts of rows are slices of whole bytes.

        Raises
        ------
        IndexError, TypeError, DecodeError
        """
        dtype = self._reader.form(self._name).dtype
        with within(self._reader.name or None):
            array = self._slice[index]
        part = dtypes.from_array(
            np.ascontiguousarray(array).reshape(array.shape), self._reader.record(self._name).dtype
        )
        return part.to(self._reader.device).view(dtype)


def _start(path: AnyPath) -> bytes:
    with open(path, "rb") as f:
        return f.read(9)


def _number(device: torch.device) -> int:
    return int(torch.cuda.current_device() if device.index is None else device.index)
