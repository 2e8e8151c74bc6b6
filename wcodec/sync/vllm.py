"""vLLM takes new weights by `wcodec.sync`: ``WeightTransferConfig(backend="wcodec")``.

With ``wcodec[numba]`` installed beside vLLM, the name is known there, by vLLM's plug-ins. Each
worker keeps the checkpoint in memory of the host, and has what has changed sent to it. It then
loads the model from there, as vLLM loads any checkpoint: so quantised and sharded models come
right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from wcodec.codec.encoder import words_of
from wcodec.sync import Receiver, Sender, open_receiver
from wcodec.sync.engines import followed_by
from wcodec.sync.vllm_plugin import NAME
from wcodec.torch.dtypes import from_array


@dataclass
class WCodecInitInfo(WeightTransferInitInfo):
    """What a worker is told once.

    Attributes
    ----------
    url
        Of `wcodec.sync.open_receiver`: ``tcp://host:port`` of the trainer, or a chain.
    timeout
        The most seconds to wait for a version.
    """

    url: str
    timeout: float = 600.0


@dataclass
class WCodecUpdateInfo(WeightTransferUpdateInfo):
    """What a worker is told of an update.

    Attributes
    ----------
    version
        The version to generate with from now on, or a later one.
    """

    version: int


class WCodecWeightTransferEngine(WeightTransferEngine[WCodecInitInfo, WCodecUpdateInfo]):
    """Loads versions of a sender's weights into a worker's model."""

    init_info_cls = WCodecInitInfo
    update_info_cls = WCodecUpdateInfo
    supports_draft_weight_update = False

    def __init__(
        self,
        config: WeightTransferConfig,
        vllm_config: Any,
        device: torch.device,
        model: torch.nn.Module,
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self._receiver: Receiver | None = None
        self._timeout = 0.0
        self._loaded: int | None = None  # the version that the model has

    def init_transfer_engine(self, init_info: WCodecInitInfo) -> None:
        """Follow a sender from now on."""
        self.shutdown()
        self._receiver, self._timeout = open_receiver(init_info.url), init_info.timeout

    def start_weight_update(self) -> None:
        """Nothing: the model stays as it is until the weights are there."""

    def receive_weights(self, update_info: WCodecUpdateInfo) -> None:
        """Wait for a version, and load it.

        Raises
        ------
        TimeoutError
            It has not come; the model is as it was.
        DecodeError
            What has come is damaged; the model is as it was.
        RuntimeError
            `init_transfer_engine` was not called.
        """
        if self._receiver is None:
            raise RuntimeError("init_weight_transfer_engine has to come first")
        version = self._receiver.wait_for(update_info.version, self._timeout)
        if version == self._loaded:
            return
        self._loaded = None
        initialize_layerwise_reload(self.model)
        self.model.load_weights(_tensors(self._receiver))
        finalize_layerwise_reload(self.model, self.model_config)
        self._loaded = version

    def finish_weight_update(self) -> None:
        """Nothing: the weights are loaded."""

    def shutdown(self) -> None:
        """Let go of the sender."""
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None


def _tensors(receiver: Receiver) -> Iterator[tuple[str, torch.Tensor]]:
    for name, array in receiver.tensors.items():
        yield name, from_array(array, words_of(array)[0])


@dataclass
class WCodecTrainerInitInfo(TrainerInitInfo):
    """What the trainer's end needs.

    Attributes
    ----------
    url
        Of `wcodec.sync.open_sender`: ``tcp://host:port`` to listen at, or a chain.
    workers_url
        What workers are to connect to; ``None`` for `url`, with the port that was taken.
    """

    backend: ClassVar[str] = NAME

    url: str
    workers_url: str | None = None


class WCodecTrainerWeightTransferEngine(TrainerWeightTransferEngine[WCodecTrainerInitInfo]):
    """Sends a trainer's weights, and has vLLM load them."""

    init_info_cls = WCodecTrainerInitInfo

    def __init__(
        self,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource | None = None,
        is_sender: bool = True,
    ) -> None:
        if source is None:
            raise ValueError("the backend wcodec needs a WeightSource")
        super().__init__(client=client, source=source, is_sender=is_sender)
        self._sender: Sender | None = None  # of the rank that sends

    @classmethod
    def trainer_init(
        cls,
        init_info: WCodecTrainerInitInfo,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource | None = None,
    ) -> WCodecTrainerWeightTransferEngine:
        """Begin to send, and have the workers follow."""
        if not init_info.is_sender:
            return cls(client=client, source=source, is_sender=False)
        engine = cls(client=client, source=source)
        engine._sender = followed_by(client, init_info.url, init_info.workers_url)
        return engine

    def send_weights(self) -> None:
        """Send the weights as the next version, and have vLLM load it. Called on each rank."""
        assert self.source is not None
        if self._sender is None:
            for _ in self.source:  # the other ranks gather with this one
                pass
            return
        version = self._sender.send(dict(self.source))
        self.client.start_weight_update()
        self.client.update_weights({"version": version})
        self.client.finish_weight_update(str(version))

    def shutdown(self) -> None:
        """Let go of the workers."""
        if self._sender is not None:
            self._sender.close()
