"""Misbehaving programs: each fails in time and leaves nothing behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from grading.sandbox.inside.limits import Limits
from grading.sandbox.process import Confined
from grading.sandbox.sandbox import Sandbox
from grading.sandbox.types import ProcessEnded, SandboxError, TimeLimit
from grading.tasks.livecodebench import Case, Problem, passes

ADD = Problem("add", None, [Case("1 2", "3"), Case("5 6", "11")])
ROOT = Path(__file__).parents[3]
RIGHT = "a, b = map(int, input().split())\nprint(a + b)\n"


def _of(owner: int) -> dict[int, list[str]]:
    """Processes of a grader's sandbox, by process id; its direct children are fork servers."""
    processes = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f'"owner": {owner},'.encode() in (folder / "cmdline").read_bytes():
                processes[int(folder.name)] = (
                    (folder / "stat").read_text().rpartition(")")[2].split()
                )
    return processes


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Checks afterwards that only fork servers are left."""
    yield
    assert [n for n, stat in _of(os.getpid()).items() if int(stat[1]) != os.getpid()] == []


@pytest.mark.parametrize(
    "attack",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "import signal, time\nsignal.pthread_sigmask(2, range(1, 64))\nwhile True: time.sleep(1)",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import threading, time\nfor _ in range(8): threading.Thread(target=time.sleep, args=(60,))"
        ".start()\ntime.sleep(60)",
    ],
    ids=["loop", "sleep", "signals blocked", "catches everything", "threads"],
)
def test_time_is_limited(attack: str, nothing_left: None, sandbox: Sandbox) -> None:
    assert passes(f"{attack}\n{RIGHT}", ADD, sandbox, 1.0).too_slow


@pytest.mark.parametrize(
    "attack",
    [
        "x = [0] * 10**10",
        "x = bytearray(10**11)",
        "x = 'a'\nwhile True: x += x",
        "while True: print('y' * 1000000)",
        "import sys\nsys.setrecursionlimit(10**9)\nf = lambda: f()\nf()",
        "f = lambda x: [f(x)]\nf(1)",
        "import os\nwhile True: os.fork()",
        "fs = []\nwhile True: fs.append(open('/dev/null'))",
        "import sys\nsys.modules['__main__']._send(4, {'ok': True})\nquit()",
        "import os\nos._exit(0)",
        "import os\nos.abort()",
        "import os\nos.close(0)\nos.close(1)",
        "import sys\nsys.stdout.close()",
        "\0",
        "\ud800",
        "(" * 10_000,
        "x = " + "-" * 100_000 + "1",
        "yield 1",
        "raise SystemExit",
        "class Solution: pass",
    ],
    ids=range(20),
)
def test_misbehaving_programs_fail(attack: str, nothing_left: None, sandbox: Sandbox) -> None:
    assert not passes(f"{attack}\n{RIGHT}", ADD, sandbox, 2.0).right


def test_a_program_sees_one_input_and_no_expected_output(sandbox: Sandbox) -> None:
    code = (
        "import sys, gc\n"
        "a, b = map(int, input().split())\n"
        "answer = ''.join(map(str, range(7, 0, -1)))\n"
        "seen = repr(gc.get_objects()) + repr(sys.argv) + repr(__import__('os').environ)\n"
        "print(a + b if answer not in seen else 'seen')\n"
    )
    assert passes(
        code, Problem("q", None, [Case("1 2", "3"), Case("4 7654317", "7654321")]), sandbox, 5
    ).right


def test_environment_descriptors_and_directory_are_empty(
    monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    monkeypatch.setenv("SECRET", "x")
    inherited = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    code = (
        "import os\n"
        "def is_open(n):\n"
        "    try: return bool(os.fstat(n))\n"
        "    except OSError: return False\n"
        "def f(a):\n"
        "    # 0, 1, 2, and the socket\n"
        "    return ['SECRET' in os.environ, [*filter(is_open, range(1024))], os.listdir('.')]\n"
    )
    try:
        want = json.dumps([False, [0, 1, 2, 3], []])
        assert passes(code, Problem("q", "f", [Case("1", want)]), sandbox, 5).right
    finally:
        os.close(inherited)


def _loaded(process: Confined, code: str, function: str | None) -> None:
    message = {"code": code, "function": function, "mode": "fixed-stdio"}
    assert process.ask(message, 5) == {"ok": True}


def test_a_program_that_prints_too_much_does_not_fill_the_memory(sandbox: Sandbox) -> None:
    with sandbox.start("grading.tasks.program", Limits(file=1 << 20)) as process:
        _loaded(process, "while True: print('y' * 1000)", None)
        process.set_input(b"")
        assert process.ask({"input": ""}, 10)["ok"] is False
        assert len(process.output()) <= 1 << 20


@pytest.mark.parametrize(
    "forged",
    [
        "b'{}'",
        "b'[' * 100_000 + b'\\n'",
        "b'[]\\n'",
        "b'\\xff\\n'",
        'b\'{"ok": true}\\n{"ok": true}\\n\'',
    ],
)
def test_a_forged_reply_is_no_answer(forged: str, sandbox: Sandbox) -> None:
    with sandbox.start("grading.tasks.program", Limits()) as process:
        _loaded(process, f"import os\ndef f(a):\n    os.write(3, {forged})\n    os._exit(0)\n", "f")
        with pytest.raises(ProcessEnded):
            process.ask({"input": "1"}, 5)


def test_a_reply_without_end_is_no_answer(
    monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    monkeypatch.setattr("grading.sandbox.process.REPLY_BYTES", 1 << 20)
    with sandbox.start("grading.tasks.program", Limits()) as process:
        _loaded(process, "import os\ndef f(a):\n    while True: os.write(3, b'x' * 9999)\n", "f")
        with pytest.raises(ProcessEnded, match="too long"):
            process.ask({"input": "1"}, 5)


def test_end_all_wakes_all_waiting_threads(sandbox: Sandbox) -> None:
    with sandbox.start("grading.tasks.program", Limits()) as process:
        sandbox.end_all()
        with pytest.raises(ProcessEnded):
            process.ask({"code": "while True: 1", "function": "f", "mode": "reference"}, 5)


def test_a_time_limit_is_a_distinct_error(sandbox: Sandbox) -> None:
    with sandbox.start("grading.tasks.program", Limits()) as process, pytest.raises(TimeLimit):
        process.ask({"code": "while True: 1", "function": "f", "mode": "reference"}, 0.2)


def test_a_long_input_arrives_whole_however_long_it_may_take(sandbox: Sandbox) -> None:
    size = 20 << 20  # a hundred times what a socket holds
    problem = Problem("length", "len", [Case(f'"{"x" * size}"', str(size))])
    assert passes("len", problem, sandbox, 1e8).right


def test_a_module_that_fails_to_start_is_named(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxError, match="no_such_module"):
        sandbox.start("grading.tasks.no_such_module", Limits())


def test_forked_processes_draw_other_random_numbers(sandbox: Sandbox) -> None:
    code = "import random\ndef f(a):\n    return random.random()\n"
    drawn = set()
    for _ in range(3):
        with sandbox.start("grading.tasks.program", Limits()) as process:
            _loaded(process, code, "f")
            drawn.add(process.ask({"input": "1"}, 5)["value"])
    assert len(drawn) == 3


def test_a_start_is_a_fork(sandbox: Sandbox) -> None:
    """An interpreter that imported the graders' packages would take a second to start."""
    with sandbox.start("grading.tasks.program", Limits()):
        processes = _of(os.getpid())
    assert [process for process, stat in processes.items() if int(stat[1]) in processes]


def test_a_killed_fork_server_leaves_its_processes_usable() -> None:
    with Sandbox() as sandbox, sandbox.start("grading.tasks.program", Limits()) as before:
        server = max(n for n, stat in _of(os.getpid()).items() if int(stat[1]) == os.getpid())
        os.kill(server, signal.SIGKILL)
        _loaded(before, "f = abs", "f")
        with sandbox.start("grading.tasks.program", Limits()) as after:
            _loaded(after, "f = abs", "f")


@pytest.mark.parametrize("level", ["full", "kernel"])
def test_nothing_outlives_a_killed_grader(
    level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    script = (
        "import time\n"
        "from grading.sandbox.inside.limits import Limits\n"
        "from grading.sandbox.sandbox import Sandbox\n"
        f"process = Sandbox({level!r}).start('grading.tasks.program', Limits())\n"
        "print('ready', flush=True)\n"
        "process.ask({'code': 'while True: 1', 'function': 'f', 'mode': 'reference'}, 60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    first = level == "full"  # of process numbers of its own
    assert len(_of(parent.pid)) == 3 + first  # server, supervisor, process
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while (_of(parent.pid) or list(tmp_path.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _of(parent.pid) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_closed_sandbox_leaves_no_server() -> None:
    before = set(_of(os.getpid()))
    with Sandbox() as sandbox:
        sandbox.start("grading.tasks.program", Limits())
        assert set(_of(os.getpid())) > before
    assert set(_of(os.getpid())) == before
