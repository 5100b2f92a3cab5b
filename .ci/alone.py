"""Runs a command where no other machine can reach it: in a network of its own that has nothing but loopback.

    python .ci/alone.py COMMAND ARGUMENT…

For servers that listen on all interfaces and cannot be told otherwise. Needs Linux and the right to make namespaces;
without it the command runs all the same, and a line on stderr says so.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000
SET_FLAGS, UP = 0x8914, 0x1


def leave() -> None:
    """Enter a new network namespace and bring its loopback up.

    Raises:
        OSError: this system or user cannot.
    """
    if not sys.platform.startswith("linux"):
        raise OSError("no namespaces here")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_NETWORK):  # not privileged: as the owner of a user namespace it may
        user, group = os.getuid(), os.getgid()
        if libc.unshare(NEW_USER | NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "no new namespace")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        fcntl.ioctl(line, SET_FLAGS, struct.pack("16sh14x", b"lo", UP))


if __name__ == "__main__":
    try:
        leave()
    except OSError as error:
        sys.stderr.write(f"No network of its own ({error}): the command can be reached from outside.\n")
    os.execvp(sys.argv[1], sys.argv[1:])
