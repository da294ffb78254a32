"""Programs that attack their machine; each is known to succeed without a sandbox.

An attack is the body of a function of `t`, a dictionary of targets that `run` lays out; where it
comes to its end, it has got through. `BITES` names those that must do so at level none: all but
the ones that would harm the machine, or kill themselves.
"""

PREAMBLE = """\
import ctypes, errno, fcntl, mmap, os, resource, signal, socket, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def call(x86, arm, *arguments):
    number = {'x86_64': x86, 'aarch64': arm}[os.uname().machine]
    values = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *values)
    if result < 0: raise OSError(ctypes.get_errno(), 'refused')
    return result
def check(result):
    if result < 0: raise OSError(ctypes.get_errno(), 'refused')
"""

NETWORK = {
    "tcp": "socket.create_connection(('127.0.0.1', t['port']), 1)",
    "tcp_listen": "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()",
    "udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', t['udp']))",
    "unix": "socket.socket(socket.AF_UNIX).connect(t['socket'])",
    "abstract": "socket.socket(socket.AF_UNIX).connect('\\0' + t['abstract'])",
    "datagram_pair": "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    "a.sendto(b'x', t['datagram'])",
    "pass_a_descriptor": "a, b = socket.socketpair()\nsocket.send_fds(a, [b'x'], [0])",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).bind((0, 0))",
}

FILES = {
    "read_secret": "open(t['secret']).read()",
    "read_upwards": "open('../' * 40 + t['secret']).read()",
    "read_by_symlink": "os.symlink(t['secret'], 'link'); open('link').read()",
    "read_by_hard_link": "os.link(t['secret'], t['folder'] + '/link')",
    "read_by_mmap": "mmap.mmap(os.open(t['secret'], 0), 1, prot=1)[:]",
    "read_passwd": "open('/etc/passwd').read()",
    "list_folder": "os.listdir(t['folder'])",
    "chdir_and_list": "os.chdir(t['folder']); os.listdir('.')",
    "write_new": "open(t['folder'] + '/new', 'w').write('x')",
    "write_old": "open(t['victim'], 'a').write('x')",
    "truncate": "os.truncate(t['victim'], 0)",
    "truncate_by_reading": "os.open(t['victim'], os.O_RDONLY | os.O_TRUNC)",
    "remove": "os.remove(t['victim'])",
    "rename": "os.rename(t['victim'], t['victim'] + '2')",
    "make_folder": "os.mkdir(t['folder'] + '/new')",
    "make_symlink": "os.symlink('x', t['folder'] + '/new')",
    "make_fifo": "os.mkfifo(t['folder'] + '/new')",
    "remove_all": "import shutil; shutil.rmtree(t['folder'])",
    "chmod": "os.chmod(t['victim'], 0o777)",
    "chmod_library": "os.chmod(os.__file__, os.stat(os.__file__).st_mode)",
    "fchmod_library": "f = open(os.__file__); os.fchmod(f.fileno(), os.fstat(0).st_mode & 0o644)",
    "write_library": "open(os.__file__, 'r+')",
    "chown": "os.chown(t['victim'], -1, os.getgid())",
    "utime": "os.utime(t['victim'], (0, 0))",
    "attribute": "os.setxattr(t['victim'], 'user.x', b'x')",
    "device": "os.mknod(t['folder'] + '/new', 0o20600, os.makedev(1, 3))",
    "kernel_log": "os.open('/dev/kmsg', os.O_RDONLY)",
    "shared_memory_file": "path = '/dev/shm/attack-' + t['abstract']\n"
    "os.close(os.open(path, os.O_CREAT | os.O_WRONLY)); os.remove(path)",
    "memfd": "os.memfd_create('x')",
    "handle": "handle = ctypes.create_string_buffer(b'\\x80\\0\\0\\0' + bytes(200))\n"
    "call(303, 264, -100, t['secret'].encode(), handle, ctypes.byref(ctypes.c_int()), 0)\n"
    "call(304, 265, os.open(t['folder'], 0), handle, 0)",
    "sysctl": "open('/proc/sys/kernel/hostname', 'r+')",
}

OTHERS = {
    "environ_of_grader": "assert b'SECRET' in open(f\"/proc/{t['runner']}/environ\", 'rb').read()",
    "memory_of_grader": "open(f\"/proc/{t['runner']}/mem\", 'rb')",
    "descriptors_of_grader": "os.listdir(f\"/proc/{t['runner']}/fd\")",
    "descriptor_link_of_grader": "os.readlink(f\"/proc/{t['runner']}/fd/{t['inherited']}\")",
    "cmdline_of_grader": "open(f\"/proc/{t['runner']}/cmdline\").read()",
    "root_of_grader": "open(f\"/proc/{t['runner']}/root{t['secret']}\").read()",
    "processes": "assert sum(name.isdigit() for name in os.listdir('/proc')) > 1",
    "inherited_descriptor": "os.lseek(t['inherited'], 0, 0); assert os.read(t['inherited'], 1)",
    "any_descriptor": "for n in range(4, 1024):\n"
    "    try: os.fstat(n); break\n"
    "    except OSError: pass\n"
    "else: raise ValueError\n",
    "kill": "os.kill(t['pid'], 9)",
    "stop": "os.kill(t['pid'], signal.SIGSTOP)",
    "kill_all": "os.kill(-1, 9)",
    "kill_group_of_grader": "os.killpg(os.getpgid(t['runner']), 0)",
    "kill_parent": "os.kill(os.getppid(), 9)",
    "signal_parent": "os.kill(os.getppid(), 0)",
    "pidfd": "signal.pidfd_send_signal(os.pidfd_open(t['pid']), 9)",
    "queue_signal": "info = (ctypes.c_int * 32)(10, 0, -1)\ncall(129, 138, t['pid'], 10, info)",
    "signal_by_descriptor": "f = open('x', 'w'); fcntl.fcntl(f, fcntl.F_SETOWN, t['pid'])",
    "ptrace": "check(libc.ptrace(0x4206, t['pid'], None, None))",
    "read_memory": "here = ctypes.create_string_buffer(8)\n"
    "one = (ctypes.c_size_t * 2)(ctypes.addressof(here), 8)\n"
    "try: call(310, 270, t['pid'], one, 1, one, 1, 0)\n"
    "except OSError as error:\n    if error.errno != errno.EFAULT: raise",
    "write_memory": "one = (ctypes.c_size_t * 2)(0, 8)\n"
    "try: call(311, 271, t['pid'], one, 1, one, 1, 0)\n"
    "except OSError as error:\n    if error.errno != errno.EFAULT: raise",
    "limits_of_another": "resource.prlimit(t['pid'], resource.RLIMIT_NOFILE, (1, 1))",
    "affinity_of_another": "os.sched_setaffinity(t['pid'], {min(os.sched_getaffinity(0))})",
    "nice_of_another": "os.setpriority(os.PRIO_PROCESS, t['pid'], 19)",
    "get_descriptor": "call(438, 438, os.pidfd_open(t['pid']), 0, 0)",
}

PROCESSES = {
    "fork": "pid = os.fork()\nif not pid: os._exit(0)\nos.waitpid(pid, 0)",
    "fork_bomb": "while True: os.fork()",
    "vfork_exec": "os.posix_spawn('/bin/true', ['true'], {})",
    "subprocess": "subprocess.run(['true'], check=True)",
    "shell": "assert os.system('true') == 0",
    "pty": "import pty; pty.fork()[0] or os._exit(0)",
    "exec": "os.execv(sys.executable, [sys.executable, '-c', t['touch']])",
    "exec_memory": "fd = os.memfd_create('x'); os.write(fd, open('/bin/true', 'rb').read())\n"
    "os.execve(fd, ['true'], {})",
    "loader": "os.execv('/lib64/ld-linux-x86-64.so.2', ['ld', sys.executable, '-c', t['touch']])",
    "daemon": "if not os.fork():\n    os.setsid()\n    if os.fork(): os._exit(0)\n"
    "    open(t['folder'] + '/daemon', 'w'); os._exit(0)\n"
    "while not os.path.exists(t['folder'] + '/daemon'): time.sleep(0.01)",
    "sleeping_child": "os.fork() or time.sleep(60)",
    "multiprocessing": "import multiprocessing as m\n"
    "p = m.get_context('fork').Process(target=int); p.start(); p.join(); assert p.exitcode == 0",
    "raw_clone": "pid = call(56, 220, 17, 0, 0, 0, 0)\nif not pid: os._exit(0)\nos.waitpid(pid, 0)",
    "raw_clone3": "a = (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17); pid = call(435, 435, a, 88)\n"
    "if not pid: os._exit(0)\nos.waitpid(pid, 0)",
    "clone_namespace": "pid = call(56, 220, 0x10000011, 0, 0, 0, 0)\n"
    "if not pid: os._exit(0)\nos.waitpid(pid, 0)",
}

KERNEL = {
    "user_namespace": "check(libc.unshare(0x10000000))",
    "mount_namespace": "check(libc.unshare(0x10000000 | 0x20000))",
    "join_namespace": "check(libc.setns(os.open('/proc/self/ns/net', 0), 0))",
    "mount": "folder = t['folder'].encode()\n"
    "check(libc.mount(b'x', folder, b'tmpfs', ctypes.c_ulong(0), None))\nlibc.umount2(folder, 2)",
    "new_mount_api": "call(430, 430, b'tmpfs', 0)",
    "chroot": "os.chroot('/')",
    "io_uring": "call(425, 425, 1, ctypes.create_string_buffer(120))",
    "bpf": "a = (ctypes.c_uint32 * 18)(2, 4, 4, 1); call(321, 280, 0, a, 72)",
    "perf": "a = (ctypes.c_uint32 * 32)(1, 128, 0); call(298, 241, a, 0, -1, -1, 0)",
    "userfaultfd": "call(323, 282, 1)",
    "key_ring": "call(248, 217, b'user', b'attack', b'x', 1, -2)",
    "shm_segment": "n = libc.shmget(0, 4096, 0o600); check(n); check(libc.shmctl(n, 0, None))",
    "semaphores": "n = libc.semget(0, 1, 0o600); check(n); check(libc.semctl(n, 0, 0))",
    "message_queue": "n = libc.msgget(0, 0o600); check(n); check(libc.msgctl(n, 0, None))",
    "raise_limit": "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
    "raise_file_limit": "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 40, 1 << 40))",
    "nice": "os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + 1)",
    "scheduler": "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",
    "realtime": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    "personality": "check(libc.personality(ctypes.c_ulong(0x0040000)))",
    "outlive": "check(libc.prctl(1, 0, 0, 0, 0))",
    "become_reaper": "check(libc.prctl(36, 1, 0, 0, 0))",
    "host_name": "socket.sethostname(socket.gethostname())",
    "clock": "time.clock_settime(time.CLOCK_REALTIME, time.time())",
    "change_user": "os.setresuid(65534, 65534, 65534)",
    "other_architecture": "code = mmap.mmap(-1, 4096, prot=7)\n"
    "code.write(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3')  # getpid of i386\n"
    "at = ctypes.addressof(ctypes.c_char.from_buffer(code))\n"
    "assert ctypes.CFUNCTYPE(ctypes.c_int)(at)() == os.getpid()",
    "x32": "call(0x40000000 + 41, 0x40000000, 2, 1, 0)",
    "lock_memory": "m = mmap.mmap(-1, 1 << 24)\n"
    "a = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
    "check(libc.mlock(ctypes.c_void_p(a), ctypes.c_size_t(1 << 24)))",
    "kernel_module": "call(175, 105, b'', 0, b'')",
    "reboot": "call(169, 142, 1, 1, 1, 0)",
    "file_watch": "check(libc.inotify_init())",
}

RESOURCES = {
    "memory": "m = mmap.mmap(-1, 6 << 30)",
    "memory_in_pieces": "m = [mmap.mmap(-1, 64 << 20) for _ in range(100)]",
    "threads": "threading.stack_size(1 << 16)\nfor _ in range(800):\n"
    "    threading.Thread(target=time.sleep, args=(5,), daemon=True).start()\ntime.sleep(0.4)",
    "descriptors": "fs = [os.dup(0) for _ in range(500)]",
    "big_file": "with open('x', 'wb') as f: f.write(bytes(40 << 20))",
    "sparse_file": "with open('x', 'wb') as f: f.truncate(1 << 40)",
    "much_in_files": "for n in range(6):\n    open(str(n), 'wb').write(bytes(20 << 20))\n"
    "time.sleep(0.4)",
    "many_files": "for n in range(4500): open(str(n), 'w').close()\ntime.sleep(0.3)",
    "nested_folders": "for n in range(4500): os.mkdir('x'); os.chdir('x')\ntime.sleep(0.3)",
    "big_output": "for n in range(40): os.write(1, bytes(1 << 20))",
    "signals_blocked": "signal.pthread_sigmask(2, range(1, 64))\nwhile True: time.sleep(1)",
}

BODIES = NETWORK | FILES | OTHERS | PROCESSES | KERNEL | RESOURCES

# left out at level none: they would harm the machine that runs the tests, end themselves, ask for
# what many machines lack, or find no descriptor there either
_HARMFUL = {"kill_all", "fork_bomb", "clock", "kernel_module", "reboot", "sysctl", "outlive"}
_FATAL = {"kill_parent", "exec", "exec_memory", "loader", "signals_blocked", "sleeping_child"}
_RARE = {"x32", "other_architecture", "kernel_log", "attribute", "userfaultfd", "perf", "realtime"}
_NEVER = {"any_descriptor", "inherited_descriptor"}
_OF_ROOT = {"mount", "new_mount_api", "chroot", "bpf", "handle", "device", "host_name"} | {
    *("change_user", "join_namespace", "write_library", "chmod_library", "fchmod_library"),
    *("lock_memory", "memory_of_grader"),
}
BITES_AS_ROOT = BODIES.keys() - _HARMFUL - _FATAL - _RARE - _NEVER
BITES = BITES_AS_ROOT - _OF_ROOT


def program(body: str) -> str:
    """The attack as a solution that returns "bitten" where it gets through."""
    lines = "\n    ".join(body.split("\n"))
    return f"{PREAMBLE}\ndef f(t):\n    {lines}\n    return 'bitten'\n"
