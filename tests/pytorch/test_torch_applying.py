"""`wcodec.apply` on tensors of PyTorch, on the CPU and on an emulated GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_emulator.backend import EmulatedCuda

import wcodec
import wcodec.torch
from wcodec.codec.decoder import Decoder
from wcodec.deltas import applying, torch_tensors
from wcodec.deltas.targets import Target
from wcodec.errors import DecodeError, EncodeError

Tensors = dict[str, torch.Tensor]


def pair() -> tuple[Tensors, Tensors]:
    """A model before and after a step: few words of most tensors have changed."""
    torch.manual_seed(0)
    base: Tensors = {
        f"layers.{i}.weight": (torch.randn(64, 48) * 0.02).to(torch.bfloat16) for i in range(4)
    }
    base |= {
        "float8": torch.randn(900).to(torch.float8_e4m3fn), "complex": torch.randn(8, 9) + 1j,
        "scalar": torch.tensor(3.0), "empty": torch.empty(0, 4), "bool": torch.rand(500) < 0.5,
        "dense": torch.randn(300),
    }  # fmt: skip
    new = {name: tensor.clone() for name, tensor in base.items()}
    for name, tensor in new.items():
        flat = tensor.reshape(-1).view(torch.uint8)
        if flat.numel() and name != "layers.3.weight":
            flat[:: 1 if name == "dense" else 40] ^= 1
    return base, new


def copies(tensors: Tensors) -> Tensors:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether all bits are the same."""
    a, b = (t.detach().cpu().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)


@pytest.mark.parametrize("checked", applying.CHECKS)
def test_tensors_become_the_new_ones(checked: str) -> None:
    base, new = pair()
    delta, live = wcodec.torch.save(new, base=base), copies(base)
    memory = {name: tensor.data_ptr() for name, tensor in live.items()}
    done = wcodec.apply(delta, live, checked=checked)
    assert set(done.unchanged) == {"layers.3.weight", "empty"}
    assert all(same(live[name], tensor) for name, tensor in new.items())
    assert memory == {name: tensor.data_ptr() for name, tensor in live.items()}
    assert wcodec.apply(delta, live, checked=checked) == ([], list(new))


def test_parameters_of_a_model() -> None:
    """Autograd sees that they have changed; tied ones do once."""
    model = torch.nn.Sequential(torch.nn.Linear(40, 40), torch.nn.Linear(40, 40))
    model[1].weight = model[0].weight
    base = copies(model.state_dict())
    new = copies(base)
    for name in ("0.weight", "1.weight"):
        new[name].view(torch.int32)[3, :7] += 1
    delta = wcodec.torch.save(new, base=base)
    x = torch.randn(2, 40)
    loss = model(x).sum()
    done = wcodec.apply(delta, dict(model.named_parameters(remove_duplicate=False)))
    assert done.changed == ["0.weight"]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert same(model[1].weight, new["1.weight"])


def test_what_cannot_be_changed_in_place() -> None:
    base, new = pair()
    delta = wcodec.torch.save(new, base=base)
    name = "layers.0.weight"

    def refused(error: type[Exception], match: str, tensor: Any) -> None:
        live = copies(base) | {name: tensor}
        with pytest.raises(error, match=match):
            wcodec.apply(delta, live)
        assert all(same(live[k], base[k]) for k in base if k != name)

    refused(DecodeError, "bad_base: it is bfloat16 .* is torch.float16", base[name].half())
    refused(DecodeError, r"bad_base: it is bfloat16 .*shape \[48, 64\]", base[name].T.contiguous())
    refused(ValueError, "only a contiguous tensor", base[name].T.contiguous().T)
    refused(EncodeError, "unsupported_dtype", base[name].to("meta"))
    room = bytearray(base[name].nbytes + 8)
    at = 8 - torch.frombuffer(room, dtype=torch.uint8).data_ptr() % 2 - 7
    odd = torch.frombuffer(room, dtype=torch.bfloat16, offset=at, count=base[name].numel())
    refused(ValueError, "only a tensor in aligned memory", odd.view(base[name].shape))
    wrong = base[name].clone()
    wrong.view(torch.int16)[0, 0] += 5
    before = wrong.clone()
    live = copies(base) | {name: wrong}
    with pytest.raises(DecodeError, match=f"bad_base: the tensor is neither .*'{name}'"):
        wcodec.apply(delta, live)
    assert same(wrong, before)


def test_other_devices_go_by_way_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    base, new = pair()
    new["layers.2.weight"] = new["layers.1.weight"].clone()  # the same only now
    delta, live = wcodec.torch.save(new, base=base), copies(base)
    elsewhere = torch_tensors._Elsewhere

    def target(given: Any, t: Any, _: Any, decoder: Decoder) -> Target:
        flat = given.reshape(-1).view(torch.uint8)
        made = elsewhere(flat, t.dtype.word_type, decoder, given)
        made.words = made.words.copy()  # as it is on another device
        return made

    monkeypatch.setattr(torch_tensors, "target_of", target)
    wcodec.apply(delta, live)
    assert all(same(live[name], tensor) for name, tensor in new.items())


@pytest.mark.parametrize("checked", applying.CHECKS)
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch, checked: str) -> None:
    """The memory of the tensors is that of the emulated device: it is changed where it is."""
    base, new = pair()
    new["layers.2.weight"] = new["layers.1.weight"].clone()  # the same only now
    decoder = Decoder(EmulatedCuda())
    monkeypatch.setattr(torch_tensors, "_gpu_decoder", lambda device: decoder)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: torch.Stream(device="cpu"))

    def target(given: Any, t: Any, *_: Any) -> Target:
        return torch_tensors._OnGpu(given.reshape(-1).view(torch.uint8), t.dtype.word_type, given)

    monkeypatch.setattr(torch_tensors, "target_of", target)
    delta, live = wcodec.torch.save(new, base=base), copies(base)
    assert set(wcodec.apply(delta, live, checked=checked).unchanged) == {"layers.3.weight", "empty"}
    assert all(same(live[name], tensor) for name, tensor in new.items())
    assert wcodec.apply(delta, live, checked=checked).changed == []
    wrong = live["layers.1.weight"] = base["layers.1.weight"].clone()
    wrong.view(torch.int16)[0, 0] += 5
    before = wrong.clone()
    with pytest.raises(DecodeError, match="bad_base: the tensor is neither"):
        wcodec.apply(delta, live, checked=checked)
    assert same(wrong, before)
