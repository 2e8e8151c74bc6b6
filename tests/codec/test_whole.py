"""Files that are put together in memory."""

from __future__ import annotations

import numpy as np
import pytest

from wcodec.codec.whole import _LARGE, Whole


# Nothing, less than large pages are asked for, from there on, and more than is put together at last
@pytest.mark.parametrize("nbytes", [0, 1, 5000, (1 << 22) + 1, _LARGE, _LARGE + 1])
def test_all_that_was_written_in_order(nbytes: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8).tobytes()
    first = nbytes // 3
    pieces = [data[:first], np.frombuffer(data, np.uint8)[first:].data, b"", b"index"]
    for told in (0, nbytes, 2 * nbytes):
        whole = Whole(told)
        for piece in pieces:
            whole.write(piece)
        given = whole.getvalue()
        assert type(given) is bytes
        assert given == data + b"index"


def test_more_than_was_said() -> None:
    whole, data = Whole(_LARGE + 1), bytes(range(256)) * (_LARGE // 1024)
    for _ in range(6):
        whole.write(data)
    assert whole.getvalue() == data * 6
