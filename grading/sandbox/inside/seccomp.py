"""The seccomp filter of a confined process: an allow list of system calls, compiled to BPF.

A call that is not on the list fails with ENOSYS, as on a kernel that lacks it, so libraries fall
back if they can. Some calls are allowed with certain arguments only, and fail with EPERM otherwise.
A filter can't see paths: Landlock decides which files may be opened.
"""

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass
from functools import cache

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, audit number

# name:x86_64:aarch64; a dash if the architecture has no such call
_ALLOWED = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69
pwritev:296:70 lseek:8:62 close:3:57 close_range:436:436 stat:4:- fstat:5:80 lstat:6:-
newfstatat:262:79 statx:332:291 statfs:137:43 fstatfs:138:44 access:21:- faccessat:269:48
faccessat2:439:439 getdents:78:- getdents64:217:61 getcwd:79:17 chdir:80:49 fchdir:81:50
readlink:89:- readlinkat:267:78 umask:95:166 mkdir:83:- mkdirat:258:34 rmdir:84:- unlink:87:-
unlinkat:263:35 rename:82:- renameat:264:38 renameat2:316:276 ftruncate:77:46 fallocate:285:47
fsync:74:82 fdatasync:75:83 flock:73:32 sendfile:40:71 copy_file_range:326:285 fadvise64:221:223
dup:32:23 dup2:33:- dup3:292:24 pipe:22:- pipe2:293:59 poll:7:- ppoll:271:73 select:23:-
pselect6:270:72 epoll_create:213:- epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:-
epoll_pwait:281:22 epoll_pwait2:441:441 eventfd:284:- eventfd2:290:19 recvfrom:45:207
shutdown:48:210 getsockname:51:204 getpeername:52:205 getsockopt:55:209 mmap:9:222 mprotect:10:226
munmap:11:215 brk:12:214 mremap:25:216 madvise:28:233 msync:26:227 mincore:27:232
membarrier:324:283 futex:202:98 futex_waitv:449:449 set_robust_list:273:99 get_robust_list:274:100
rseq:334:293 set_tid_address:218:96 arch_prctl:158:- exit:60:93 exit_group:231:94
sched_yield:24:124 sched_getaffinity:204:123 getcpu:309:168 rt_sigaction:13:134
rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136 rt_sigsuspend:130:133
rt_sigtimedwait:128:137 sigaltstack:131:132 pause:34:- alarm:37:- setitimer:38:103 getitimer:36:102
restart_syscall:219:128 nanosleep:35:101 clock_nanosleep:230:115 clock_gettime:228:113
clock_getres:229:114 gettimeofday:96:169 time:201:- times:100:153 getpid:39:172 gettid:186:178
getppid:110:173 getpgid:121:155 getpgrp:111:- getsid:124:156 getuid:102:174 geteuid:107:175
getgid:104:176 getegid:108:177 getresuid:118:148 getresgid:120:150 getgroups:115:158
getpriority:140:141 getrlimit:97:163 setrlimit:160:164 getrusage:98:165 sysinfo:99:179 uname:63:160
getrandom:318:278 wait4:61:260 waitid:247:95
"""

_ALL = 0xFFFFFFFF


@dataclass(frozen=True)
class _Condition:
    """An argument, masked by `mask`, is one of `values` (its low or high 32 bits)."""

    argument: int
    values: tuple[int, ...]
    mask: int = _ALL
    high: bool = False


def _conditional(pid: int) -> tuple[tuple[str, tuple[_Condition, ...]], ...]:
    """The calls that are allowed with certain arguments. `pid`: of the confined process."""
    truncate, access = 0o1000, 0o3
    # CLONE_THREAD | CLONE_SIGHAND | CLONE_VM, and the flags that C libraries add
    thread, any_thread_flag = 0x10900, 0x7D0F00
    no_block_no_exec = 0o2004000
    return (
        # O_RDONLY | O_TRUNC writes, which Landlock before version 3 does not prevent
        *(
            (name, (_Condition(flags, (0, 1, 2, 3, *(truncate | way for way in (1, 2, 3))), mask),))
            for name, flags, mask in (
                ("open:2:-", 1, truncate | access),
                ("openat:257:56", 2, truncate | access),
            )
        ),
        # new threads, but no new processes or namespaces
        ("clone:56:220", (_Condition(0, (thread,), _ALL & ~(any_thread_flag & ~thread)),)),
        ("kill:62:129", (_Condition(0, (pid,)),)),
        ("tgkill:234:131", (_Condition(0, (pid,)),)),
        ("prlimit64:302:261", (_Condition(0, (0, pid)),)),
        # a descriptor's flags, locks and copies; not the owner that it signals
        ("fcntl:72:25", (_Condition(1, (*range(8), 36, 37, 38, 1030, 1032)),)),
        # reading a terminal's state and size, blocking, close-on-exec, bytes available
        ("ioctl:16:29", (_Condition(1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),)),
        ("prctl:157:167", (_Condition(0, (15, 16)),)),  # the name of a thread
        # asyncio wakes itself through a pair of stream sockets, which reach nobody else
        ("socketpair:53:199", (_Condition(0, (1,)), _Condition(1, (1,), _ALL & ~no_block_no_exec))),
        ("sendto:44:206", (_Condition(4, (0,)), _Condition(4, (0,), high=True))),
    )


_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _number(entry: str, column: int) -> int | None:
    number = entry.split(":")[1 + column]
    return None if number == "-" else int(number)


def _block(conditions: tuple[_Condition, ...]) -> list[bytes]:
    """Allow the call if all conditions hold, else EPERM. The last two instructions return."""
    tests = [(condition, value) for condition in conditions for value in condition.values]
    length = 2 * len(conditions) + len(tests)
    block: list[bytes] = []
    for condition in conditions:
        block.append(_op(_LOAD, 16 + 8 * condition.argument + 4 * condition.high))
        block.append(_op(_AND, condition.mask))
        for remaining in reversed(range(len(condition.values))):  # comparisons after this one
            value = condition.values[-1 - remaining]
            refuse = length + 1 - len(block) - 1
            block.append(_op(_EQUAL, value, remaining, 0 if remaining else refuse))
    return [*block, _op(_RETURN, _ALLOW), _op(_RETURN, _ERRNO | errno.EPERM)]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


_libc = ctypes.CDLL(None, use_errno=True)


@cache
def program(machine: str, pid: int) -> bytes:
    """The filter for a machine, named as by `platform.machine()`, and the process `pid`.

    Raises: OSError for a machine whose system calls are not in the list.
    """
    column, _ = _architecture(machine)
    conditional = []
    for entry, conditions in _conditional(pid):
        if (number := _number(entry, column)) is not None:
            block = _block(conditions)
            conditional += [_op(_EQUAL, number, 0, len(block)), *block]
    return b"".join([_listed(machine), *conditional, _op(_RETURN, _ERRNO | errno.ENOSYS)])


@cache
def _listed(machine: str) -> bytes:
    """The start of the filter, which is the same for all processes: the calls always allowed."""
    column, audit = _architecture(machine)
    ops = [_op(_LOAD, 4), _op(_EQUAL, audit, 1, 0), _op(_RETURN, _KILL), _op(_LOAD, 0)]
    for entry in _ALLOWED.split():
        if (number := _number(entry, column)) is not None:
            ops += [_op(_EQUAL, number, 0, 1), _op(_RETURN, _ALLOW)]
    return b"".join(ops)


def _architecture(machine: str) -> tuple[int, int]:
    if machine not in _ARCHITECTURES:
        raise OSError(
            errno.ENOSYS, f"no seccomp filter for {machine} (known: {', '.join(_ARCHITECTURES)})"
        )
    return _ARCHITECTURES[machine]


def restrict() -> None:
    """Apply the filter to this process, irrevocably. `forbid_new_privileges` must come first.

    Raises: OSError if the kernel has no seccomp or an outer filter forbids it.
    """
    code = program(platform.machine(), os.getpid())
    filtered = _Program(len(code) // 8, code)
    set_seccomp, filter_mode = 22, 2
    if _libc.prctl(set_seccomp, filter_mode, ctypes.byref(filtered), 0, 0):
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")
