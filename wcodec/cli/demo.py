"""`wcodec demo`: makes a checkpoint offline, encodes, decodes and compares it,
and shows sizes and speeds.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend, available_backends, load_backend
from wcodec.cli.warmup import warm_up
from wcodec.files.checkpoint import decode_file, encode_file
from wcodec.files.safetensors_header import write_safetensors_header
from wcodec.inspect.report import percent_text, size_text, table_text
from wcodec.reference.planes import BY_NAME

#: One layer and the embedding of a small Llama: 21.5 M weights.
SHAPES: Final[dict[str, tuple[int, ...]]] = {
    "model.embed_tokens.weight": (10_000, 1024),
    "model.layers.0.self_attn.q_proj.weight": (1024, 1024),
    "model.layers.0.self_attn.k_proj.weight": (256, 1024),
    "model.layers.0.self_attn.v_proj.weight": (256, 1024),
    "model.layers.0.self_attn.o_proj.weight": (1024, 1024),
    "model.layers.0.mlp.gate_proj.weight": (2816, 1024),
    "model.layers.0.mlp.up_proj.weight": (2816, 1024),
    "model.layers.0.mlp.down_proj.weight": (1024, 2816),
}
_DTYPES: Final = [BY_NAME[name] for name in ("int8", "bfloat16", "float32")]
_HEAD: Final = ["file", "backend", "size", "stored", "ratio", "encode", "decode", "same SHA-256"]


def make_checkpoints(folder: Path, shapes: dict[str, tuple[int, ...]] = SHAPES) -> list[Path]:
    """Write ``bf16.safetensors`` (Gaussian weights) and ``int8.safetensors`` (the same,
    quantised by row).
    """
    rng = np.random.default_rng(0)
    bf16: dict[str, NDArray[Any]] = {}
    int8: dict[str, NDArray[Any]] = {}
    for name, shape in shapes.items():
        weights = rng.standard_normal(shape, np.float32) * np.float32(0.02)
        scale = np.abs(weights).max(axis=1, keepdims=True) / 127
        bf16[name] = weights.astype(ml_dtypes.bfloat16)
        int8[name] = np.rint(weights / scale).astype(np.int8)
        int8[f"{name}_scale"] = scale.astype(np.float32)
    paths = [folder / "bf16.safetensors", folder / "int8.safetensors"]
    for path, tensors in zip(paths, (bf16, int8), strict=True):
        _write_safetensors(path, tensors)
    return paths


def _write_safetensors(path: Path, tensors: dict[str, NDArray[Any]]) -> None:
    entries = (
        (n, BY_NAME[a.dtype.name].safetensors, a.shape, a.nbytes) for n, a in tensors.items()
    )
    with path.open("wb") as f:
        f.write(write_safetensors_header(entries, {}))
        for a in tensors.values():
            f.write(a.reshape(-1).view(np.uint8).data)


def run_demo(
    show: Callable[[str], object] = print, only: str | None = None, threads: int | None = None
) -> bool:
    """Run it on every usable backend, or on one alone.

    Returns
    -------
    Whether every file came back with the same SHA-256, and the backends wrote the same files.

    Raises
    ------
    BackendUnavailable
        That of the name `only`.
    """
    good, first_of, backends = True, dict[str, str](), list(usable_backends(show, only, threads))
    with tempfile.TemporaryDirectory(prefix="wcodec-demo-") as name:
        folder = Path(name)
        sources = make_checkpoints(folder)
        show(f"made {', '.join(f'{p.name} ({size_text(p.stat().st_size)})' for p in sources)}")
        rows = [_HEAD]
        for backend in backends:
            seconds = sum(step.seconds for step in warm_up(backend, _DTYPES, ["default"]))
            if backend.name != "reference":  # which compiles nothing
                show(f"{backend.name}: ready after {seconds:.1f} s of warming up")
            for source in sources:
                row, same, stored = _round_trip(source, backend)
                agrees = first_of.setdefault(source.name, stored) == stored
                good = good and same and agrees
                rows.append(
                    [
                        *row,
                        "yes"
                        if same and agrees
                        else "NO"
                        if not same
                        else "yes, but files of the backends differ",
                    ]
                )
    for line in table_text(rows, left=2):
        show(line)
    return good


def usable_backends(
    show: Callable[[str], object], only: str | None, threads: int | None
) -> Iterator[Backend]:
    if only is not None:
        yield load_backend(only, threads)
        return
    for name, reason in available_backends().items():
        if reason:
            show(f"not run: {reason}")
        else:
            yield load_backend(name, threads)


def _round_trip(source: Path, backend: Backend) -> tuple[list[str], bool, str]:
    """A row of the table, whether the file came back, and the SHA-256 of the encoded one."""
    target, back = source.with_suffix(".wcodec"), source.with_suffix(".back")
    start = time.perf_counter()
    nbytes, stored_nbytes = encode_file(source, target, None, backend, overwrite=True)
    middle = time.perf_counter()
    decode_file(target, back, backend, overwrite=True)
    end = time.perf_counter()
    same, stored = _sha256(source) == _sha256(back), _sha256(target)
    speeds = [f"{nbytes / 1e6 / seconds:.0f} MB/s" for seconds in (middle - start, end - middle)]
    sizes = [size_text(nbytes), size_text(stored_nbytes), percent_text(stored_nbytes, nbytes)]
    return [source.name, backend.name, *sizes, *speeds], same, stored


def _sha256(path: Path) -> str:
    h = hashlib.sha256()
    with path.open("rb") as f:
        while piece := f.read(1 << 20):
            h.update(piece)
    return h.hexdigest()
