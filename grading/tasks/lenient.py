"""A second opinion on MATH-500 and AIME by the math-verify package; no part of the figure.

It reads formulas that the rules do not, and misses others that they accept. It may run for long on
what a model wrote, so it runs in a confined worker only (see `evaluate`).
"""

import logging
from collections.abc import Callable
from typing import Any

TAIL = 4000  # characters at the end of a text in which the answer is looked for
PACKAGE = "math_verify"


def handler() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What a confined worker answers with: `{"text", "truth"}` by `{"right"}`."""
    import math_verify

    logging.disable(logging.CRITICAL)  # it logs each formula that it can't read

    def judge(message: dict[str, Any]) -> dict[str, Any]:
        # the limits of time are the worker's; its own need signals
        truth = math_verify.parse(f"\\boxed{{{message['truth']}}}", parsing_timeout=None)
        given = math_verify.parse(message["text"], parsing_timeout=None)
        return {"right": bool(math_verify.verify(truth, given, timeout_seconds=None))}

    return judge
