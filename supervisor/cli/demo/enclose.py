"""A container in forty lines: runs a program in mount, ipc, pid and uts namespaces of its own.

usage: enclose PID_FD DIRECTORY PROGRAM [ARG...]

A tmpfs is mounted over DIRECTORY, where no process outside can see it. The program's pid goes to the descriptor PID_FD,
as a line of digits. When the process that started this dies, this and the program die too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial

from nsbridge.agents import linux
from nsbridge.config.errors import EXIT_FAILED, EXIT_NOT_PERMITTED


def main() -> int:
    """Return the program's exit code (as a shell does: 128 + signal); 77 if this process may not make namespaces."""
    pid_fd, directory, *command = sys.argv[1:]
    try:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWPID | linux.CLONE_NEWUTS)
        linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)  # what is mounted from here on stays here
        linux.mount("tmpfs", directory, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0700")
    except OSError as error:
        sys.stderr.write(f"{error.strerror}\n")
        return EXIT_NOT_PERMITTED if isinstance(error, PermissionError) else EXIT_FAILED
    # A new pid namespace begins with the next child, which is its init: with it everything inside ends.
    die_with_us = partial(linux.prctl, linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    program = subprocess.Popen(command, preexec_fn=die_with_us)  # noqa: S603, PLW1509  (no other thread here)
    os.write(int(pid_fd), b"%d\n" % program.pid)
    os.close(int(pid_fd))
    code = program.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
