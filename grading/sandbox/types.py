"""The sandbox's exceptions."""

from errors import GradingError


class SandboxError(GradingError):
    """A process can't be started, so answers that need one can't be graded."""


class ProcessEnded(Exception):
    """A confined process can't be used any more: it ended, or broke the protocol."""


class TimeLimit(ProcessEnded):
    """A confined process did not answer within its time limit."""
