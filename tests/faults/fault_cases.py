"""What fault tests do: commands with their inputs, and what has to be there afterwards."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inputs import BY_NAME, bits, make_array, safetensors_bytes
from zygote import Outcome, Zygote

#: Temporary files as users find them.
LEFT: Final = re.compile(r"(.*/)?\..{1,58}\.[0-9a-f]{8}\.wcodec-tmp", re.DOTALL)


@dataclass(frozen=True)
class Case:
    """A command.

    Attributes
    ----------
    args
        Its arguments, but for ``-o`` and the output.
    is_folder
        Whether it makes a directory.
    """

    args: tuple[str, ...]
    is_folder: bool = False


CASES: Final = {
    "encode": Case(("encode", "plain.safetensors")),
    "decode": Case(("decode", "coded.wcodec")),
    "encode hub": Case(("encode", "--form", "hub", "plain.safetensors")),
    "decode hub": Case(("decode", "hub.safetensors")),
    "encode base": Case(("encode", "--base", "coded.wcodec", "tuned.safetensors")),
    "decode base": Case(("decode", "--base", "plain.safetensors", "tuned.wcodec")),
    "repack": Case(("repack", "coded.wcodec", "--coder", "raw")),
    "encode directory": Case(("encode", "model"), is_folder=True),
    "decode directory": Case(("decode", "model-hub"), is_folder=True),
}
FILES: Final = [name for name, case in CASES.items() if not case.is_folder]
FOLDERS: Final = [name for name, case in CASES.items() if case.is_folder]


def _plain(rows: int, seed: int) -> bytes:
    """A checkpoint: tensors of several segments, small ones, a twin."""
    large = bits(make_array(BY_NAME["bfloat16"], (rows, 600), "gaussian", seed))
    small = bits(make_array(BY_NAME["float32"], (7, 9), "gaussian", seed))
    return safetensors_bytes(
        [
            ("large", "BF16", [rows, 600], large),
            ("small", "F32", [7, 9], small),
            ("twin", "BF16", [rows, 600], large),
            *((f"bias.{i}", "F32", [7, 9], small[:-1] + bytes([i])) for i in range(3)),
        ]
    )


class Room:
    """A directory with the inputs of all cases, and what each is to make of them."""

    def __init__(self, folder: Path, zygote: Zygote) -> None:
        self.folder, self.zygote, self.out = folder, zygote, folder / "out"
        for source, target in (
            (("plain.safetensors",), "coded.wcodec"),
            (("--form", "hub", "plain.safetensors"), "hub.safetensors"),
            (("--base", "coded.wcodec", "tuned.safetensors"), "tuned.wcodec"),
            (("--form", "hub", "model"), "model-hub"),
        ):
            done = self.zygote.run("encode", *source, "-o", folder / target)
            assert done.status == 0, done.err
        self.inputs = self.found()
        self.due = dict[str, dict[str, bytes]]()
        self.calls = dict[str, list[str]]()
        self.seconds = dict[str, float]()
        for name in CASES:
            done = self.run_case(name)
            assert (done.status, done.err) == (0, ""), name
            self.due[name], self.calls[name], self.seconds[name] = (
                self.output(),
                done.calls,
                done.seconds,
            )
            self.clear()

    def run_case(self, name: str, *more: str, **how: object) -> Outcome:
        """Run a case, with paths from the root, by which calls are known."""
        args = [str(self.folder / a) if (self.folder / a).exists() else a for a in CASES[name].args]
        return self.zygote.run(*args, *more, "-q", "-o", self.out, **how)  # type: ignore[arg-type]

    def found(self) -> dict[str, bytes]:
        """All files by name."""
        return {
            p.relative_to(self.folder).as_posix(): p.read_bytes()
            for p in self.folder.rglob("*")
            if p.is_file()
        }

    def output(self) -> dict[str, bytes]:
        """All files but the inputs. These have to be there, as they were."""
        found = self.found()
        assert {name: found.pop(name) for name in self.inputs} == self.inputs
        return found

    def clear(self) -> None:
        """Remove all but the inputs."""
        shutil.rmtree(self.out, ignore_errors=True)
        for name in self.output():
            (self.folder / name).unlink()


@contextmanager
def prepared(folder: Path) -> Iterator[Room]:
    """A directory with inputs, and a process to fork from."""
    plain = _plain(60, 0)
    files = {
        "warm.safetensors": _plain(4, 1),
        "plain.safetensors": plain,
        "tuned.safetensors": plain[:-2000] + bytes(2000),
        "model/model.safetensors": plain,
        "model/config.json": json.dumps({"model_type": "bert"}).encode(),
        "model/sub/notes.txt": b"notes",
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    with Zygote(folder) as zygote:
        yield Room(folder, zygote)
