"""Files coded anew: what they hold stays, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from inputs import make_array
from sampling import exhaustive

import wcodec
from wcodec.backends import Backend
from wcodec.cli import main
from wcodec.files.checkpoint import decode_file, encode_file
from wcodec.files.repack import repack_file
from wcodec.files.safetensors_header import entry_of, write_safetensors_header
from wcodec.planner.options import EncodeOptions
from wcodec.reference.planes import BY_NAME, DTYPES

FIXED = EncodeOptions(operand="fixed")


def _arrays(few: bool = False) -> dict[str, np.ndarray]:
    found = {
        d.name: make_array(d, (70, 96), "gaussian", i)
        for i, d in enumerate(DTYPES[1 :: 3 if few else 1])
    }
    wide = make_array(BY_NAME["bfloat16"], (128 if few else 256, 512), "gaussian", 5)
    return {**found, "wide": wide, "twin": wide, "empty": wide[:0], "scalar": wide[0, 0]}


def _same(a: Path, b: Path) -> None:
    one, other = wcodec.load_file(a), wcodec.load_file(b)
    assert list(one) == list(other)
    assert all(
        (one[n].dtype, one[n].shape, one[n].tobytes()) == (t.dtype, t.shape, t.tobytes())
        for n, t in other.items()
    )


@pytest.mark.parametrize(
    "options",
    [
        FIXED,
        EncodeOptions(operand="rans"),
        EncodeOptions(preset="max"),
        EncodeOptions(coder="rans"),
        None,
    ],
)
@pytest.mark.parametrize("few", [True, exhaustive(False)])
def test_there_and_back(
    backend: Backend,
    tmp_path: Path,
    options: EncodeOptions | None,
    few: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wcodec.files.repack.IN_MEMORY", 100_000)  # some by way of a file
    wcodec.save_file(_arrays(few), tmp_path / "a.wcodec", {"key": "value"})
    repack_file(tmp_path / "a.wcodec", tmp_path / "b.wcodec", options)
    _same(tmp_path / "a.wcodec", tmp_path / "b.wcodec")
    with wcodec.open(tmp_path / "b.wcodec") as f:
        assert f.metadata() == {"key": "value"}
        assert f.record("twin").duplicate_of is not None
    repack_file(tmp_path / "b.wcodec", tmp_path / "c.wcodec")
    assert (tmp_path / "c.wcodec").read_bytes() == (tmp_path / "a.wcodec").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.wcodec", "b.wcodec", "c.wcodec"]


def test_the_fixed_rate(tmp_path: Path) -> None:
    """12 bits a bfloat16 weight and patches: codes and bytes stand as they are."""
    words = make_array(BY_NAME["bfloat16"], (1024, 1024), "gaussian", 1)
    wcodec.save_file({"w": words}, tmp_path / "a.wcodec")
    repack_file(tmp_path / "a.wcodec", tmp_path / "b.wcodec", FIXED)
    with wcodec.open(tmp_path / "b.wcodec") as f:
        t = f.record("w")
        assert (t.segments.coder == 0).all()
        assert (t.segments.layout == 2).all()
        assert 12 * words.size / 8 <= t.payload_nbytes < 12.05 * words.size / 8


def test_what_is_restored_stays(tmp_path: Path) -> None:
    array = make_array(BY_NAME["float32"], (64, 80), "gaussian", 2)
    wcodec.save_file({"w": array}, tmp_path / "x.wcodec")
    with wcodec.open(tmp_path / "x.wcodec") as f:
        header = write_safetensors_header(map(entry_of, f.index.tensors), {"format": "pt"})
    (tmp_path / "m.safetensors").write_bytes(header + array.tobytes())
    encode_file(tmp_path / "m.safetensors", tmp_path / "m.wcodec")
    repack_file(tmp_path / "m.wcodec", tmp_path / "n.wcodec", FIXED)
    decode_file(tmp_path / "n.wcodec", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def test_differences_stay_differences(tmp_path: Path) -> None:
    old = make_array(BY_NAME["float32"], (256, 256), "gaussian", 2)
    new = old.copy()
    new[5] += 1
    wcodec.save_file({"w": old}, tmp_path / "base.wcodec")
    wcodec.save_file({"w": new}, tmp_path / "tuned.wcodec", base=tmp_path / "base.wcodec")
    repack_file(tmp_path / "tuned.wcodec", tmp_path / "again.wcodec", EncodeOptions(preset="max"))
    with wcodec.open(tmp_path / "again.wcodec") as f:
        assert f.record("w").difference
    _same(tmp_path / "tuned.wcodec", tmp_path / "again.wcodec")
    with pytest.raises(wcodec.EncodeError, match="bad_option"):
        repack_file(tmp_path / "tuned.wcodec", tmp_path / "base.wcodec", overwrite=True)


def test_damage_leaves_nothing(tmp_path: Path) -> None:
    wcodec.save_file(_arrays(), tmp_path / "a.wcodec")
    data = bytearray((tmp_path / "a.wcodec").read_bytes())
    data[60] ^= 1
    (tmp_path / "a.wcodec").write_bytes(data)
    with pytest.raises(wcodec.DecodeError, match="bad_checksum"):
        repack_file(tmp_path / "a.wcodec", tmp_path / "b.wcodec")
    assert [p.name for p in tmp_path.iterdir()] == ["a.wcodec"]


@pytest.mark.parametrize(
    "options",
    [
        "--preset max", "--preset fast", "--predictor top", "--transform dct", "--coder raw",
        "--coder rans", "--coder context", "--layout bytes", "--layout pairs", "--layout raw",
        "--segment 32x48", "--tile 32x48", "--prob-bits 9", "--operand fixed", "--operand rans",
        "--operand rans --prob-bits 10", "--preset max --predictor left --tile 64x64",
    ],
)  # fmt: skip
def test_the_options_of_encode(tmp_path: Path, options: str) -> None:
    """Encoded with options, or with others and repacked with these: the same file."""
    plain, given = tmp_path / "m.safetensors", options.split()
    wcodec.save_file(_arrays(few=True), tmp_path / "m.wcodec")
    with wcodec.open(tmp_path / "m.wcodec") as f:
        header = write_safetensors_header(map(entry_of, f.index.tensors), {"format": "pt"})
    data = b"".join(a.tobytes() for a in wcodec.load_file(tmp_path / "m.wcodec").values())
    plain.write_bytes(header + data)
    other, due, got = (str(tmp_path / f"{name}.wcodec") for name in ("other", "due", "got"))
    preset = "default" if "max" in given else "max"
    assert main(["encode", "-q", "--preset", preset, str(plain), "-o", other]) == 0
    assert main(["encode", "-q", *given, str(plain), "-o", due]) == 0
    assert main(["repack", "-q", *given, other, "-o", got]) == 0
    assert Path(got).read_bytes() == Path(due).read_bytes() != Path(other).read_bytes()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = str(tmp_path / "a.wcodec"), str(tmp_path / "b.wcodec")
    wcodec.save_file(_arrays(), a)
    assert main(["repack", "--operand", "fixed", "--json", a, "-o", b]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["nbytes"], report["stored_nbytes"]) == (
        Path(a).stat().st_size,
        Path(b).stat().st_size,
    )
    assert main(["repack", "--operand", "rans", "-q", b, "-o", str(tmp_path / "c.wcodec")]) == 0
    _same(Path(a), tmp_path / "c.wcodec")
    for wrong in (["--operand", "fixed", "--layout", "bytes", a, "-o", b], [a, "-f", "-o", a], [a]):
        with pytest.raises(SystemExit) as e:
            main(["repack", *wrong])
        assert e.value.code == 2
    assert main(["repack", str(tmp_path / "none.wcodec"), "-f", "-o", b]) == 1
