"""Corners of the storage of `torch.distributed.checkpoint`: names, empty items, bases that are not
what they should be, ranks that save on their own, and saving in another process.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from test_torch_distributed_checkpoint import blank, same
from torch.distributed.checkpoint import _async_process_executor, planner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

import wcodec
from wcodec.errors import EncodeError
from wcodec.torch import WCodecStorageReader, WCodecStorageWriter
from wcodec.torch.checkpoint import BASE_KEY

pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch's own, of one process
FILE = "__0_0.wcodec"


def save(state: dict[str, Any], path: Path, base: Path | None = None, **how: Any) -> None:
    dcp.save(state, storage_writer=WCodecStorageWriter(path, base=base), no_dist=True, **how)


def check(state: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint that does not hold this, to the bit."""
    found = blank(state)
    dcp.load(found, storage_reader=WCodecStorageReader(path), no_dist=True)
    same(found, state)


@pytest.fixture
def _group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


# ---- items ---------------------------------------------------------------------------------------
def test_names_and_shapes(tmp_path: Path) -> None:
    names = ["", "a", "a'", "a@0", "a@0,0", "a@0,0'", "__metadata__", "../a", "a\0b", "é\n"]
    state: dict[str, Any] = {name: torch.full((3,), i) for i, name in enumerate(names)}
    state |= {
        "scalar": torch.tensor(1.5), "bool": torch.tensor(True), "complex": torch.tensor(1 + 2j),
        "none": torch.empty(0), "rows": torch.empty(0, 4, dtype=torch.bfloat16),
        "cube": torch.empty(3, 0, 4),
    }  # fmt: skip
    save(state, tmp_path / "a")
    check(state, tmp_path / "a")
    save(state | {"a": torch.full((3,), 99)}, tmp_path / "b", tmp_path / "a")
    check(state | {"a": torch.full((3,), 99)}, tmp_path / "b")


@pytest.mark.parametrize("name", ["x" * 70000, "\ud800"])
def test_names_that_files_cannot_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointException, match="bad_name"):
        save({name: torch.zeros(3)}, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_group")
@pytest.mark.parametrize("is_first", [True, False])
def test_names_of_shards_that_others_have(is_first: bool, tmp_path: Path) -> None:
    mesh = init_device_mesh("cpu", (1,))
    shard = {"a": distribute_tensor(torch.arange(12.0).reshape(4, 3), mesh, [Shard(0)])}
    plain = {"a@0,0": torch.full((4, 3), 7.0), "a@0,0'": torch.full((4, 3), 8.0)}
    state: dict[str, Any] = shard | plain if is_first else plain | shard
    dcp.save(state, storage_writer=WCodecStorageWriter(tmp_path / "w"))
    with wcodec.open(tmp_path / "w" / FILE) as f:
        assert sorted(f.keys()) == ["a@0,0", "a@0,0'", "a@0,0''"]
    found = {k: torch.zeros_like(t) for k, t in state.items()}
    dcp.load(found, storage_reader=WCodecStorageReader(tmp_path / "w"))
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor)


class _Emptied(dcp.DefaultSavePlanner):
    """Writes nothing in place of what is no tensor."""

    def transform_object(self, write_item: planner.WriteItem, object: Any) -> Any:
        return object if isinstance(object, torch.Tensor) else io.BytesIO()


class _Noted(dcp.DefaultLoadPlanner):
    """Keeps the bytes that it is given."""

    found: bytes | None = None

    def load_bytes(self, read_item: planner.ReadItem, value: io.BytesIO) -> None:
        self.found = value.read()


def test_empty_bytes(tmp_path: Path) -> None:
    state, noted = {"t": torch.ones(2), "x": "text"}, _Noted()
    save(state, tmp_path, planner=_Emptied())
    reader = WCodecStorageReader(tmp_path)
    dcp.load(state, storage_reader=reader, no_dist=True, planner=noted)
    assert noted.found == b""


# ---- bases ---------------------------------------------------------------------------------------
def test_base_that_nothing_differs_from(tmp_path: Path) -> None:
    """Found so: such a checkpoint was refused, since its file has no base."""
    save({"a": torch.ones(100)}, tmp_path / "a")
    save({"b": torch.arange(100)}, tmp_path / "b", tmp_path / "a")
    check({"b": torch.arange(100)}, tmp_path / "b")


def _differing(room: Path, way: str | None) -> dict[str, Any]:
    """A checkpoint ``new``, whose file names its base so; ``old`` is the base."""
    old, new = {"a": torch.arange(5000)}, {"a": torch.arange(5000) + 1}
    save(old, room / "old")
    save(new, room / "new", room / "old")
    base = wcodec.open(room / "old" / FILE)
    metadata = None if way is None else {BASE_KEY: way}
    wcodec.torch.save_file(new, room / "new" / FILE, metadata, base=base)
    base.close()
    return new


def test_base_by_a_relative_path(tmp_path: Path) -> None:
    check(_differing(tmp_path, "../new/../old"), tmp_path / "new")


@pytest.mark.parametrize(
    ("way", "what"),
    [
        (None, "no relative path"),
        ("/", "no relative path"),
        ("{room}/old", "no relative path"),
        ("", "content hash"),  # the file itself
        ("../other", "content hash"),
        ("../text", "bad_base|bad_magic"),
        ("../pipe", "put it there"),  # would be waited for
        ("../../nowhere", "put it there"),
        ("../old\0", "put it there"),
    ],
)
def test_base_that_is_another(way: str | None, what: str, tmp_path: Path) -> None:
    state = _differing(tmp_path, way and way.format(room=tmp_path))
    save({"a": torch.zeros(5000)}, tmp_path / "other")
    for name in ("pipe", "text"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / FILE)
    (tmp_path / "text" / FILE).write_text("secret")
    with pytest.raises(CheckpointException, match=what) as e:
        check(state, tmp_path / "new")
    assert "secret" not in str(e.value)


# ---- ranks on their own --------------------------------------------------------------------------
@pytest.mark.parametrize("rank", [0, 3])
def test_ranks_on_their_own_have_files_of_their_own(rank: int, tmp_path: Path) -> None:
    writer = WCodecStorageWriter(tmp_path)
    writer.set_up_storage_writer(rank == 0, rank=rank, use_collectives=False)
    plans = writer.prepare_global_plan([writer.prepare_local_plan(planner.SavePlan([]))])
    assert [p.storage_data for p in plans] == [f"__{rank}_0.wcodec"]


def test_rank_on_its_own(tmp_path: Path) -> None:
    states = [{"a": torch.arange(5000) + i, "n": i} for i in range(3)]
    a, b, c = (tmp_path / name for name in "abc")
    save(states[0], a, use_collectives=False)
    assert sorted(os.listdir(a)) == ["__0.metadata", FILE]
    save(states[1], b, a)  # a base of another kind
    save(states[2], c, b, use_collectives=False)
    for state, path in zip(states, (a, b, c), strict=True):
        check(state, path)
    for path in (a, b):
        for on_its_own in (True, False):
            with pytest.raises((CheckpointException, EncodeError), match="output_exists"):
                save(states[2], path, use_collectives=not on_its_own)
    check(states[0], a)


def _own(rank: int, world: int, path: Path) -> None:
    name = f"file://{path}/init"
    dist.init_process_group("gloo", init_method=name, rank=rank, world_size=world)
    try:
        mesh = init_device_mesh("cpu", (world,))
        full = torch.arange(800.0).reshape(40, 20)
        for step, base in (("a", None), ("b", path / "a")):
            state = {
                "own": torch.full((50,), float(rank)), "rank": rank,
                "shared": distribute_tensor(full, mesh, [Shard(0)]),
                "one row": distribute_tensor(full[:1], mesh, [Shard(0)]),  # rank 1 has none
            }  # fmt: skip
            writer = WCodecStorageWriter(path / step, base=base)
            dcp.save(state, storage_writer=writer, use_collectives=False)
            found = {
                k: torch.zeros_like(v) if isinstance(v, torch.Tensor) else -1
                for k, v in state.items()
            }
            dcp.load(found, storage_reader=WCodecStorageReader(path / step))
            assert found["rank"] == rank
            assert torch.equal(found["own"], state["own"])
            for k in ("shared", "one row"):
                assert torch.equal(found[k].to_local(), state[k].to_local())
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.exhaustive
def test_two_ranks_on_their_own(tmp_path: Path) -> None:
    mp.spawn(_own, (2, tmp_path), nprocs=2)
    assert sorted(os.listdir(tmp_path / "b")) == [
        "__0.metadata", FILE, "__1.metadata", "__1_0.wcodec",
    ]  # fmt: skip


# ---- another process -----------------------------------------------------------------------------
def test_pickled_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    writer = pickle.loads(pickle.dumps(WCodecStorageWriter("new", base="old", fsync=False)))
    assert (writer.path, writer.base, writer.fsync) == (tmp_path / "new", tmp_path / "old", False)
    assert pickle.loads(pickle.dumps(WCodecStorageWriter("new"))).base is None


@pytest.mark.usefixtures("_group")
def test_saved_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setattr(_async_process_executor, "_CHECKPOINT_PROCESS", None)  # ends with the test

    def start(step: int, base: int | None = None) -> Any:
        where = None if base is None else tmp_path / str(base)
        writer = WCodecStorageWriter(tmp_path / str(step), base=where)
        given = {"a": torch.arange(5000.0) + step, "n": step}
        kind = AsyncCheckpointerType.PROCESS
        return dcp.async_save(given, storage_writer=writer, async_checkpointer_type=kind)

    start(0).result()
    start(1, 0).result()
    for step in range(2):
        check({"a": torch.arange(5000.0) + step, "n": step}, tmp_path / str(step))
    with pytest.raises(CheckpointException, match="output_exists"):
        start(1).result()
