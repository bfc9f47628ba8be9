"""Counts what a compiled program does, from the text of its HLO.

Loops are counted once.
"""

import collections
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

_ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}


# Of the bytes of the result, how many each of `n` chips sends, around a ring.
_SENT: dict[str, Callable[[int], float]] = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}


def collectives(hlo: str, chips: int) -> dict[str, dict[str, int]]:
    """How many collectives of each kind a compiled program has, and the bytes a chip sends.

    One whose start and end are apart, or that is done piece by piece in the
    computations that hide it, counts once.

    Args:
      hlo: the program's text.
      chips: how many run it.
    """
    found: dict[str, dict[str, int]] = {}
    pattern = re.compile(rf"= (\(?[^=]*?\)?) ({'|'.join(_SENT)})(-start)?\((.*)")
    seen: set[tuple[str, ...]] = set()
    computation = ""
    for line in re.sub(r"/\*.*?\*/", "", hlo).splitlines():
        if line[:1] in "%E":  # ENTRY
            computation = line
        match = pattern.search(line)
        if match is None:
            continue
        shapes, kind, start, rest = match.groups()
        if chain := _CHAIN.search(rest):
            if chain.groups() in seen:
                continue
            seen.add(chain.groups())
        sizes = [
            _ITEM_BYTES.get(dtype, 4) * math.prod(int(side) for side in sides.split(",") if side)
            for dtype, sides in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        ]
        # What the start of some gives holds their operands too, before the results.
        if start and kind in ("all-gather", "reduce-scatter"):
            sizes = sizes[len(sizes) // 2 :]
        elif start and kind == "collective-permute":
            sizes = sizes[1:2]
        together = _together(rest, chips)
        sent = sum(sizes) * _SENT[kind](together)
        # TPUs' compiler fuses an all-reduce with what takes a share of it, and then sends that.
        if computation.startswith("%all-reduce-scatter"):
            kind, sent = "reduce-scatter", sum(sizes) * (together - 1) / together
        entry = found.setdefault(kind, {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += round(sent)
    return found


# What all pieces of one collective have in common.
_CHAIN = re.compile(r"channel_id=(\d+).*chain_id=\"(\d+)\"")


def _together(attributes: str, chips: int) -> int:
    """How many chips a collective is between, by its groups.

    They are written {{0,1},{2,3}}, [2,2]<=[4], or mesh['a'=2,'b'=2] {'a'}.
    """
    if match := re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{('\w+'(?:, ?'\w+')*)\}", attributes):
        sides = dict(re.findall(r"('\w+')=(\d+)", match[1]))
        return math.prod(int(sides.get(axis.strip(), 1)) for axis in match[2].split(","))
    match = re.search(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]<=)", attributes)
    if match is None:
        return chips
    return len(match[1].split(",")) if match[1] else int(match[2])


# Matrix products over queries and keys in each kernel of JAX's splash attention.
_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
_KERNEL = re.compile(
    rf"%splash_mha_({'|'.join(_PRODUCTS)})\S* = .*? custom-call\(.*?"
    r"operand_layout_constraints=\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_REALS = r"(?:bf16|f32)\[(\d+(?:,\d+){2,})\]"


def kernel_flops(hlo: str) -> float:
    """FLOPs of attention kernels, which the compiler takes for none; padding included.

    Their first two operands of real numbers are the queries and the keys,
    `(batch, …, heads, length, width)`: mapped over clips and frames, they have five sides.
    """
    total = 0.0
    for kind, operands in _KERNEL.findall(hlo):
        shapes = re.findall(_REALS, operands)[:2]
        queries, keys = ([int(side) for side in shape.split(",")] for shape in shapes)
        total += 2 * _PRODUCTS[kind] * math.prod(queries) * keys[-2]
    return total


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name: without the percent sign.
      shape: of its result, as text; several if it is a tuple.
      kind: the opcode.
      operands: names of other instructions.
      rest: what follows the operands.
    """

    name: str
    shape: str
    kind: str
    operands: list[str]
    rest: str


class Module:
    """The computations of a program."""

    def __init__(self, hlo: str):
        """Reads the text of an HLO module."""
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        for line in re.sub(r"/\*.*?\*/", "", hlo).splitlines():
            if head := _COMPUTATION.match(line):
                current = self.computations.setdefault(head[2], {})
                self.entry = head[2] if head[1] else self.entry
            elif found := _INSTRUCTION.match(line):
                name, shape, kind, rest = found.groups()
                inside, after = _closed(rest)
                current[name] = Instruction(name, shape, kind, _NAME.findall(inside), after)

    def flops(self) -> float:
        """Counts FLOPs of matrix products and convolutions, multiplications with padding included.

        Those of attention kernels are counted from the shapes of queries and keys.
        """
        return self._flops(self.entry)

    def traffic(self) -> float:
        """Counts bytes: operands and results of all instructions that are not inside of fusions.

        That is what they would move if no cache kept anything from one to the next. What a TPU's
        program has in the vector memory is not counted, but for its copies to and from there.
        """
        return self._traffic(self.entry)

    def between_slices(self, slices: int) -> dict[str, int]:
        """Counts what a chip sends to chips in other slices, as TPUs' compiler writes it.

        The compiler reduces within each slice first, and then hands each chip's share to its host.

        Args:
          slices: number of slices.

        Returns:
          The `count` of transfers, their `bytes`, and of these the `overlapped_bytes`, which are
          under way while products of matrices are computed.
        """
        found = {"count": 0, "bytes": 0, "overlapped_bytes": 0}
        for own in self.computations.values():
            waiting: dict[str, tuple[int, float]] = {}  # bytes, and FLOPs before they are sent
            received: dict[str, str] = {}
            flops = 0.0
            for each in own.values():
                transfer = _TRANSFER.search(each.rest)
                if each.kind == "send" and transfer:
                    dtype, sides = _SHAPE.findall(each.shape)[0]
                    size = _size(dtype, sides, "", "") * _SENT_TO_SLICES[transfer[2]](slices)
                    waiting[transfer[1]] = round(size), flops
                    found["count"] += 1
                    found["bytes"] += round(size)
                elif each.kind == "recv" and transfer:
                    received[each.name] = transfer[1]
                elif each.kind == "recv-done" and each.operands[0] in received:
                    size, before = waiting.get(received[each.operands[0]], (0, flops))
                    found["overlapped_bytes"] += size if flops > before else 0
                else:
                    flops += self._flops_of(each, own)
        return found

    def _flops(self, name: str) -> float:
        own = self.computations.get(name, {})
        return sum(self._flops_of(each, own) for each in own.values())

    def _flops_of(self, each: Instruction, own: dict[str, Instruction]) -> float:
        return _products(each, own) + sum(self._flops(called) for called in _called(each))

    def _traffic(self, name: str) -> float:
        own = self.computations.get(name, {})
        total = 0.0
        for each in own.values():
            if each.kind in _CONTROL:
                total += sum(self._traffic(called) for called in _called(each))
            elif each.kind in _COPIES:
                source, copy = _ARRAY.findall(each.shape)[:2]
                total += sum(_size(*copy[:4]) for *_, space in (source, copy) if not space)
            elif each.kind not in _FREE:
                shapes = [own[operand].shape for operand in each.operands if operand in own]
                total += sum(map(_bytes, [each.shape, *shapes]))
        return total


_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CONTROL = ("while", "call", "async-start")
_FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "async-done",
    "partition-id", "replica-id", "copy-done", "slice-done", "optimization-barrier", "iota",
)  # fmt: skip
# A transfer between slices: its name, the same where it is sent and received, and its kind.
_TRANSFER = re.compile(
    r'_xla_host_transfer_rendezvous="([^"]+)".*_xla_megascale_transfer_type="(\w+)"'
)
# Of the bytes that a chip gives its host, how many each of `n` slices sends.
_SENT_TO_SLICES: dict[str, Callable[[int], float]] = collections.defaultdict(
    lambda: lambda n: 1,
    ALL_REDUCE=lambda n: 2 * (n - 1) / n,
    ALL_GATHER=lambda n: n - 1,
    REDUCE_SCATTER=lambda n: (n - 1) / n,
    ALL_TO_ALL=lambda n: (n - 1) / n,
)
_COPIES = ("copy-start", "slice-start")  # of a whole array, of a part
# An array's type and sides; its sides' order and tiles, and the memory that it is in if that is not
# the device's main one.
_ARRAY = re.compile(
    r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::(?:T\(([\d,]+)\))?[^{}]*?(?:S\((\d+)\))?)?\})?"
)


def _closed(text: str) -> tuple[str, str]:
    """Splits the text after an opening bracket where that is closed."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:place], text[place + 1 :]
    return text, ""


def _called(instruction: Instruction) -> Iterator[str]:
    """Names of the computations that an instruction runs; of a loop, its body."""
    # What a reduction or a sort applies to each pair has no matrix product.
    if instruction.kind not in ("reduce", "sort", "scatter", "all-reduce", "reduce-window"):
        yield from re.findall(r"(?:calls|to_apply|body)=%?([\w.\-]+)", instruction.rest)


def _sides(shape: str) -> list[list[int]]:
    return [[int(n) for n in sides.split(",") if n] for _, sides in _SHAPE.findall(shape)]


def _bytes(shape: str) -> float:
    """Bytes in the main memory, with the padding of tiles."""
    return sum(_size(*own) for *own, space in _ARRAY.findall(shape) if not space)


def _size(dtype: str, sides: str, order: str, tile: str) -> float:
    """Bytes of an array, given as text: its type, sides, their order from the minor, and tiles."""
    lengths, minor, tiles = (
        [int(n) for n in text.split(",") if n] for text in (sides, order, tile)
    )
    for side, unit in zip(minor, reversed(tiles), strict=False):
        lengths[side] = math.ceil(lengths[side] / unit) * unit
    return _ITEM_BYTES.get(dtype, 4) * math.prod(lengths)


def _products(instruction: Instruction, own: dict[str, Instruction]) -> float:
    """FLOPs of one instruction, those of what it calls not included."""
    kind, rest = instruction.kind, instruction.rest
    target = re.search(r'custom_call_target="([^"]+)"', rest)
    if kind not in ("dot", "convolution") and target is None:
        return 0.0
    shapes = [_sides(own[name].shape)[0] for name in instruction.operands if name in own]
    results = _sides(instruction.shape)
    if not results or len(shapes) < 2:
        return 0.0
    name = target[1] if target else ""
    if kind == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
        return _matrices(shapes[0], results[0], contracted[1] if contracted else "")
    if name.startswith("__cublas"):
        contracted = re.search(r'"lhs_contracting_dimensions":\["([\d",]*)"\]', rest)
        return _matrices(shapes[0], results[0], contracted[1] if contracted else "")
    if kind == "convolution" or name.startswith("__cudnn$conv"):
        labels = re.search(r"dim_labels=\w+_(\w+)->\w+", rest)
        if labels is None:
            return 0.0
        output, kernel = {
            "__cudnn$convBackwardInput": (shapes[0], shapes[1]),
            "__cudnn$convBackwardFilter": (shapes[1], results[0]),
        }.get(name, (results[0], shapes[1]))
        return 2.0 * math.prod(output) * math.prod(kernel) / kernel[labels[1].index("o")]
    if name.startswith("__cudnn$fmha"):
        products = 5 if "Backward" in name else 2
        queries, keys = shapes[:2]  # (batch, length, heads, width)
        return 2.0 * products * math.prod(queries) * keys[1]
    return 0.0


def _matrices(left: list[int], result: list[int], contracted: str) -> float:
    return 2.0 * math.prod(result) * math.prod(left[int(n)] for n in re.findall(r"\d+", contracted))
