"""What the operator hears of a log: lines for the daemon's log, and the count of what is missing."""

from __future__ import annotations

from nsbridge.agents.endpoints.base import Host
from nsbridge.agents.endpoints.log_framing import TooLong
from nsbridge.agents.endpoints.log_model import Missed
from nsbridge.agents.endpoints.log_tail import Positions
from nsbridge.agents.journal import LOG_TRUNCATIONS, SourceJournal


class Reports:
    """Of one log, `shown` to people by its path."""

    def __init__(self, host: Host, shown: str, journal: SourceJournal, positions: Positions) -> None:
        self._host = host
        self._shown = shown
        self._journal = journal
        self._positions = positions

    def show(self) -> None:
        """Show how much is missing in `status`."""
        self._host.missed(self._positions.missed, self._positions.missed_bytes)

    def no_position(self) -> None:
        """The journal has no place."""
        self.warn(f"{self._shown}: the journal has no position for this log: it is read from its start")

    def gone(self, end: int) -> None:
        """The file that was read is not in the directory."""
        what = f"the file that was read up to byte {end} is no longer in its directory"
        self.warn(f"{self._shown}: {what}: lines appended to it later are lost; reading continues with later files")

    def truncated(self) -> None:
        """The file was truncated."""
        cells = self._journal.cells
        cells[LOG_TRUNCATIONS] += 1
        what = f"was truncated or written anew ({cells[LOG_TRUNCATIONS]} times so far)"
        self.warn(f"{self._shown} {what}: unread lines are lost unless a copy has them; it is read from its start")

    def passed_over(self, item: TooLong, at: int, longest: int) -> None:
        """Something in the file can be no message."""
        what = f"{item.size} bytes at byte {at} are passed over and left there: more than max_message"
        self.warn(f"{self._shown}: {what} = {longest}, a hole, or the incomplete end of a file")

    def missed(self, missed: Missed, why: str) -> None:
        """Count what cannot be read; it is published with the next place."""
        if not missed.files:
            return
        self._positions.miss(*missed)
        files = "1 file" if missed.files == 1 else f"{missed.files} files"
        size = f"{missed.size} bytes" if missed.size else "an unknown number of bytes"
        what = f"{files} of this log, {size} at least, cannot be read: {why}"
        self.warn(f"{self._shown}: {what}; make the rotation keep files longer (delaycompress, rotate)")
        self.show()

    def gone_messages(self, count: int, start: int, missed: Missed) -> int:
        """Messages that were taken and not delivered cannot be read again: count them, and return how many.

        That is published at once, for no place follows.
        """
        which = "the message" if count == 1 else f"{count} messages"
        what = f"{which} at byte {start} {'was' if count == 1 else 'were'} taken, but lost before delivery"
        self.warn(f"{self._shown}: {what} (the file was truncated, moved away or deleted)")
        self._positions.miss(*missed)
        self._positions.publish_missed()
        self.show()
        return count

    def warn(self, text: str) -> None:
        """Put a warning into the log."""
        self._host.log("warning", text)
