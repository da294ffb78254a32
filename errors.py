"""The errors that a user can cause, one class per exit code.

Every package may raise them. An exception becomes an exit code only in `entrypoint.run`, or from
another thread in `entrypoint.fail`. An exception that is not a `UserError` is a bug, and is
reported with its traceback.
"""

from typing import ClassVar


class UserError(Exception):
    """Something the user can fix. The message, one line, names the file or value and the fix."""

    exit_code: ClassVar[int]


class UsageError(UserError):
    """An option has a value that can't be used (argparse exits with the same code)."""

    exit_code = 2


class InputFileError(UserError):
    """An input file is missing, has the wrong type, or is not a data frame."""

    exit_code = 3


class ColumnsError(UserError):
    """A data frame lacks columns, or a column holds values of the wrong kind."""

    exit_code = 4


class EmptyDataError(UserError):
    """A data set or result file has no rows."""

    exit_code = 5


class ModelError(UserError):
    """A model directory lacks files, or is of another architecture."""

    exit_code = 6


class CheckpointError(UserError):
    """A weight file is missing, incomplete, or made for another world size."""

    exit_code = 7


class LengthError(UserError):
    """A prompt does not fit the model's length."""

    exit_code = 8


class ParallelError(UserError):
    """The model can't be split over this number of processes."""

    exit_code = 9


class LaunchError(UserError):
    """A script was started in a way that can't work, such as without torchrun."""

    exit_code = 10


class OutputError(UserError):
    """Results can't be written to the requested path."""

    exit_code = 11


class EngineError(UserError):
    """An engine failed to start, or a request failed in it."""

    exit_code = 12


class GradingError(UserError):
    """Answers can't be graded: problems or a sandbox are missing, or rows don't match."""

    exit_code = 13


class LoadGenError(UserError):
    """LoadGen could not be configured, or ended the run as invalid."""

    exit_code = 14


class SubmissionError(UserError):
    """A submission tree breaks rules, or can't be built from these results."""

    exit_code = 15


class FetchError(UserError):
    """A published file can't be fetched, or is not what was published."""

    exit_code = 16


class SweepError(UserError):
    """Points of a sweep failed."""

    exit_code = 17
