"""Honest programs work at every level, and cheating never helps."""

import importlib.util
import json
from collections.abc import Iterator
from typing import Any

import pytest

from grading.sandbox.inside.limits import Limits
from grading.sandbox.sandbox import Sandbox
from grading.tasks.livecodebench import Case, Mode, Problem, passes

USUAL = {
    "threads": "import threading\nt = threading.Thread(target=int); t.start(); t.join()",
    "a large stack": "import sys, threading\nsys.setrecursionlimit(10**6)\n"
    "threading.stack_size(512 << 20)\ndef g(n): return n and g(n - 1)\n"
    "t = threading.Thread(target=g, args=(50000,)); t.start(); t.join()",
    "pool": "from concurrent.futures import ThreadPoolExecutor\n"
    "assert sum(ThreadPoolExecutor(8).map(int, range(9))) == 36",
    "recursion": "def g(n): return n and g(n - 1)\ng(20000)",
    "asyncio": "import asyncio\nasync def g(): await asyncio.sleep(0.01)\nasyncio.run(g())",
    "limits": "import resource\n"
    "resource.setrlimit(resource.RLIMIT_STACK, resource.getrlimit(resource.RLIMIT_STACK))",
    "late imports": "import sqlite3, decimal, fractions, zoneinfo, multiprocessing, pickle, bz2\n"
    "import xml.etree.ElementTree, ctypes, hashlib, logging, subprocess, socket, unicodedata\n"
    "sqlite3.connect(':memory:').execute('create table x (y)')",
    "encodings": "'ä'.encode('cp1252').decode('koi8-r'); 'x'.encode('utf-16')",
    "time zones": "from zoneinfo import ZoneInfo, available_timezones as zones\n"
    "if zones(): ZoneInfo('Europe/Paris')\nimport time; time.localtime()",
    "time": "import time\ntime.time(); time.perf_counter(); time.sleep(0.001); time.process_time()",
    "random": "import random, secrets, uuid, os\nrandom.random(); secrets.token_hex()\n"
    "uuid.uuid4(); os.urandom(8)",
    "files": "import os, tempfile\n"
    "with tempfile.TemporaryDirectory() as d: open(d + '/x', 'w').write('x')\n"
    "with tempfile.TemporaryFile() as f: f.write(b'x')\n"
    "open('y', 'w').write('y'); assert open('y').read() == 'y'; os.rename('y', 'z')\n"
    "import shutil; shutil.copyfile('z', 'y'); os.remove('y'); os.remove('z')",
    "devices": "import sys\nopen('/dev/null', 'w').write('x'); open('/dev/urandom', 'rb').read(3)\n"
    "print('x', file=sys.stderr)",
    "signals": "import os, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "os.kill(os.getpid(), signal.SIGTERM); signal.alarm(30)",
    "alarm": "import signal, time\ndef h(*a): raise TimeoutError\n"
    "signal.signal(signal.SIGALRM, h)\n"
    "signal.setitimer(signal.ITIMER_REAL, 0.01)\n"
    "try: time.sleep(5); assert False\nexcept TimeoutError: pass",
    "memory": "import mmap; mmap.mmap(-1, 3 << 30)",
    "big numbers": "assert len(str(3 ** 20000)) == 9543",
    "inspection": "import os, platform, sys, gc\nos.cpu_count(); platform.python_version()\n"
    "sys.getsizeof([]); gc.collect(); os.getcwd(); os.environ['X'] = '1'; os.listdir('.')",
    "terminal": "import shutil, sys\nshutil.get_terminal_size(); sys.stdin.isatty()",
    **{
        package: f"import {package}\n{use}"
        for package, use in (
            ("numpy", "assert numpy.linalg.det(numpy.eye(50)) == 1; numpy.random.rand(3)"),
            ("sortedcontainers", "sortedcontainers.SortedList([2, 1])"),
            ("sympy", "assert str(sympy.sqrt(8)) == '2*sqrt(2)'"),
        )
        if importlib.util.find_spec(package)
    },
}
READ_AND_PRINT = {
    "open(0)": "a, b = map(int, open(0).read().split())\nprint(a + b)",
    "dev/stdin": "a, b = map(int, open('/dev/stdin').read().split())\nprint(a + b)",
    "os.read": "import os\nos.write(1, str(sum(map(int, os.read(0, 99).split()))).encode())",
    "lines": "import sys\nfor line in sys.stdin: print(sum(map(int, line.split())))",
    "buffer": "import sys\nline = sys.stdin.buffer.readline()\n"
    "sys.stdout.write(str(sum(map(int, line.split()))))\nsys.stdout.close()",
    "mmap": "import mmap, sys\nm = mmap.mmap(0, 0, prot=1)\nprint(sum(map(int, m[:].split())))",
    "swapped": "import io, sys\nout = sys.stdout\nsys.stdout = io.StringIO()\nprint(1)\n"
    "sys.stdout = out\nprint(sum(map(int, input().split())))",
}
ADD = Problem("add", None, [Case("1 2", "3"), Case("5 6", "11")])


@pytest.fixture(scope="module", params=["full", "kernel"])
def leveled(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(request.param) as sandbox:
        if sandbox.level is None:
            pytest.fail(f"this machine can't hold it: {sandbox.reason}")
        yield sandbox


@pytest.mark.parametrize("name", USUAL)
def test_what_programs_usually_do_works(name: str, leveled: Sandbox) -> None:
    body = "\n    ".join(USUAL[name].split("\n"))
    problem = Problem("q", "f", [Case("1", "2")])
    verdict = passes(f"def f(a):\n    {body}\n    return 2\n", problem, leveled, 30)
    assert verdict.right, verdict.rule


@pytest.mark.parametrize("name", READ_AND_PRINT)
def test_standard_input_and_output_are_real_in_every_test(name: str, leveled: Sandbox) -> None:
    verdict = passes(READ_AND_PRINT[name], ADD, leveled, 20, "fixed-stdio")
    assert verdict.right, verdict.rule


def test_formulas_are_compared(leveled: Sandbox) -> None:
    with leveled.start("grading.tasks.math500", Limits(memory=1 << 30)) as process:
        assert process.ask({"answer": "1+x", "truth": "x+1"}, 20)["right"] is True


# programs that a grader in their own interpreter passes: see below
CHEATS = {
    "always equal": "class E(int):\n    __eq__ = lambda *a: True\n    __hash__ = int.__hash__\n"
    "def f(a): return E()",
    "an equal list": "class L(list):\n    __eq__ = lambda *a: True\ndef f(a): return L()",
    "frames": "import sys\ndef f(a):\n    frame = sys._getframe()\n"
    "    while frame and 'expected' not in frame.f_locals: frame = frame.f_back\n"
    "    return frame.f_locals['expected']",
    "heap": "import gc\ndef f(a):\n"
    "    dicts = [o for o in gc.get_objects() if type(o) is dict]\n"
    "    return next(o['hidden here'][0] for o in dicts if 'hidden here' in o)",
}
# and programs that deceive a grader which trusts its child process
LIES = {
    "forged answer": "import os\ndef f(a):\n"
    '    os.write(3, b\'{"ok": true, "value": true}\\n\'); os._exit(0)',
    "patched worker": "import sys\ndef f(a):\n"
    "    for m in list(sys.modules.values()):\n"
    "        for n in ('send', 'main', '_tagged', 'same_value', 'passes', 'Program'):\n"
    "            if hasattr(m, n): setattr(m, n, lambda *a, **k: {'ok': True})\n",
    "builtins": "import builtins\nfor n in ('print', 'all', 'any', 'zip', 'len', 'isinstance'):\n"
    "    setattr(builtins, n, lambda *a, **k: True)\ndef f(a): return True",
    "json": 'import json\njson.dumps = lambda *a, **k: \'{"ok": true, "right": true}\'\n'
    "def f(a): return 0",
    "exit": "import sys\nsys.exit(0)",
    "exit at once": "import os\ndef f(a): os._exit(0)",
    "exit handler": "import atexit, os\natexit.register(os.write, 3, b'{\"ok\": true}\\n')\n"
    "def f(a): raise SystemExit",
    "no code": "",
    "NUL": "def f(a): return 1\n\0",
    "parent's modules": "from grading.tasks import livecodebench\n"
    "livecodebench.same_value = lambda *a: True\ndef f(a): return 0",
}


def _naive(code: str, argument: int, expected: int) -> bool:
    names: dict[str, Any] = {}
    exec(code, names)
    return names["f"](argument) == expected


@pytest.mark.parametrize("name", CHEATS | LIES)
def test_cheats_fail(name: str, sandbox: Sandbox) -> None:
    expected = {"hidden here": [918273645]}  # a key that no other dict of this process has
    code = (CHEATS | LIES)[name]
    problem = Problem("q", "f", [Case("1", json.dumps(*expected["hidden here"]))])
    assert not passes(code, problem, sandbox, 2).right
    if name in CHEATS:
        assert _naive(code, 1, *expected["hidden here"])


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nprint = lambda *a: sys.stdout.write('918273645')\nprint(1)",
        "import os, sys\nfor n in range(3, 50):\n"
        '    try: os.write(n, b\'{"ok": true, "printed": "11"}\\n\')\n'
        "    except OSError: pass\n",
        "import os\nos.close(0); os.close(1); os.close(2); os.close(3)",
    ],
    ids=range(3),
)
def test_cheats_on_standard_output_fail(code: str, sandbox: Sandbox) -> None:
    modes: tuple[Mode, ...] = ("reference", "fixed-stdio")
    for mode in modes:
        assert not passes(code, ADD, sandbox, 5, mode).right


# How a program may end itself once it has given the right answer, and whether it passes: as with
# the public runner, whose process dies as well, or which has set the function to None. `resource`
# alone it lacks, so a program that imports that fails there.
ENDS = {
    "kill": ("import os; os.kill(os.getpid(), 9)", False),
    "kill, gently": ("import os; os.kill(os.getpid(), 15)", False),
    "raise a signal": ("import signal; signal.raise_signal(signal.SIGKILL)", False),
    "hang up": ("import signal; signal.raise_signal(signal.SIGHUP)", False),
    "stop": ("import os; os.kill(os.getpid(), 19)", False),
    "by a thread": (
        "import os, threading; t = threading.Thread(target=os._exit, args=(0,));"
        " t.start(); t.join()",
        False,
    ),
    "exit at once": ("import os; os._exit(0)", False),
    "abort": ("import os; os.abort()", False),
    "crash": ("import ctypes; ctypes.string_at(0)", False),
    "the alarm": ("import signal, time; signal.setitimer(0, 0.01); time.sleep(5)", False),
    "no time left": (
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (0, 0))\nwhile True: pass",
        False,
    ),
    "the group": ("import os; os.killpg(os.getpgid(0), 9)", False),
    "close all": ("import os; os.closerange(0, 99)", False),
    "exit": ("import sys; sys.exit(0)", True),
    "exit with a code": ("import sys; sys.exit(3)", True),
    "interrupt": ("raise KeyboardInterrupt", False),
    "no more files": (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))",
        True,
    ),
}

# ends that `finally` survives
RETURNS = ("exit", "exit with a code", "interrupt", "no more files", "the group")


@pytest.mark.parametrize("name", ENDS)
def test_a_right_answer_and_then_an_end_is_the_same_at_every_level(
    name: str, leveled: Sandbox
) -> None:
    end, right = ENDS[name]
    code = "import sys\na, b = map(int, input().split())\nprint(a + b)\nsys.stdout.flush()\n"
    verdict = passes(f"{code}{end}\n", ADD, leveled, 1)
    assert verdict.right is right, verdict.rule


@pytest.mark.parametrize("name", ENDS)
def test_an_end_within_a_function_fails_at_every_level(name: str, leveled: Sandbox) -> None:
    body = ENDS[name][0].replace("\n", "\n        ")
    code = f"def f(a):\n    try:\n        {body}\n    finally: return 2\n"
    problem = Problem("q", "f", [Case("1", "2"), Case("1", "2")])
    verdict = passes(code, problem, leveled, 1)
    assert verdict.right is (name in RETURNS), verdict.rule
