"""A confined process for many messages, restarted when it has been killed."""

from typing import Any

from grading.sandbox.inside.limits import Limits
from grading.sandbox.process import Confined
from grading.sandbox.sandbox import Sandbox
from grading.sandbox.types import ProcessEnded, SandboxError, TimeLimit


class Worker:
    """Runs a module's handler in a confined process, and replaces the process after it was killed.

    The process is started by the first message.
    """

    def __init__(self, sandbox: Sandbox, module: str, limits: Limits) -> None:
        self._sandbox = sandbox
        self._module = module
        self._limits = limits
        self._process: Confined | None = None

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The handler's reply to a message.

        Raises: TimeLimit if it takes longer than `seconds`, or too much memory; SandboxError if
        no process can be started, or the message kills two of them.
        """
        for last in (False, True):
            if self._process is None:
                self._process = self._sandbox.start(self._module, self._limits)
            try:
                reply = self._process.ask(message, seconds)
            except TimeLimit:
                self.close()
                raise
            except ProcessEnded as error:
                self.close()
                if last:
                    raise SandboxError(f"two grading processes have ended: {error}") from error
                continue
            if "error" in reply:
                self.close()
                raise TimeLimit(str(reply["error"]))
            break
        return reply

    def close(self) -> None:
        """Kill the process, if there is one."""
        if self._process is not None:
            self._process.close()
            self._process = None
