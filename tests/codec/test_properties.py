"""Any array, any options: every backend writes the same bytes, and every bit comes back."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from inputs import ARRAY_DTYPES, KINDS, bits, make_array, safetensors_bytes
from numpy.typing import NDArray
from sampling import exhaustive

import wcodec
from wcodec.backends import load_backend
from wcodec.codec.decoder import Decoder
from wcodec.codec.encoder import Encoder
from wcodec.files.checkpoint import decode_file, encode_file
from wcodec.files.file import File
from wcodec.reference.planes import BY_SAFETENSORS

# Rank 0 to 5 with dimensions of 0, and matrices large enough for several segments,
# which small shapes never have.
shapes = st.one_of(
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=7),
    st.tuples(st.integers(1, 220), st.integers(1, 90)),
    st.tuples(st.integers(1, 3), st.integers(40, 70), st.integers(1, 99)),
    st.tuples(st.integers(0, 20_000)),
)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def arrays(draw: st.DrawFn) -> NDArray[Any]:
    return make_array(
        draw(st.sampled_from(ARRAY_DTYPES)), draw(shapes), draw(st.sampled_from(KINDS)), draw(seeds)
    )


@st.composite
def options(draw: st.DrawFn) -> wcodec.EncodeOptions:
    segment, tile = None, None
    if draw(st.booleans()):
        sides = [_side(draw), _side(draw)]
        segment = sides[0][0], sides[1][0]
        tile = (sides[0][1], sides[1][1]) if draw(st.booleans()) else None
    predictor = draw(st.sampled_from(["auto", "auto", "none", "left", "top", "avg", "planar"]))
    transform = draw(st.sampled_from(["auto", "auto", "none", "dct", "adst"]))
    coder = draw(st.sampled_from(["auto", "auto", "rans", "context", "raw"]))
    of_bytes = (
        predictor not in ("auto", "none") or transform not in ("auto", "none") or coder == "context"
    )
    saving = draw(st.one_of(st.none(), st.floats(0, 1)))
    return wcodec.EncodeOptions(
        segment,
        tile,
        predictor,
        draw(
            st.sampled_from(
                ["auto", "bytes"] if of_bytes else ["auto", "auto", "raw", "bytes", "pairs"]
            )
        ),
        draw(st.integers(9, 12)),
        saving,
        draw(st.sampled_from(["fast", "default", "max"])),
        transform,
        "auto" if of_bytes and coder == "raw" else coder,
        force=saving is None and draw(st.booleans()),
    )


def _side(draw: st.DrawFn) -> tuple[int, int]:
    """A segment size and a tile size that divides it: the whole, or at least 16."""
    if draw(st.booleans()):
        whole = draw(st.integers(1, 300))
        return whole, whole
    tile = draw(st.integers(16, 70))
    return tile * draw(st.integers(1, 5)), tile


@pytest.mark.parametrize("n_examples", [10, exhaustive(400)])
def test_every_backend_writes_the_same_bytes_and_reads_every_bit(n_examples: int) -> None:
    @settings(max_examples=n_examples)
    @given(array=arrays(), options=options())
    def check(array: NDArray[Any], options: wcodec.EncodeOptions) -> None:
        before = bits(array)
        first, *others = (Encoder(options, load_backend(name)).encode(array) for name in BACKENDS)
        assert all(other == first for other in others)
        assert bits(array) == before, "an encoder changed its input"
        for name in BACKENDS:
            back = Decoder(load_backend(name)).decode(first)
            assert (back.shape, back.dtype, bits(back)) == (array.shape, array.dtype, before)

    check()


@pytest.mark.parametrize("n_examples", [100, exhaustive(200)])
def test_a_slice_is_what_numpy_takes(n_examples: int) -> None:
    @settings(max_examples=n_examples)
    @given(data=st.data(), array=arrays(), options=options(), name=st.sampled_from(BACKENDS))
    def check(
        data: st.DataObject, array: NDArray[Any], options: wcodec.EncodeOptions, name: str
    ) -> None:
        index = data.draw(hnp.basic_indices(array.shape, allow_newaxis=False)) if array.ndim else ()
        with File(io.BytesIO(Encoder(options).encode(array)), load_backend(name)) as f:
            got = f.get_slice("")[index]
        expected = np.asarray(array[index])
        assert (got.shape, got.dtype, bits(got)) == (expected.shape, expected.dtype, bits(expected))

    check()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=150)
@given(
    tensors=st.dictionaries(texts, arrays(), max_size=4),
    metadata=st.dictionaries(texts, texts, max_size=3),
)
def test_a_file_gives_back_names_arrays_and_metadata(
    tensors: dict[str, NDArray[Any]], metadata: dict[str, str]
) -> None:
    stream = io.BytesIO()
    writer = Encoder().start(stream)
    for name, array in tensors.items():
        writer.add(name, array)
    assert writer.finish(metadata) == len(stream.getvalue())
    with wcodec.open(stream) as f:
        assert f.keys() == list(tensors)
        assert f.metadata() == metadata
        for name, array in tensors.items():
            back = f.get_tensor(name)
            assert (back.shape, back.dtype, bits(back)) == (array.shape, array.dtype, bits(array))


@st.composite
def safetensors_files(draw: st.DrawFn) -> bytes:
    """Well-formed files that no library writes: any order, names, padding, dtypes of the future."""
    tensors = []
    for name in draw(
        st.lists(texts.filter(lambda t: t != "__metadata__"), max_size=5, unique=True)
    ):
        dtype = draw(st.sampled_from([*BY_SAFETENSORS, "F4", "F6_E2M3", "of 2031"]))
        shape = draw(st.lists(st.integers(0, 9), max_size=3))
        known = BY_SAFETENSORS.get(dtype)
        nbytes = (
            int(np.prod(shape, dtype=np.int64)) * known.nbytes
            if known
            else draw(st.integers(0, 300))
        )
        data = np.random.default_rng(draw(seeds)).integers(0, 256, nbytes, np.uint8).tobytes()
        tensors.append((name, dtype, shape, data))
    order = draw(st.permutations(range(len(tensors))))
    metadata = draw(st.none() | st.dictionaries(texts, texts, max_size=3))
    return safetensors_bytes(tensors, metadata, draw(st.integers(0, 9)), order)


@pytest.mark.parametrize("n_examples", [120, exhaustive(300)])
def test_a_checkpoint_comes_back_byte_for_byte(tmp_path: Path, n_examples: int) -> None:
    @settings(max_examples=n_examples)
    @given(data=safetensors_files(), name=st.sampled_from(BACKENDS))
    def check(data: bytes, name: str) -> None:
        (tmp_path / "in").write_bytes(data)
        assert encode_file(
            tmp_path / "in", tmp_path / "coded", None, load_backend(name), overwrite=True
        )[0] == len(data)
        assert decode_file(
            tmp_path / "coded", tmp_path / "out", load_backend(name), overwrite=True
        )[1] == len(data)
        assert (tmp_path / "out").read_bytes() == data
        assert struct.unpack("<Q", data[:8])[0] + 8 <= len(data)

    check()
