"""Memory of models whose weights stay compressed:
what they ask for from a file to the result of a forward pass.
"""

from __future__ import annotations

from pathlib import Path

import bench_memory
import pytest
import torch
from memory import peak_of, torch_peak_of

from wcodec.torch import compress_model, load_compressed, model_memory
from wcodec.torch.resident import scratch

HIDDEN, INNER, LAYERS = 256, 1024, 6
LARGEST = 2 * HIDDEN * INNER  #: bytes of a weight


def test_peak_of_loading_and_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the compressed weights, a few that are being read or decoded."""
    # in another thread, whose tensors are not counted
    monkeypatch.setattr(scratch.Prefetcher, "_start_next", lambda *_: None)
    bench_memory.write(tmp_path / "model.wcodec", HIDDEN, INNER, LAYERS)
    x = torch.randn(1, HIDDEN).bfloat16()

    def steps() -> torch.nn.Module:
        scratch.release_scratch()
        with torch.device("meta"):
            model = torch.nn.Sequential(*[bench_memory.Block(HIDDEN, INNER) for _ in range(LAYERS)])
        load_compressed(model, tmp_path / "model.wcodec")
        with torch.no_grad():
            assert model(x).isfinite().all()
        return model

    memory = model_memory(steps())
    assert memory.n_compressed == 5 * LAYERS
    assert memory.held < 0.67 * memory.dense
    assert memory.held < peak_of(steps) + torch_peak_of(steps) < memory.held + 3 * LARGEST


def test_peak_while_a_model_is_compressed() -> None:
    """Layer by layer: one that is dense beside the compressed ones, and what encoding takes."""
    models = list[torch.nn.Module]()

    def steps() -> None:
        models.clear()
        for _ in range(LAYERS):
            block = bench_memory.Block(HIDDEN, INNER)
            for p in block.parameters():
                torch.nn.init.normal_(p, std=0.02)
            models.append(compress_model(block))
            del block, p

    dense = 2 * HIDDEN * HIDDEN * 2 + 3 * LARGEST
    of_torch, of_numpy = torch_peak_of(steps), peak_of(steps)
    held = sum(model_memory(model).held for model in models)
    assert held < 0.67 * LAYERS * dense
    assert dense <= of_torch < dense + 2 * LARGEST
    assert held < of_numpy < held + 3 * LARGEST
