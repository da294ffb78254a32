"""A second opinion on MATH-500 and AIME by the math-verify package; not part of the figure.

It accepts formulas that the rules reject, and rejects others that they accept. It may run for a
long time on what a model wrote, so it runs in a confined worker only (see `evaluate`).
"""

import logging
from collections.abc import Callable
from typing import Any

TAIL = 4000  # characters at the end of a text that are searched for the answer
PACKAGE = "math_verify"


def handler() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The handler of a confined worker: replies to `{"text", "truth"}` with `{"right"}`."""
    import math_verify

    logging.disable(logging.CRITICAL)  # it logs each formula that it can't parse

    def judge(message: dict[str, Any]) -> dict[str, Any]:
        # the worker has a time limit; math-verify's own would need signals
        truth = math_verify.parse(f"\\boxed{{{message['truth']}}}", parsing_timeout=None)
        answer = math_verify.parse(message["text"], parsing_timeout=None)
        return {"right": bool(math_verify.verify(truth, answer, timeout_seconds=None))}

    return judge
