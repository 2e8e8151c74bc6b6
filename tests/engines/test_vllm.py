"""vLLM generates with new weights that `wcodec.sync` has sent it: the same tokens as a fresh engine
that has loaded them from a checkpoint. Run by `make test-engines`, with the real package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_llama import engine, generated, model, save
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer import ModuleSource, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferInitRequest,
    WeightTransferUpdateRequest,
)

from wcodec.sync.vllm import WCodecTrainerInitInfo


class Client:
    """What the trainer's end tells vLLM; here it is in the same process."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    def init_weight_transfer_engine(self, info: dict[str, Any]) -> None:
        self.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=info))

    def start_weight_update(self) -> None:
        self.llm.start_weight_update()

    def update_weights(self, info: Any) -> None:
        self.llm.update_weights(WeightTransferUpdateRequest(update_info=info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.llm.finish_weight_update(weight_version)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An engine with the weights of step 0, from a checkpoint."""
    path = save(0, tmp_path_factory.mktemp("engine") / "model")
    return engine(path, weight_transfer_config=WeightTransferConfig(backend="wcodec"))


@pytest.mark.parametrize("transport", ["tcp", "chain"])
def test_new_weights_are_those_of_a_fresh_engine(
    llm: Any, fresh: list[list[list[int]]], transport: str, tmp_path: Path
) -> None:
    url = "tcp://127.0.0.1:0" if transport == "tcp" else str(tmp_path / "run")
    trained = model(0)
    trainer = WeightTransferTrainerFactory.trainer_init(
        WCodecTrainerInitInfo(url=url, rank=0), client=Client(llm), source=ModuleSource(trained)
    )
    try:
        for step in (0, 1, 2, 0):
            trained.load_state_dict(model(step).state_dict())
            trainer.send_weights()
            assert generated(llm) == fresh[step], step
    finally:
        trainer.shutdown()


def test_a_version_that_does_not_come_leaves_the_model_as_it_is(
    llm: Any, fresh: list[list[list[int]]], tmp_path: Path
) -> None:
    client, before = Client(llm), generated(llm)
    client.init_weight_transfer_engine({"url": str(tmp_path / "run"), "timeout": 0.5})
    client.start_weight_update()
    with pytest.raises(Exception, match="version 7 has not come"):
        client.update_weights({"version": 7})
    assert generated(llm) == before
    assert before in fresh


def test_other_ranks_of_a_trainer_gather_and_send_nothing() -> None:
    rounds = []

    class Source(ModuleSource):
        def __iter__(self) -> Any:
            rounds.append(1)
            return super().__iter__()

    trainer = WeightTransferTrainerFactory.trainer_init(
        WCodecTrainerInitInfo(url="tcp://127.0.0.1:0", rank=1),
        client=Client(None), source=Source(model(0)),
    )  # fmt: skip
    trainer.send_weights()
    trainer.shutdown()
    assert rounds == [1]


def test_a_trainer_needs_a_source() -> None:
    with pytest.raises(ValueError, match="WeightSource"):
        WeightTransferTrainerFactory.trainer_init(
            WCodecTrainerInitInfo(url="tcp://127.0.0.1:0", rank=0), client=Client(None)
        )
