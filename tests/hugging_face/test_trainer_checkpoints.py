"""`WCodecCallback` and `restore_checkpoint`: training goes on as if checkpoints had stayed plain,
and what is interrupted loses nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import torch.multiprocessing
import transformers
from sampling import exhaustive
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

import wcodec
import wcodec.transformers
from wcodec.errors import DecodeError, EncodeError
from wcodec.files.atomic import atomic_output
from wcodec.torch import WCodecStorageReader
from wcodec.transformers import WCodecCallback, checkpoint_files, restore_checkpoint, training

# peft asks for it
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
MODEL, OPTIMIZER = "model.safetensors", "optimizer.pt"


# ---- trainings -----------------------------------------------------------------------------------
def tiny() -> Any:
    """A model with two matrices that are tied."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def trainer(out: Path, *callbacks: Any, model: Any = None, steps: int = 12, **how: Any) -> Trainer:
    """A training of 12 steps that saves every 4, or stops after fewer."""
    ids = torch.randint(0, 64, (48, 8), generator=torch.Generator().manual_seed(2))
    data: Any = [{"input_ids": row, "labels": row} for row in ids]
    given = {
        "output_dir": str(out), "max_steps": 12, "save_steps": 4, "save_total_limit": 2,
        "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1,
        "use_cpu": True, "report_to": [], "disable_tqdm": True, "dataloader_pin_memory": False,
    } | how  # fmt: skip
    return Trainer(
        tiny() if model is None else model,
        TrainingArguments(**given),
        train_dataset=data,
        eval_dataset=data[:4],
        callbacks=[Stop(steps), *callbacks],
    )


class Stop(transformers.TrainerCallback):
    """Ends a training after so many steps, as a kill would, but without a traceback."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        control.should_training_stop |= state.global_step >= self.steps


def losses(t: Trainer) -> list[tuple[int, float, float]]:
    return [(h["step"], h["loss"], h["grad_norm"]) for h in t.state.log_history if "loss" in h]


def same(a: Any, b: Any) -> None:
    """Refuse what is not of the same types, and equal to the bit."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        assert [type(k) for k in a] == [type(k) for k in b]
        for k in a:
            same(a[k], b[k])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape, a.layout) == (b.dtype, b.shape, b.layout)
        assert a.is_sparse or a.stride() == b.stride()
        assert torch.equal(a.to_dense(), b.to_dense())
    else:
        assert a == b


def nbytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A training without the callback, all checkpoints kept."""
    t = trainer(tmp_path_factory.mktemp("plain"), save_total_limit=None)
    t.train()
    assert len(losses(t)) == 12
    return t


def checkpoint_of(plain: Trainer, step: int) -> Path:
    return Path(plain.args.output_dir, f"checkpoint-{step}")


@pytest.fixture
def saved(plain: Trainer, tmp_path: Path) -> Callable[..., Path]:
    """Has a callback treat a checkpoint of the plain training as if it had just been saved."""

    def save(callback: WCodecCallback, step: int, as_step: int | None = None, **how: Any) -> Path:
        step_there = step if as_step is None else as_step
        path = tmp_path / f"checkpoint-{step_there}"
        shutil.copytree(checkpoint_of(plain, step), path, dirs_exist_ok=True)
        args: Any = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], **how)
        state = TrainerState(global_step=step_there, is_world_process_zero=True)
        callback.on_save(args, state, TrainerControl())
        return path

    return save


def check_restored(path: Path, plain: Trainer, step: int) -> None:
    """What `restore_checkpoint` makes is what Trainer wrote."""
    there = checkpoint_of(plain, step)
    assert restore_checkpoint(path) == str(path)
    assert (path / MODEL).read_bytes() == (there / MODEL).read_bytes()
    same(*(torch.load(p / OPTIMIZER, weights_only=True) for p in (path, there)))


# ---- whole trainings -----------------------------------------------------------------------------
@pytest.mark.parametrize("deltas", [False, True])
def test_a_training_that_is_stopped_and_resumed(
    plain: Trainer, tmp_path: Path, deltas: bool
) -> None:
    trainer(tmp_path, WCodecCallback(deltas=deltas), steps=6).train()
    last = tmp_path / "checkpoint-4"
    assert not (last / MODEL).exists()
    assert not (last / OPTIMIZER).exists()
    assert nbytes(tmp_path) < 0.95 * nbytes(checkpoint_of(plain, 4))
    resumed = trainer(tmp_path, WCodecCallback(deltas=deltas))
    resumed.train(resume_from_checkpoint=restore_checkpoint(last))
    assert losses(resumed) == losses(plain)
    same(dict(resumed.model.state_dict()), dict(plain.model.state_dict()))
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-12",
        "checkpoint-8",
    ]
    if deltas:  # the callback went on from the save before it was stopped
        assert {p.name for p in (tmp_path / "_wcodec").iterdir()} == {"4", "8", "12"}
        assert nbytes(tmp_path / "_wcodec" / "8") < nbytes(tmp_path / "_wcodec" / "4")
    else:
        assert not (tmp_path / "_wcodec").exists()
    for step in (8, 12):
        check_restored(tmp_path / f"checkpoint-{step}", plain, step)


@pytest.mark.parametrize("worse", [False, True], ids=["last is best", "first is best"])
def test_the_best_model_is_loaded(tmp_path: Path, worse: bool) -> None:
    """Its checkpoint keeps the model, and only that."""
    how = {
        "eval_strategy": "steps", "eval_steps": 4, "load_best_model_at_end": True,
        "greater_is_better": worse, "metric_for_best_model": "loss",
    }  # fmt: skip
    t = trainer(tmp_path, WCodecCallback(), **how)
    t.train()
    best = Path(str(t.state.best_model_checkpoint))
    assert best.name == ("checkpoint-4" if worse else "checkpoint-12")
    state = safetensors.torch.load_file(best / MODEL)
    same(t.model.state_dict()["model.norm.weight"], state["model.norm.weight"])
    assert not (best / OPTIMIZER).exists()
    others = [p for p in tmp_path.glob("checkpoint-*") if p != best]
    assert [(p / MODEL).exists() for p in others] == [not worse] * len(others)
    again = trainer(tmp_path, WCodecCallback(), **how)
    (best / "wcodec.json").write_text('{"stored": "wcodec", "files": ["gone.safetensors"]}')
    with pytest.raises(EncodeError, match=r"restore_checkpoint\('.*checkpoint-\d+'\) first"):
        again.train(resume_from_checkpoint=restored_but(best, "gone.safetensors"))


def restored_but(checkpoint: Path, name: str) -> str:
    """A checkpoint to resume from, of which one file is only stored."""
    stored = json.loads((checkpoint / "wcodec.json").read_text())
    (checkpoint / "wcodec.json").write_text(json.dumps(stored | {"files": [OPTIMIZER]}))
    restore_checkpoint(checkpoint)
    (checkpoint / "wcodec.json").write_text(json.dumps(stored | {"files": [name]}))
    return str(checkpoint)


def test_adapters(tmp_path: Path) -> None:
    """Of PEFT, also where there are several, each in a directory of its own."""

    def adapted() -> Any:
        model = peft.get_peft_model(tiny(), peft.LoraConfig(r=4, target_modules=["q_proj"]))
        model.add_adapter("other", peft.LoraConfig(r=4, target_modules=["v_proj"]))
        return model

    due = trainer(tmp_path / "a", model=adapted())
    due.train()
    trainer(tmp_path / "b", WCodecCallback(deltas=True), model=adapted(), steps=8).train()
    last = tmp_path / "b" / "checkpoint-8"
    names = {f"{MODEL.replace('model', 'adapter_model')}", "other/adapter_model.safetensors"}
    assert set(json.loads((last / "wcodec.json").read_text())["files"]) == {*names, OPTIMIZER}
    assert not any((last / name).exists() for name in names)
    resumed = trainer(tmp_path / "b", WCodecCallback(deltas=True), model=adapted())
    resumed.train(resume_from_checkpoint=restore_checkpoint(last))
    assert losses(resumed) == losses(due)
    for name in names:
        assert (last / name).read_bytes() == (tmp_path / "a/checkpoint-8" / name).read_bytes()


def _rank(rank: int, path: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    how = {
        "ddp_backend": "gloo", "max_steps": 6, "save_steps": 2, "eval_strategy": "steps",
        "eval_steps": 2, "load_best_model_at_end": True, "save_total_limit": None,
    }  # fmt: skip
    plain = trainer(path / "a", **how)
    plain.train()
    trainer(path / "b", WCodecCallback(deltas=True), steps=2, **how).train()
    resumed = trainer(path / "b", WCodecCallback(deltas=True), **how)
    assert resumed.args.world_size == 2
    with resumed.args.main_process_first(local=False):
        last = restore_checkpoint(path / "b" / "checkpoint-2")
    resumed.train(resume_from_checkpoint=last)
    assert losses(resumed) == losses(plain)
    same(dict(resumed.model.state_dict()), dict(plain.model.state_dict()))
    assert not (path / "b" / "checkpoint-4" / OPTIMIZER).exists()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.exhaustive
def test_two_processes(tmp_path: Path) -> None:
    """One of them stores, and the best model is loaded by both."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (tmp_path, port), nprocs=2)


# ---- single checkpoints --------------------------------------------------------------------------
@pytest.mark.parametrize("deltas", [False, True])
def test_only_the_model(saved: Any, plain: Trainer, deltas: bool, tmp_path: Path) -> None:
    """And other processes than the first one do nothing."""
    callback = WCodecCallback(deltas=deltas)
    (tmp_path / "checkpoint-4").mkdir()
    shutil.copy(checkpoint_of(plain, 4) / MODEL, tmp_path / "checkpoint-4")
    args: Any = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    for is_zero in (False, True):
        state = TrainerState(global_step=4, is_world_process_zero=is_zero)
        callback.on_save(args, state, TrainerControl())
        assert (tmp_path / "checkpoint-4" / MODEL).exists() is not is_zero
    restore_checkpoint(tmp_path / "checkpoint-4")
    assert not (tmp_path / "checkpoint-4" / OPTIMIZER).exists()


def test_restoring_keeps_the_time_and_what_is_plain(saved: Any, plain: Trainer) -> None:
    """Trainer removes the oldest ones."""
    path = saved(WCodecCallback(), 4)
    before = path.stat().st_mtime_ns
    check_restored(path, plain, 4)
    assert path.stat().st_mtime_ns == before
    times = [(path / n).stat().st_mtime_ns for n in (MODEL, OPTIMIZER)]
    check_restored(path, plain, 4)
    assert times == [(path / n).stat().st_mtime_ns for n in (MODEL, OPTIMIZER)]
    there = checkpoint_of(plain, 8)
    assert restore_checkpoint(there) == str(there)


def test_what_is_stored_is_a_distributed_checkpoint(saved: Any, plain: Trainer) -> None:
    path = saved(WCodecCallback(), 4)
    metadata = WCodecStorageReader(path / "wcodec").read_metadata()
    assert f"{MODEL}/model.norm.weight" in metadata.state_dict_metadata
    assert f"{OPTIMIZER}['state'][0]['exp_avg']" in metadata.state_dict_metadata


def test_rotation(saved: Any, plain: Trainer, tmp_path: Path) -> None:
    """Bases outlive their checkpoints, and no longer than they are needed."""
    callback, paths = WCodecCallback(deltas=True, full_every=3), dict[int, Path]()
    left = []
    for step in range(1, 8):
        shutil.rmtree(paths.pop(step - 2, tmp_path / "none"), ignore_errors=True)
        paths[step] = saved(callback, 4 * (1 + step % 3), step)
        left.append(sorted(int(p.name) for p in (tmp_path / "_wcodec").iterdir()))
    # full are 1, 4 and 7
    assert left == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [4, 5], [4, 5, 6], [4, 5, 6, 7]]
    for step, path in paths.items():
        check_restored(path, plain, 4 * (1 + step % 3))


def test_saved_again(saved: Any, plain: Trainer, tmp_path: Path) -> None:
    """Where training goes on from an earlier checkpoint, later ones that are saved again stay the
    bases of others as they were.
    """
    callback = WCodecCallback(deltas=True)
    for step in (4, 8, 12):
        saved(callback, step)
    shutil.rmtree(tmp_path / "checkpoint-4")
    path = saved(callback, 12, 8)
    assert sorted(p.name for p in (tmp_path / "_wcodec").iterdir()) == ["12", "4", "8", "8-1"]
    with wcodec.open(tmp_path / "_wcodec" / "8-1" / "__0_0.wcodec") as f:
        assert f.metadata() == {"wcodec.checkpoint.base": "../4"}, "the save before this one"
    check_restored(path, plain, 12)
    check_restored(tmp_path / "checkpoint-12", plain, 12)
    inside = saved(WCodecCallback(), 4)
    saved(WCodecCallback(), 8, 4)
    assert sorted(p.name for p in inside.glob("wcodec*")) == ["wcodec-1", "wcodec.json"]
    check_restored(inside, plain, 8)


# ---- interrupted ---------------------------------------------------------------------------------
class Killed(BaseException):
    """The process ends here."""


def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """End the process at a change of the disk of so many: before a file is whole, or removed."""
    done: list[str] = []

    def counted(what: str, of: Any) -> Any:
        def call(*args: Any, **how: Any) -> Any:
            if len(done) == number:
                raise Killed
            done.append(what)
            return of(*args, **how)

        return call

    monkeypatch.setattr(training.dcp, "save", counted("store", training.dcp.save))
    monkeypatch.setattr(training, "sync_folder", counted("sync", training.sync_folder))
    monkeypatch.setattr(training, "atomic_output", counted("pointer", atomic_output))
    monkeypatch.setattr(Path, "unlink", counted("remove", Path.unlink))
    monkeypatch.setattr(shutil, "rmtree", counted("rmtree", shutil.rmtree))
    monkeypatch.setattr(checkpoint_files, "atomic_output", counted("restore", atomic_output))
    return done


@pytest.mark.parametrize("deltas", [exhaustive(False), True])
def test_killed_at_any_moment(saved: Any, plain: Trainer, deltas: bool, tmp_path: Path) -> None:
    """The checkpoint can be restored, and so can the next one be saved over it."""
    number, seen = 0, list[str]()
    while True:
        shutil.rmtree(tmp_path / "_wcodec", ignore_errors=True)
        for step in (2, 3):
            shutil.rmtree(tmp_path / f"checkpoint-{step}", ignore_errors=True)
        callback = WCodecCallback(deltas=deltas)
        saved(callback, 8, 2)
        saved(callback, 12, 3)  # saved again below
        shutil.rmtree(tmp_path / "checkpoint-2")
        with pytest.MonkeyPatch.context() as patch:
            done = killed_at(number, patch)
            try:
                path = saved(callback, 4, 3)
            except Killed:
                path = tmp_path / "checkpoint-3"
            else:
                break
        seen.append(done[-1] if done else "")
        check_restored(path, plain, 4)
        check_restored(saved(callback, 8, 3), plain, 8)
        number += 1
    assert {"store", "sync", "pointer", "remove"} <= set(seen)
    assert done[-1] == "rmtree", "what was stored before is not needed now"


def test_restoring_is_killed(saved: Any, plain: Trainer) -> None:
    path = saved(WCodecCallback(), 4)
    with pytest.MonkeyPatch.context() as patch:
        killed_at(1, patch)
        with pytest.raises(Killed):
            restore_checkpoint(path)
    assert (path / MODEL).exists()
    assert not (path / OPTIMIZER).exists()
    check_restored(path, plain, 4)


def test_what_was_stored_is_read_back(
    saved: Any, plain: Trainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before anything is removed."""
    save = training.dcp.save

    def other(tensors: dict[str, torch.Tensor], **how: Any) -> None:
        save({**tensors, f"{MODEL}/model.norm.weight": torch.zeros(32)}, **how)

    monkeypatch.setattr(training.dcp, "save", other)
    with pytest.raises(EncodeError, match=r"changed: .*model.norm.weight"):
        saved(WCodecCallback(), 4)
    for name in (MODEL, OPTIMIZER):
        there = tmp_path / "checkpoint-4" / name
        assert there.read_bytes() == (checkpoint_of(plain, 4) / name).read_bytes()


# ---- files ---------------------------------------------------------------------------------------
def test_an_optimizer_of_all_kinds(tmp_path: Path) -> None:
    """Structure, types, dtypes and strides come back, also of what is not stored as tensors."""
    twice = torch.arange(6.0)
    state = {
        "state": {
            0: {"m": torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last), "step": 3},
            "0": {"m": torch.randn(4).to(torch.float8_e4m3fn).float()},
            (1, True): [twice, (twice, None, 1.5)],
        },
        "complex": torch.randn(3, dtype=torch.complex64),
        "sparse": torch.eye(3).to_sparse(),
        "empty": torch.empty(0, 3), "scalar": torch.tensor(2.0), "bool": torch.tensor([True]),
        "half": torch.randn(5, 7).bfloat16().t(),
        "expanded": torch.ones(1).expand(4),
    }  # fmt: skip
    torch.save(state, tmp_path / OPTIMIZER)
    packed = checkpoint_files.pack(tmp_path / OPTIMIZER, "o")
    assert "o['state'][0]['m']" in packed.tensors
    assert len(packed.tensors) == 8
    read = {**packed.tensors, "o": packed.rest}.__getitem__
    assert checkpoint_files.is_stored(tmp_path / OPTIMIZER, "o", read)
    (tmp_path / "again").mkdir()
    checkpoint_files.unpack(tmp_path / "again" / OPTIMIZER, "o", read)
    found = torch.load(tmp_path / "again" / OPTIMIZER, weights_only=True)
    expanded, due = found.pop("expanded"), state.pop("expanded")
    same(found, state)
    assert torch.equal(expanded, due)  # type: ignore[arg-type]
    shared = found["state"][1, True]
    assert shared[0] is shared[1][0]


def test_headers_of_safetensors(tmp_path: Path) -> None:
    """Their order, metadata and spaces come back, and dtypes that the format has no id for."""
    path = tmp_path / "x.safetensors"
    tensors = {"b": torch.randn(3, 5), "a": torch.ones(2, 6, dtype=torch.uint8), "c": torch.ones(0)}
    tensors["d"] = torch.arange(8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    tensors["e"] = torch.randn(3, dtype=torch.complex64)
    safetensors.torch.save_file(tensors, path, {"format": "pt", "z": "1"})
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    path.write_bytes((n + 16).to_bytes(8, "little") + data[8 : 8 + n] + b" " * 16 + data[8 + n :])
    rest, packed = checkpoint_files.pack(path, "x")
    read = {**packed, "x": rest}.__getitem__
    checkpoint_files.unpack(tmp_path / "y.safetensors", "x", read)
    assert (tmp_path / "y.safetensors").read_bytes() == path.read_bytes()
    assert checkpoint_files.is_stored(path, "x", read)
    data = path.read_bytes()
    path.unlink()  # tensors are mapped from it
    path.write_bytes(data[:-1] + b"x")
    assert not checkpoint_files.is_stored(path, "x", read)


# ---- refused -------------------------------------------------------------------------------------
@pytest.mark.parametrize("full_every", [0, 9])
def test_too_many_deltas(full_every: int) -> None:
    with pytest.raises(EncodeError, match=f"full_every is {full_every}, not 1 to 8"):
        WCodecCallback(full_every=full_every)


def test_deltas_of_the_longest_chain(saved: Any, plain: Trainer, tmp_path: Path) -> None:
    callback = WCodecCallback(deltas=True)
    for step in range(1, 10):
        saved(callback, 4 * (1 + step % 3), step)
    check_restored(tmp_path / "checkpoint-8", plain, 12)
    sizes = [nbytes(tmp_path / "_wcodec" / str(step)) for step in range(1, 10)]
    assert max(sizes[1:8]) < min(sizes[0], sizes[8])


def test_refused_at_the_start(tmp_path: Path) -> None:
    callback = WCodecCallback()
    for strategy in ("end", "every_save", "checkpoint", "all_checkpoints"):
        args: Any = TrainingArguments(
            str(tmp_path), use_cpu=True, report_to=[], push_to_hub=True, hub_strategy=strategy
        )
        if "checkpoint" not in strategy:
            callback.on_train_begin(args, TrainerState(), TrainerControl())
            continue
        with pytest.raises(EncodeError, match=f"hub_strategy='{strategy}' sends"):
            callback.on_train_begin(args, TrainerState(), TrainerControl())
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    with pytest.raises(EncodeError, match="checkpoints of a search"):
        callback.on_train_begin(args, TrainerState(is_hyper_param_search=True), TrainerControl())


@pytest.mark.parametrize("name", ["pytorch_model_fsdp_0", "optimizer_0", "global_step4"])
def test_shards_stay(plain: Trainer, tmp_path: Path, name: str) -> None:
    """With one warning."""
    callback = WCodecCallback()
    args: Any = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    state = TrainerState(global_step=4, is_world_process_zero=True)
    (tmp_path / "checkpoint-4" / name).mkdir(parents=True)
    shutil.copy(checkpoint_of(plain, 4) / MODEL, tmp_path / "checkpoint-4")
    with pytest.warns(UserWarning, match=r"FSDP or DeepSpeed.*WCodecStorageWriter"):
        callback.on_save(args, state, TrainerControl())
    callback.on_save(args, state, TrainerControl())
    assert sorted(p.name for p in (tmp_path / "checkpoint-4").iterdir()) == sorted([name, MODEL])


def test_files_that_cannot_be_read(saved: Any, plain: Trainer, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-5"
    shutil.copytree(checkpoint_of(plain, 4), path)
    args: Any = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    state = TrainerState(global_step=5, is_world_process_zero=True)
    for name, data in ((OPTIMIZER, b"PK\x03\x04 no"), (MODEL, b"\xff" * 20)):
        (path / name).write_bytes(data)
        with pytest.raises(EncodeError, match=rf"bad_source: in '.*{name}'"):
            WCodecCallback().on_save(args, state, TrainerControl())
        assert (path / name).read_bytes() == data
    torch.save({"state": Stop(1)}, path / OPTIMIZER)
    shutil.copy(checkpoint_of(plain, 4) / MODEL, path)
    with pytest.raises(EncodeError, match=r"bad_source: .*weights_only"):
        WCodecCallback().on_save(args, state, TrainerControl())


def test_restoring_is_refused(saved: Any, plain: Trainer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        restore_checkpoint(tmp_path / "checkpoint-1")
    path = saved(WCodecCallback(deltas=True), 4)
    shutil.copy(checkpoint_of(plain, 8) / MODEL, path)
    with pytest.raises(EncodeError, match=rf"output_exists: .*{MODEL}.*another file"):
        restore_checkpoint(path)
    assert not (path / OPTIMIZER).exists()
    (path / MODEL).unlink()
    moved = tmp_path / "elsewhere"
    (tmp_path / "_wcodec").rename(moved)
    with pytest.raises(FileNotFoundError, match="before you move it"):
        restore_checkpoint(path)
    moved.rename(tmp_path / "_wcodec")
    file = tmp_path / "_wcodec" / "4" / "__0_0.wcodec"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(DecodeError, match=r"bad_\w+: in "):
        restore_checkpoint(path)
    for text in ("{", "[]", '{"stored": "x", "files": ["../x"]}'):
        (path / "wcodec.json").write_text(text)
        with pytest.raises(DecodeError, match=r"bad_value: .*wcodec\.json"):
            restore_checkpoint(path)


def test_a_base_that_is_gone(saved: Any, plain: Trainer, tmp_path: Path) -> None:
    callback = WCodecCallback(deltas=True)
    saved(callback, 4)
    path = saved(callback, 8)
    shutil.rmtree(tmp_path / "_wcodec" / "4")
    with pytest.raises(DecodeError, match=r"bad_base: .*put it there"):
        restore_checkpoint(path)
    with pytest.raises(DecodeError, match="bad_base"):
        saved(callback, 12)
    check_restored(tmp_path / "checkpoint-12", plain, 12)  # it stayed plain


def test_names() -> None:
    assert wcodec.transformers.WCodecCallback is training.WCodecCallback
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = wcodec.transformers.other
