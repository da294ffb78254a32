"""How the sandbox fails."""

from errors import GradingError


class SandboxError(GradingError):
    """No process can be started: nothing that needs one can be graded."""


class Ended(Exception):
    """A confined process will not answer any more: it ended, or broke the protocol."""


class TimeLimit(Ended):
    """A confined process took too long."""
