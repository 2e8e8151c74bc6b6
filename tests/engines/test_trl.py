"""TRL's client and protocol send weights by `wcodec.sync` to a real ``vllm serve``."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from accelerate import PartialState
from tiny_llama import PROMPTS, model, save
from trl.experimental.async_grpo.async_grpo_trainer import WeightTransferProtocol
from trl.experimental.async_grpo.vllm_client import VLLMClient

from wcodec.sync.trl import WCodecWeightTransfer

PartialState()  # TRL's loggers need it, as trainers make it


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health"):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def server(fresh: list[list[list[int]]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the model of step 0."""
    path, port = save(0, tmp_path_factory.mktemp("server") / "model"), free_port()
    env = {**os.environ, "VLLM_SERVER_DEV_MODE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server",  # "vllm serve" asks for the
         # version of a package "vllm", and that for the CPU has another name
         "--model", path, "--host", "127.0.0.1",
         "--port", str(port), "--skip-tokenizer-init", "--enforce-eager", "--max-model-len", "64",
         "--max-num-seqs", "4", "--seed", "0", "--enable-scale-out",
         "--weight-transfer-config", '{"backend": "wcodec"}'],
        env=env, start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None and not is_ready(url):
            time.sleep(1)
        assert process.poll() is None, "the server has ended"
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def served(url: str) -> list[list[int]]:
    """What the server generates, greedily."""
    found = []
    for ids in PROMPTS:
        body = {
            "token_ids": ids,
            "sampling_params": {
                "temperature": 0.0, "max_tokens": 24, "ignore_eos": True, "detokenize": False,
            },
        }  # fmt: skip
        request = urllib.request.Request(
            f"{url}/inference/v1/generate", json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request) as answer:
            found.append(json.load(answer)["choices"][0]["token_ids"])
    return found


def test_it_has_all_of_the_protocol() -> None:
    for name, wanted in inspect.getmembers(WeightTransferProtocol, inspect.isfunction):
        if not name.startswith("_"):
            found = getattr(WCodecWeightTransfer, name)
            assert list(inspect.signature(found).parameters) == list(
                inspect.signature(wanted).parameters
            ), name


def test_weights_come_first_to_be_sent_after_init() -> None:
    transfer: Any = WCodecWeightTransfer(VLLMClient("http://127.0.0.1:1"), "tcp://127.0.0.1:0")
    with pytest.raises(RuntimeError, match="init_weight_transfer"):
        transfer.send_weights(iter([]))


def test_a_server_generates_with_each_version(server: str, fresh: list[list[list[int]]]) -> None:
    transfer = WCodecWeightTransfer(VLLMClient(server, 600.0), "tcp://127.0.0.1:0")
    transfer.init_weight_transfer()
    try:
        for step in (0, 1, 2):
            transfer.pause()
            transfer.send_weights(model(step).named_parameters())
            transfer.resume()
            assert served(server) == fresh[step], step
    finally:
        transfer.destroy()
