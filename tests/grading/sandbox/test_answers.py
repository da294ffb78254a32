"""Endless answers fail their own test and cost the grader nothing: see `attacks.answers`."""

import resource
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from grading.sandbox.inside.limits import Limits
from grading.sandbox.sandbox import Sandbox
from grading.tasks import Verdict
from grading.tasks.livecodebench import Case, Mode, Problem, passes
from tests.grading.sandbox.attacks.answers import LONG, PRINTED, QUICK

SECONDS = 2.0  # for a program, and for a comparison
BEAT_S = 0.02


@contextmanager
def _beating() -> Iterator[list[float]]:
    """The longest time in which no other thread of the grader could run, in seconds of its CPU
    time: other processes may use the machine."""
    longest, over = [0.0], threading.Event()

    def beat() -> None:
        last = time.process_time()
        while not over.wait(BEAT_S):
            now = time.process_time()
            longest[0] = max(longest[0], now - last)
            last = now

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield longest
    finally:
        over.set()
        thread.join()


def _verdicts(
    programs: dict[str, str],
    function: str | None,
    expected: str,
    sandbox: Sandbox,
    mode: Mode = "reference",
) -> dict[str, Verdict]:
    """What becomes of each program, by name."""
    problem = Problem("q", function, [Case("1", expected)])

    def verdict(name: str) -> Verdict:
        result = passes(programs[name], problem, sandbox, SECONDS, mode)
        assert not result.right, name
        return result

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(programs, pool.map(verdict, programs), strict=True))


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grading.tasks.livecodebench.COMPARE_LIMIT_S", SECONDS)


@pytest.mark.parametrize("expected", ["7", "[7.5]", '{"a": 7}'])
def test_answers_without_end_are_wrong(sandbox: Sandbox, expected: str) -> None:
    with _beating() as longest:
        verdicts = _verdicts(QUICK, "f", expected, sandbox)
    assert longest[0] < 2
    assert verdicts["no text"].rule == "test 1 of 1: the answer is not JSON"


@pytest.mark.slow
def test_answers_of_any_size_are_wrong(sandbox: Sandbox) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    with _beating() as longest:
        verdicts = _verdicts(LONG, "f", "7", sandbox)
    assert longest[0] < 5  # tens of megabytes are forwarded
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 20  # of all these answers
    for name in ("forged fraction", "forged colliding keys", "colliding keys"):
        assert verdicts[name].too_slow, name


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["reference", "fixed-stdio"])
def test_output_of_any_size_is_wrong(sandbox: Sandbox, mode: Mode) -> None:
    with _beating() as longest:
        _verdicts(PRINTED, None, "7 8", sandbox, mode)
    assert longest[0] < 5


def test_what_is_compared_may_not_take_all_memory(sandbox: Sandbox) -> None:
    with sandbox.start("grading.tasks.outputs", Limits(memory=256 << 20)) as comparer:
        reply = '{"ok": true, "value": [' + "[]," * 10_000_000 + "[]]}"
        answer = comparer.ask({"reply": reply, "function": True, "expected": "7"}, 20)
    assert answer == {"error": "memory limit"}


def test_one_comparer_serves_after_another_has_failed(sandbox: Sandbox) -> None:
    """A hostile answer does not change the verdict of another one."""
    from grading.tasks.livecodebench import Comparer

    problem = Problem("q", "f", [Case("1", "7")])
    comparer = Comparer(sandbox)
    try:
        for value, right in (('"7"', False), ('{"fraction": "1e1000000000"}', False), ("7", True)):
            reply = f'{{"ok": true, "value": {value}}}'.encode()
            outcome = comparer.compare(reply, None, problem.tests[0], problem)
            assert (outcome.fault is None) is right
            late = "its answer can't be compared: no reply within 2 s"
            assert outcome.too_slow is (outcome.fault == late) is ("fraction" in value)
    finally:
        comparer.close()
