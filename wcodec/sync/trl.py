"""TRL's asynchronous trainers send weights by `wcodec.sync`, to a vLLM server that takes them
(`wcodec.sync.vllm`).

>>> transfer = WCodecWeightTransfer(VLLMClient("http://engine:8000"), "tcp://0.0.0.0:29600",
...                                 workers_url="tcp://trainer:29600")
>>> trainer = AsyncGRPOTrainer(..., weight_transfer=transfer)

The server is started with ``VLLM_SERVER_DEV_MODE=1`` and
``--weight-transfer-config '{"backend": "wcodec"}'``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any, Protocol

from wcodec.planner.options import EncodeOptions
from wcodec.sync import Sender
from wcodec.sync.engines import Engine, followed_by


class VLLMClient(Engine, Protocol):
    """What is asked of a vLLM server: ``VLLMClient`` of ``trl.experimental.async_grpo`` has it."""

    def wait_for_server_ready(self) -> None:
        """Wait until the server answers."""

    def start_weight_update(self) -> None:
        """Begin an update."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Have workers load a version."""

    def finish_weight_update(self) -> None:
        """End an update."""

    def pause(self) -> None:
        """Have the server generate nothing."""

    def resume(self) -> None:
        """Have it generate again."""


class WCodecWeightTransfer:
    """The ``weight_transfer`` of TRL's ``AsyncGRPOTrainer`` (its ``WeightTransferProtocol``).

    Parameters
    ----------
    client
        Of the vLLM server.
    url
        Of `wcodec.sync.open_sender`: ``tcp://host:port`` to listen at, or a chain.
    workers_url
        What the server's workers are to connect to; ``None`` for `url`, with the port that was
        taken.
    options
        How weights are encoded.
    """

    def __init__(
        self,
        client: VLLMClient,
        url: str,
        *,
        workers_url: str | None = None,
        options: EncodeOptions | None = None,
    ) -> None:
        self._client, self._url, self._workers_url = client, url, workers_url
        self._options = options
        self._sender: Sender | None = None

    def init_weight_transfer(self) -> None:
        """Begin to send, and have the server's workers follow. Raises what the client raises."""
        self._client.wait_for_server_ready()
        self.destroy()
        self._sender = followed_by(self._client, self._url, self._workers_url, self._options)

    def pause(self) -> None:
        """Have the server generate nothing, with requests kept."""
        self._client.pause()

    def send_weights(self, iterator: Iterable[tuple[str, Any]]) -> None:
        """Send weights as the next version, and have the server load it.

        Raises
        ------
        RuntimeError
            `init_weight_transfer` was not called.
        EncodeError
            And what the client raises: the server stays paused, with the weights that it had.
        """
        if self._sender is None:
            raise RuntimeError("init_weight_transfer has to come first")
        version = self._sender.send({name: tensor.detach().cpu() for name, tensor in iterator})
        self._client.start_weight_update()
        try:
            self._client.update_weights({"version": version})
        except BaseException:
            with contextlib.suppress(Exception):  # the first error says more
                self._client.finish_weight_update()
            raise
        self._client.finish_weight_update()

    def resume(self) -> None:
        """Have the server generate again."""
        self._client.resume()

    def destroy(self) -> None:
        """Let go of the workers."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None
