"""Sizes under the choices that an encoder has: ``python benchmarks/cpu/choices.py
FILE.safetensors ... [--json OUT]``.

One line a choice: bytes of the file as a percentage of the source's. The figures of
spec/rationale.md come from here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from bench_files import machine
from sizes import encode

import wcodec
from wcodec.codec.sources import BufferSource
from wcodec.files.safetensors_header import read_safetensors_header
from wcodec.reference import container

CHOICES = {
    "default": {},
    "layout bytes": {"layout": "bytes"},
    "layout pairs": {"layout": "pairs"},
    "predictor none": {"predictor": "none"},
    "predictor left": {"predictor": "left", "layout": "bytes"},
    "predictor top": {"predictor": "top", "layout": "bytes"},
    "predictor avg": {"predictor": "avg", "layout": "bytes"},
    "predictor planar": {"predictor": "planar", "layout": "bytes"},
    **{
        f"segment {r} x {c}": {"segment": (r, c)}
        for r, c in ((16, 128), (64, 128), (64, 256), (128, 256), (256, 512), (512, 512))
    },
    **{
        f"segment 128 x 256, tile {t} x {t}": {"segment": (128, 256), "tile": (t, t)}
        for t in (16, 32, 128)
    },
    **{f"prob_bits {p}": {"prob_bits": p} for p in (9, 10, 11)},
}


def measure(path: str) -> Iterator[dict[str, object]]:
    """All choices on one file."""
    data = memoryview(np.memmap(path, np.uint8, "r"))
    header = read_safetensors_header(data)
    for name, kwargs in CHOICES.items():
        encoded = encode(header, data, wcodec.EncodeOptions(**kwargs))
        index = container.read_index(BufferSource(encoded))
        tables = [len(t.serialised) for t in index.tables.tables]
        yield {
            "file": Path(path).name,
            "choice": name,
            "percent": round(100 * len(encoded) / len(data), 3),
            "nbytes": len(encoded),
            "index_nbytes": index.index_nbytes,
            "n_segments": sum(t.geometry.n_segments for t in index.tensors),
            "n_tables": len(tables),
            "table_nbytes_mean": round(float(np.mean(tables)), 1) if tables else 0,
        }


def main() -> int:
    """Print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--json", help="write the rows here")
    args = parser.parse_args()
    rows = []
    for path in args.files:
        for row in measure(path):
            rows.append(row)
            print(
                "{file:32} {choice:36} {percent:8.3f} %  index {index_nbytes:8}  tables "
                "{n_tables:4} of {table_nbytes_mean:6}".format(**row)
            )
    if args.json:
        report = {"machine": machine(), "rows": rows}
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
