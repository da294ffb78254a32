"""A host for launch.sh: a copy of the tree, and container engines that record their calls."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOBODY = 65534

# Records its arguments; a query is answered from a file, or as an engine does that has nothing.
END = "\x1e"
STAND_IN = """#!/bin/bash
here=$(dirname "$0")
if [ "$2" = inspect ] && [ "$3" = --format ]; then
  cat "$here/$1.answer" 2>/dev/null
  exit
fi
if [ "$1" = --version ] || [ "$1" = info ]; then
  cat "$here/${1#--}.answer" 2>/dev/null
  exit
fi
printf '%s\\0' "$(basename "$0")" "$@" $'\\x1e' >>"$here/record"
"""


@dataclass
class Launched:
    """How launch.sh ended, and the engine's commands that it gave, without queries."""

    code: int
    out: str
    err: str
    commands: list[list[str]]

    @property
    def run(self) -> list[str]:
        assert self.code == 0, self.err
        return self.commands[-1]

    def values(self, option: str) -> list[str]:
        return [self.run[at + 1] for at, word in enumerate(self.run) if word == option]


class Host:
    """A folder of a tree and of programs, in which launch.sh is started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tree = folder / "a tree"
        self.tree.mkdir()
        for name in ("launch.sh", "setup.sh"):
            shutil.copy(ROOT / name, self.tree)
        for name in ("docker", "requirements"):
            shutil.copytree(ROOT / name, self.tree / name)
        self._devices = folder / "infiniband"  # instead of this machine's
        script = self.tree / "launch.sh"
        script.write_text(script.read_text().replace("/dev/infiniband", str(self._devices)))
        self.bin = folder / "bin"
        self.bin.mkdir(mode=0o777)
        self.bin.chmod(0o777)
        for name in ("my home", "data", "models", "with space", "a,comma"):
            (folder / name).mkdir()
        for name in ("my home", "data"):
            (folder / name).chmod(0o777)
        self.user = NOBODY if os.getuid() == 0 else os.getuid()
        self.provide("docker")
        self.variables = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(folder / "my home"),
        }

    def provide(self, program: str, text: str = STAND_IN) -> None:
        path = self.bin / program
        path.write_text(text)
        path.chmod(0o755)

    def lose_engines(self) -> None:
        """Remove all programs but those that launch.sh needs and the fake engines."""
        self.variables["PATH"] = str(self.bin)
        needed = ["bash", "cat", "cksum", "cut", "dirname", "echo", "env", "find", "grep", "id"]
        for program in [*needed, "sort", "xargs"]:
            (self.bin / program).symlink_to(str(shutil.which(program)))

    def answer(self, query: str, text: str) -> None:
        (self.bin / f"{query}.answer").write_text(text)

    def adapters(self) -> str:
        """Give the host InfiniBand adapters; returns their folder."""
        self._devices.mkdir()
        return str(self._devices)

    def launch(self, *options: str, user: int | None = None, **more: object) -> Launched:
        return self.script([str(self.tree / "launch.sh"), *options], user, **more)

    def script(self, words: list[str], user: int | None = None, **more: object) -> Launched:
        record = self.bin / "record"
        record.unlink(missing_ok=True)
        account = self.user if user is None else user
        ended = subprocess.run(  # type: ignore[call-overload]
            words,
            env=self.variables,
            cwd=self.folder,
            text=True,
            check=False,
            **{"stdin": subprocess.DEVNULL, "capture_output": True} | more,
            **({"user": account, "group": account} if os.getuid() == 0 else {}),
        )
        text = record.read_text() if record.exists() else ""
        commands = [line.split("\0")[:-1] for line in text.split(END + "\0")[:-1]]
        return Launched(ended.returncode, ended.stdout, ended.stderr, commands)


@contextmanager
def new_host() -> Iterator[Host]:
    """In a folder that is open to every user, unlike pytest's own temporary folders."""
    with tempfile.TemporaryDirectory(prefix="launch") as folder:
        Path(folder).chmod(0o755)
        yield Host(Path(folder))
