"""Weights that are sent while a model trains: to engines that generate with them, step after step.

A sender takes the weights of each step, and sends what they differ in from those before. A receiver
turns its weights into the newest ones in place, when it is told to.

>>> sender = wcodec.sync.open_sender("tcp://0.0.0.0:29600")
>>> sender.send(model.state_dict())
1
>>> receiver = wcodec.sync.open_receiver("tcp://trainer:29600", model.state_dict())
>>> receiver.wait_for(1)
1

The transport is a TCP connection, a directory or an object store (as a `wcodec.Chain`), or
broadcasts of ``torch.distributed`` (`wcodec.sync.collective`). For any other that carries bytes:
`Publisher` makes messages, and `Subscriber` applies them.
Spec: spec/sync.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wcodec.files.atomic import AnyPath
from wcodec.sync.chains import ChainReceiver, ChainSender
from wcodec.sync.ends import Receiver, Sender
from wcodec.sync.messages import Held, Message
from wcodec.sync.versions import Publisher, Subscriber

__all__ = [
    "ChainReceiver",
    "ChainSender",
    "Held",
    "Message",
    "Publisher",
    "Receiver",
    "Sender",
    "Subscriber",
    "open_receiver",
    "open_sender",
]


def open_sender(url: AnyPath, **settings: Any) -> Sender:
    """The sending end of a transport.

    Parameters
    ----------
    url
        ``tcp://host:port`` to listen at, or the directory or URL of a chain.
    settings
        As of `wcodec.sync.tcp_sender.TcpSender` or `ChainSender`.

    Raises
    ------
    OSError, ValueError, ImportError
        As of these.
    """
    if _is_tcp(url):
        from wcodec.sync.tcp_sender import TcpSender

        return TcpSender(str(url), **settings)
    return ChainSender(url, **settings)


def open_receiver(
    url: AnyPath, tensors: Mapping[str, Any] | None = None, **settings: Any
) -> Receiver:
    """The receiving end of a transport.

    Parameters
    ----------
    url
        ``tcp://host:port`` of the sender, or the directory or URL of a chain.
    tensors
        Arrays of NumPy or tensors of PyTorch by name, on any device, which are changed in place,
        as by `wcodec.apply`. ``None`` for arrays of its own.
    settings
        As of `wcodec.sync.tcp_receiver.TcpReceiver` or `ChainReceiver`.

    Raises
    ------
    ValueError, ImportError
        As of these.
    """
    if _is_tcp(url):
        from wcodec.sync.tcp_receiver import TcpReceiver

        return TcpReceiver(str(url), tensors, **settings)
    return ChainReceiver(url, tensors, **settings)


def _is_tcp(url: AnyPath) -> bool:
    return isinstance(url, str) and url.startswith("tcp://")
