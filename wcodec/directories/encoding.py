"""Directories of models, encoded: weights, and all else carried along. Spec: hub.md."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from wcodec.backends import Backend, get_backend, load_backend
from wcodec.codec.opening import open_source
from wcodec.codec.pipelining import Progress, ignore_progress, map_ahead
from wcodec.codec.remote import AT_ONCE
from wcodec.codec.urls import Place, Url, place_of, resolved, size_of
from wcodec.directories.configs import (
    add_entry,
    is_of_transformers,
    read_config,
    rename_shards,
)
from wcodec.directories.hub_header import (
    VERSION_TEXT,
    InputKind,
    check_plain,
    is_hub,
    kind_of,
    read_plain_header,
)
from wcodec.directories.hub_writing import encode_hub_file
from wcodec.directories.names import (
    FORMS,
    bad_source,
    base_nbytes,
    base_of,
    check_base,
    check_indexes,
    check_names,
    config_apart,
    is_config,
    link_jobs,
    parent,
    scan_directory,
)
from wcodec.directories.resumable import DirectoryPlan
from wcodec.directories.tasks import FileTask, Report, copy_file, text_task
from wcodec.directories.tree import check_places, without_links
from wcodec.errors import DecodeError, EncodeError, within
from wcodec.files.atomic import AnyPath, read_bytes
from wcodec.files.checkpoint import encode_file
from wcodec.files.file import File
from wcodec.files.kinds import HEAD_NBYTES, described
from wcodec.files.shard_index import CODED, PLAIN, is_index, is_variant_of, with_ending
from wcodec.planner.options import EncodeOptions, chosen_options


def plan_encode(
    source: AnyPath,
    target: AnyPath,
    form: str = "wcodec",
    options: EncodeOptions | None = None,
    backend: Backend | None = None,
    base: AnyPath | None = None,
    overwrite: bool = False,
    fsync: bool = True,
    shard: tuple[int, int] | None = None,
) -> DirectoryPlan:
    """What `encode_directory` is to do, checked as far as it can be beforehand. Raises as that."""
    if form not in FORMS:
        raise EncodeError("bad_option", f"the form {form!r} is none of {', '.join(FORMS)}")
    if form == "hub" and base is not None:
        raise EncodeError("bad_option", "there is no hub form of differences from a base")
    check_places(source, target, base)
    tree, place = (
        scan_directory(
            source, bad_source, bad_source, _hub_apart if form == "hub" else config_apart
        ),
        place_of(target),
    )
    tree = without_links(tree) if isinstance(place, Url) else tree
    backend = backend or get_backend()
    files = {
        name: path
        for name, path in tree.files.items()
        if not _is_made_anew(name, tree.files, backend)
    }
    for name, of in tree.links.items():
        if of in files and with_ending(name, CODED, PLAIN) != name:
            raise bad_source(
                f"{name!r} is a name of {of!r}, which is not encoded: give it another one"
            )
    weights = [name for name in files if name.endswith(PLAIN)]
    if not weights:
        raise bad_source(f"there is no .safetensors file in {str(source)!r}{_other_weights(files)}")
    try:
        check_indexes(tree)
    except DecodeError as e:
        with within(e.file):
            raise bad_source(e.message) from None
    remote = any(isinstance(files[name], Url) for name in weights)
    for _ in map_ahead(partial(_check_plain, files), weights, AT_ONCE * remote):
        pass
    options = options or EncodeOptions()
    maker = _Encoding(files, form, options, check_base(base, weights))
    jobs = [maker.job(name) for name in files]
    if not any(j.is_coded for j in jobs):
        raise bad_source(
            f"no weights in {str(source)!r} are for transformers, "
            "which the hub form is for; use --form wcodec"
        )
    jobs += link_jobs(tree, PLAIN, CODED if form == "wcodec" else PLAIN)
    check_names(jobs, tree.folders, bad_source)
    key = {
        "run": "encode",
        "format": VERSION_TEXT,
        "form": form,
        "options": asdict(options),
        "base": base and resolved(base),
    }
    key["source"] = resolved(source)
    return DirectoryPlan(
        tree.root, place, jobs, tree.folders, key, backend, overwrite, fsync, shard
    )


def _check_plain(files: dict[str, Place], name: str) -> None:
    with within(name):
        read_plain_header(open_source(files[name], EncodeError))


def _hub_apart(name: str) -> str:
    """In hub form it depends on the ``config.json`` beside weights, and on their name,
    whether they are encoded.
    """
    if name.endswith(PLAIN):
        return (
            f"{parent(name)} adapter"
            if PurePosixPath(name).name.startswith("adapter_")
            else parent(name)
        )
    return config_apart(name)


def _is_made_anew(name: str, files: dict[str, Place], backend: Backend) -> bool:
    """Whether a file is the encoded form of another one of the directory, and so left out.

    Raises
    ------
    EncodeError
        ``bad_source``: it is encoded, and not that.
    """
    plain = with_ending(name, CODED, PLAIN)
    if plain == name:
        return False
    if plain not in files:
        raise bad_source(
            f"{name!r} is encoded already: the input is a directory of plain safetensors files"
        )
    if name.endswith(CODED):
        with within(plain):
            wanted = {
                (t.name, t.dtype, t.shape)
                for t in read_plain_header(open_source(files[plain], EncodeError)).tensors
            }
        same = False
        with contextlib.suppress(DecodeError), File(files[name], backend) as f:
            same = {(t.name, t.dtype, t.shape) for t in f.index.tensors} == wanted
    else:
        same = read_bytes(files[name]) == rename_shards(
            read_bytes(files[plain]), PLAIN.encode(), CODED.encode()
        )
    if not same:
        raise bad_source(
            f"{name!r} is encoded already, and not from {plain!r}: keep one of them elsewhere"
        )
    return True


def _other_weights(files: dict[str, Place]) -> str:
    """What else a directory has for weights, in words."""
    endings = (
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
        ".gguf",
        ".onnx",
        ".h5",
        ".keras",
        ".npz",
        ".pb",
        ".tflite",
        ".msgpack",
    )
    for name, path in files.items():
        if name.lower().endswith(endings):
            what = described(read_bytes(path, HEAD_NBYTES))
            otherwise = "of another format: save the model as safetensors first"
            return f", but {name!r}, {what or otherwise}"
    return ""


@dataclass
class _Encoding:
    """Makes the jobs of `plan_encode`."""

    files: dict[str, Place]
    form: str
    options: EncodeOptions
    base: Place | None

    def job(self, name: str) -> FileTask:
        """What becomes of a file."""
        path = self.files[name]
        if name.endswith(PLAIN) and self._is_coded(name):
            return self._weights(name, path)
        if name.endswith(PLAIN) and is_hub(path):
            raise bad_source(
                f"{name!r} has a tensor that looks like a stream, and is not for transformers"
            )
        nbytes = size_of(path)
        if self.form == "wcodec" and is_index(name, PLAIN):
            with within(name):
                raw = read_bytes(path)
                text = rename_shards(raw, PLAIN.encode(), CODED.encode())
                if text is None:
                    raise bad_source(f"the index names files that end in {CODED} already")
            renamed = with_ending(name, PLAIN, CODED)
            return text_task(text, len(raw), (path,), renamed, name, encodes=True)
        if self.form == "hub" and is_config(name) and self._has_coded(parent(name)):
            with within(name):
                raw = read_bytes(path)
                text = add_entry(raw, self._dtype(parent(name)))
            # which name the dtype
            weights = [
                p for n, p in self.files.items() if n.endswith(PLAIN) and parent(n) == parent(name)
            ]
            return text_task(text, len(raw), (path, *weights), name, name, encodes=True)
        return FileTask((path,), name, name, nbytes, False, partial(copy_file, path))

    def _weights(self, name: str, path: Place) -> FileTask:
        nbytes, options = size_of(path), self.options
        if self.form == "hub":
            to_hub = partial(encode_hub_file, path, options=options)
            return FileTask((path,), name, name, nbytes, True, to_hub)
        base, coded = base_of(self.base, name), with_ending(name, PLAIN, CODED)
        encode = partial(encode_file, path, options=options, base=base)
        if base is None:
            return FileTask((path,), coded, name, nbytes, True, encode, split=options)
        return FileTask((path, base), coded, name, nbytes + base_nbytes(base), True, encode)

    def _dtype(self, folder: str) -> str | None:
        """Dtype of the first of the weights of a folder, by names of files and tensors, in which a
        model can be: as transformers asks. Of variants of others only where there is nothing else.
        """
        names = [
            n for n in self.files if n.endswith(PLAIN) and parent(n) == folder and self._is_coded(n)
        ]
        for name in sorted(names, key=lambda n: (any(is_variant_of(n, of) for of in names), n)):
            with within(name):
                header = read_plain_header(open_source(self.files[name], EncodeError))
            for t in sorted(header.tensors, key=lambda t: t.name):
                if t.dtype.safetensors in ("F16", "BF16", "F32", "F64"):
                    return t.dtype.name
        return None

    def _has_coded(self, folder: str) -> bool:
        return any(
            n.endswith(PLAIN) and parent(n) == folder and self._is_coded(n) for n in self.files
        )

    def _is_coded(self, name: str) -> bool:
        """Whether weights are encoded; in hub form not those of other libraries than transformers,
        such as adapters of peft.
        """
        if self.form != "hub":
            return True
        if PurePosixPath(name).name.startswith("adapter_"):
            return False
        config = PurePosixPath(name).with_name("config.json").as_posix()
        if config not in self.files:
            return True
        with within(config):
            return is_of_transformers(read_config(read_bytes(self.files[config])))


def encode_directory(
    source: AnyPath,
    target: AnyPath,
    form: str = "wcodec",
    options: EncodeOptions | None = None,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    base: AnyPath | None = None,
    overwrite: bool = False,
    fsync: bool = True,
) -> Report:
    """Encode the safetensors files of a directory, and carry all other files along;
    `decode_directory` gives the directory back.

    A run that was interrupted goes on where it stopped. ``.git`` and ``.cache`` are left out, and
    ``.wcodec`` files beside the safetensors files that they were made from. Links to files are
    followed; a file that is there under several names is written once, with links to it.

    Parameters
    ----------
    source
        The directory; or a cache of Hugging Face, or a repository in one, with a single snapshot.
    form
        ``"wcodec"``: ``.wcodec`` files, the index of shards renamed with them. ``"hub"``:
        safetensors files in hub form under the same names, and an entry in ``config.json``, so that
        transformers loads them; adapters, and weights beside a ``config.json`` of another library,
        are copied.
    base
        A directory: files of the same names are bases of form ``"wcodec"``; see `wcodec.save_file`.
    overwrite
        Whether the target may hold other things than what an interrupted run left: files of the
        same names are replaced then, all else stays.
    fsync
        Have each file on the disk before the next one is begun.

    Raises
    ------
    EncodeError
        ``bad_source``: no plain model directory; nothing has been written. ``bad_option``: as for
        the form, the target or the base. ``output_exists``
    DecodeError
        A base is not well-formed.
    """
    plan = plan_encode(source, target, form, options, backend, base, overwrite, fsync)
    return plan.run(progress)


def encode_safetensors_to_wcodec(
    src: AnyPath,
    dst: AnyPath,
    *,
    form: str = "wcodec",
    preset: str = "default",
    options: EncodeOptions | None = None,
    backend: Backend | str | None = None,
    base: AnyPath | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    fsync: bool = True,
) -> Report:
    """Encode a safetensors file, or a directory of a model with all that is in it.

    Parameters
    ----------
    src
        A ``.safetensors`` file; or a directory, shards and all, as `encode_directory` takes it.
    dst
        The file or directory to be written.
    form
        ``"wcodec"``: ``.wcodec`` files. ``"hub"``: safetensors files in hub form, for transformers.
    preset, options
        ``"fast"``, ``"default"`` or ``"max"``; or more choices, see `EncodeOptions`.
    backend
        A backend or its name; ``None`` for the one of `wcodec.get_backend`.
    base
        A checkpoint to store differences from; of a directory, a directory. See `wcodec.save_file`.
    progress
        Called with the number of bytes that were just done.
    overwrite
        Whether a file may be replaced that is no input; of a directory, see `encode_directory`.
    fsync
        As of `wcodec.save_file`.

    Returns
    -------
    How many files were encoded, copied and skipped as done before, and their bytes.

    Raises
    ------
    EncodeError
        ``bad_source``, ``bad_option``, ``bad_name``, ``resource_limit``, ``output_exists``
    DecodeError
        The base is not well-formed.
    BackendUnavailable

    Examples
    --------
    >>> wcodec.encode_safetensors_to_wcodec("all-MiniLM-L6-v2", "minilm-hub", form="hub")
    """
    chosen = chosen_options(preset, options)
    used = load_backend(backend) if isinstance(backend, str) else backend or get_backend()
    told: Callable[[int], Any] = progress or ignore_progress
    if kind_of(src) is InputKind.DIRECTORY:
        return encode_directory(src, dst, form, chosen, used, told, base, overwrite, fsync)
    nbytes, stored_nbytes = encode_one(src, dst, form, chosen, used, told, base, overwrite, fsync)
    return Report(1, 0, 0, nbytes, stored_nbytes)


def encoding_task(
    source: AnyPath, form: str, options: EncodeOptions, base: AnyPath | None = None
) -> FileTask:
    """What `encode_one` does, for a worker."""
    place, name = place_of(source), str(source)
    if form == "hub":
        to_hub = partial(encode_hub_file, place, options=options)
        return FileTask((place,), name, name, size_of(place), True, to_hub)
    encode = partial(encode_file, place, options=options, base=base, check_header=check_plain)
    of_base = None if base is None else place_of(base)
    sources = (place,) if of_base is None else (place, of_base)
    nbytes, split = size_of(place) + base_nbytes(of_base), options if base is None else None
    return FileTask(sources, name, name, nbytes, True, encode, split=split)


def encode_one(
    source: AnyPath,
    target: AnyPath,
    form: str,
    options: EncodeOptions,
    backend: Backend,
    progress: Progress = ignore_progress,
    base: AnyPath | None = None,
    overwrite: bool = False,
    fsync: bool = True,
) -> tuple[int, int]:
    """Encode one safetensors file in either form.
    Returns and raises as `encode_file` and `encode_hub_file`.
    """
    if form not in FORMS:
        raise EncodeError("bad_option", f"the form {form!r} is none of {', '.join(FORMS)}")
    how = {"overwrite": overwrite, "fsync": fsync}
    if form == "wcodec":
        return encode_file(
            source, target, options, backend, progress, base, check_header=check_plain, **how
        )
    if base is not None:
        raise EncodeError("bad_option", "there is no hub form of differences from a base")
    return encode_hub_file(source, target, options, backend, progress, **how)
