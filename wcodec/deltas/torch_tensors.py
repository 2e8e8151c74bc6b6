"""Tensors of PyTorch that are changed in place; see `wcodec.apply`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from wcodec.codec.decoder import Decoder
from wcodec.deltas.targets import Target, unlike
from wcodec.files.safetensors_header import Stated
from wcodec.reference.planes import Words
from wcodec.reference.tensors import TensorRecord
from wcodec.torch.dtypes import form_of, plain_of
from wcodec.torch.loading.reader import decodes_itself


def target_of(given: Any, t: TensorRecord, stated: Stated | None, decoder: Decoder) -> Target:
    """The memory of a tensor that is to become `t`.

    Parameters
    ----------
    stated
        What the file's header says of opaque bytes.
    decoder
        Of the file, for tensors that are not decoded on a GPU.

    Raises
    ------
    DecodeError
        ``bad_base``: it has another dtype or shape.
    EncodeError, ValueError
        It cannot be changed in place.
    """
    plain, form = plain_of(given, t.name), form_of(t, stated)
    if (plain.dtype, plain.shape) != (form.dtype, form.shape):
        raise unlike(t, str(plain.dtype), tuple(plain.shape))
    if not plain.is_contiguous() or plain.is_conj() or plain.is_neg():
        raise ValueError(f"{t.name!r}: only a contiguous tensor is changed in place")
    flat = plain.reshape(-1).view(torch.uint8)  # in this order: strides of an empty one may be 0
    if plain.data_ptr() % t.dtype.word_nbytes:
        raise ValueError(f"{t.name!r}: only a tensor in aligned memory is changed in place")
    if plain.device.type == "cpu":
        return _OnHost(flat.numpy().view(t.dtype.word_type), decoder, given)
    if decodes_itself(plain.device):
        return _OnGpu(flat, t.dtype.word_type, given)
    return _Elsewhere(flat, t.dtype.word_type, decoder, given)


class _OnHost(Target):
    """The memory of a tensor on the CPU."""

    def __init__(self, words: Words, decoder: Decoder, tensor: torch.Tensor) -> None:
        super().__init__(words, decoder)
        self.tensor = tensor

    def finish(self) -> None:
        """As `Target.finish`: autograd is told."""
        torch.autograd.graph.increment_version(self.tensor)


class _Elsewhere(_OnHost):
    """A tensor on a device where nothing is decoded: a copy on the host is changed."""

    def __init__(
        self, flat: torch.Tensor, word: Any, decoder: Decoder, tensor: torch.Tensor
    ) -> None:
        super().__init__(flat.cpu().numpy().view(word), decoder, tensor)
        self._flat = flat

    def finish(self) -> None:
        """As `Target.finish`: the copy goes to the device."""
        self._flat.copy_(torch.from_numpy(self.words.view(np.uint8)))
        super().finish()


class _OnGpu(Target):
    """The memory of a tensor on a GPU, where lists are decoded."""

    def __init__(self, flat: torch.Tensor, word: Any, tensor: torch.Tensor) -> None:
        decoder: Any = _gpu_decoder(flat.device.index)
        torch.cuda.current_stream(flat.device).synchronize()  # what was written there is there
        memory = decoder.backend.runtime.adopt(flat.data_ptr(), flat.numel(), flat)
        super().__init__(memory.view(word), decoder)
        self._flat, self.tensor = flat, tensor

    @property
    def address(self) -> object:
        """As `Target.address`."""
        return self._flat.device, self._flat.data_ptr()

    def load(self) -> Any:
        """As `Target.load`: the memory itself."""
        return self.words

    def store(self, device: Any) -> None:
        """As `Target.store`: nothing is left to do."""

    def to_host(self) -> Words:
        """As `Target.to_host`: a copy."""
        return self.decoder.backend.to_host(self.words)

    def replace(self, words: Words) -> None:
        """As `Target.replace`."""
        self._flat.copy_(torch.from_numpy(words.view(np.uint8)))

    def finish(self) -> None:
        """As `Target.finish`: autograd is told."""
        torch.autograd.graph.increment_version(self.tensor)


@lru_cache(maxsize=16)
def _gpu_decoder(device: int) -> Decoder:
    """What decodes on a GPU, with all calls done when they return."""
    from wcodec.backends.cuda.backend import CudaBackend

    return Decoder(CudaBackend(device=device))
