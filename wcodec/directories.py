"""Directories of models: weights are encoded, all else is carried along, and the whole comes back byte for byte. Spec: hub.md.

Names of files come from the file system; an index of shards is a text that is changed, never a list of files to open.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

from wcodec.backends import Backend, get_backend, load_backend
from wcodec.codec.ahead import Progress, ignore_progress
from wcodec.configs import (
    add_entry,
    is_of_transformers,
    read_config,
    remove_entry,
    rename_shards,
    shard_names,
)
from wcodec.errors import CodedError, DecodeError, EncodeError, in_file
from wcodec.files import File, decode_file, encode_file, verify_file
from wcodec.hub import (
    VERSION_TEXT,
    HubFile,
    decode_hub_file,
    encode_hub_file,
    has_hub_form,
    is_hub,
    read_plain_header,
    verify_hub_file,
)
from wcodec.jobs import (
    STATE,
    Job,
    Plan,
    Report,
    Tree,
    check_places,
    copying,
    linking,
    scan,
    writing,
)
from wcodec.kinds import HEAD_NBYTES, described
from wcodec.outputs import AnyPath, check_room, map_file
from wcodec.planner.options import EncodeOptions

FORMS: Final = ("wcodec", "hub")
PLAIN: Final = ".safetensors"
CODED: Final = ".wcodec"
INDEX: Final = ".index.json"


def _bad_source(message: str) -> EncodeError:
    return EncodeError("bad_source", message)


def _bad_value(message: str) -> DecodeError:
    return DecodeError("bad_value", message)


def _parent(name: str) -> str:
    return PurePosixPath(name).parent.as_posix()


def _is_config(name: str) -> bool:
    return PurePosixPath(name).name == "config.json"


def _swapped(name: str, old: str, new: str) -> str:
    """A name of weights, or of an index of shards, with its other ending; other names as they are."""
    for ending in ("", INDEX):
        if name.endswith(old + ending):
            return name[: -len(old + ending)] + new + ending
    return name


# ---- what is there -----------------------------------------------------------------------------------------------------------
#: What is in a cache of Hugging Face, and in a repository of it. A directory with anything else is no cache.
_CACHE: Final = re.compile(
    r"(models|datasets|spaces)--.*|blobs|refs|snapshots|hub|xet|assets|datasets|modules|accelerate|\.no_exist|\.locks|\.DS_Store"
    r"|token|stored_tokens|version(_diffusers_cache)?\.txt|CACHEDIR\.TAG|\.gitignore"
)


def find_model(source: AnyPath, refuse: Callable[[str], CodedError]) -> Path:
    """The directory of a model: `source`, or the only snapshot in a cache of Hugging Face, or in a repository of one."""
    root = Path(source)
    patterns = [
        "models--*/snapshots/*/",
        "hub/models--*/snapshots/*/",
        *(["snapshots/*/"] if (root / "blobs").is_dir() else []),
    ]
    snapshots = sorted(p for pattern in patterns for p in root.glob(pattern) if p.is_dir())
    if not snapshots or not all(_CACHE.fullmatch(name) for name in os.listdir(root)):
        return root
    if len(snapshots) > 1:
        names = ", ".join(str(p) for p in snapshots)
        raise refuse(
            f"a cache of Hugging Face with {len(snapshots)} snapshots; name one of them: {names}"
        )
    return snapshots[0]


def _scan(
    source: AnyPath,
    refuse: Callable[[str], CodedError],
    unfinished: Callable[[str], CodedError],
    apart: Callable[[str], str],
) -> Tree:
    tree = scan(find_model(source, refuse), refuse, (PLAIN, CODED), apart)
    for name in tree.files:
        if PurePosixPath(name).name == STATE:
            raise unfinished(f"{name!r}: the directory is unfinished; run what writes it again")
    return tree


def _config_apart(name: str) -> str:
    """Each ``config.json`` is a file of its own: in hub form what becomes of it depends on the weights beside it."""
    return _parent(name) if _is_config(name) else ""


def _hub_apart(name: str) -> str:
    """In hub form it depends on the ``config.json`` beside weights, and on their name, whether they are encoded."""
    if name.endswith(PLAIN):
        return (
            f"{_parent(name)} adapter"
            if PurePosixPath(name).name.startswith("adapter_")
            else _parent(name)
        )
    return _config_apart(name)


def _check_names(jobs: list[Job], folders: list[str], refuse: Callable[[str], CodedError]) -> None:
    """Refuse two files, or a file and a directory, that would get one name."""
    names = dict[str, str]()
    for j in jobs:
        if (other := names.setdefault(j.name, j.label)) != j.label or j.name in folders:
            raise refuse(
                f"{j.label!r} and {other if other != j.label else j.name!r} would both become {j.name!r}"
            )


def _links(tree: Tree, old: str, new: str) -> list[Job]:
    """Links to files of the same directory, with the names that these get."""
    return [
        Job(
            (tree.files[of],),
            to,
            name,
            0,
            False,
            linking(os.path.relpath(_swapped(of, old, new), _parent(to))),
        )
        for name, of in tree.links.items()
        for to in [_swapped(name, old, new)]
    ]


# ---- bases -------------------------------------------------------------------------------------------------------------------
def _base_of(base: Path | None, name: str) -> Path | None:
    """The file of a base directory that one of these weights differs from: the one of the same name."""
    if base is not None:
        stem = name[: -len(PLAIN)] if name.endswith(PLAIN) else name[: -len(CODED)]
        for path in (base / (stem + PLAIN), base / (stem + CODED)):
            if path.is_file():
                return path
    return None


def _check_base(base: AnyPath | None, names: list[str]) -> Path | None:
    """Refuse what is no directory with a file of the same name as one of these weights."""
    if base is None:
        return None
    if not os.path.isdir(base):
        raise EncodeError(
            "bad_option", f"the base of a directory is a directory; {str(base)!r} is none"
        )
    if not any(_base_of(Path(base), name) for name in names):
        raise EncodeError(
            "bad_option",
            f"the base {str(base)!r} has no file that is called as one of these: {names[0]!r}",
        )
    return Path(base)


def _base_nbytes(base: Path | None) -> int:
    """Bytes of progress to find out which base it is: those of a safetensors file."""
    return base.stat().st_size if base is not None and base.suffix == PLAIN else 0


# ---- encoding ----------------------------------------------------------------------------------------------------------------
def plan_encode(
    source: AnyPath,
    target: AnyPath,
    form: str = "wcodec",
    options: EncodeOptions | None = None,
    backend: Backend | None = None,
    base: AnyPath | None = None,
    overwrite: bool = False,
) -> Plan:
    """What `encode_directory` is to do, checked as far as it can be beforehand. Raises as that."""
    if form not in FORMS:
        raise EncodeError("bad_option", f"the form {form!r} is none of {', '.join(FORMS)}")
    if form == "hub" and base is not None:
        raise EncodeError("bad_option", "there is no hub form of differences from a base")
    check_places(source, target)
    tree = _scan(source, _bad_source, _bad_source, _hub_apart if form == "hub" else _config_apart)
    backend = backend or get_backend()
    files = {
        name: path
        for name, path in tree.files.items()
        if not _is_made_anew(name, tree.files, backend)
    }
    for name, of in tree.links.items():
        if of in files and _swapped(name, CODED, PLAIN) != name:
            raise _bad_source(
                f"{name!r} is a name of {of!r}, which is not encoded: give it another one"
            )
    weights = [name for name in files if name.endswith(PLAIN)]
    if not weights:
        raise _bad_source(
            f"there is no .safetensors file in {str(source)!r}{_other_weights(files)}"
        )
    try:
        _check_indexes(tree)
    except DecodeError as e:
        with in_file(e.file):
            raise _bad_source(e.message) from None
    for name in weights:
        with in_file(name):
            read_plain_header(memoryview(map_file(files[name])))
    options = options or EncodeOptions()
    maker = _Encoding(files, form, options, backend, _check_base(base, weights))
    jobs = [maker.job(name) for name in files]
    if not any(j.is_coded for j in jobs):
        raise _bad_source(
            f"no weights in {str(source)!r} are for transformers, which the hub form is for; use --form wcodec"
        )
    jobs += _links(tree, PLAIN, CODED if form == "wcodec" else PLAIN)
    _check_names(jobs, tree.folders, _bad_source)
    key = {
        "run": "encode",
        "format": VERSION_TEXT,
        "form": form,
        "options": asdict(options),
        "base": base and str(Path(base).resolve()),
    }
    return Plan(
        Path(target), jobs, tree.folders, {**key, "source": str(Path(source).resolve())}, overwrite
    )


def _is_made_anew(name: str, files: dict[str, Path], backend: Backend) -> bool:
    """Whether a file is the encoded form of another one of the directory, and so left out.

    Raises
    ------
    EncodeError
        ``bad_source``: it is encoded, and not that.
    """
    plain = _swapped(name, CODED, PLAIN)
    if plain == name:
        return False
    if plain not in files:
        raise _bad_source(
            f"{name!r} is encoded already: the input is a directory of plain safetensors files"
        )
    if name.endswith(CODED):
        with in_file(plain):
            wanted = {
                (t.name, t.dtype, t.shape)
                for t in read_plain_header(memoryview(map_file(files[plain]))).tensors
            }
        same = False
        with contextlib.suppress(DecodeError), File(files[name], backend) as f:
            same = {(t.name, t.dtype, t.shape) for t in f.index.tensors} == wanted
    else:
        same = files[name].read_bytes() == rename_shards(
            files[plain].read_bytes(), PLAIN.encode(), CODED.encode()
        )
    if not same:
        raise _bad_source(
            f"{name!r} is encoded already, and not from {plain!r}: keep one of them elsewhere"
        )
    return True


def _other_weights(files: dict[str, Path]) -> str:
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
            with open(path, "rb") as f:
                return f", but {name!r}, {described(f.read(HEAD_NBYTES)) or 'of another format: save the model as safetensors first'}"
    return ""


@dataclass
class _Encoding:
    """Makes the jobs of `plan_encode`."""

    files: dict[str, Path]
    form: str
    options: EncodeOptions
    backend: Backend
    base: Path | None

    def job(self, name: str) -> Job:
        """What becomes of a file."""
        path = self.files[name]
        if name.endswith(PLAIN) and self._is_coded(name):
            return self._weights(name, path)
        if name.endswith(PLAIN) and is_hub(path):
            raise _bad_source(
                f"{name!r} has a tensor that looks like a stream, and is not for transformers"
            )
        nbytes = path.stat().st_size
        if self.form == "wcodec" and name.endswith(PLAIN + INDEX):
            with in_file(name):
                raw = path.read_bytes()
                text = rename_shards(raw, PLAIN.encode(), CODED.encode())
                if text is None:
                    raise _bad_source(f"the index names files that end in {CODED} already")
            return Job(
                (path,),
                _swapped(name, PLAIN, CODED),
                name,
                len(raw),
                False,
                writing(text, len(raw), len(text)),
            )
        if self.form == "hub" and _is_config(name) and self._has_coded(_parent(name)):
            with in_file(name):
                raw = path.read_bytes()
                text = add_entry(raw, self._dtype(_parent(name)))
            # which name the dtype
            weights = [
                p
                for n, p in self.files.items()
                if n.endswith(PLAIN) and _parent(n) == _parent(name)
            ]
            return Job(
                (path, *weights), name, name, len(raw), False, writing(text, len(raw), len(text))
            )
        return Job((path,), name, name, nbytes, False, copying(path))

    def _weights(self, name: str, path: Path) -> Job:
        nbytes = path.stat().st_size
        if self.form == "hub":

            def to_hub(target: Path, progress: Progress, overwrite: bool) -> tuple[int, int]:
                return encode_hub_file(
                    path, target, self.options, self.backend, progress, overwrite=overwrite
                )

            return Job((path,), name, name, nbytes, True, to_hub)
        base = _base_of(self.base, name)

        def encode(target: Path, progress: Progress, overwrite: bool) -> tuple[int, int]:
            return encode_file(
                path, target, self.options, self.backend, progress, base, overwrite=overwrite
            )

        sources = (path,) if base is None else (path, base)
        return Job(
            sources, _swapped(name, PLAIN, CODED), name, nbytes + _base_nbytes(base), True, encode
        )

    def _dtype(self, folder: str) -> str | None:
        """Dtype of the first of the weights of a folder, by names of files and tensors, in which a model can be: as transformers asks."""
        for name in sorted(
            n
            for n in self.files
            if n.endswith(PLAIN) and _parent(n) == folder and self._is_coded(n)
        ):
            with in_file(name):
                header = read_plain_header(memoryview(map_file(self.files[name])))
            for t in sorted(header.tensors, key=lambda t: t.name):
                if t.dtype.safetensors in ("F16", "BF16", "F32", "F64"):
                    return t.dtype.name
        return None

    def _has_coded(self, folder: str) -> bool:
        return any(
            n.endswith(PLAIN) and _parent(n) == folder and self._is_coded(n) for n in self.files
        )

    def _is_coded(self, name: str) -> bool:
        """Whether weights are encoded; in hub form not those of other libraries than transformers, such as adapters of peft."""
        if self.form != "hub":
            return True
        if PurePosixPath(name).name.startswith("adapter_"):
            return False
        config = PurePosixPath(name).with_name("config.json").as_posix()
        if config not in self.files:
            return True
        with in_file(config):
            return is_of_transformers(read_config(self.files[config].read_bytes()))


def encode_directory(
    source: AnyPath,
    target: AnyPath,
    form: str = "wcodec",
    options: EncodeOptions | None = None,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    base: AnyPath | None = None,
    overwrite: bool = False,
) -> Report:
    """Encode the safetensors files of a directory, and carry all other files along; `decode_directory` gives the directory back.

    A run that was interrupted goes on where it stopped. ``.git`` and ``.cache`` are left out, and ``.wcodec`` files beside the
    safetensors files that they were made from. Links to files are followed; a file that is there under several names is written once,
    with links to it.

    Parameters
    ----------
    source
        The directory; or a cache of Hugging Face, or a repository in one, with a single snapshot.
    form
        ``"wcodec"``: ``.wcodec`` files, the index of shards renamed with them. ``"hub"``: safetensors files in hub form under the
        same names, and an entry in ``config.json``, so that transformers loads them; adapters, and weights beside a ``config.json``
        of another library, are copied.
    base
        A directory: files of the same names are bases of form ``"wcodec"``; see `wcodec.save_file`.
    overwrite
        Whether the target may hold other things than what an interrupted run left: files of the same names are replaced then, all else
        stays.

    Raises
    ------
    EncodeError
        ``bad_source``: no plain model directory; nothing has been written. ``bad_option``: as for the form, the target or the base.
        ``output_exists``
    DecodeError
        A base is not well-formed.
    """
    return plan_encode(source, target, form, options, backend, base, overwrite).run(progress)


# ---- decoding ----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class CodedFile:
    """An encoded file of a directory, opened and checked as far as its index.

    Attributes
    ----------
    data_nbytes, nbytes
        Decoded bytes of its tensors, and of the file that it restores.
    """

    name: str
    path: Path
    is_hub: bool
    data_nbytes: int
    nbytes: int
    stored_nbytes: int
    base: Path | None


def coded_files(
    source: AnyPath,
    files: dict[str, Path],
    backend: Backend,
    max_nbytes: int | None = None,
    base: AnyPath | None = None,
) -> dict[str, CodedFile]:
    """Those of the files of a directory that are encoded, by name.

    Raises
    ------
    DecodeError
        ``bad_magic``: there are none. ``resource_limit``: they decode to more than `max_nbytes`. Others: one is damaged.
    """
    names = [name for name in files if name.endswith((PLAIN, CODED))]
    folder, found = _check_base(base, names) if names else None, dict[str, CodedFile]()
    for name in names:
        with in_file(name):
            coded = _open(name, files[name], backend, _base_of(folder, name))
        if coded is not None:
            found[name] = coded
    if not found:
        raise DecodeError(
            "bad_magic",
            f"there is neither a .wcodec file nor a safetensors file in hub form in {str(source)!r}",
        )
    total = sum(c.data_nbytes for c in found.values())
    if max_nbytes is not None and total > max_nbytes:
        raise DecodeError(
            "resource_limit", f"the tensors have {total} bytes; the caller allows {max_nbytes}"
        )
    return found


def _open(name: str, path: Path, backend: Backend, base: Path | None) -> CodedFile | None:
    if name.endswith(CODED):
        with File(path, backend) as f:
            data_nbytes = f.index.data_nbytes
            return CodedFile(
                name,
                path,
                False,
                data_nbytes,
                data_nbytes + len(f.index.source_header),
                f.index.file_nbytes,
                base,
            )
    if not has_hub_form(path):
        return None
    hub = HubFile(path, backend)
    return CodedFile(name, path, True, hub.data_nbytes, hub.nbytes, hub.stored_nbytes, None)


def scan_coded(source: AnyPath) -> Tree:
    """What is in an encoded directory.

    Raises
    ------
    DecodeError
        ``truncated``: a run that was to write it has not ended. ``bad_value``: it holds what it cannot.
    """
    return _scan(source, _bad_value, partial(DecodeError, "truncated"), _config_apart)


def plan_decode(
    source: AnyPath,
    target: AnyPath,
    backend: Backend | None = None,
    max_nbytes: int | None = None,
    base: AnyPath | None = None,
    overwrite: bool = False,
) -> Plan:
    """What `decode_directory` is to do, checked as far as it can be beforehand. Raises as that."""
    check_places(source, target)
    backend = backend or get_backend()
    tree = scan_coded(source)
    coded = coded_files(source, tree.files, backend, max_nbytes, base)
    jobs = [_decoding(name, path, coded, backend) for name, path in tree.files.items()] + _links(
        tree, CODED, PLAIN
    )
    _check_names(jobs, tree.folders, _bad_value)
    _check_indexes(tree)
    key = {
        "run": "decode",
        "format": VERSION_TEXT,
        "source": str(Path(source).resolve()),
        "base": base and str(Path(base).resolve()),
    }
    return Plan(Path(target), jobs, tree.folders, key, overwrite)


def _check_indexes(tree: Tree, strict: bool = False) -> None:
    """Whether all shards are there that indexes name. Without `strict`, an index that is none, and names of files elsewhere, are let
    pass as the texts that they are.

    Raises
    ------
    DecodeError
        ``truncated``; ``bad_value``: not an index.
    """
    for name, path in tree.files.items():
        if name.endswith((PLAIN + INDEX, CODED + INDEX)):
            with in_file(name):
                here = {
                    PurePosixPath(n).name
                    for n in (*tree.files, *tree.links)
                    if _parent(n) == _parent(name)
                }
                try:
                    missing = sorted(shard_names(path.read_bytes()) - here)
                except DecodeError:
                    if strict:
                        raise
                    continue
                for other in missing:
                    if strict or "/" not in other:
                        raise DecodeError(
                            "truncated", f"the index names {other!r}, which is not there"
                        )


def _decoding(name: str, path: Path, coded: dict[str, CodedFile], backend: Backend) -> Job:
    """What becomes of a file."""
    if name in coded:
        return _weights(coded[name], backend)
    if name.endswith(CODED + INDEX):
        with in_file(name):
            raw = path.read_bytes()
            text = rename_shards(raw, CODED.encode(), PLAIN.encode())
            if text is None:
                raise _bad_value(f"the index names files that end in {PLAIN}")
        return Job(
            (path,),
            _swapped(name, CODED, PLAIN),
            name,
            len(text),
            False,
            writing(text, len(text), len(raw)),
        )
    if _is_config(name) and any(
        c.is_hub and _parent(c.name) == _parent(name) for c in coded.values()
    ):
        with in_file(name):
            raw = path.read_bytes()
            text = remove_entry(raw)
        return Job((path,), name, name, len(text), False, writing(text, len(text), len(raw)))
    return Job((path,), name, name, path.stat().st_size, False, copying(path))


def _weights(c: CodedFile, backend: Backend) -> Job:
    def from_hub(target: Path, progress: Progress, overwrite: bool) -> tuple[int, int]:
        return decode_hub_file(c.path, target, backend, progress, overwrite=overwrite)[::-1]

    def decode(target: Path, progress: Progress, overwrite: bool) -> tuple[int, int]:
        return decode_file(c.path, target, backend, progress, base=c.base, overwrite=overwrite)[
            ::-1
        ]

    if c.is_hub:
        return Job((c.path,), c.name, c.name, c.nbytes, True, from_hub)
    sources = (c.path,) if c.base is None else (c.path, c.base)
    return Job(
        sources,
        _swapped(c.name, CODED, PLAIN),
        c.name,
        c.nbytes + _base_nbytes(c.base),
        True,
        decode,
    )


def decode_directory(
    source: AnyPath,
    target: AnyPath,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    max_nbytes: int | None = None,
    base: AnyPath | None = None,
    overwrite: bool = False,
) -> Report:
    """Give back the directory that `encode_directory` read, of either form; ``.wcodec`` files of others become safetensors files too.

    A run that was interrupted goes on where it stopped.

    Parameters
    ----------
    max_nbytes
        Refuse a directory whose tensors decode to more bytes than that.
    base, overwrite
        As of `encode_directory`.

    Raises
    ------
    DecodeError
        A file is damaged; what its place is stays empty. ``resource_limit``: the disk has not the room.
    EncodeError
        ``bad_option``: as for the target or the base. ``output_exists``
    """
    plan = plan_decode(source, target, backend, max_nbytes, base, overwrite)
    check_plan_room(plan)
    return plan.run(progress)


def check_plan_room(plan: Plan) -> None:
    """Refuse to decode more than the disk has room for. Raises `DecodeError`: ``resource_limit``."""
    place = plan.target.absolute()
    while not place.exists():
        place = place.parent
    check_room(place / STATE, plan.nbytes)


def verify_directory(
    source: AnyPath,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    max_nbytes: int | None = None,
    base: AnyPath | None = None,
) -> Report:
    """Decode all encoded files of a directory, check every checksum and that the shards of indexes are there, keeping nothing.

    Raises
    ------
    DecodeError, EncodeError
        As `decode_directory`. ``truncated``: a shard is missing.
    """
    backend = backend or get_backend()
    tree = scan_coded(source)
    coded = coded_files(source, tree.files, backend, max_nbytes, base)
    _check_indexes(tree, strict=True)
    for name, path in tree.files.items():
        if _is_config(name):
            _decoding(name, path, coded, backend)
    nbytes = stored_nbytes = 0
    for c in coded.values():
        check: Callable[..., tuple[int, int]] = (
            verify_hub_file if c.is_hub else partial(verify_file, base=c.base)
        )
        with in_file(c.name):
            stored, plain = check(c.path, backend, progress)
        nbytes, stored_nbytes = nbytes + plain, stored_nbytes + stored
    return Report(len(coded), 0, 0, nbytes, stored_nbytes)


# ---- in one call -------------------------------------------------------------------------------------------------------------
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
    preset
        ``"fast"``, ``"default"`` or ``"max"``.
    options
        More choices than the preset, instead of it; see `EncodeOptions`.
    backend
        A backend or its name; ``None`` for the one of `wcodec.get_backend`.
    base
        A checkpoint to store differences from; of a directory, a directory. See `wcodec.save_file`.
    progress
        Called with the number of bytes that were just done.
    overwrite
        Whether a file may be replaced; of a directory, see `encode_directory`. An output that is an input never is.

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
    >>> wcodec.encode_safetensors_to_wcodec("all-MiniLM-L6-v2", "all-MiniLM-L6-v2-wcodec", form="hub")
    """
    if options is not None and preset != "default":
        raise EncodeError(
            "bad_option", "preset and options: give the preset as EncodeOptions(preset=...)"
        )
    chosen = options or EncodeOptions(preset=preset)
    used = load_backend(backend) if isinstance(backend, str) else backend or get_backend()
    told: Callable[[int], Any] = progress or ignore_progress
    if os.path.isdir(src):
        return encode_directory(src, dst, form, chosen, used, told, base, overwrite)
    nbytes, stored_nbytes = encode_one(src, dst, form, chosen, used, told, base, overwrite)
    return Report(1, 0, 0, nbytes, stored_nbytes)


def encode_one(
    source: AnyPath,
    target: AnyPath,
    form: str,
    options: EncodeOptions,
    backend: Backend,
    progress: Progress = ignore_progress,
    base: AnyPath | None = None,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Encode one safetensors file in either form. Returns and raises as `encode_file` and `encode_hub_file`."""
    if form not in FORMS:
        raise EncodeError("bad_option", f"the form {form!r} is none of {', '.join(FORMS)}")
    if form == "wcodec":
        with in_file(source):
            read_plain_header(memoryview(map_file(source)))
        return encode_file(source, target, options, backend, progress, base, overwrite=overwrite)
    if base is not None:
        raise EncodeError("bad_option", "there is no hub form of differences from a base")
    return encode_hub_file(source, target, options, backend, progress, overwrite=overwrite)
