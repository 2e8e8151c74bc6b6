"""What a trainer tells an engine, such as vLLM, that takes weights by `wcodec.sync`."""

from __future__ import annotations

from typing import Any, Protocol

from wcodec.planner.options import EncodeOptions
from wcodec.sync import Sender, open_sender


class Engine(Protocol):
    """What is asked of an engine when a transfer begins."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Have its workers follow a sender."""


def followed_by(
    engine: Engine, url: str, workers_url: str | None, options: EncodeOptions | None = None
) -> Sender:
    """A sender that an engine's workers follow.

    Parameters
    ----------
    url
        Of `wcodec.sync.open_sender`.
    workers_url
        What the workers are to connect to; ``None`` for the sender's URL.
    options
        How weights are encoded.

    Raises
    ------
    OSError, ValueError, ImportError
        As `wcodec.sync.open_sender`; and what the engine raises.
    """
    sender = open_sender(url, options=options)
    try:
        engine.init_weight_transfer_engine({"url": workers_url or sender.url})
    except BaseException:
        sender.close()
        raise
    return sender
