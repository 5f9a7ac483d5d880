"""What a compilation may use, and the fences around its process: resource limits and a system call filter.

Memory is limited by RLIMIT_DATA, counted from what the process has when its job begins: RLIMIT_AS would have
to allow for what PyTorch maps and never touches. The filter is a list of the calls that arithmetic needs;
any other fails with EPERM, so no file is opened, no socket made, no process or thread started. Where the
kernel refuses the filter, the resource limits stand: no descriptor can be opened and nothing written.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from esper.errors import ConfigError

ANSWER_BYTES = 1 << 30
"""The most that a job may answer with: the budget of a kernel, which is the largest thing it makes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one job may take: seconds on the clock, seconds of CPU, and MiB beside PyTorch itself."""

    wall_seconds: float = 30.0
    cpu_seconds: int = 20
    memory_mb: int = 2048

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 < getattr(self, field.name) <= 1_000_000:
                raise ConfigError(f"tezzeret.limits.{field.name} must be above 0 and at most 1,000,000")


def confine(limits: Limits) -> str | None:
    """Put this process, of Linux, under ``limits``, for good; returns why its calls are not filtered, if so.

    The process should have one thread: only the caller's calls are filtered.
    """
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    bounds = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_DATA: used + limits.memory_mb * 2**20,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 0,  # what is open stays open
        resource.RLIMIT_NPROC: 0,
    }
    for name, most in bounds.items():
        # Past the soft limit of CPU time comes SIGXCPU, which tells that limit from others; then SIGKILL.
        wanted = most + (name == resource.RLIMIT_CPU)
        hard = resource.getrlimit(name)[1]
        hard = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(name, (min(most, hard), hard))
    return _filter_calls()


def filter_refusal() -> str | None:
    """Why system calls cannot be filtered here, tried in a process of its own; None where they can."""
    if sys.platform != "linux":
        return f"worker processes need Linux, and this is {sys.platform}"
    code = "from esper.tezzeret.limits import _filter_calls; print(_filter_calls() or '')"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    if done.returncode != 0:
        return f"a process under the filter ended with {done.returncode}"
    return done.stdout.strip() or None


def name_process(name: str) -> None:
    """Have this process called ``name``, of 15 letters at most, where processes are listed."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that forked it ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


# Linux, x86-64: include/uapi/linux/{prctl,seccomp,filter,audit}.h and arch/x86/entry/syscalls/syscall_64.tbl.
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 15, 22, 38
_FILTER_MODE = 2
_X86_64 = 0xC000003E
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _KILL, _EPERM = 0x7FFF0000, 0x80000000, 0x00050001
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4
_ALLOWED_CALLS = {
    "read": 0,
    "write": 1,
    "close": 3,
    "fstat": 5,
    "poll": 7,
    "lseek": 8,
    "mmap": 9,
    "mprotect": 10,
    "munmap": 11,
    "brk": 12,
    "rt_sigaction": 13,
    "rt_sigprocmask": 14,
    "rt_sigreturn": 15,
    "sched_yield": 24,
    "mremap": 25,
    "madvise": 28,
    "nanosleep": 35,
    "getpid": 39,
    "exit": 60,
    "gettimeofday": 96,
    "getrusage": 98,
    "sigaltstack": 131,
    "gettid": 186,
    "time": 201,
    "futex": 202,
    "sched_getaffinity": 204,
    "restart_syscall": 219,
    "clock_gettime": 228,
    "clock_getres": 229,
    "clock_nanosleep": 230,
    "exit_group": 231,
    "getcpu": 309,
    "getrandom": 318,
    "membarrier": 324,
    "rseq": 334,
}


def _filter_calls() -> str | None:
    if platform.machine() != "x86_64":
        return f"there is no filter of system calls for {platform.machine()}"
    calls = sorted(_ALLOWED_CALLS.values())
    steps = [(_LOAD, 0, 0, _ARCHITECTURE_AT), (_JUMP_EQUAL, 1, 0, _X86_64), (_RETURN, 0, 0, _KILL)]
    steps += [(_LOAD, 0, 0, _NUMBER_AT)]
    steps += [(_JUMP_EQUAL, len(calls) - index, 0, call) for index, call in enumerate(calls)]
    steps += [(_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _FILTER_MODE, program, 0, 0)):
        if libc.prctl(*arguments) != 0:
            return f"the kernel refuses to filter system calls: {os.strerror(ctypes.get_errno())}"
    return None
