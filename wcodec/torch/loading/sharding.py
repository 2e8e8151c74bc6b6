"""Tensor parallelism: of each tensor, a rank reads and decodes no more than its part. Splits as
`transformers` 5 does by its ``tp_plan``.

A segment is the least that is read: a rank reads those that its part touches. By default segments
are bands near 256 columns wide, so that a split of columns reads little too much from 1024 columns
on; with preset ``max`` they are up to 2048 columns wide.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import torch

from wcodec.files.atomic import AnyPath
from wcodec.reference.container import ByteSource
from wcodec.reference.planes import Bytes
from wcodec.torch import dtypes
from wcodec.torch.loading.checkpoint import WCodecCheckpoint
from wcodec.torch.loading.reader import Device, Reader

Intervals = list[tuple[int, int]]


class Split(NamedTuple):
    """What a style does to a tensor: it cuts each of so many equal groups of a dimension into
    parts, one a rank.
    """

    dim: int
    n_groups: int = 1
    even: bool = False  #: whether the parts must be of one size


#: of a tensor's number of dimensions and its parameter's name; ``None``: all for each rank
Style = Callable[[int, str], Split | None]


def _colwise(n_dims: int, _: str) -> Split:
    return Split(max(n_dims - 2, 0))


def _rowwise(n_dims: int, parameter: str) -> Split | None:
    # the bias is added once, after the sum
    return None if parameter == "bias" else Split(n_dims - 1)


def _packed_colwise(n_dims: int, _: str) -> Split:
    return Split(0) if n_dims == 1 else Split(n_dims - 2, 2)


def _packed_rowwise(n_dims: int, _: str) -> Split | None:
    return None if n_dims == 1 else Split(n_dims - 1, 2)


def _whole(_: int, __: str) -> None:
    return None


#: The styles of `transformers` 5.23 and how they split a module's parameters
#: (``ALL_PARALLEL_STYLES``).
STYLES: Final[dict[str, Style]] = {
    **dict.fromkeys(("colwise", "colwise_rep", "colwise_gather_output"), _colwise),
    **dict.fromkeys(("rowwise", "rowwise_rep", "rowwise_split_input"), _rowwise),
    "packed_colwise": _packed_colwise,
    "packed_rowwise": _packed_rowwise,
    "embedding_rowwise": lambda n_dims, _: Split(0),
    "embedding_colwise": lambda n_dims, _: Split(1),
    "grouped_gemm": lambda n_dims, _: Split(0, even=True),
    **dict.fromkeys(
        (
            "all_reduce", "ep_dispatch_experts", "local_params", "mla_kv_a_proj",
            "moe_identity_expert", "moe_tp_experts", "replicate", "replicated_with_grad_allreduce",
            "sequence_parallel",
        ),
        _whole,
    ),
}  # fmt: skip


@dataclass
class ShardReport:
    """What `load_shard` did.

    Attributes
    ----------
    read_nbytes
        Bytes of payload that were read, by file.
    payload_nbytes
        Bytes of payload that there are, by file.
    index_nbytes
        Bytes of the index, which is always read, by file.
    styles
        The style of each tensor; empty where the plan has none, and the rank got all of it.
    unused
        Rules of the plan that fit no tensor.
    """

    read_nbytes: dict[str, int] = field(default_factory=dict)
    payload_nbytes: dict[str, int] = field(default_factory=dict)
    index_nbytes: dict[str, int] = field(default_factory=dict)
    styles: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    @property
    def part(self) -> float:
        """Bytes of payload that were read, as a part of those that there are."""
        return sum(self.read_nbytes.values()) / max(1, sum(self.payload_nbytes.values()))


class Shard(dict[str, torch.Tensor]):
    """A state dict of what one rank holds.

    Attributes
    ----------
    report
        What was read for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.report = ShardReport()


def _check(rank: int, world_size: int, plan: Mapping[str, str]) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}")
    if not isinstance(plan, Mapping):
        raise TypeError(
            f"the plan is a dict of styles by names, such as model.tp_plan, not {plan!r}"
        )
    for style in plan.values():
        if style not in STYLES:
            raise ValueError(f"unknown style {style!r}; there are {', '.join(sorted(STYLES))}")


def load_shard(
    path: AnyPath,
    rank: int,
    world_size: int,
    plan: Mapping[str, str],
    device: Device = "cpu",
    base: AnyPath | None = None,
    variant: str | None = None,
) -> Shard:
    """The state dict of one rank under tensor parallelism: parts of tensors that the plan splits.

    Only the segments that these touch are read and decoded. Parts are those of `transformers`:
    ``ceil(n / world_size)`` entries of the dimension a rank, what is left for the last ones.

    Parameters
    ----------
    path, device, base, variant
        As of `WCodecCheckpoint`, with the names of the model's parameters. Parts of tensors are
        decoded on the host in any case.
    rank, world_size
        Number of this rank, and how many there are.
    plan
        Styles, which are the keys of `STYLES`, by names of modules or parameters, as
        ``model.tp_plan`` gives them: ``*`` stands for the number of a layer. A parameter takes the
        style of its own name, else that of its module.

    Raises
    ------
    ValueError
        An unknown style, a rank out of range, a tensor that its style cannot split, no rule fits.
    DecodeError
        As `load_file`. For parts, the CRC-32 of each segment is checked, not that of the tensor.

    Examples
    --------
    >>> shard = load_shard("model.wcodec", rank, 2, model.tp_plan)
    >>> shard.report.part
    0.53
    """
    _check(rank, world_size, plan)
    out, used = Shard(), set[str]()
    with WCodecCheckpoint(path, device, base, variant) as checkpoint:
        for name in checkpoint:
            rule = _rule(name, plan)
            out.report.styles[name] = "" if rule is None else plan[rule]
            used |= {key for key in _keys(name) if key in plan}
        out.report.unused = [rule for rule in plan if rule not in used]
        if plan and len(out.report.unused) == len(plan):
            rule, name = next(iter(plan)), next(iter(checkpoint), "")
            raise ValueError(
                f"no rule of the plan fits a tensor of {checkpoint.path.name}: rules such as "
                f"{rule!r}, tensors such as {name!r}"
            )
        parts = dict[str, torch.Tensor]()
        for reader, own in checkpoint.readers():
            with _counted(reader, out.report) as counting:
                styles = {name: out.report.styles[name] for name in own}
                parts.update(_read(reader, styles, rank, world_size, counting))
        out.update((name, parts[name]) for name in checkpoint)
    return out


# ---- plans ---------------------------------------------------------------------------------------
def _keys(name: str) -> list[str]:
    """The rules that a parameter takes, the most special one first."""
    module = name.rpartition(".")[0]
    keys = [name, _generic(name)] + ([module, _generic(module)] if module else [])
    return list(dict.fromkeys(keys))


def _generic(name: str) -> str:
    """A name with ``*`` for the numbers of layers, as `transformers` writes it."""
    return re.sub(r"\.\d+(\.|$)", r".*\1", name)


def _rule(name: str, plan: Mapping[str, str]) -> str | None:
    return next((key for key in _keys(name) if key in plan), None)


# ---- parts ---------------------------------------------------------------------------------------
def split_of(name: str, shape: tuple[int, ...], style: str, world_size: int) -> Split | None:
    """How a tensor is split; ``None`` if each rank gets all of it.

    Raises
    ------
    ValueError
        It has not the dimension that the style splits, or cannot be split evenly where it must be.
    """
    split = STYLES[style](len(shape), name.rpartition(".")[2]) if style else None
    if split is None:
        return None
    if not 0 <= split.dim < len(shape):
        raise ValueError(f"the tensor {name!r} of shape {list(shape)} cannot be split as {style!r}")
    if split.even and shape[split.dim] % world_size:
        raise ValueError(
            f"the {shape[split.dim]} experts of {name!r} cannot be spread evenly over {world_size} "
            "ranks"
        )
    return split


def intervals_of(n: int, n_groups: int, rank: int, world_size: int) -> Intervals:
    """The entries of a dimension that a rank gets:
    one interval of each group, those that are empty left out.
    """
    width, out = -(-n // n_groups), Intervals()
    for start in range(0, n, width or 1):
        size = min(width, n - start)
        each = -(-size // world_size)
        first, end = min(rank * each, size), min((rank + 1) * each, size)
        if first < end:
            out.append((start + first, start + end))
    return out


def _read(
    reader: Reader, styles: dict[str, str], rank: int, world_size: int, counting: _Counting
) -> dict[str, torch.Tensor]:
    shapes = {name: tuple(reader.slice(name).get_shape()) for name in styles}
    splits = {
        name: split_of(name, shapes[name], style, world_size) for name, style in styles.items()
    }
    whole = [name for name, split in splits.items() if split is None]
    if reader.decodes_itself:  # by calls of its own
        counting.sizes += [reader.record(name).payload_nbytes for name in whole]
    out = reader.tensors(whole)
    for name, split in splits.items():
        if split is not None:
            out[name] = _part(
                reader,
                name,
                split.dim,
                intervals_of(shapes[name][split.dim], split.n_groups, rank, world_size),
            )
    return out


def _part(reader: Reader, name: str, dim: int, intervals: Intervals) -> torch.Tensor:
    whole = reader.slice(name)
    before = (slice(None),) * dim
    parts = [whole[(*before, slice(first, end))] for first, end in intervals or [(0, 0)]]
    return parts[0] if len(parts) == 1 else dtypes.joined(parts, dim)


# ---- what is read --------------------------------------------------------------------------------
@contextmanager
def _counted(reader: Reader, report: ShardReport) -> Iterator[_Counting]:
    """Adds to a report what is read from a file meanwhile."""
    file, index = reader.file, reader.file.index
    source, counting = file.source, _Counting(file.source)
    file.source = counting
    try:
        yield counting
    finally:
        file.source = source
    report.read_nbytes[reader.name] = sum(counting.sizes)
    report.payload_nbytes[reader.name] = sum(
        t.payload_nbytes for t in index.tensors if t.duplicate_of is None
    )
    report.index_nbytes[reader.name] = index.index_nbytes


class _Counting(ByteSource):
    """A source that keeps the sizes of what is read, by any thread."""

    def __init__(self, source: ByteSource) -> None:
        self._source, self.nbytes, self.sizes = source, source.nbytes, list[int]()
        self.check = getattr(source, "check", None)

    def read(self, offset: int, nbytes: int) -> Bytes:
        """As the source's."""
        self.sizes.append(nbytes)
        return self._source.read(offset, nbytes)
