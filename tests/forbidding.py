"""What some containers do: from here on, this process and its children cannot filter system calls."""

import ctypes
import struct


def forbid_filters() -> None:
    """Have prctl(PR_SET_SECCOMP) give EPERM, by a filter (x86-64) that lets all else pass."""
    load, equal, end = 0x20, 0x15, 0x06
    steps = [(load, 0, 0, 0), (equal, 0, 3, 157), (load, 0, 0, 16), (equal, 0, 1, 22)]
    steps += [(end, 0, 0, 0x00050001), (end, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, program, 0, 0) == 0
