"""Hostile pickles of every kind that we know: python -m tests.data.hostile FOLDER

Each names nothing but what a frame may name, or is damaged in a way that has crashed a reader, or
takes far more memory or time than its size lets one expect.
"""

import copyreg
import decimal
import io
import pickle
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from tests.effort import cases

FRAME = pd.DataFrame(
    {
        "dataset": pd.Series(["gpqa", "aime"], dtype=object),
        "question": pd.Series(["q", "r"], dtype=object),
        "text_input": pd.Series(["What?", "Why?"], dtype=object),
        "ground_truth": pd.Series(["A", 7], dtype=object),
        "model_output": pd.Series(["A", "7"], dtype=object),
        "tok_model_output_len": [1, 2],
    }
)
MANY = cases(400_000, 3_000_000)  # opcodes
COLUMNS = ("dataset", "question", "text_input", "ground_truth", "model_output")


class Call:
    """Pickled as a call of `function`, and a state for the object that it returns."""

    def __init__(
        self, function: Callable[..., object], *arguments: object, state: object = None
    ) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[object, ...]:
        return self.reduced


def _rebuilder(value: object, protocol: int = 2) -> Callable[..., object]:
    """The function that a pickle of `value` calls."""
    reduced = value.__reduce_ex__(protocol)
    assert isinstance(reduced, tuple)
    return reduced[0]


RECONSTRUCT = _rebuilder(np.zeros(1))
FROM_BUFFER = _rebuilder(np.zeros(1), protocol=5)
BLOCK = _rebuilder(FRAME._mgr.blocks[0])
MANAGER = type(FRAME._mgr)
NEW_INDEX = _rebuilder(FRAME.index)
BACKED = _rebuilder(pd.Series(pd.to_datetime(["2025-01-01"])).array)
SCALAR = _rebuilder(np.float64(1))
OBJECTS, LONGS = np.dtype(object), np.dtype("i8")


def _array(
    shape: tuple[int, ...], dtype: np.dtype | str, content: Sequence[object], fortran: bool = False
) -> Call:
    return Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, shape, dtype, fortran, content))


def _index(data: object, kind: type = pd.Index) -> Call:
    return Call(NEW_INDEX, kind, {"data": data, "name": None})


def _range(stop: int | str, start: int = 0, step: int = 1) -> Call:
    return Call(
        NEW_INDEX, pd.RangeIndex, {"start": start, "stop": stop, "step": step, "name": None}
    )


def _names(*names: str) -> Call:
    return _index(_array((len(names),), OBJECTS, list(names)))


def _plain_object(kind: type, state: object = None) -> Call:
    function = copyreg._reconstructor  # type: ignore[attr-defined]  # private, but in pickles
    return Call(function, kind, object, None, state=state)


def _frame(manager: object, **more: object) -> Call:
    return _plain_object(pd.DataFrame, {"_mgr": manager, **more})


def _of(*blocks: Call, names: Sequence[str] = ("a",), rows: Call | None = None) -> Call:
    return _frame(Call(MANAGER, blocks, [_names(*names), rows or _range(1)]))


def _block(
    values: object, start: int = 0, stop: int = 1, step: int = 1, dimensions: int = 2
) -> Call:
    return Call(BLOCK, values, slice(start, stop, step), dimensions)


def _cells(*cells: object, columns: int = 1) -> Call:
    rows = len(cells) // columns
    values = _array((columns, rows), OBJECTS, list(cells))
    names = [f"c{number}" for number in range(columns)]
    return _of(_block(values, 0, columns), names=names, rows=_range(rows))


def _doubling(
    depth: int, leaf: object = "x" * 10, kind: Callable[[list[object]], object] = list
) -> object:
    value = leaf
    for _ in range(depth):
        value = kind([value, value])
    return value


def _in_column(column: str, value: object) -> pd.DataFrame:
    return FRAME.assign(**{column: pd.Series([FRAME[column][0], value], dtype=object)})


def _raw(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


def _opcode_list(item: bytes, count: int) -> bytes:
    return b"](" + item * count + b"e"


def files() -> Iterator[tuple[str, bytes]]:
    """Name and content of each."""
    for name, value in _frames():
        yield name, _dumps(value)
    for name, value in _extensions():
        yield name, _dumps(_of(_block(value)))
    for column in COLUMNS:
        yield f"doubling in {column}", _dumps(_in_column(column, _doubling(30)))
        yield f"tuples in {column}", _dumps(_in_column(column, _doubling(28, kind=tuple)))
    yield from _opcodes()


def _frames() -> Iterator[tuple[str, object]]:
    pointer = struct.pack("<q", 0x4141414141414141)
    yield "objects over bytes", _of(_block(_array((1, 1), OBJECTS, pointer)))
    yield "objects over a buffer", _of(_block(Call(FROM_BUFFER, pointer, OBJECTS, (1, 1), "C")))
    yield (
        "objects over a bytearray",
        _of(_block(Call(FROM_BUFFER, bytearray(pointer), OBJECTS, (1, 1), "C"))),
    )
    yield "a scalar object over bytes", _cells(Call(SCALAR, OBJECTS, pointer))
    yield "a cell's objects over bytes", _cells(_array((1,), OBJECTS, pointer))
    yield "labels over bytes", _frame(
        Call(MANAGER, (_block(_array((1, 1), LONGS, pointer)),),
             [_index(_array((1,), OBJECTS, pointer)), _range(1)])
    )  # fmt: skip
    yield "rows over bytes", _frame(
        Call(MANAGER, (_block(_array((1, 1), LONGS, pointer)),),
             [_names("a"), _index(_array((1,), OBJECTS, pointer))])
    )  # fmt: skip
    yield "a field that is an object", _of(_block(_array((1, 1), np.dtype([("x", "O")]), pointer)))
    yield "a type with a subtype", _of(_block(_array((1, 1), np.dtype((np.void, 8)), pointer)))
    yield "a shape beyond the buffer", _of(_block(_array((1, 1 << 20), LONGS, pointer)))
    yield "a negative shape", _of(_block(_array((-1, 1), LONGS, pointer)))
    yield "a shape that overflows", _of(_block(_array((1 << 32, 1 << 32), LONGS, pointer)))
    yield "a shape of nothing", _of(_block(_array((0, 1 << 62), LONGS, b"")))
    yield "objects of another count", _of(_block(_array((1, 5), OBJECTS, ["a"])))
    yield "an array without a state", _of(_block(Call(RECONSTRUCT, np.ndarray, (0,), b"b")))
    yield (
        "an array of another class",
        _of(
            _block(
                Call(RECONSTRUCT, pd.Index, (0,), b"b", state=(1, (1, 1), LONGS, False, pointer))
            )
        ),
    )
    yield "a type that is itself", _of(_block(_array((1, 1), "i8", pointer)))
    yield "a billion rows", _of(_block(_array((1, 1), LONGS, pointer)), rows=_range(10**9))
    yield "rows and no columns", _frame(Call(MANAGER, (), [_names(), _range(10**18)]))
    yield "a billion columns", _frame(Call(MANAGER, (), [_range(10**9), _range(1)]))
    yield "steps of none", _frame(Call(MANAGER, (), [_range(1), _range(5, step=0)]))
    yield "rows without end", _frame(Call(MANAGER, (), [_range(1), _range(10**5000)]))
    yield "rows that are text", _frame(Call(MANAGER, (), [_range(1), _range("many")]))
    yield "blocks beyond the columns", _of(_block(_array((1, 1), LONGS, pointer), 5, 6))
    yield "a block of many columns", _of(_block(_array((1, 1), LONGS, pointer), 0, 10**9))
    yield "a block twice", _of(*[_block(_array((1, 1), LONGS, pointer))] * 2)
    yield "no blocks", _of(names=("a", "b"))
    yield "a frame that was never made", _plain_object(pd.DataFrame)
    for name, manager in (
        ("text", "text"),
        ("None", None),
        ("a list", [1]),
        ("a type", np.ndarray),
    ):
        yield f"a manager that is {name}", _frame(manager)
    yield "a manager without arguments", _frame(Call(MANAGER))
    yield (
        "attributes shadowed",
        _frame(
            Call(MANAGER, (), [_names(), _range(0)]),
            columns="a",
            empty=False,
            dtypes=[],
            index=None,
        ),
    )
    yield "columns twice", pd.concat([FRAME, FRAME[["question"]]], axis=1)
    yield (
        "half a surrogate in the name",
        _of(_block(_array((1, 1), LONGS, pointer)), names=("\ud83d",)),
    )
    yield "half a surrogate in question", _in_column("question", "\ud83d")
    yield "half a surrogate in text_input", _in_column("text_input", "\udc00 end")
    yield "half a surrogate in dataset", _in_column("dataset", "\ud83d")
    yield "an escape sequence in dataset", _in_column("dataset", "\x1b]0;title\x07\x1b[2J")
    yield "a long name", _in_column("dataset", "x" * 1_000_000)
    inner: list = []
    inner.append(inner)
    yield "a list in itself", _cells(inner)
    yield "a dictionary in itself", _cells({"a": inner})
    yield "lists in lists", _cells(_deep(200))
    yield "keys that are tuples", _cells({(1, 2): 3})
    yield "an enormous integer", _cells(1 << 8_000_000)
    yield "an enormous truth", _in_column("ground_truth", 1 << 100_000)
    yield "a truth that is a list", _in_column("ground_truth", [["A"]])
    yield "a set", _cells({1, 2, 3})
    yield "an array of many references", _cells(*[_doubling(16)] * 1000)
    yield "a text a million times", _cells(*["x" * 100_000] * 100_000)
    yield "an array a million times", _cells(*[np.zeros(100_000)] * 100_000)
    yield "a decimal of many digits", _cells(Call(decimal.Decimal, "9" * 1_000_000))
    yield "a decimal with a large exponent", _cells(Call(decimal.Decimal, "1e999999999999"))


def _extensions() -> Iterator[tuple[str, object]]:
    categories = pd.CategoricalDtype(["a"])
    backed = pd.Categorical(["a"])

    def state(kind: type, *parts: object) -> Call:
        return Call(BACKED, kind, backed.__reduce__()[1][1], None, state=parts)

    yield "a category beyond", state(pd.Categorical, categories, np.array([7], np.int8))
    yield "categories without numbers", state(pd.Categorical, categories, np.array(["a"], object))
    yield "categories of themselves", state(pd.Categorical, "none", np.array([0], np.int8))
    yield "dates over text", state(pd.arrays.DatetimeArray, np.dtype("M8[ns]"), np.array(["x"]))
    yield (
        "dates without a unit",
        state(pd.arrays.DatetimeArray, np.dtype("M8"), np.zeros(1, "M8[s]").view("i8")),
    )
    yield "an array that is none", state(pd.arrays.DatetimeArray)
    yield (
        "nullable of two sizes",
        _plain_object(
            pd.arrays.IntegerArray, {"_data": np.zeros(3, "i8"), "_mask": np.zeros(1, bool)}
        ),
    )
    yield "nullable without a mask", _plain_object(pd.arrays.IntegerArray, {"_data": np.zeros(1)})
    for name, parts in _arrow_parts():
        text = Call(pa.lib._restore_array, parts)
        yield name, _plain_object(pd.arrays.ArrowStringArray, {"_pa_array": text})
    for name, parts in _arrow_lists():
        array = Call(pa.lib._restore_array, parts)
        yield name, _plain_object(pd.arrays.ArrowExtensionArray, {"_pa_array": array})
    whole: tuple[object, ...] = (
        Call(pa.lib.type_for_alias, "large_string"),
        1,
        0,
        0,
        [None, Call(pa.lib.py_buffer, _ends(0, 1)), Call(pa.lib.py_buffer, b"x")],
        [],
        None,
    )
    yield (
        "texts in themselves",
        _plain_object(
            pd.arrays.ArrowStringArray,
            {"_pa_array": Call(pa.lib.chunked_array, [Call(pa.lib._restore_array, whole)] * 999)},
        ),
    )


def _arrow_parts() -> Iterator[tuple[str, tuple]]:
    def parts(
        *buffers: bytes | None, length: int = 1, offset: int = 0, alias: str = "large_string"
    ) -> tuple[object, ...]:
        return (
            Call(pa.lib.type_for_alias, alias),
            length,
            0,
            offset,
            [b and Call(pa.lib.py_buffer, b) for b in buffers],
            [],
            None,
        )

    yield "texts beyond their end", parts(None, _ends(0, 1 << 40), b"x")
    yield "texts before their start", parts(None, _ends(-(1 << 40), 1), b"x")
    yield "texts that run backwards", parts(None, _ends(5, 0, 5), b"xxxxx", length=2)
    yield "texts without places", parts(None, None, b"x")
    yield "texts without text", parts(None, _ends(0, 5), None)
    yield "more texts than places", parts(None, _ends(0, 1), b"x", length=1 << 40)
    yield "an offset beyond", parts(None, _ends(0, 1), b"x", offset=1 << 50)
    yield "a negative length", parts(None, _ends(0, 1), b"x", length=-5)
    yield "too few bits", parts(b"", _ends(*range(100)), b"x" * 100, length=99)
    yield "texts that are no UTF-8", parts(None, _ends(0, 4), b"\xff\xfe\xfd\xfc")
    yield "numbers as texts", parts(None, _ends(0, 1), b"x", alias="int64")


def _arrow_lists() -> Iterator[tuple[str, tuple]]:
    numbers = Call(pa.lib.type_for_alias, "int64")
    lists = Call(pa.lib.large_list, Call(pa.lib.field, "item", numbers, True, None))
    one: tuple[object, ...] = (numbers, 1, 0, 0, [None, Call(pa.lib.py_buffer, _ends(7))], [], None)

    def parts(
        *children: object, ends: tuple[int, ...] = (0, 1), kind: Call = lists, length: int = 1
    ) -> tuple:
        buffers = [None, Call(pa.lib.py_buffer, _ends(*ends))]
        return (kind, length, 0, 0, buffers, list(children), None)

    yield "lists beyond their values", parts(one, ends=(0, 1 << 40))
    yield "lists before their values", parts(one, ends=(-1, 1))
    yield "lists that run backwards", parts(one, ends=(1, 0, 1), length=2)
    yield "lists without values", parts()
    yield "lists of two kinds of values", parts(one, one)
    yield "lists of what is no array", parts("values")
    yield "lists of lists of lists of lists", parts(parts(parts(parts(one))))
    yield "numbers without numbers", parts(kind=numbers, length=1 << 40)
    yield "numbers beyond the buffer", parts(kind=numbers, length=3)
    yield "bits beyond the buffer", parts(kind=Call(pa.lib.type_for_alias, "bool"), length=999)
    yield "dates in an array", parts(kind=Call(pa.lib.type_for_alias, "date32"))


def _opcodes() -> Iterator[tuple[str, bytes]]:
    gigabytes = (16 << 30).to_bytes(8, "little")
    yield "a bytearray of 16 GB", _raw(b"\x96", gigabytes)
    yield "bytes of 16 GB", _raw(b"\x8e", gigabytes)
    yield "text of 16 GB", _raw(b"\x8d", gigabytes)
    yield "an integer of 2 GB", _raw(b"\x8b", (1 << 31).to_bytes(4, "little"))
    yield "a negative length", _raw(b"\x8b", b"\xff\xff\xff\xff")
    yield "only marks", _raw(b"(" * MANY)
    yield "only lists", _raw(b"]" * MANY)
    yield "only dictionaries", _raw(b"}" * MANY)
    yield "only tuples of one", _raw(b")", b"\x85" * MANY)
    yield "only memory", _raw(b"N", b"\x94" * MANY)
    yield "numbers that collide", b"N" + b"".join(
        b"p%d\n" % (number * ((1 << 61) - 1)) for number in range(1, 100_000)
    ) + b"."  # fmt: skip
    yield "digits without end", b"I" + b"9" * 1_000_000 + b"\n."
    yield "a long integer as text", b"L" + b"9" * 1_000_000 + b"L\n."
    yield "nothing on the stack", _raw(b"\x86")
    yield "nothing to call", _raw(b"R")
    yield "nothing to build", _raw(b"b")
    yield "nothing to append to", _raw(b"a")
    yield "nothing to refer to", _raw(b"h\x05")
    yield "no mark", _raw(b"t")
    yield "a call of text", _raw(b"\x8c\x01a)R")
    yield "a name of numbers", _raw(b"K\x01K\x02\x93")
    yield "a buffer from outside", _raw(b"\x97")
    yield "a persistent id", b"Panything\n."
    yield "an extension", _raw(b"\x82\x01")
    yield "an instance", b"(ipandas\nDataFrame\n."
    yield "an object", b"(cpandas\nDataFrame\no."
    yield "keyword arguments", _raw(b"cpandas\nDataFrame\n)}\x92")
    yield "a state for a list", _raw(b"]}b")
    yield "two states", _raw(b"cpandas\nDataFrame\n)\x81}b}b")
    yield "appended to an array", _raw(_opcode_list(b"K\x01", 100), b"K\x02a")
    yield "frames in lists", _raw(b"](", b"\x95](K\x01K\x01K\x01" * 1000, b"e")
    yield "lists of ints without end", _raw(b"](K\x01" * 200_000)
    yield "shared over and over", _raw(b"]\x94", b"(h\x00h\x00l\x94" * 2000)
    yield (
        "itself as its content",
        _raw(
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR\x94",
            b"(K\x01K\x01K\x01\x86cnumpy\ndtype\n(X\x02\x00\x00\x00O8\x89\x88tR\x89h\x00tb",
        ),
    )
    yield (
        "a frame that is its own manager",
        _raw(b"cpandas\nDataFrame\n)\x81\x94}X\x04\x00\x00\x00_mgrh\x00sb"),
    )
    yield "lists in lists", _raw(b"]" * MANY, b"a" * (MANY - 1))
    yield "tuples in tuples", _raw(b")", b"\x85" * (MANY // 2))
    keys = b"".join(b"\x8a\x0c" + (key * ((1 << 61) - 1)).to_bytes(12, "little") + b"N"
                    for key in range(1, 100_000))  # fmt: skip
    pair = b"\x8c\x01a\x94N"
    whole = _dumps(_cells({"a": None}))
    assert pair + b"s" in whole
    yield "keys that collide", whole.replace(pair + b"s", b"(" + keys + b"u")
    whole = _dumps(FRAME)
    yield "cut short", whole[: len(whole) // 2]


def _dumps(value: object) -> bytes:
    buffer = io.BytesIO()
    pickler = pickle._Pickler(buffer, 5)  # the one in Python, which also pickles deep objects
    pickler.dump(value)
    return buffer.getvalue()


def _deep(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def _ends(*places: int) -> bytes:
    return struct.pack(f"<{len(places)}q", *places)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files():
        (folder / f"{name.replace(' ', '-')}.pkl").write_bytes(content)


if __name__ == "__main__":
    main()
