"""Reports about a log to the operator: lines in the daemon's log, and the count of missing files."""

from __future__ import annotations

from nsbridge.agents.endpoints.base import AgentApi
from nsbridge.agents.endpoints.log.cells import LOG_TRUNCATIONS
from nsbridge.agents.endpoints.log.framing import TooLong
from nsbridge.agents.endpoints.log.model import Missed
from nsbridge.agents.endpoints.log.tail import Positions
from nsbridge.agents.journal.sourcejournal import SourceJournal


class Reports:
    """The reports of one log; messages name it as `shown`."""

    def __init__(self, host: AgentApi, shown: str, journal: SourceJournal, positions: Positions) -> None:
        self._host = host
        self._shown = shown
        self._journal = journal
        self._positions = positions

    def show(self) -> None:
        """Show the count of missing files in `status`."""
        self._host.missed(self._positions.missed, self._positions.missed_bytes)

    def no_position(self) -> None:
        """Warn that the journal has no position."""
        self.warn(f"{self._shown}: the journal has no position for this log: it is read from its start")

    def gone(self, end: int) -> None:
        """Warn that the file that was read is not in the directory."""
        what = f"the file that was read up to byte {end} is no longer in its directory"
        self.warn(f"{self._shown}: {what}: lines appended to it later are lost; reading continues with later files")

    def truncated(self) -> None:
        """Warn that the file was truncated, and count that."""
        cells = self._journal.cells
        cells[LOG_TRUNCATIONS] += 1
        what = f"was truncated or written anew ({cells[LOG_TRUNCATIONS]} times so far)"
        self.warn(f"{self._shown} {what}: unread lines are lost unless a copy has them; it is read from its start")

    def passed_over(self, item: TooLong, at: int, longest: int) -> None:
        """Warn that bytes of the file were skipped because they cannot be a message."""
        what = f"{item.size} bytes at byte {at} are passed over and left there: more than max_message"
        self.warn(f"{self._shown}: {what} = {longest}, a hole, or the incomplete end of a file")

    def missed(self, missed: Missed, why: str) -> None:
        """Warn of files that cannot be read, and count them; the count is published with the next position."""
        if not missed.files:
            return
        self._positions.miss(*missed)
        files = "1 file" if missed.files == 1 else f"{missed.files} files"
        size = f"{missed.size} bytes" if missed.size else "an unknown number of bytes"
        what = f"{files} of this log, {size} at least, cannot be read: {why}"
        self.warn(f"{self._shown}: {what}; make the rotation keep files longer (delaycompress, rotate)")
        self.show()

    def gone_messages(self, count: int, start: int, missed: Missed) -> int:
        """Count messages that were taken, not delivered and cannot be read again; return how many.

        The count is published at once, because no position follows.
        """
        which = "the message" if count == 1 else f"{count} messages"
        what = f"{which} at byte {start} {'was' if count == 1 else 'were'} taken, but lost before delivery"
        self.warn(f"{self._shown}: {what} (the file was truncated, moved away or deleted)")
        self._positions.miss(*missed)
        self._positions.publish_missed()
        self.show()
        return count

    def warn(self, text: str) -> None:
        """Log a warning."""
        self._host.log("warning", text)
