"""Runs one program, read from stdin, after giving up what it must not have. Started by sandbox.py as a script of its
own, with the standard library alone: `cell.py TOKEN CPU_SECONDS MEMORY_BYTES FILE_BYTES`. Prints TOKEN when the
program ran to its end; exit code 77 when the network can't be cut off.
"""

import ctypes
import os
import platform
import resource
import signal
import struct
import sys

NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
# (number of socket(2), audit architecture) by machine
SOCKET_CALL = {"x86_64": (41, 0xC000003E), "aarch64": (198, 0xC00000B7)}
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
# write_file, remove_dir, remove_file and every make_*: the rights of Landlock's first version that change anything
WRITES = 1 << 1 | sum(1 << bit for bit in range(4, 13))


def libc():
    return ctypes.CDLL(None, use_errno=True)


def cut_off_network():
    """Returns "namespaces" or "seccomp": how it was done; OSError when neither works."""
    if libc().unshare(NEWUSER | NEWNET | NEWPID | NEWIPC | NEWNS) == 0:
        return "namespaces"
    forbid_sockets()
    return "seccomp"


def forbid_sockets():
    """A seccomp filter under which socket(2) fails with EACCES."""
    if platform.machine() not in SOCKET_CALL:
        raise OSError(f"no namespaces, and no filter for {platform.machine()}")
    call, architecture = SOCKET_CALL[platform.machine()]
    code = [
        (0x20, 0, 0, 4),  # load the architecture
        (0x15, 1, 0, architecture),
        (0x06, 0, 0, 0x80000000),  # another one: kill the process
        (0x20, 0, 0, 0),  # load the call's number
        (0x15, 0, 1, call),
        (0x06, 0, 0, 0x00050000 | 13),
        (0x06, 0, 0, 0x7FFF0000),  # allow
    ]
    program = b"".join(struct.pack("HBBI", *line) for line in code)
    held = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", len(code), ctypes.addressof(held))
    no_new_privileges()
    if libc().prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(header), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp is not permitted")


def no_new_privileges():
    libc().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def write_only_below(folder):
    """Landlock: nothing outside `folder` (and /dev/null) can be written, made or removed. False on older kernels."""
    call = libc().syscall
    rules = call(LANDLOCK_CREATE, ctypes.create_string_buffer(struct.pack("Q", WRITES)), 8, 0)
    if rules < 0:
        return False
    for path, rights in ((folder, WRITES), ("/dev/null", 1 << 1)):
        handle = os.open(path, os.O_PATH)
        call(LANDLOCK_ADD, rules, 1, ctypes.create_string_buffer(struct.pack("=Qi", rights, handle)), 0)
        os.close(handle)
    no_new_privileges()
    return call(LANDLOCK_RESTRICT, rules, 0) == 0


def main():
    token, cpu, memory, size = sys.argv[1], *map(int, sys.argv[2:5])
    program = sys.stdin.buffer.read().decode("utf-8")
    try:
        how = cut_off_network()
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(77)
    if how == "namespaces":  # the first child is the first process of the new namespace: when it ends, all end
        child = os.fork()
        if child:
            # Only this process sees when all of the namespace is gone: its first process ends after the others.
            signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
            status = os.waitpid(child, 0)[1]
            os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
    write_only_below(os.getcwd())
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    exec(compile(program, "<generated>", "exec"), {"__name__": "__main__"})
    sys.stdout.flush()
    print(token, flush=True)


if __name__ == "__main__":
    main()
