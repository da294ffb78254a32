"""What the kernel is asked to hold a process to: limits, namespaces, capabilities, Landlock.

Each function works on the calling process and lasts for its life. They raise OSError naming what
the kernel refuses; `seccomp` is the last layer and lies in a file of its own.
"""

import contextlib
import ctypes
import errno
import os
import resource
import signal
import socket
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

from grading.sandbox.inside.limits import Limits

WORK_BYTES = 64 << 20  # what a working directory may hold in all
WORK_FILES = 4096
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

_libc = ctypes.CDLL(None, use_errno=True)
_NEW_MOUNTS, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PIDS, _NEW_NET = (
    *(0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000),
)
_READ_ONLY, _NO_SUID, _NO_DEV, _NO_EXEC, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = (
    *(1, 2, 4, 8, 32, 4096, 16384, 1 << 18),
)
_SET_DEATH_SIGNAL, _SET_DUMPABLE, _DROP_BOUND, _NO_NEW_PRIVILEGES, _AMBIENT = 1, 4, 24, 38, 47


def _check(what: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(what: str, *arguments: int) -> None:
    _check(what, _libc.prctl(*map(ctypes.c_ulong, (*arguments, *[0] * (5 - len(arguments))))))


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that forked it is gone."""
    _prctl("parent death signal", _SET_DEATH_SIGNAL, signal.SIGKILL)


def limit(limits: Limits) -> None:
    """Set the hard limits. Threads and the working directory are watched from outside."""
    for which, value in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_CPU, limits.cpu),
        (resource.RLIMIT_FSIZE, limits.file),
        (resource.RLIMIT_NOFILE, limits.descriptors),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(which)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


# --- namespaces


def enter_namespaces(readable: Iterable[str], work: str) -> None:
    """A user, network, mount, IPC and UTS namespace, in which only `readable` paths exist.

    They are there under their own names, read only. `work` is an empty directory and the one that
    may be mounted on.
    """
    user, group = os.geteuid(), os.getegid()
    _prctl("dumpable", _SET_DUMPABLE, 1)  # after a change of the user /proc/self is root's
    _check(
        "namespaces",
        _libc.unshare(_NEW_USER | _NEW_NET | _NEW_MOUNTS | _NEW_IPC | _NEW_UTS),
    )
    with contextlib.suppress(FileNotFoundError):  # before Linux 3.19
        Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    socket.sethostname("sandbox")
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    _enter_root(readable, work)


def _enter_root(readable: Iterable[str], work: str) -> None:
    root = "/proc"  # covered for this process and its children; nothing readable lies there
    os.chdir(root)
    _mount("tmpfs", root, "tmpfs", _NO_SUID | _NO_DEV, "size=1m,mode=755")
    for path in readable:
        _show(Path(path), root)
    for folder in (work, "/proc"):
        Path(root + folder).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        Path(root, "dev", name).symlink_to(f"/proc/self/fd/{number}")
    # processes mount a /proc of their own, which takes that one is in sight already
    _mount(".", root + "/proc", None, _BIND | _RECURSIVE)
    os.chdir(root)
    _check("pivot_root", _libc.pivot_root(b".", b"."))  # the old root now lies over the new one
    _check("umount", _libc.umount2(b".", 2))  # detached
    os.chdir("/")
    _mount(None, "/", None, _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_DEV)


def _show(path: Path, root: str) -> None:
    """Bind a path into the new root, with the symbolic links on the way to it."""
    for part in (*reversed(path.parents[:-1]), path):
        if part.is_symlink():
            place = Path(root + str(part))
            if not place.is_symlink():
                place.symlink_to(part.readlink())
            target = os.path.normpath(part.parent / part.readlink() / path.relative_to(part))
            return _show(Path(target), root)
        if part != path:
            Path(root + str(part)).mkdir(exist_ok=True)
    place = Path(root + str(path))
    if not path.exists() or (place.exists() and place.samefile(path)):
        return None
    if path.is_dir():
        place.mkdir(exist_ok=True)
    else:
        place.touch()
    _mount(str(path), str(place), None, _BIND | _RECURSIVE)
    if str(path) not in DEVICES:
        kept = os.statvfs(place).f_flag & (_NO_SUID | _NO_DEV | _NO_EXEC)  # locked where inherited
        _mount(None, str(place), None, _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | kept)
    return None


def enter_own_numbers() -> None:
    """Make the caller's next child the first of process numbers of its own.

    It takes all others in them with it when it ends.
    """
    _check("process numbers", _libc.unshare(_NEW_PIDS))


def enter_own_namespaces(work: str) -> None:
    """Mounts and IPC of its own, by a process of numbers of its own.

    `work` becomes a small disk, /proc shows those numbers.
    """
    _check("namespaces", _libc.unshare(_NEW_MOUNTS | _NEW_IPC))
    options = f"size={WORK_BYTES},nr_inodes={WORK_FILES},mode=700"
    _mount("tmpfs", work, "tmpfs", _NO_SUID | _NO_DEV | _NO_EXEC, options)
    _mount("proc", "/proc", "proc", _NO_SUID | _NO_DEV | _NO_EXEC)


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, options: str = ""
) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    flags_, options_ = ctypes.c_ulong(flags), options.encode() or None
    _check(f"mount {target}", _libc.mount(*encoded, flags_, options_))


# --- privileges


def gain_no_privileges() -> None:
    """No way to gain a capability, for this process and all that come from it."""
    _prctl("no new privileges", _NO_NEW_PRIVILEGES, 1)
    clear_all = 4
    with contextlib.suppress(OSError):  # before Linux 4.3
        _prctl("ambient capabilities", _AMBIENT, clear_all)
    for capability in range(64):
        try:
            _prctl("bounding set", _DROP_BOUND, capability)
        except OSError:  # not root, or past the last one
            break


def drop_privileges() -> None:
    """No capabilities, once none can be gained. Root's files are still root's: see `landlock`."""
    version_3 = 0x20080522
    header, nothing = struct.pack("=II", version_3, 0), bytes(24)
    _check("capabilities", _libc.capset(header, nothing))


# --- Landlock

_EXECUTE, _WRITE, _READ, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_DIR, _MAKE_FILE = 1 << 7, 1 << 8
_REFER, _TRUNCATE, _DEVICE_CONTROL = 1 << 13, 1 << 14, 1 << 15
_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same on all architectures


Place = tuple[int, int]  # a descriptor of a path, and the rights that Landlock leaves beneath it


def places(readable: Iterable[str]) -> list[Place]:
    """Those of `readable` paths and of the harmless devices that are there."""
    found = [*((path, _READ | _READ_DIR) for path in readable)]
    found += [(path, _READ | _WRITE | _TRUNCATE) for path in DEVICES]
    return [place for path, rights in found if (place := _open(path, rights))]


def _open(path: str, rights: int) -> Place | None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return None
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        rights &= _READ | _WRITE | _TRUNCATE
    return descriptor, rights


def landlock(places: Iterable[Place], work: str) -> None:
    """Forbid all files but `places` and those under `work`.

    What the running kernel can't hold to is left to `seccomp`, which never allows it.
    """
    abi = _check("Landlock", _libc.syscall(_CREATE, None, 0, 1))
    added = {2: _REFER, 3: _TRUNCATE, 5: _DEVICE_CONTROL}  # by version of Landlock
    handled = (1 << 13) - 1 | sum(bit for version, bit in added.items() if version <= abi)
    network = 3 if abi >= 4 else 0  # TCP bind and connect
    scopes = 3 if abi >= 6 else 0  # abstract unix sockets and signals of others
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    rules = struct.pack("=QQQ", handled, network, scopes)
    ruleset = _check("Landlock rules", _libc.syscall(_CREATE, rules, size, 0))
    inside = _READ | _WRITE | _READ_DIR | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_FILE
    own = os.open(work, os.O_PATH | os.O_CLOEXEC)
    try:
        for descriptor, rights in (*places, (own, inside | _REFER | _TRUNCATE)):
            rule = struct.pack("=Qi", rights & handled, descriptor)
            # a path on a file system without names, e.g. a bind of memory, needs no rule
            if _libc.syscall(_ADD_RULE, ruleset, 1, rule, 0) and ctypes.get_errno() != errno.EBADFD:
                _check("Landlock rule", -1)
        _check("Landlock restriction", _libc.syscall(_RESTRICT, ruleset, 0))
    finally:
        os.close(own)
        os.close(ruleset)
