"""A cluster of Ray with two nodes on this machine, and a server of S3."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from servers import s3_process

_NODE: dict[str, Any] = {
    "num_cpus": 1,
    "node_ip_address": "127.0.0.1",
    "object_store_memory": 80 << 20,
}


@pytest.fixture
def s3() -> Iterator[str]:
    """A bucket on a server of S3 in a process of its own: its URL."""
    with s3_process():
        yield "s3://bucket"


@pytest.fixture
def cluster(s3: str) -> Iterator[Any]:
    """A cluster of two nodes, whose workers know the server of S3."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    made = Cluster(initialize_head=True, head_node_args={**_NODE, "include_dashboard": False})
    made.add_node(**_NODE)
    try:
        made.wait_for_nodes()
        yield made
    finally:
        made.shutdown()
