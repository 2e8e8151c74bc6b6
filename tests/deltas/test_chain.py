"""`wcodec.Chain` in a directory."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import decoder
import numpy as np
import pytest
import torch
from inputs import BY_NAME, make_array, safetensors_bytes
from runs import BF16, State, changed, copies, gaussian, same, steps

import wcodec
import wcodec.torch
from wcodec.backends import load_backend
from wcodec.deltas import chain as chains
from wcodec.deltas.reading import ChainReader
from wcodec.deltas.states import copied, decoded
from wcodec.errors import DecodeError, EncodeError
from wcodec.files.file import File


def files(run: Path) -> set[str]:
    return {p.name for p in run.iterdir()}


def chain_of(run: Path, states: list[State], **options: Any) -> wcodec.Chain:
    chain = wcodec.Chain(run, **options)
    for i, state in enumerate(states):
        assert chain.append(state, {"step": str(i)}) == i + 1
    return chain


# ---- versions there and back ---------------------------------------------------------------------
def test_30_versions_come_back_bit_for_bit(tmp_path: Path) -> None:
    run, states = tmp_path / "run", steps(30)
    chain = chain_of(run, states)
    reader = wcodec.Chain(run)
    versions = reader.versions()
    assert [v.version for v in versions] == list(range(1, 31))
    assert [v.metadata["step"] for v in versions] == [str(i) for i in range(30)]
    assert all(same(reader.load(i + 1), state) for i, state in enumerate(states))
    assert same(reader.load(), states[-1])
    assert files(run) == {"chain.json", *(v.file for v in versions)}
    full, deltas = versions[0].nbytes, 0
    for v in versions[1:]:  # full ones where they are due
        assert v.kind == ("full" if deltas > full / 2 else "delta")
        full, deltas = (v.nbytes, 0) if v.kind == "full" else (full, deltas + v.nbytes)
    assert 2 < sum(v.kind == "full" for v in versions) < 12
    for v in versions:
        assert v.parent == (None if v.kind == "full" else v.version - 1)
        assert v.nbytes == (run / v.file).stat().st_size
        assert v.data_nbytes == sum(a.nbytes for a in states[v.version - 1].values())
    assert reader.verify() == versions == chain.versions()
    assert versions[1].nbytes < versions[0].nbytes / 5


def test_a_stranger_reads_a_chain_by_the_spec(tmp_path: Path) -> None:
    """With nothing but its text's decoder, which takes a whole file as a base (C6, C8)."""
    rng = np.random.default_rng(0)
    states: list[State] = [{"a": gaussian(rng, (20, 30)), "b": gaussian(rng, (40,))}]
    for _ in range(3):
        states.append({n: changed(rng, a, 0.02) for n, a in states[-1].items()})
    chain_of(tmp_path / "run", states, max_share=9)
    manifest = json.loads((tmp_path / "run/chain.json").read_bytes())
    assert (manifest["format"], manifest["major"], manifest["generation"]) == ("wcodec chain", 1, 4)
    done = dict[int, State]()
    for v in manifest["versions"]:
        data = (tmp_path / "run" / v["file"]).read_bytes()
        base = wcodec.save(done[v["parent"]]) if v["kind"] == "delta" else b""
        _, *parts = decoder.decode_file(data, base)
        names = decoder.read_index(data).names
        done[v["version"]] = {
            name: np.frombuffer(part, BF16).reshape(names[name].shape)
            for name, part in zip(names, parts, strict=True)
        }
    assert [len(names) for names in done.values()] == [2, 2, 2, 2]
    assert all(same(done[i + 1], state) for i, state in enumerate(states))


def test_the_same_with_the_reference(tmp_path: Path) -> None:
    states = steps(6)
    chain_of(tmp_path / "run", states, backend=load_backend("reference"))
    reader = wcodec.Chain(tmp_path / "run", load_backend("reference"))
    assert all(same(reader.load(i + 1), state) for i, state in enumerate(states))
    assert len(reader.verify()) == 6


def test_a_writer_that_begins_anew_goes_on_with_deltas(tmp_path: Path) -> None:
    states = steps(6)
    for state in states:
        wcodec.Chain(tmp_path / "run").append(state)
    reader = wcodec.Chain(tmp_path / "run")
    assert [v.kind for v in reader.versions()] == ["full"] + ["delta"] * 5
    assert all(same(reader.load(i + 1), state) for i, state in enumerate(states))


def test_what_the_writer_was_given_may_change_afterwards(tmp_path: Path) -> None:
    """It keeps a copy, in memory that stays the same where it can."""
    rng, chain = np.random.default_rng(0), wcodec.Chain(tmp_path / "run")
    state, due, memory = {"a": gaussian(rng, (40, 50))}, [], list[Any]()
    for _ in range(4):
        due.append(copies(state))
        chain.append(state)
        memory.append(chain._tensors["a"].words)
        state["a"].view(np.uint16)[3, 7] ^= 1
    assert all(words is memory[0] for words in memory)
    assert all(same(chain.load(i + 1), d) for i, d in enumerate(due))
    assert chain.versions()[-1].kind == "delta"


def test_when_a_full_one_is_due(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a = gaussian(rng, (400, 100))
    states = [{"a": a}]
    states += [{"a": changed(rng, a, 0.01)} for _ in range(6)]

    def kinds(name: str, **options: Any) -> str:
        chain = wcodec.Chain(tmp_path / name, **options)
        for state in states:
            chain.append(state)
        return "".join(v.kind[0] for v in chain.versions())

    assert kinds("default") == "fdddddd"
    assert kinds("few", max_deltas=2) == "fddfddf"
    assert kinds("small", max_share=0.0) == "fdfdfdf"
    chain = wcodec.Chain(tmp_path / "asked")
    for full in (False, True, None, False):
        chain.append(states[0], full=full)
    assert "".join(v.kind[0] for v in chain.versions()) == "ffdd"


def test_tensors_that_share_nothing_with_those_before_make_a_full_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    chain = wcodec.Chain(tmp_path / "run")
    for name in "ab":
        chain.append({name: gaussian(rng, (50, 60))})
    assert [(v.kind, v.parent) for v in chain.versions()] == [("full", None)] * 2
    assert list(chain.load()) == ["b"]


def test_a_chain_of_nothing(tmp_path: Path) -> None:
    chain = wcodec.Chain(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"run/chain\.json"):
        chain.versions()
    for _ in range(2):
        chain.append({})
    assert chain.load() == {}
    assert len(chain.verify()) == 2
    with pytest.raises(KeyError, match="the chain has no version 3"):
        chain.load(3)


@pytest.mark.parametrize("name", ["complex64", "float8_e4m3fn", "bool", "float64"])
def test_other_dtypes(tmp_path: Path, name: str) -> None:
    states = [{"w": make_array(BY_NAME[name], (30, 20), "few", seed)} for seed in range(3)]
    chain = chain_of(tmp_path / "run", states)
    assert all(same(chain.load(i + 1), state) for i, state in enumerate(states))


def test_opaque_bytes_keep_what_they_are(tmp_path: Path) -> None:
    chain = wcodec.Chain(tmp_path / "run")
    for i in range(3):
        data = bytes([i]) + bytes(range(1, 200))
        (tmp_path / "plain.safetensors").write_bytes(
            safetensors_bytes([("w", "F4", [10, 40], data)])
        )
        wcodec.encode_safetensors_to_wcodec(
            tmp_path / "plain.safetensors", tmp_path / "coded.wcodec", overwrite=True
        )
        with File(tmp_path / "coded.wcodec") as file:
            chain.append(decoded(file))
    stated = wcodec.Chain(tmp_path / "run").state(2)["w"].stated
    assert stated is not None
    assert (stated.dtype, stated.shape) == ("F4", (10, 40))
    assert chain.load(2)["w"].tobytes() == bytes([1, *range(1, 200)])
    assert chain.versions()[1].kind == "delta"


def test_tensors_of_pytorch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 40), torch.nn.Linear(40, 40)).bfloat16()
    model[1].weight = model[0].weight
    chain, due = wcodec.Chain(tmp_path / "run"), []
    for _ in range(4):
        chain.append(model.state_dict())
        due.append({name: t.clone() for name, t in model.state_dict().items()})
        with torch.no_grad():
            model[0].weight[3, :7] += 1
            model[1].bias[0] += 1
    assert [v.kind for v in chain.versions()] == ["full", "delta", "delta", "delta"]
    live = {name: t.clone() for name, t in due[0].items()}
    assert chain.update(live, 1, 3) == 3
    assert all(torch.equal(live[name], t) for name, t in due[2].items())
    assert chain.update(live, None, 2) == 2, "whatever they are"
    assert all(torch.equal(live[name], t) for name, t in due[1].items())
    weight = due[3]["0.weight"].view(torch.uint8).numpy()
    assert chain.load(4)["0.weight"].tobytes() == weight.tobytes()


# ---- in place ------------------------------------------------------------------------------------
def test_tensors_in_memory_become_another_version(tmp_path: Path) -> None:
    states = steps(12)
    chain, n_done = chain_of(tmp_path / "run", states), 0
    for version in range(1, 13):
        live = copies(states[version - 1])
        assert chain.update(live, version, version) == version
        for to in range(1, 13):
            live = copies(states[version - 1])
            if any(live[n].shape != a.shape for n, a in states[to - 1].items() if n in live) or (
                states[to - 1].keys() - live.keys()
            ):
                with pytest.raises(DecodeError, match="bad_base"):
                    chain.update(live, version, to)
                assert same(live, states[version - 1])
                continue
            memory, n_done = {name: id(a) for name, a in live.items()}, n_done + 1
            assert chain.update(live, version, to) == to
            assert all(live[n].tobytes() == a.tobytes() for n, a in states[to - 1].items())
            assert memory == {name: id(a) for name, a in live.items()}
    assert n_done > 30


def test_tensors_that_are_there_for_a_while_do_not_matter(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, c = gaussian(rng, (40, 30)), gaussian(rng, (30, 30))
    states: list[State] = [{"a": a, "c": c}]
    for names in (["a", "c"], ["a"], ["a", "c"], ["a", "c"], ["a"]):
        old = states[-1]
        states.append({n: changed(rng, old.get(n, c), 0.01) for n in names})
    chain = chain_of(tmp_path / "run", states, max_share=9)
    assert [v.kind for v in chain.versions()] == ["full"] + ["delta"] * 5
    for version in range(1, 7):
        live = {"a": states[version - 1]["a"].copy()}
        assert chain.update(live, version) == 6
        assert live["a"].tobytes() == states[-1]["a"].tobytes()


def test_tensors_that_are_not_that_version_are_refused(tmp_path: Path) -> None:
    states = steps(3)
    chain = chain_of(tmp_path / "run", states)
    live = copies(states[0])
    live["embed"].view(np.uint16)[:] ^= 1
    with pytest.raises(DecodeError, match="bad_base"):
        chain.update(live, 1, 2, checked="full")
    with pytest.raises(ValueError, match="none of sampled, full"):
        chain.update(live, 1, 2, checked="no")


# ---- readers beside the writer -------------------------------------------------------------------
def test_new_versions_are_followed(tmp_path: Path) -> None:
    states = steps(5)
    reader = wcodec.Chain(tmp_path / "run")
    new = reader.follow(timeout=600, poll=0.01)
    thread = threading.Thread(target=chain_of, args=(tmp_path / "run", states))
    thread.start()
    live, at = {}, None
    for v in new:
        live = copies(reader.load(v.version))
        at = v.version
        if at == 5:
            break
    thread.join()
    assert same(live, states[-1])
    assert [v.version for v in reader.follow(after=2, timeout=0)] == [3, 4, 5]
    assert list(reader.follow(timeout=0.05, poll=0.01)) == []
    assert list(wcodec.Chain(tmp_path / "none").follow(timeout=0)) == []


def test_a_file_that_is_gone_is_looked_for_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = steps(4)
    writer = chain_of(tmp_path / "run", states)
    reader = wcodec.Chain(tmp_path / "run")
    old = reader._read()
    writer.pack(3)
    (tmp_path / "run" / old.versions[1].file).unlink()
    read, found = ChainReader._read, [old]
    monkeypatch.setattr(ChainReader, "_read", lambda self: found.pop() if found else read(self))
    assert same(reader.load(3), states[2])
    assert found == []
    with pytest.raises(FileNotFoundError, match=old.versions[1].file):
        reader.load(2)


# ---- one writer ----------------------------------------------------------------------------------
def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    states = steps(4)
    one, other = wcodec.Chain(tmp_path / "run"), wcodec.Chain(tmp_path / "run")
    one.append(states[0])
    other.append(states[1])
    before = {name: (tmp_path / "run" / name).read_bytes() for name in files(tmp_path / "run")}
    with pytest.raises(EncodeError, match=r"changed: .*chain\.json.*one writer"):
        one.append(states[2])
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in before}
    assert files(tmp_path / "run") == set(before)
    other.append(states[2])
    assert same(other.load(), states[2])


def test_a_manifest_that_changes_while_a_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = steps(4)
    chain = chain_of(tmp_path / "run", states[:2])
    write = chains.write_tensors

    def meanwhile(*args: Any) -> int:
        monkeypatch.setattr(chains, "write_tensors", write)
        wcodec.Chain(tmp_path / "run").append(states[3])
        return write(*args)

    for work in (lambda: chain.append(states[2]), lambda: chain.pack(2)):
        monkeypatch.setattr(chains, "write_tensors", meanwhile)
        with pytest.raises(EncodeError, match=r"changed: .*generation 3, where 2 was read") as e:
            work()
        assert e.value.code == "changed"
        versions = chain.versions()
        assert files(tmp_path / "run") == {"chain.json", *(v.file for v in versions)}
        assert same(chain.load(), states[3])
        (tmp_path / "run" / versions[-1].file).unlink()
        chain_json = json.loads((tmp_path / "run/chain.json").read_text())
        chain_json["versions"].pop()
        chain_json["generation"] = 2
        (tmp_path / "run/chain.json").write_text(json.dumps(chain_json))


def test_pruning_beside_a_writer(tmp_path: Path) -> None:
    """Another process may prune between two versions of the writer."""
    states = steps(5)
    chain = chain_of(tmp_path / "run", states[:4])
    wcodec.Chain(tmp_path / "run").prune(keep_last=1)
    chain.append(states[4])
    assert [v.version for v in chain.versions()] == [4, 5]
    assert same(chain.load(), states[4])


def test_a_chain_that_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    states = steps(2)
    chain = chain_of(tmp_path / "run", states[:1])
    (tmp_path / "run/chain.json").unlink()
    with pytest.raises(EncodeError, match="changed"):
        chain.append(states[1])


def test_tensors_that_change_while_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer does not hold what it wrote then; it sees that, and reads it again."""
    states = steps(3)
    chain = wcodec.Chain(tmp_path / "run")
    with monkeypatch.context() as m:
        m.setattr(chains, "copied", lambda _, old: copied(states[2], old))
        chain.append(states[0])
    with pytest.raises(EncodeError, match="changed: the tensors of version 1 were changed"):
        chain.append(states[1])
    assert len(files(tmp_path / "run")) == 2
    chain.append(states[1])
    assert all(same(chain.load(i + 1), state) for i, state in enumerate(states[:2]))


# ---- prune and pack ------------------------------------------------------------------------------
def test_pruning_keeps_what_is_needed(tmp_path: Path) -> None:
    run, states = tmp_path / "run", steps(20)
    chain = chain_of(run, states, max_deltas=5, max_share=100)
    assert "".join(v.kind[0] for v in chain.versions()) == "fdddddfdddddfdddddfd"
    gone = chain.prune(keep_last=2, keep_every=10, keep=[3])
    kept = [3, 10, 19, 20]
    assert gone.versions == [n for n in range(1, 21) if n not in kept]
    assert [v.version for v in chain.versions()] == kept
    everything = chain.versions(retired=True)
    assert [v.version for v in everything if v.retired] == [1, 2, 7, 8, 9]
    assert len(gone.files) == 11
    assert files(run) == {"chain.json", *(v.file for v in everything)}
    assert all(same(chain.load(n), states[n - 1]) for n in kept)
    assert [v.version for v in chain.verify()] == kept
    with pytest.raises(KeyError, match="no version 2"):
        chain.load(2)
    with pytest.raises(KeyError, match="no version 2"):
        chain.prune(keep=[2])
    assert [v.version for v in chain.follow(after=0, timeout=0)] == kept
    assert chain.prune(keep_last=1, keep=[10]).versions == [3, 19]
    assert [v.version for v in chain.versions(retired=True)] == [7, 8, 9, 10, 19, 20]
    assert chain.append(states[0]) == 21
    assert same(chain.load(), states[0])


def test_what_to_keep_has_to_be_said(tmp_path: Path) -> None:
    chain = chain_of(tmp_path / "run", steps(3))
    for options in ({}, {"keep_last": -1}, {"keep_every": 0}):
        with pytest.raises(EncodeError, match="bad_option"):
            chain.prune(**options)
    assert chain.prune(keep_last=5) == ([], [])
    assert chain.prune(keep_last=0) == ([1, 2], []), "the newest one stays"
    assert [v.version for v in chain.versions()] == [3]


def test_orphans_go_when_they_are_old(tmp_path: Path) -> None:
    run = tmp_path / "run"
    chain = chain_of(run, steps(2))
    old, young = "3-00000000.wcodec", "3-00000001.wcodec"
    unfinished = [".chain.json.0123abcd.wcodec-tmp", ".3-00000002.wcodec.0123abcd.wcodec-tmp"]
    others = ["notes.txt", "model.wcodec", ".x.0123abcd.wcodec-tmp", "3-0000000.wcodec"]
    for name in (old, young, *unfinished, *others):
        (run / name).write_bytes(b"x")
        if name != young:
            os.utime(run / name, (time.time() - 4000,) * 2)
    before = (run / "chain.json").read_bytes()
    assert chain.prune(keep_last=2) == ([], sorted([old, *unfinished]))
    assert (run / "chain.json").read_bytes() == before
    assert files(run) >= {young, *others}


def test_a_version_is_packed(tmp_path: Path) -> None:
    run, states = tmp_path / "run", steps(6)
    chain = chain_of(run, states)
    before = chain.versions()
    packed = chain.pack(4)
    assert (packed.kind, packed.parent) == ("full", None)
    assert (packed.time, packed.metadata) == (before[3].time, {"step": "3"})
    assert same(wcodec.load_file(run / packed.file), states[3])
    assert chain.versions() == [*before[:3], packed, *before[4:]]
    assert all(same(chain.load(i + 1), state) for i, state in enumerate(states))
    assert chain.pack(4) == packed
    assert (run / before[3].file).exists(), "for readers; prune removes it"
    chain.prune(keep=[4, 5])
    assert [v.version for v in chain.versions(retired=True)] == [4, 5, 6]
    os.utime(run / before[3].file, (0, 0))
    assert chain.prune(keep=[4, 5]).files == [before[3].file]
    chain.append(states[0])
    assert chain.versions()[-1].kind == "delta"
    assert chain.pack().version == 7
    assert len(chain.verify()) == 4


# ---- damage --------------------------------------------------------------------------------------
def test_verify_finds_damage(tmp_path: Path) -> None:
    run, states = tmp_path / "run", steps(4)
    chain = chain_of(run, states)
    versions = chain.versions()
    for v in versions:
        good = (run / v.file).read_bytes()
        with File(run / v.file) as file:
            end = file.index.index_offset
        rng = np.random.default_rng(v.version)
        for at in [*rng.integers(32, end, 5).tolist(), end + 20, len(good) - 3]:
            data = bytearray(good)
            data[at] ^= 16
            (run / v.file).write_bytes(data)
            with pytest.raises(DecodeError, match=v.file):
                chain.verify()
        (run / v.file).write_bytes(good[:-1])
        with pytest.raises(DecodeError, match="truncated"):
            chain.load(v.version)
        (run / v.file).unlink()
        with pytest.raises(FileNotFoundError, match=v.file):
            chain.verify()
        (run / v.file).write_bytes(good)
    assert chain.verify() == versions


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    chain = chain_of(run, steps(4))
    two, three = chain.versions()[1:3]
    good = (run / two.file).read_bytes()
    (run / two.file).write_bytes((run / three.file).read_bytes())
    with pytest.raises(DecodeError, match=f"bad_value: .*{two.file}.*not the file of version 2"):
        chain.load(2)
    (run / two.file).write_bytes(good)
    found = json.loads((run / "chain.json").read_text())
    found["versions"][2]["parent"] = 1
    (run / "chain.json").write_text(json.dumps(found))
    with pytest.raises(DecodeError, match=f"bad_base: .*{three.file}.*its parent"):
        chain.load(3)
