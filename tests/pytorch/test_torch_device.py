"""Weights held compressed in device memory: decoded there, on the emulator."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from cuda_emulator import EmulatedRuntime

from wcodec.errors import DecodeError
from wcodec.planner.options import EncodeOptions
from wcodec.torch.resident import device
from wcodec.torch.resident.compressed import CompressedTensor
from wcodec.torch.resident.device import DeviceHeld
from wcodec.torch.resident.held import encode


@pytest.fixture(scope="module")
def runtime() -> EmulatedRuntime:
    return EmulatedRuntime(order="shuffled", seed=5)


@pytest.fixture(autouse=True)
def _emulated(runtime: EmulatedRuntime, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU's memory stands for a GPU's."""
    monkeypatch.setattr(device, "runtime_of", lambda _: runtime)
    return


def weight(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(sum(shape))
    return (torch.randn(*shape) * 0.02).to(dtype)


@pytest.mark.parametrize("preset", ["default", "max"])
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.int8]
)
def test_decoded_again_and_again(dtype: torch.dtype, preset: str) -> None:
    dense = (
        (weight(70, 96, dtype=torch.float32) * 1000).to(dtype)
        if dtype == torch.int8
        else weight(70, 96, dtype=dtype)
    )
    held = DeviceHeld(encode(dense, EncodeOptions(preset=preset)), "w")
    buffers = [torch.zeros(held.nbytes + 64, dtype=torch.uint8) for _ in range(2)]
    for buffer in [*buffers, *buffers]:
        buffer.fill_(77)
        held.decode_into(buffer)
        assert torch.equal(held.view(buffer).view(torch.uint8), dense.view(torch.uint8))
        assert (buffer[held.nbytes :] == 77).all()
    small = CompressedTensor(held)
    assert torch.equal(small.decode().view(torch.uint8), dense.view(torch.uint8))


def test_checked_once() -> None:
    dense = weight(64, 96, dtype=torch.bfloat16)
    held, buffer = DeviceHeld(encode(dense)), torch.zeros(64 * 96 * 2, dtype=torch.uint8)
    held.stream[200] ^= 8
    for _ in range(2):
        with pytest.raises(DecodeError, match="bad_checksum"):
            held.decode_into(buffer)
    held.stream[200] ^= 8
    held.decode_into(buffer)
    assert torch.equal(held.view(buffer), dense)
    with pytest.raises(DecodeError, match=r"truncated.*'v'"):
        DeviceHeld(held.stream[:-8], "v")


@pytest.mark.parametrize("shape", [(700, 64), (5, 40, 64), (300, 2, 3, 8)])
def test_rows(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    dense = weight(*shape, dtype=torch.bfloat16)
    options = EncodeOptions(segment=(16, 64), tile=(16, 64)) if len(shape) == 2 else EncodeOptions()
    held = DeviceHeld(encode(dense, options))
    monkeypatch.setattr(device.ResidentTensor, "decode", None)  # not all of it
    rng = np.random.default_rng(1)
    for n in (0, 1, 3, min(30, shape[0])):
        ids = torch.from_numpy(np.sort(rng.choice(shape[0], min(n, shape[0]), replace=False)))
        assert torch.equal(held.take(ids), dense[ids])
    with pytest.raises(IndexError):
        held.take(torch.tensor([shape[0]]))
    small, ids = CompressedTensor(held), torch.tensor([[1, 0], [4, 1]])
    assert torch.equal(small[ids], dense[ids])


def test_damaged_rows() -> None:
    dense = weight(700, 64, dtype=torch.bfloat16)
    held = DeviceHeld(encode(dense, EncodeOptions(segment=(16, 64), tile=(16, 64))), "w")
    held.stream[40] ^= 1
    assert torch.equal(held.take(torch.tensor([600])), dense[600:601])
    with pytest.raises(DecodeError, match=r"bad_checksum.*'w'"):
        held.take(torch.tensor([0]))


def test_another_content() -> None:
    dense = weight(64, 96, dtype=torch.bfloat16)
    small = CompressedTensor(DeviceHeld(encode(dense)))
    assert torch.equal(small.decode(), dense)
    small.held.replace(dense * 3)
    assert torch.equal(small.decode(), dense * 3)
    odd = torch.zeros(small.stream.numel() + 1, dtype=torch.uint8)[1:]
    odd.copy_(small.stream)
    assert torch.equal(DeviceHeld(odd).dense(), dense * 3), (
        "payloads are brought to where kernels can read them"
    )
