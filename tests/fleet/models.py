"""Models to be converted, and what is left of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy


def arrays(seed: int, n: int, side: int = 256) -> dict[str, Any]:
    """Gaussian bf16 weights, norms, and one tensor twice."""
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for i in range(n):
        weights = rng.standard_normal((side, side), dtype=np.float32) * (0.01 + 0.01 * i)
        found[f"{seed}.{i}.w"] = weights.astype(ml_dtypes.bfloat16)
        found[f"{seed}.{i}.norm"] = np.full(side, i, ml_dtypes.bfloat16)
    found[f"{seed}.tied"] = found[f"{seed}.0.w"].copy()
    return found


def make_model(folder: Path, n_shards: int = 3, n: int = 4, side: int = 256) -> Path:
    """A directory with shards, their index, a config, and a file in a folder."""
    (folder / "more").mkdir(parents=True)
    weight_map = {}
    for k in range(n_shards):
        name = f"model-{k + 1:05}-of-{n_shards:05}.safetensors"
        tensors = arrays(k, n, side)
        safetensors.numpy.save_file(tensors, folder / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "x"}\n')
    (folder / "more" / "notes.txt").write_text("nothing\n")
    return folder


def sums(folder: Path) -> dict[str, str]:
    """SHA-256 of all files of a directory by name."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def remote_sums(url: str) -> dict[str, str]:
    """The same of a directory at a URL."""
    import fsspec

    fs, root = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return {
        path.removeprefix(root).lstrip("/"): hashlib.sha256(fs.cat_file(path)).hexdigest()
        for path in sorted(fs.find(root))
    }
