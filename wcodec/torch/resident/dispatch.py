"""Which operators of PyTorch need not decode a compressed tensor, or not all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

HANDLERS: Final[dict[Any, Callable[..., Any]]] = {}


def handles(*ops: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function for operators. It gets their arguments, and returns ``NotImplemented``
    where the weight has to be decoded after all."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        HANDLERS.update(dict.fromkeys(ops, function))
        return function

    return register
