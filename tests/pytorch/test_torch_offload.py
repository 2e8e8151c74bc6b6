"""Models that hold their weights compressed, offloaded by accelerate: the values are right, or it
is refused in the words of loading. accelerate is in the extra ``test``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import remove_hook_from_submodules
from test_torch_files import same

from wcodec.torch import CompressedTensor, compress_model


def make() -> torch.nn.Module:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Embedding(300, 128),
        torch.nn.Linear(128, 256),
        torch.nn.ReLU(),
        torch.nn.Linear(256, 64),
    )
    return net.to(torch.bfloat16).eval()


OFFLOADS: dict[str, Callable[[Any, Path], Any]] = {
    "to the CPU": lambda model, _: accelerate.cpu_offload(model, "cpu"),
    "with buffers": lambda model, _: accelerate.cpu_offload(model, "cpu", offload_buffers=True),
    "to disk": lambda model, folder: accelerate.disk_offload(model, folder, "cpu"),
}


@pytest.mark.parametrize("mode", ["resident", "fused"])
@pytest.mark.parametrize("name", OFFLOADS)
@torch.no_grad()
def test_values_are_right(tmp_path: Path, mode: str, name: str) -> None:
    plain, ids = make(), torch.arange(20)
    model = OFFLOADS[name](compress_model(make(), mode=mode), tmp_path)
    for _ in range(2):  # weights come and go each time
        assert all(p.is_meta for p in model.parameters())
        assert same(model(ids), plain(ids))
    remove_hook_from_submodules(model)
    state = plain.state_dict()
    for key, parameter in model.named_parameters():
        dense = parameter.decode() if isinstance(parameter, CompressedTensor) else parameter
        assert same(dense.detach(), state[key])


@pytest.mark.parametrize("mode", ["resident", "fused"])
@pytest.mark.parametrize(
    "device_map", [{"": "cpu"}, {"0": "cpu", "1": "disk", "2": "cpu", "3": "cpu"}]
)
def test_dispatching_is_refused(tmp_path: Path, mode: str, device_map: dict[str, str]) -> None:
    """It tells weights apart by where they are in memory."""
    model = compress_model(make(), mode=mode)
    with pytest.raises(
        NotImplementedError, match="take mode 'decoded', or give a device_map or max_memory without"
    ):
        accelerate.dispatch_model(
            model, device_map, main_device="cpu", offload_dir=tmp_path, force_hooks=True
        )
    assert isinstance(model[1].weight, CompressedTensor)
