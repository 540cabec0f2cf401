"""The errors a person sees: each is one line that says what, where, why and what would fix it.

Only these reach a command's `main`; each carries the exit code that interface documents.
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_RUNNING = 3
EXIT_UNREACHABLE = 4
EXIT_NO_SUCH_NAME = 5
EXIT_NOT_PERMITTED = 77
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class NsbridgeError(Exception):
    """Something failed in a way that a person can read about; `str()` is one line (ConfigError: one a problem)."""

    exit_code = EXIT_FAILED


class ConfigError(NsbridgeError):
    """The configuration is wrong; `problems` are complete lines, each naming file and key."""

    exit_code = EXIT_USAGE

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class UsageError(NsbridgeError):
    """The command line is wrong."""

    exit_code = EXIT_USAGE


class UnreachableError(NsbridgeError):
    """The daemon cannot be reached over its control socket, or does not answer in time."""

    exit_code = EXIT_UNREACHABLE


class NoSuchNameError(NsbridgeError):
    """No route or agent has that name."""

    exit_code = EXIT_NO_SUCH_NAME


class NotPermittedError(NsbridgeError):
    """The caller may not do this: not root, or not in the group."""

    exit_code = EXIT_NOT_PERMITTED
