"""Programs that misbehave: each fails, in time, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.sandbox import Ended, Limits, SandboxError, TimeLimit
from data.tasks.livecodebench import Case, Problem, passes

ADD = Problem("add", None, [Case("1 2", "3"), Case("5 6", "11")])
RIGHT = "a, b = map(int, input().split())\nprint(a + b)\n"


def _group_members(leader):
    """Processes of a group that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == leader and state != "Z":
            found.append(stat.parent.name)
    return found


@pytest.fixture
def leaders(monkeypatch):
    """The process groups that a test has started; none may have members left."""
    started = []
    begin = subprocess.Popen.__init__

    def remember(self, *args, **options):
        begin(self, *args, **options)
        started.append(self.pid)

    monkeypatch.setattr(subprocess.Popen, "__init__", remember)
    yield started
    assert started
    assert [_group_members(leader) for leader in started] == [[]] * len(started)


@pytest.mark.parametrize(
    "prelude",
    [
        "import threading; t = threading.Thread(target=int); t.start(); t.join()",
        "import tempfile, subprocess, multiprocessing, pickle, logging, dataclasses",
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "import os; os.environ['X'] = '1'; os.listdir('.')",
        "def f(n):\n    return n and f(n - 1)\nf(20000)",
        "import numpy as np; assert np.arange(3).sum() == 3",
    ],
    ids=range(6),
)
def test_what_programs_usually_do_is_allowed(prelude, leaders, sandbox):
    assert passes(f"{prelude}\n{RIGHT}", ADD, sandbox, 20)


@pytest.mark.parametrize(
    "code",
    [
        "a, b = map(int, open(0).read().split())\nprint(a + b)",
        "import os\nos.write(1, str(sum(map(int, os.read(0, 99).split()))).encode())",
        "import sys\nfor line in sys.stdin: print(sum(map(int, line.split())))",
        "import sys\nsys.stdout.write(str(sum(map(int, sys.stdin.buffer.readline().split()))))\n"
        "sys.stdout.close()",
        "import io, sys\nout = sys.stdout\nsys.stdout = io.StringIO()\nprint(1)\n"
        "sys.stdout = out\nprint(sum(map(int, input().split())))\nsys.exit(1)",
    ],
    ids=range(5),
)
def test_standard_input_and_output_are_real_in_every_test(code, leaders, sandbox):
    assert passes(code, ADD, sandbox, 20)


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
def test_time_is_limited(attack, leaders, sandbox):
    start = time.monotonic()
    assert not passes(f"{attack}\n{RIGHT}", ADD, sandbox, 1.0)
    assert time.monotonic() - start < 10


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
def test_misbehaving_programs_fail(attack, leaders, sandbox):
    assert not passes(f"{attack}\n{RIGHT}", ADD, sandbox, 2.0)


@pytest.mark.parametrize(
    "attack",
    [
        "import os; os.fork()",
        "import os; os.system('true')",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import pty; pty.spawn('/bin/true')",
        "import subprocess; subprocess.run(['true'])",
        "import multiprocessing; multiprocessing.Process(target=int).start()",
        "import _posixsubprocess; _posixsubprocess.fork_exec()",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.socket(socket.AF_UNIX)",
        "import os; os.kill(os.getppid(), 0)",
        "import os; os.killpg(os.getppid(), 0)",
        "open('VICTIM', 'a')",
        "open('VICTIM2', 'w')",
        "import os; os.open('VICTIM2', os.O_CREAT | os.O_WRONLY)",
        "import os; os.mkdir('VICTIM2')",
        "import os; os.remove('VICTIM')",
        "import os; os.rename('VICTIM', 'VICTIM2')",
        "import os; os.symlink('VICTIM', 'VICTIM2')",
        "import os; os.chmod('VICTIM', 0)",
        "import shutil; shutil.rmtree('VICTIM_FOLDER')",
    ],
)
def test_what_reaches_outside_is_refused(attack, leaders, tmp_path, sandbox):
    victim = tmp_path / "victim"
    victim.write_text("unharmed")
    attack = attack.replace("VICTIM_FOLDER", str(tmp_path)).replace("VICTIM", str(victim))
    code = (
        f"def f(a):\n    try:\n        {attack}\n"
        "    except PermissionError as error:\n        return str(error)[-19:]\n"
    )
    assert passes(code, Problem("q", "f", [Case("1", '"is not allowed here"')]), sandbox, 5)
    assert victim.read_text() == "unharmed"
    assert list(tmp_path.iterdir()) == [victim]


def test_foreign_code_cannot_be_loaded(leaders, sandbox):
    code = "def f(a):\n    try:\n        import ctypes\n    except ImportError:\n        return 1\n"
    assert passes(code, Problem("q", "f", [Case("1", "1")]), sandbox, 5)


def test_a_program_sees_one_input_and_no_expected_output(sandbox):
    code = (
        "import sys, gc\n"
        "a, b = map(int, input().split())\n"
        "answer = ''.join(map(str, range(7, 0, -1)))\n"
        "seen = repr(gc.get_objects()) + repr(sys.argv) + repr(__import__('os').environ)\n"
        "print(a + b if answer not in seen else 'seen')\n"
    )
    assert passes(
        code, Problem("q", None, [Case("1 2", "3"), Case("4 7654317", "7654321")]), sandbox, 5
    )


def test_environment_and_descriptors_are_empty(monkeypatch, sandbox):
    monkeypatch.setenv("SECRET", "x")
    inherited = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    code = (
        "import os\n"
        "def f(a):\n"
        "    names = [n for n in os.listdir('/proc/self/fd')]\n"
        "    return ['SECRET' in os.environ, len(names), os.listdir('.')]\n"
    )
    try:
        # 0, 1, 2, copies of 0 and 1, the socket, and the one that lists
        want = json.dumps([False, 7, []])
        assert passes(code, Problem("q", "f", [Case("1", want)]), sandbox, 5)
    finally:
        os.close(inherited)


def test_a_program_that_prints_too_much_does_not_fill_the_disk(sandbox):
    with sandbox.start("data.tasks.program", Limits(file=1 << 20)) as process:
        process.ask({"code": "while True: print('y' * 1000)", "function": None}, 5)
        process.give(b"")
        assert process.ask({}, 10)["ok"] is False
        assert len(process.printed()) <= 1 << 20


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
def test_a_forged_reply_is_no_answer(forged, sandbox):
    with sandbox.start("data.tasks.program", Limits()) as process:
        code = (
            "import os, sys\n"
            "def f(a):\n"
            "    fd = max(map(int, os.listdir('/proc/self/fd')))\n"
            f"    os.write(fd, {forged})\n"
            "    os._exit(0)\n"
        )
        assert process.ask({"code": code, "function": "f"}, 5) == {"ok": True}
        process.give(b"1")
        with pytest.raises(Ended):
            process.ask({}, 5)


def test_end_all_wakes_whoever_waits(sandbox):
    with sandbox.start("data.tasks.program", Limits()) as process:
        sandbox.end_all()
        with pytest.raises(Ended):
            process.ask({"code": "1", "function": None}, 5)


def test_too_late_is_told_apart(sandbox):
    with sandbox.start("data.tasks.program", Limits()) as process, pytest.raises(TimeLimit):
        process.ask({"code": "while True: pass", "function": "f"}, 0.2)


def test_a_module_that_fails_to_start_is_named(sandbox):
    with pytest.raises(SandboxError, match="no_such_module"):
        sandbox.start("data.tasks.no_such_module", Limits())
    with pytest.raises(SandboxError):
        sandbox.start("data.tasks.program", Limits(memory=1 << 20))


def test_children_die_with_a_killed_parent(tmp_path):
    script = (
        "import sys, time\n"
        "from data.sandbox import Limits, Sandbox\n"
        "process = Sandbox().start('data.tasks.program', Limits())\n"
        "print(process._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    root = Path(__file__).parents[3]
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while _group_members(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _group_members(child) == []
