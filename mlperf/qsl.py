"""The query sample library: LoadGen picks samples by index; all of them are in memory already."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlperf.settings import loadgen


@contextmanager
def query_sample_library(rows: int) -> Iterator[int]:
    """LoadGen's handle of a library of `rows` samples.

    If the run fails, the handle is not destroyed: LoadGen's thread may still be using it.
    """
    lg = loadgen()

    def ignore(indices: list[int]) -> None:
        """Samples need no loading or unloading."""

    handle = lg.ConstructQSL(rows, rows, ignore, ignore)
    yield handle
    lg.DestroyQSL(handle)
