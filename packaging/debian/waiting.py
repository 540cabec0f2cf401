"""Prints what waits in the state directory, a line each: messages that were taken and not delivered, dead letters.

The package's removal runs it, so that a purge keeps what would be lost. Nothing waits where it prints nothing.
"""

import sys
import tomllib
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, "/usr/lib/nsbridge")

from nsbridge.agents import journalreader
from nsbridge.config.errors import NsbridgeError

DEFAULT = "/run/nsbridge"


def state_dir(configuration: Path) -> Path:
    """Return the configured directory, or the default if the file cannot be read."""
    with suppress(OSError, tomllib.TOMLDecodeError, AttributeError):
        named = tomllib.loads(configuration.read_text(encoding="utf-8")).get("daemon", {}).get("state_dir", DEFAULT)
        return Path(str(named))
    return Path(DEFAULT)


def waiting(state: Path) -> list[str]:
    """Return the lines. A journal that cannot be read counts as waiting."""
    lines = []
    for journal in sorted(state.glob("journal/*/*.out")):
        try:
            pending = journalreader.read(str(journal), 0)["pending"]
        except NsbridgeError as error:
            lines.append(str(error))
        else:
            lines += [f"{journal}: {pending} messages were taken and not delivered"] if pending else []
    for box in sorted(path for path in state.glob("dead/*/*") if path.is_dir()):
        if letters := sum(1 for path in box.glob("*.json")):
            lines.append(f"{box}: {letters} dead letters")
    return lines


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in waiting(state_dir(Path(sys.argv[1]))))
