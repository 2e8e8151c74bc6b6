"""Dtypes that the format has no id for, in PyTorch: float4 comes and goes as in safetensors.torch,
and what PyTorch does not have is refused by name.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors
import safetensors.torch as st
import torch
from inputs import safetensors_bytes
from tiny_models import encode

import wcodec
from wcodec.errors import DecodeError, EncodeError
from wcodec.files.checkpoint import decode_file, encode_file
from wcodec.torch import (
    CompressedTensor,
    WCodecCheckpoint,
    compress_model,
    load_compressed,
    load_file,
    load_shard,
    load_wcodec_checkpoint,
    safe_open,
    save_file,
)
from wcodec.torch.loading.reader import Reader

FLOAT4 = torch.float4_e2m1fn_x2


def packed(*shape: int, seed: int = 0) -> torch.Tensor:
    """A float4 tensor of this shape, two elements each."""
    torch.manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8).view(FLOAT4)


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """As uint8, for PyTorch does nothing with float4."""
    return tensor.view(torch.uint8).contiguous()


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return found.dtype == wanted.dtype and torch.equal(bytes_of(found), bytes_of(wanted))


TENSORS = {
    "w": packed(64, 128),
    "first": torch.randn(300, 40).to(torch.bfloat16),
    "flat": packed(777),
    "deep": packed(3, 5, 700),
    "empty": packed(0, 4),
    "scale": torch.randint(0, 256, (64, 8), dtype=torch.uint8).view(torch.float8_e8m0fnu),
    "turned": packed(64, 128, seed=1).t(),
    "some": packed(64, 128, seed=2)[3:50:2, 1:99],
    "tied": packed(64, 128),
}


@pytest.fixture(params=["encoded", "saved"])
def coded(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A ``.wcodec`` file of these: of a safetensors file, or of the tensors themselves."""
    path = tmp_path / "model.wcodec"
    if request.param == "saved":
        save_file(TENSORS, path, {"format": "pt"})
    else:
        plain = {n: bytes_of(t).clone().view(t.dtype) for n, t in TENSORS.items()}
        st.save_file(plain, tmp_path / "in")
        encode_file(tmp_path / "in", path)
    return path


def test_all_ways_to_load(coded: Path) -> None:
    with safe_open(coded) as f, WCodecCheckpoint(coded) as c, Reader(coded) as reader:
        assert c.dtypes() == {n: TENSORS[n].dtype for n in c}
        assert c.shapes() == {n: TENSORS[n].shape for n in c}
        for found in (
            load_file(coded),
            {n: f.get_tensor(n) for n in f.keys()},  # noqa: SIM118
            f.get_tensors(),
            dict(c),
            dict(c.items()),
            load_wcodec_checkpoint(coded),
            load_wcodec_checkpoint(coded, map_location=lambda storage, _: storage),
            dict(reader.iterate()),
        ):
            assert found.keys() == TENSORS.keys()
            assert [n for n, t in TENSORS.items() if not same(found[n], t)] == []
    meta = load_file(coded, "meta")
    assert {n: (t.dtype, t.shape) for n, t in meta.items()} == {
        n: (t.dtype, t.shape) for n, t in TENSORS.items()
    }


def test_decoding_gives_a_file_that_safetensors_reads(coded: Path, tmp_path: Path) -> None:
    decode_file(coded, tmp_path / "out")
    found = st.load_file(tmp_path / "out")
    assert found.keys() == TENSORS.keys()
    assert [n for n, t in TENSORS.items() if not same(found[n], t)] == []
    with safetensors.safe_open(tmp_path / "out", "pt") as f, safe_open(coded) as g:
        for name in TENSORS:
            theirs, ours = f.get_slice(name), g.get_slice(name)
            assert ours.get_dtype() == theirs.get_dtype()
            assert ours.get_shape() == theirs.get_shape()


def test_only_files_with_such_tensors_keep_a_header(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "a")
    save_file({"a": packed(3)}, tmp_path / "b")
    with wcodec.open(tmp_path / "a") as a, wcodec.open(tmp_path / "b") as b:
        assert (a.index.source_kind, b.index.source_kind) == (None, 1)
        assert (b.record("a").dtype.name, b.record("a").shape) == ("opaque", (3,))
        assert b.record("a").dtype_name == "F4"


@pytest.mark.parametrize(
    ("index", "of_bytes"),
    [
        (2, 2),
        ((slice(None), slice(1, 4)), (slice(None), slice(1, 4))),
        ((..., slice(100, 300)), (..., slice(50, 150))),
        ((1, slice(0, 5, 2), slice(1398, None)), (1, slice(0, 5, 2), slice(699, None))),
        (slice(0, 0), slice(0, 0)),
    ],
    ids=str,
)
def test_slices(coded: Path, index: object, of_bytes: object) -> None:
    wanted = TENSORS["deep"].view(torch.uint8)[of_bytes].view(FLOAT4)
    with safe_open(coded) as f:
        assert same(f.get_slice("deep")[index], wanted)
        with pytest.raises(IndexError, match="slices of whole bytes"):
            f.get_slice("deep")[0, 0, 1:3]


def test_parts_of_ranks(coded: Path) -> None:
    parts = [
        load_shard(coded, rank, 2, {"w": "colwise", "deep": "rowwise", "tied": "rowwise"})
        for rank in (0, 1)
    ]
    for name, dim in (("w", 0), ("deep", 2), ("tied", 1)):
        whole = torch.cat([bytes_of(p[name]) for p in parts], dim)
        assert torch.equal(whole, bytes_of(TENSORS[name]))
        assert parts[0][name].dtype is FLOAT4
    halves = load_shard(coded, 1, 2, {"w": "packed_rowwise"})["w"]  # of each of two groups
    assert same(
        halves, bytes_of(TENSORS["w"]).view(64, 2, 64)[:, :, 32:].reshape(64, 64).view(FLOAT4)
    )
    assert all(same(p["flat"], TENSORS["flat"]) for p in parts)
    assert parts[0].report.read_nbytes["model.wcodec"] > 0


class Net(torch.nn.Module):
    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.w = torch.nn.Parameter(
            torch.empty(64, 128, dtype=FLOAT4, device=device), requires_grad=False
        )
        self.first = torch.nn.Parameter(torch.empty(300, 40, dtype=torch.bfloat16, device=device))


def test_models(coded: Path) -> None:
    """They take such weights as they are, and hold them as they are."""
    own = {n: TENSORS[n] for n in ("w", "first")}
    loaded = load_file(coded)
    model = Net()
    model.load_state_dict({n: loaded[n] for n in own}, assign=True)
    assert all(same(p, own[n]) for n, p in model.named_parameters())
    compress_model(model)
    assert isinstance(model.first, CompressedTensor)
    assert same(model.w, own["w"])
    other = Net("meta")
    keys = load_compressed(other, coded, strict=False)
    assert (keys.missing_keys, "w" in keys.unexpected_keys) == ([], False)
    assert isinstance(other.first, CompressedTensor)
    assert type(other.w) is torch.nn.Parameter
    assert same(other.w, own["w"])
    other.w = torch.nn.Parameter(packed(64, 127), requires_grad=False)
    with pytest.raises(RuntimeError, match=r"size mismatch for w: \(64, 128\) in the checkpoint"):
        load_compressed(other, coded, strict=False)


def test_directories_in_hub_form_leave_them_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    st.save_file(
        {"w": TENSORS["w"], "first": TENSORS["first"]}, tmp_path / "plain/model.safetensors"
    )
    encode(tmp_path / "plain", tmp_path / "hub", "hub")
    found = st.load_file(tmp_path / "hub/model.safetensors")
    assert found["first"].dtype is torch.uint8  # a stream
    assert same(found["w"], TENSORS["w"])


def test_differences(tmp_path: Path) -> None:
    save_file({"w": TENSORS["w"]}, tmp_path / "base")
    tuned = TENSORS["w"].clone()
    tuned.view(torch.uint8)[0, 5] ^= 3
    assert save_file({"w": tuned}, tmp_path / "a", base=tmp_path / "base") < 2000
    assert same(load_file(tmp_path / "a")["w"], tuned)


# ---- what PyTorch does not have ------------------------------------------------------------------
@pytest.mark.parametrize(
    ("dtype", "shape", "message"),
    [
        ("F6_E2M3", [4, 2], r"no dtype for F6_E2M3.*get_tensor gives the bytes"),
        ("F6_E3M2", [8], r"no dtype for F6_E3M2"),
        ("F12", [4], r"no dtype for F12"),
        ("F4", [4, 3], r"F4 of shape \[4, 3\] are no whole bytes"),
        ("F4", [], r"F4 of shape \[\] are no whole bytes"),
    ],
)
def test_they_are_refused_by_name(
    tmp_path: Path, dtype: str, shape: list[int], message: str
) -> None:
    """Other tensors of the file are to be had, and the bytes."""
    path = tmp_path / "a.wcodec"
    entries = [("fine", "U8", [3], b"abc"), ("bad", dtype, shape, b"abcdef")]
    (tmp_path / "in").write_bytes(safetensors_bytes(entries))
    encode_file(tmp_path / "in", path)
    for load in (
        lambda: load_file(path),
        lambda: load_file(path, "meta"),
        lambda: safe_open(path).get_tensor("bad"),
        lambda: safe_open(path).get_slice("bad")[...],
        lambda: WCodecCheckpoint(path)["bad"],
        lambda: WCodecCheckpoint(path).dtypes(),
        lambda: list(WCodecCheckpoint(path).items()),
    ):
        with pytest.raises(DecodeError, match=message) as e:
            load()
        assert (e.value.code, e.value.tensor, e.value.file) == (
            "unsupported_coder",
            "bad",
            "a.wcodec",
        )
    part = safe_open(path).get_slice("bad")
    assert (part.get_dtype(), part.get_shape()) == (dtype, shape)
    assert load_file(path, names=["fine"])["fine"].tolist() == [97, 98, 99]
    assert wcodec.load_file(path)["bad"].tobytes() == b"abcdef"


def test_float4_without_dimensions_is_refused(tmp_path: Path) -> None:
    """safetensors has no shape for two elements that have none."""
    with pytest.raises(EncodeError, match=r"view\(1\).*tensor 'w'"):
        save_file({"w": packed(1)[0]}, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
