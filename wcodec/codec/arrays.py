"""What callers give as arrays. The format keeps values: what holds more than these is refused, for
the rest would be lost in silence.
"""

from __future__ import annotations

from array import array
from numbers import Number
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.errors import EncodeError

#: classes of arrays that hold nothing but values
_PLAIN: Final = (np.ndarray, np.memmap, np.matrix)
#: what to do about others, by the libraries that they come from
_ADVICE: Final = {
    "numpy.ma": "store array.data and array.mask",
    "scipy.sparse": "store its data and indices, or what .toarray() makes",
    "torch": "wcodec.torch.save_file takes tensors of PyTorch",
}


def as_array(given: Any) -> NDArray[Any]:
    """The values of what a caller gives, as an array.

    Parameters
    ----------
    given
        An array of NumPy, a number, a buffer, or what speaks DLPack, which knows of values alone;
        or lists of these.

    Raises
    ------
    EncodeError
        ``unsupported_dtype``: it holds more than values, such as a masked array, or is no array.
    """
    found = given if type(given) is np.ndarray else _converted(given)
    if found.dtype.metadata is not None:
        raise EncodeError(
            "unsupported_dtype",
            f"the dtype {found.dtype.name!r} has metadata, which would be lost: store "
            "array.view(array.dtype.str), and keep the metadata beside it",
        )
    return found


def _converted(given: Any) -> NDArray[Any]:
    if not _is_plain(given):
        raise _refused(given, "it may hold more than its values, which would be lost")
    try:
        return np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as e:
        why = str(e).partition("\n")[0].rstrip(".")
        raise _refused(given, why) from e


def _is_plain(given: Any) -> bool:
    if isinstance(given, np.ndarray):
        return type(given) in _PLAIN
    if isinstance(given, list | tuple):
        return all(map(_is_plain, given))
    return isinstance(given, np.generic | Number | memoryview | bytearray | array) or hasattr(
        type(given), "__dlpack__"
    )


def _refused(given: Any, why: str) -> EncodeError:
    kind = type(given)
    module = f"{kind.__module__}."
    advice = next(
        (to_do for library, to_do in _ADVICE.items() if module.startswith(f"{library}.")),
        "store numpy.asarray of it or of its parts, and keep the rest beside them",
    )
    return EncodeError(
        "unsupported_dtype", f"a {kind.__name__} is not stored as it is ({why}): {advice}"
    )
