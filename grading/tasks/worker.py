"""A confined process that answers one question after another."""

from typing import Any

from grading.sandbox.inside.limits import Limits
from grading.sandbox.process import Confined
from grading.sandbox.sandbox import Sandbox
from grading.sandbox.types import Ended, SandboxError, TimeLimit


class Worker:
    """A confined process that serves a module's handler; a fresh one after any that was killed."""

    def __init__(self, sandbox: Sandbox, module: str, limits: Limits) -> None:
        self._sandbox = sandbox
        self._module = module
        self._limits = limits
        self._process: Confined | None = None

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The handler's reply.

        Raises: TimeLimit if it takes longer than that, or too much memory. SandboxError if
        no process can be started, or two of them die of the message.
        """
        for last in (False, True):
            if self._process is None:
                self._process = self._sandbox.start(self._module, self._limits)
            try:
                reply = self._process.ask(message, seconds)
            except TimeLimit:
                self.close()
                raise
            except Ended as error:
                self.close()
                if last:
                    raise SandboxError(f"two processes have ended: {error}") from error
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
