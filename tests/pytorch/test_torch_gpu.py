"""`wcodec.torch` on a GPU: ``make gpu-check`` runs it.
Files straight to torch tensors, and back.
"""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pytest
import torch
from inputs import ARRAY_DTYPES
from test_torch_files import SHAPES, same, tensor_of, weights

from wcodec.backends import load_backend, use_backend
from wcodec.torch import (
    WCodecCheckpoint,
    load_file,
    load_shard,
    load_wcodec_checkpoint,
    safe_open,
    save_file,
)

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """Every dtype in several shapes, and weights of some size."""
    path = tmp_path_factory.mktemp("torch") / "model.wcodec"
    tensors = {
        f"{d.name} {shape}": tensor_of(d, shape, "gaussian", i)
        for i, d in enumerate(ARRAY_DTYPES)
        for shape in SHAPES
    }
    tensors |= {f"layer{i}": weights(2048, 1024 + i, seed=i) for i in range(4)}
    with use_backend("numba"):
        save_file(tensors, path, {"format": "pt"})
    return path, tensors


def test_every_dtype_is_decoded_on_the_device(
    checkpoint: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    path, tensors = checkpoint
    assert load_backend("auto").name == "cuda"
    for device in ("cuda", torch.device("cuda", 0)):
        found = load_file(path, device=device)
        gc.collect()
        assert list(found) == list(tensors)
        assert {t.device.type for t in found.values()} == {"cuda"}
        assert [name for name, t in found.items() if not same(t.cpu(), tensors[name])] == []
    names = ["layer2", "bool (130, 70)"]
    assert list(load_file(path, device="cuda:0", names=names)) == names


def test_what_was_loaded_can_be_computed_with(
    checkpoint: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    path, tensors = checkpoint
    w = load_file(path, device="cuda", names=["layer0"])["layer0"]
    x = torch.randn(64, w.shape[1], device="cuda", dtype=w.dtype)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        y = torch.nn.functional.linear(x, w)
    torch.cuda.synchronize()
    assert torch.equal(y, torch.nn.functional.linear(x, tensors["layer0"].cuda()))


def test_memory_is_that_of_pytorch(checkpoint: tuple[Path, dict[str, torch.Tensor]]) -> None:
    """Its allocator knows of it, and of streams that still read what has been let go
    (`record_stream`).
    """
    path, tensors = checkpoint
    for current in (torch.cuda.current_stream(), torch.cuda.Stream()):
        with torch.cuda.stream(current):
            torch.cuda.synchronize()
            before, reader = torch.cuda.memory_allocated(), torch.cuda.Stream()
            w = load_file(path, device="cuda", names=["layer0"])["layer0"]
            assert torch.cuda.memory_allocated() - before >= w.nbytes
            with torch.cuda.stream(reader):
                torch.cuda._sleep(100_000_000)
                copied = w.clone()
            w.record_stream(reader)
            del w
            others = [
                load_file(path, device="cuda", names=[name])
                for name in ("layer1", "layer2", "layer0")
            ]
            torch.cuda.synchronize()
        assert same(copied.cpu(), tensors["layer0"])
        del others


def test_checkpoints_and_slices(checkpoint: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, tensors = checkpoint
    with WCodecCheckpoint(path, map_location="cuda") as c:
        assert all(t.is_cuda and same(t.cpu(), tensors[name]) for name, t in c.items())
        assert same(c["layer1"].cpu(), tensors["layer1"])
    found = load_wcodec_checkpoint(path, map_location={"cpu": "cuda:0"})
    assert all(t.is_cuda and same(t.cpu(), tensors[name]) for name, t in found.items())
    with safe_open(path, framework="pt", device="cuda:0") as f:
        part = f.get_slice("layer3")[100:200, ::7]
    assert part.is_cuda
    assert same(part.cpu(), tensors["layer3"][100:200, ::7])
    shard = load_shard(path, 1, 2, {"layer1": "colwise"}, device="cuda")
    assert same(shard["layer1"].cpu(), tensors["layer1"][1024:])
    assert all(t.is_cuda for t in shard.values())


def test_another_backend_decodes_on_the_host(
    checkpoint: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    path, tensors = checkpoint
    with use_backend("numba"):
        found = load_file(path, device="cuda")
    assert all(t.is_cuda and same(t.cpu(), tensors[name]) for name, t in found.items())


def test_tensors_of_a_gpu_are_saved_alike(tmp_path: Path) -> None:
    tensors = {d.name: tensor_of(d, (300, 200), "gaussian") for d in ARRAY_DTYPES}
    on_gpu = {name: t.cuda() for name, t in tensors.items()}
    on_gpu["tied"] = on_gpu["bfloat16"]
    tensors["tied"] = tensors["bfloat16"]
    assert save_file(on_gpu, tmp_path / "a") == save_file(tensors, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_weights_are_not_copied_to_the_host(tmp_path: Path) -> None:
    """Peak of the process's own host memory while 1 GB of weights is loaded: buffers alone."""
    tensors = {
        f"w{i}": (torch.randn(8192, 8192, device="cuda") * 0.02).to(torch.bfloat16).cpu()
        for i in range(8)
    }
    with use_backend("numba"):
        save_file(tensors, tmp_path / "a")
    del tensors
    load_file(tmp_path / "a", device="cuda", names=["w0"])  # buffers are kept
    gc.collect()
    before, peak, done = anonymous_nbytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], anonymous_nbytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        found = load_file(tmp_path / "a", device="cuda")
    finally:
        done.set()
        watcher.join()
    nbytes = sum(t.nbytes for t in found.values())
    assert nbytes == 1 << 30
    assert peak[0] > 0
    assert peak[0] - before < nbytes // 4


def anonymous_nbytes() -> int:
    """The process's own memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
