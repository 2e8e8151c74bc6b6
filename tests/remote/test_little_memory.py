"""20 GB of weights pass through a process that may have 1.5 GB of addresses."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT = 1_500_000_000

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import wcodec
from generated import Checkpoint, GeneratedFileSystem
from wcodec.backends import load_backend
from wcodec.directories.tasks import Unit
from wcodec.files.checkpoint import decode_file, encode_file, verify_file
from wcodec.files.parts import encode_part, find_repeats, join_parts, part_starts
from wcodec.fleet.running import do_unit
from functools import partial

what, n, nbytes = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
made = GeneratedFileSystem.files["big.safetensors"] = Checkpoint(n, nbytes, noisy=(1,))
source, coded = "gen://big.safetensors", "memory://big.wcodec"
if what == "worker":
    def work(backend, progress, again):
        return encode_part(source, "gen://sink/part", backend, part=1, repeats={}, overwrite=again)

    outcome = do_unit(Unit("a", "a", nbytes, work), ("auto", 1), False, {})
    assert outcome.result[0] >= nbytes, outcome
    sys.exit()
sizes = encode_file(source, coded)
assert sizes[0] == len(made), sizes
if what == "verify":
    assert verify_file(coded) == (sizes[1], sizes[0])
if what == "decode":
    assert decode_file(coded, "gen://sink/back.safetensors") == (sizes[1], sizes[0])
    found = GeneratedFileSystem.written["sink/back.safetensors"]
    assert found == (len(made), made.sha256()), found
if what == "encode":
    assert encode_file(source, "gen://sink/big.wcodec") == sizes
    assert GeneratedFileSystem.written["sink/big.wcodec"][0] == sizes[1]
"""


@pytest.mark.parametrize("what", ["encode", "decode", "verify", "worker"])
@pytest.mark.parametrize(
    ("n", "nbytes"),
    [
        pytest.param(8, 1 << 28, id="2 GB"),
        pytest.param(40, 1 << 29, id="20 GB", marks=pytest.mark.exhaustive),
    ],
)
def test_in_little_memory(what: str, n: int, nbytes: int) -> None:
    if nbytes == 1 << 28 and what != "decode":
        pytest.skip("shown by 20 GB")
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), what, str(n), str(nbytes)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
