"""Tries what a service must not be able to do, and prints what came of it, as JSON: runs inside."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import platform
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PTRACE_ATTACH = 16
INIT_MODULE = {"x86_64": 175, "aarch64": 105}  # glibc has no function for it


def call(name: str, *arguments: object) -> None:
    if getattr(LIBC, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def write(path: str) -> None:
    with Path(path).open("w") as file:
        file.write("probe")
    Path(path).unlink()


def run_written(folder: str) -> None:
    program = Path(folder) / "probe"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    try:
        pid = os.posix_spawn(program, [str(program)], {})
    finally:
        program.unlink()
    os.waitpid(pid, 0)


def runs_in(folder: str) -> bool:
    try:
        run_written(folder)
    except OSError:
        return False
    return True


def look_into(folder: str) -> None:
    list(Path(folder).iterdir())


def open_socket(family: int, kind: int = socket.SOCK_STREAM) -> None:
    socket.socket(family, kind).close()


def listen(port: int) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", port))
        one.listen()


def writable() -> list[str]:
    """Return each folder that this process may write, the uppermost of a tree alone."""
    found: list[str] = []
    for folder, below, _ in os.walk("/", onerror=None):
        if folder in {"/proc", "/sys"}:
            below.clear()
        elif os.access(folder, os.W_OK):
            found.append(folder)
            below.clear()
    return sorted(found)


def main(state: str) -> dict[str, str]:
    """Try all; `state` is the folder that it may write."""
    tries: dict[str, Callable[[], object]] = {
        "write /etc": lambda: write("/etc/probe"),
        "write /usr": lambda: write("/usr/probe"),
        "write /home": lambda: write("/home/probe"),
        "write /var/lib": lambda: write("/var/lib/probe"),
        "write /run": lambda: write("/run/probe"),
        "write /boot": lambda: write("/boot/probe"),
        "write its state": lambda: write(f"{state}/probe"),
        "write the line": lambda: write("/run/meterd.line/probe"),
        "run what it wrote": lambda: run_written(state),
        "read /root": lambda: look_into("/root"),
        "read the other's state": lambda: look_into(
            "/var/lib/meterd" if state.endswith("peer") else "/var/lib/meterd-peer"
        ),
        "read the shadow": lambda: Path("/etc/shadow").read_text(),
        "see process 1": lambda: look_into("/proc/1"),
        "internet socket": lambda: open_socket(socket.AF_INET),
        "internet socket, version 6": lambda: open_socket(socket.AF_INET6),
        "listen": lambda: listen(0),
        "listen on a port": lambda: listen(8080),
        "netlink socket": lambda: open_socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "packet socket": lambda: open_socket(socket.AF_PACKET, socket.SOCK_RAW),
        "raw socket": lambda: open_socket(socket.AF_INET, socket.SOCK_RAW),
        "unix socket": lambda: open_socket(socket.AF_UNIX),
        "new user namespace": lambda: call("unshare", CLONE_NEWUSER),
        "new network namespace": lambda: call("unshare", CLONE_NEWNET),
        "mount": lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
        "set the clock": lambda: time.clock_settime(time.CLOCK_REALTIME, 0),
        "be root": lambda: os.setuid(0),
        "make a file of root's": lambda: os.chown(state, 0, 0),
        "set-user-id": lambda: Path(state).chmod(0o4700),
        "trace a process": lambda: call("ptrace", PTRACE_ATTACH, 1, None, None),
        "write and execute memory": lambda: mmap.mmap(
            -1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        ),
        "restart the machine": lambda: call("reboot", 0x1234567),
        "load a module": lambda: call("syscall", INIT_MODULE[platform.machine()], None, 0, b""),
        "raise its priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, -10),
    }
    result = {}
    for what, attempt in tries.items():
        try:
            attempt()
            result[what] = "done"
        except OSError as error:
            result[what] = errno.errorcode.get(error.errno or 0, "?")
    folders = writable()
    return result | {
        "writable folders": " ".join(folders),
        "runs what it wrote in": " ".join(folder for folder in folders if runs_in(folder)),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
