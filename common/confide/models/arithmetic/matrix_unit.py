"""The matrix unit of x86 processors (AMX, bfloat16) for compiled kernels, where torch has no fast product of its own.

A tile is 16 rows of 64 bytes. `multiply` adds products to 32 x 32 sums in float32, which stay in the unit: of a left
operand with 32 rows and 32 inner places, and of a right one with 32 columns.

    configure(LAYOUT.data_ptr())
    clear()
    for place in range(0, inner, 32):
        multiply(left + 2 * place, 16 * row_bytes, row_bytes, right + 64 * place, 1024)
    store(sums, sums_row_bytes)
    release()

Addresses and strides are int64, in bytes. Nothing is checked: callers know their shapes, and leave the unit released.
"""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic as _intrinsic

_HALF, _WORD, _LONG, _FLOAT = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_ADDRESS = ir.IntType(8).as_pointer()
_NOTHING = ir.VoidType()

LAYOUT = torch.tensor([1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [16] * 8 + [0] * 8, dtype=torch.uint8)
"""Palette 1, eight whole tiles: 0 to 3 are sums, 4 and 5 the left operand, 6 and 7 the right one."""

AVAILABLE = (
    bool(binding.get_host_cpu_features().get("amx-bf16"))
    and torch.cpu._is_amx_tile_supported()
    and torch.cpu._init_amx()
)
"""Whether the compiler knows of the unit and the operating system, which was asked, lets this process use it."""

_SUMS = ((0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1))
"""Tile, 16-row half and 16-column half of each quarter of the sums."""


def intrinsic(function: Callable[..., Any]) -> Any:
    """A compiled function, of the arguments after the first, for which the function given writes the instructions."""
    return _intrinsic(function)


def in_threads(work: Callable[[int, int], None], count: int) -> None:
    """work(first, last) over all of `count`, in as many parts as torch uses threads; it lets the interpreter go."""
    parts = min(torch.get_num_threads(), count)
    if parts <= 1:
        work(0, count)
        return
    bounds = [count * part // parts for part in range(parts + 1)]
    list(_pool(parts).map(work, bounds[:-1], bounds[1:]))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="confide-tiles")


def _call(builder: Any, name: str, arguments: Sequence[Any]) -> None:
    module = builder.module
    function = module.globals.get(name)
    if function is None:
        function = ir.Function(module, ir.FunctionType(_NOTHING, [value.type for value in arguments]), name)
    builder.call(function, arguments)


def _tile(number: int) -> Any:
    return ir.Constant(ir.IntType(8), number)


def _at(builder: Any, address: Any, offset: Any = 0) -> Any:
    offset = ir.Constant(_LONG, offset) if isinstance(offset, int) else offset
    return builder.inttoptr(builder.add(address, offset), _ADDRESS)


def _load(builder: Any, tile: int, place: Any, stride: Any) -> None:
    _call(builder, "llvm.x86.tileloadd64", [_tile(tile), place, stride])


@intrinsic
def configure(_: Any, layout: Any) -> Any:
    """Take the unit, with the LAYOUT at an address."""

    def generate(context: Any, builder: Any, __: Any, values: Any) -> Any:
        _call(builder, "llvm.x86.ldtilecfg", [_at(builder, values[0])])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def release(_: Any) -> Any:
    """Give the unit back."""

    def generate(context: Any, builder: Any, __: Any, ___: Any) -> Any:
        _call(builder, "llvm.x86.tilerelease", [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def clear(_: Any) -> Any:
    """Sums of zero."""

    def generate(context: Any, builder: Any, __: Any, ___: Any) -> Any:
        for tile, _row, _column in _SUMS:
            _call(builder, "llvm.x86.tilezero", [_tile(tile)])
        return context.get_dummy_value()

    return types.void(), generate


def _moving(name: str) -> Any:
    def move(_: Any, address: Any, stride: Any) -> Any:
        def generate(context: Any, builder: Any, __: Any, values: Any) -> Any:
            address, stride = values
            lower = builder.add(address, builder.mul(stride, ir.Constant(_LONG, 16)))
            for tile, row, column in _SUMS:
                place = _at(builder, lower if row else address, 64 * column)
                _call(builder, name, [_tile(tile), place, stride])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return intrinsic(move)


load = _moving("llvm.x86.tileloadd64")
"""load(address, stride): the sums, 32 rows of 32 float32."""
store = _moving("llvm.x86.tilestored64")
"""store(address, stride): the sums, 32 rows of 32 float32."""


@intrinsic
def multiply(_: Any, left: Any, left_lower: Any, left_stride: Any, right: Any, right_next: Any) -> Any:
    """Add 32 inner places. left: 16 rows, the other 16 `left_lower` bytes on; right: two packed tiles so far apart."""

    def generate(context: Any, builder: Any, __: Any, values: Any) -> Any:
        left, left_lower, left_stride, right, right_next = values
        row = ir.Constant(_LONG, 64)
        _load(builder, 4, _at(builder, left), left_stride)
        _load(builder, 6, _at(builder, right), row)
        _load(builder, 7, _at(builder, right, right_next), row)
        _load(builder, 5, _at(builder, left, left_lower), left_stride)
        for tile, upper, column in _SUMS:
            _call(builder, "llvm.x86.tdpbf16ps", [_tile(tile), _tile(4 + upper), _tile(6 + column)])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


def _vector(scalar: Any, lanes: int) -> Any:
    return ir.VectorType(scalar, lanes)


def _shuffled(builder: Any, one: Any, other: Any, places: Sequence[int]) -> Any:
    return builder.shuffle_vector(one, other, ir.Constant(_vector(_WORD, len(places)), list(places)))


def _read(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=2)


def _paired_rows(builder: Any, source: Any, stride: Any) -> list[list[Any]]:
    """Of 32 columns twice 16 vectors of 16 words: a word holds one column of two neighbouring rows of bfloat16."""
    halves: list[list[Any]] = [[], []]
    for row in range(0, 32, 2):
        first = builder.add(source, builder.mul(stride, ir.Constant(_LONG, row)))
        upper, lower = (_read(builder, place, _vector(_HALF, 32)) for place in (first, builder.add(first, stride)))
        for start, half in zip((0, 16), halves, strict=True):
            mixed = _shuffled(builder, upper, lower, [start + lane // 2 + 32 * (lane % 2) for lane in range(32)])
            half.append(builder.bitcast(mixed, _vector(_WORD, 16)))
    return halves


def _words(builder: Any, source: Any, stride: Any) -> list[list[Any]]:
    """Of twice 16 rows 16 words."""
    rows = [builder.add(source, builder.mul(stride, ir.Constant(_LONG, row))) for row in range(32)]
    read = [_read(builder, row, _vector(_WORD, 16)) for row in rows]
    return [read[:16], read[16:]]


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """16 vectors of 16 words, by exchanging halves, quarters and so on."""
    for size in (8, 4, 2, 1):
        low = [lane if not lane & size else 16 + lane - size for lane in range(16)]
        high = [lane + size if not lane & size else 16 + lane for lane in range(16)]
        for row in range(16):
            if not row & size:
                pair = rows[row], rows[row + size]
                rows[row], rows[row + size] = (_shuffled(builder, *pair, places) for places in (low, high))
    return rows


def _packing(halves_of: Callable[[Any, Any, Any], list[list[Any]]]) -> Any:
    def pack(_: Any, source: Any, stride: Any, packed: Any) -> Any:
        def generate(context: Any, builder: Any, __: Any, values: Any) -> Any:
            source, stride, packed = values
            words = [vector for half in halves_of(builder, source, stride) for vector in half]
            for row, vector in enumerate(words):
                place = builder.bitcast(_at(builder, packed, 64 * row), vector.type.as_pointer())
                builder.store(vector, place, align=64)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), generate

    return intrinsic(pack)


def _turned(halves_of: Callable[[Any, Any, Any], list[list[Any]]]) -> Callable[[Any, Any, Any], list[list[Any]]]:
    return lambda builder, source, stride: [_transposed(builder, half) for half in halves_of(builder, source, stride)]


pack = _packing(_paired_rows)
"""pack(source, stride, tiles): two right tiles of 32 columns, whose 32 inner places are rows of the source."""
pack_transposed = _packing(_turned(_words))
"""pack_transposed(source, stride, tiles): two right tiles whose 32 columns are rows of the source, of 32 places."""
transpose = _packing(_turned(_paired_rows))
"""transpose(source, stride, tiles): two left tiles whose 32 rows are columns of the source, of 32 rows."""


@intrinsic
def round_lanes(_: Any, source: Any, out: Any) -> Any:
    """32 float32 at an address to the nearest bfloat16 at another; not for NaN."""

    def generate(context: Any, builder: Any, __: Any, values: Any) -> Any:
        source, out = values
        kind = _vector(_WORD, 32)
        bits = _read(builder, source, kind)
        sixteen, one, most = (ir.Constant(kind, [number] * 32) for number in (16, 1, 0x7FFF))
        odd = builder.and_(builder.lshr(bits, sixteen), one)
        nearest = builder.lshr(builder.add(bits, builder.add(odd, most)), sixteen)
        halves = builder.trunc(nearest, _vector(_HALF, 32))
        builder.store(halves, builder.inttoptr(out, halves.type.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def largest(_: Any, source: Any) -> Any:
    """The largest of 32 float32 at an address; a loop over them would not become vector instructions."""

    def generate(__: Any, builder: Any, ___: Any, values: Any) -> Any:
        lanes = _read(builder, values[0], _vector(_FLOAT, 32))
        for size in (16, 8, 4, 2, 1):
            low, high = (_shuffled(builder, lanes, lanes, range(start, start + size)) for start in (0, size))
            lanes = builder.select(builder.fcmp_ordered(">", low, high), low, high)
        return builder.extract_element(lanes, ir.Constant(_WORD, 0))

    return types.float32(types.int64), generate


@intrinsic
def power_of_two(_: Any, exponent: Any) -> Any:
    """2 to a whole number between -126 and 127, float32."""

    def generate(__: Any, builder: Any, ___: Any, values: Any) -> Any:
        whole = builder.fptosi(values[0], _WORD)
        biased = builder.add(whole, ir.Constant(_WORD, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(_WORD, 23)), _FLOAT)

    return types.float32(types.float32), generate
