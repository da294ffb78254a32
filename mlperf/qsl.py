"""The query sample library: LoadGen draws rows by number, and all of them are in memory already."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlperf.settings import loadgen


@contextmanager
def query_sample_library(rows: int) -> Iterator[int]:
    """LoadGen's handle of a library of `rows` samples.

    It is not destroyed where a run fails: LoadGen's thread may still hold it.
    """
    lg = loadgen()

    def nothing_to_do(indices: list[int]) -> None:
        pass

    handle = lg.ConstructQSL(rows, rows, nothing_to_do, nothing_to_do)
    yield handle
    lg.DestroyQSL(handle)
