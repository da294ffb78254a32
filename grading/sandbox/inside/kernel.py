"""The layers of the sandbox that the kernel enforces: limits, namespaces, capabilities, Landlock.

Each function restricts the calling process for the rest of its life, and raises OSError naming the
step that failed. The last layer, `seccomp`, has its own file.
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

WORK_BYTES = 64 << 20  # total size of a working directory
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
    """Have the kernel kill this process when its parent ends."""
    _prctl("parent death signal", _SET_DEATH_SIGNAL, signal.SIGKILL)


def limit(limits: Limits) -> None:
    """Set the resource limits. The supervisor watches threads and the working directory."""
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
    """Enter new user, network, mount, IPC and UTS namespaces that contain only `readable` paths.

    The paths keep their names and are read-only. `work` is an empty directory, the mount point of
    working directories.
    """
    user, group = os.geteuid(), os.getegid()
    _prctl("dumpable", _SET_DUMPABLE, 1)  # or /proc/self belongs to root after a change of user
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
    root = "/proc"  # hidden by the mount, which is fine: nothing readable is below it
    os.chdir(root)
    _mount("tmpfs", root, "tmpfs", _NO_SUID | _NO_DEV, "size=1m,mode=755")
    for path in readable:
        _show(Path(path), root)
    for folder in (work, "/proc"):
        Path(root + folder).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        Path(root, "dev", name).symlink_to(f"/proc/self/fd/{number}")
    # processes mount their own /proc, which the kernel allows only if another one is visible
    _mount(".", root + "/proc", None, _BIND | _RECURSIVE)
    os.chdir(root)
    _check("pivot_root", _libc.pivot_root(b".", b"."))  # stacks the old root on the new one
    _check("umount", _libc.umount2(b".", 2))  # detached
    os.chdir("/")
    _mount(None, "/", None, _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_DEV)


def _show(path: Path, root: str) -> None:
    """Bind a path into the new root, along with the symbolic links that lead to it."""
    for part in (*reversed(path.parents[:-1]), path):
        if part.is_symlink():
            link = Path(root + str(part))
            if not link.is_symlink():
                link.symlink_to(part.readlink())
            real = os.path.normpath(part.parent / part.readlink() / path.relative_to(part))
            return _show(Path(real), root)
        if part != path:
            Path(root + str(part)).mkdir(exist_ok=True)
    target = Path(root + str(path))
    if not path.exists() or (target.exists() and target.samefile(path)):
        return None
    if path.is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    _mount(str(path), str(target), None, _BIND | _RECURSIVE)
    if str(path) not in DEVICES:
        # inherited flags are locked: a remount has to repeat them
        inherited = os.statvfs(target).f_flag & (_NO_SUID | _NO_DEV | _NO_EXEC)
        _mount(None, str(target), None, _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | inherited)
    return None


def unshare_pids() -> None:
    """Make the caller's next child init (PID 1) of a new PID namespace."""
    _check("PID namespace", _libc.unshare(_NEW_PIDS))


def unshare_mounts(work: str) -> None:
    """Enter new mount and IPC namespaces, from within a new PID namespace.

    `work` becomes a small tmpfs, and /proc shows only the processes of the PID namespace.
    """
    _check("mount and IPC namespaces", _libc.unshare(_NEW_MOUNTS | _NEW_IPC))
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


def forbid_new_privileges() -> None:
    """Prevent this process and its children from gaining capabilities."""
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
    """Drop all capabilities. Root can still open root's files: `landlock` prevents that."""
    version_3 = 0x20080522
    header, nothing = struct.pack("=II", version_3, 0), bytes(24)
    _check("capabilities", _libc.capset(header, nothing))


# --- Landlock

_EXECUTE, _WRITE, _READ, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_DIR, _MAKE_FILE = 1 << 7, 1 << 8
_REFER, _TRUNCATE, _DEVICE_CONTROL = 1 << 13, 1 << 14, 1 << 15
_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same on all architectures


Rule = tuple[int, int]  # the descriptor of a path, and the access rights granted below it


def landlock_rules(readable: Iterable[str]) -> list[Rule]:
    """Rules for those of the `readable` paths and of DEVICES that exist."""
    rights_of = [*((path, _READ | _READ_DIR) for path in readable)]
    rights_of += [(path, _READ | _WRITE | _TRUNCATE) for path in DEVICES]
    return [rule for path, rights in rights_of if (rule := _rule(path, rights))]


def _rule(path: str, rights: int) -> Rule | None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return None
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        rights &= _READ | _WRITE | _TRUNCATE
    return descriptor, rights


def landlock(rules: Iterable[Rule], work: str) -> None:
    """Deny access to all files except those of `rules` and those below `work`.

    Accesses that the running kernel's Landlock can't deny are never allowed by `seccomp`.
    """
    abi = _check("Landlock", _libc.syscall(_CREATE, None, 0, 1))
    later_rights = {2: _REFER, 3: _TRUNCATE, 5: _DEVICE_CONTROL}  # by version of Landlock
    handled = (1 << 13) - 1 | sum(bit for version, bit in later_rights.items() if version <= abi)
    network = 3 if abi >= 4 else 0  # TCP bind and connect
    scopes = 3 if abi >= 6 else 0  # abstract unix sockets and signals of others
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    attributes = struct.pack("=QQQ", handled, network, scopes)
    ruleset = _check("Landlock rules", _libc.syscall(_CREATE, attributes, size, 0))
    work_rights = _READ | _WRITE | _READ_DIR | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_FILE
    own = os.open(work, os.O_PATH | os.O_CLOEXEC)
    try:
        for descriptor, rights in (*rules, (own, work_rights | _REFER | _TRUNCATE)):
            rule = struct.pack("=Qi", rights & handled, descriptor)
            # EBADFD: a path on an internal file system, such as a bound memfd, needs no rule
            if _libc.syscall(_ADD_RULE, ruleset, 1, rule, 0) and ctypes.get_errno() != errno.EBADFD:
                _check("Landlock rule", -1)
        _check("Landlock restriction", _libc.syscall(_RESTRICT, ruleset, 0))
    finally:
        os.close(own)
        os.close(ruleset)
