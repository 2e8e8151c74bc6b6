"""Weights held compressed on a GPU: the same bits as dense ones there,
while others are decoded on a stream beside.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch_fused_cases import need_gpu

from wcodec.errors import DecodeError
from wcodec.torch.loading.files import save_file
from wcodec.torch.resident import scratch
from wcodec.torch.resident.compressed import CompressedTensor
from wcodec.torch.resident.device import DeviceHeld, DevicePrefetcher
from wcodec.torch.resident.models import compress_model, load_compressed, model_memory

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _gpu() -> Iterator[None]:
    need_gpu()
    torch.manual_seed(1)
    yield
    scratch.release_scratch()


class Net(torch.nn.Module):
    """An embedding, some layers, and a tied head."""

    def __init__(
        self, width: int = 512, depth: int = 6, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(5000, width)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(depth))
        self.head = torch.nn.Linear(width, 5000, bias=False)
        self.head.weight = self.embed.weight
        self.to(dtype)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = x + torch.nn.functional.gelu(layer(x))
        return self.head(x)


def nets(dtype: torch.dtype = torch.bfloat16) -> tuple[Net, Net]:
    dense = Net(dtype=dtype).to(CUDA).eval()
    small = compress_model(copy.deepcopy(dense))
    assert isinstance(small, Net)
    return small, dense


def ids() -> torch.Tensor:
    return torch.randint(0, 5000, (2, 37), device=CUDA)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_model_gives_the_same_bits(dtype: torch.dtype) -> None:
    small, dense = nets(dtype)
    assert model_memory(small).n_compressed == 7
    assert isinstance(small.head.weight.held, DeviceHeld)
    assert small.head.weight.stream.device == CUDA
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            for _ in range(4):
                some = ids()
                assert torch.equal(small(some), dense(some))
    assert isinstance(scratch.prefetcher_of(CUDA), DevicePrefetcher)


def test_many_passes_without_waiting() -> None:
    """Kernels of many passes are queued before any has run:
    no buffer may be written to before those that read it.
    """
    small, dense = nets()
    some = [ids() for _ in range(20)]
    with torch.no_grad():
        due = [dense(i) for i in some]
        got = [small(i) for i in some]
        torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, due, strict=True))
    with torch.no_grad():  # another order than was foreseen, and another stream
        x = torch.randn(3, 512, device=CUDA, dtype=torch.bfloat16)
        for i in (3, 0, 3, 5, 1):
            assert torch.equal(small.layers[i](x), dense.layers[i](x))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            got = [small(i) for i in some]
        stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, due, strict=True))


def test_gradients() -> None:
    grads = []
    small, dense = nets(torch.float32)
    some = ids()
    for model in (small, dense):
        for p in model.parameters():
            p.requires_grad_(False)
        model.layers[0].bias.requires_grad_(True)
        model(some).float().square().mean().backward()
        grads.append(model.layers[0].bias.grad)
    assert torch.equal(grads[0], grads[1])


def test_moves_copies_and_pickles() -> None:
    small, dense = nets()
    some = ids()
    due = dense(some)
    on_host = copy.deepcopy(small).to("cpu")
    assert on_host.head.weight.stream.device.type == "cpu"
    assert torch.equal(on_host.head.weight.decode(), dense.head.weight.cpu())
    assert torch.equal(on_host.to(CUDA)(some), due)
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    again = Net().to(CUDA)
    again.load_state_dict(torch.load(file))
    assert torch.equal(again(some), due)
    small.load_state_dict({n: t * 2 for n, t in dense.state_dict().items()})
    dense.load_state_dict({n: t * 2 for n, t in dense.state_dict().items()})
    assert torch.equal(small(some), dense(some))


def test_straight_from_a_file(tmp_path: Path) -> None:
    _, dense = nets()
    save_file(dense.state_dict(), tmp_path / "m.wcodec")
    with torch.device("meta"):
        small = Net()
        small.head.weight = small.embed.weight
    load_compressed(small, tmp_path / "m.wcodec", device=CUDA)
    some = ids()
    assert torch.equal(small(some), dense(some))


def test_experts_rows_and_damage() -> None:
    dense = (torch.randn(8, 256, 384, device=CUDA) * 0.02).bfloat16()
    small = CompressedTensor.from_dense(dense, name="experts")
    for i in (0, 7, torch.tensor([3, 3, 1], device=CUDA), torch.tensor(5, device=CUDA)):
        assert torch.equal(small[i], dense[i])
    assert torch.equal(small.transpose(-2, -1)[2], dense.transpose(-2, -1)[2])
    damaged = small.stream.clone()
    damaged[1000] ^= 16
    with pytest.raises(DecodeError, match=r"bad_checksum.*experts"):
        CompressedTensor.from_stream(damaged, name="experts").decode()


def test_memory_is_that_of_what_is_held() -> None:
    """Of a model of 0.4 GB: streams, two buffers of its largest weight, tables;
    not the dense weights.
    """
    layers = torch.nn.Sequential(*[torch.nn.Linear(4096, 4096, bias=False) for _ in range(12)]).to(
        CUDA, torch.bfloat16
    )
    with torch.no_grad():
        for p in layers.parameters():
            p.normal_(0, 0.02)
    compress_model(layers)
    held = model_memory(layers)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        for _ in range(3):
            layers(torch.zeros(1, 4096, device=CUDA, dtype=torch.bfloat16))
    torch.cuda.synchronize()
    assert held.held < 0.67 * held.dense
    assert torch.cuda.max_memory_allocated() < held.held + 3 * 4096 * 4096 * 2 + (32 << 20)
