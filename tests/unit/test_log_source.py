"""Taking from a log: lines, lengths, restarts and rotations, on real files with a real journal."""

from __future__ import annotations

import os
import shutil

import pytest

from nsbridge.agents.endpoints.log.config import Framing
from tests.log_life import Life, Make, framed


def test_a_missing_file_is_made_and_lines_are_taken_as_they_come(life: Life) -> None:
    life.start()
    assert life.log.read_bytes() == b""
    life.append(b"one\ntwo\r\n\n")
    life.expect(b"one", b"two\r", b"")
    life.append(b"three\n")
    life.expect(b"one", b"two\r", b"", b"three")


def test_the_first_start_takes_what_is_there_already(life: Life) -> None:
    life.append(b"old\n")
    life.start()
    life.expect(b"old")


def test_a_partial_line_waits_for_its_newline_across_a_restart(life: Life) -> None:
    life.start()
    life.append(b"one\ntw")
    life.expect(b"one")
    life.kill()
    life.start()
    life.expect(b"one")
    life.append(b"o\n")
    life.expect(b"one", b"two")


def test_a_partial_frame_waits_for_the_rest_across_a_restart(make: Make) -> None:
    life = make(framing=Framing.LENGTH)
    life.start()
    data = framed(b"a\nb", b"", b"\0" * 300)
    for at in range(0, len(data), 7):
        life.append(data[at : at + 7])
        life.host.settle()
        if at % 3 == 0:
            life.kill()
            life.start()
    life.expect(b"a\nb", b"", b"\0" * 300)


def test_a_restart_with_all_confirmed_repeats_and_loses_nothing(life: Life) -> None:
    life.append(b"one\ntwo\n")
    life.start()
    life.expect(b"one", b"two")
    life.kill()
    life.append(b"three\n")
    life.start()
    life.expect(b"one", b"two", b"three")
    assert not life.said + life.host.said


def test_a_retried_dead_letter_does_not_move_the_place(life: Life) -> None:
    life.append(b"one\ntwo\n")
    life.start()
    life.expect(b"one", b"two")
    for count in (1, 2, 3):
        assert life.host.give_back(b"given back")
        life.kill()
        life.start()
        life.expect(b"one", b"two", *[b"given back"] * count)
    life.append(b"three\n")
    life.expect(b"one", b"two", *[b"given back"] * 3, b"three")


def test_unconfirmed_messages_are_read_again_under_their_numbers(life: Life) -> None:
    life.append(b"one\ntwo\n")
    life.start(confirms=False)
    life.kill()
    life.received.clear()  # they were under way
    life.append(b"three\n")
    life.start()
    life.expect(b"one", b"two", b"three")


def test_a_restart_with_a_full_window_resumes_when_it_opens(make: Make) -> None:
    life = make(window=4)
    life.append(b"".join(b"%d\n" % number for number in range(20)))
    life.start(confirms=False)
    assert len(life.host.bodies()) == 3  # and one number for the beginning of the file
    life.kill()
    life.start()
    life.host.confirm()
    life.expect(*(b"%d" % number for number in range(20)))


def test_an_overlong_line_is_skipped_and_reported_with_its_place(life: Life) -> None:
    life.append(b"one\n" + b"x" * 1001 + b"\ntwo\n" + b"y" * 1000 + b"\n")
    life.start()
    life.expect(b"one", b"two", b"y" * 1000)
    assert life.warned("1002 bytes at byte 4 are passed over") == 1


def test_an_overlong_line_in_pieces_is_skipped_once(make: Make) -> None:
    life = make()
    life.start()
    life.append(b"one\n")
    for _ in range(8):
        life.append(b"x" * 300)
        life.host.settle()
        life.kill()
        life.start()
    life.append(b"\ntwo\n")
    life.expect(b"one", b"two")
    assert life.warned("passed over") == 1


def test_a_frame_that_is_too_long_is_passed_over(make: Make) -> None:
    life = make(framing=Framing.LENGTH)
    life.start()
    data = framed(b"one", b"x" * 5000, b"two")
    for at in range(0, len(data), 100):
        life.append(data[at : at + 100])
        life.host.settle()
    life.expect(b"one", b"two")
    assert life.warned("5004 bytes at byte 7 are passed over") == 1


def test_long_messages_and_many_short_ones_come_whole(make: Make) -> None:
    life = make(limit=3_000_000, window=2000)
    bodies = [b"x" * 3_000_000, *(b"%d" % number for number in range(100_000)), b"y" * 600_000]
    life.append(b"\n".join(bodies) + b"\n")
    life.start()
    life.expect(*bodies)


# -- rotation


def test_a_renamed_file_is_read_to_its_end_before_the_new_one(life: Life) -> None:
    life.start()
    life.append(b"one\n")
    life.expect(b"one")
    old = life.rotate()
    life.append(b"two\n", to=old)
    life.append(b"three\n")
    life.expect(b"one", b"two", b"three")


def test_the_new_file_waits_while_the_renamed_one_has_a_writer(life: Life) -> None:
    """A program that got the order to reopen its log writes into the old one for a while; status shows the wait."""
    life.start()
    with life.log.open("ab", buffering=0) as writer:
        writer.write(b"one\n")
        life.rotate()
        life.append(b"three\n")
        life.host.run_until(lambda: "still open for writing" in life.host.reason, "status says why")
        writer.write(b"two\nlast without newline")
        life.host.run_until(lambda: len(life.host.bodies()) == 2, "the old file is read on")
        assert life.host.bodies() == [b"one", b"two"]
    life.expect(b"one", b"two", b"last without newline", b"three")
    assert life.host.reason == ""


def test_the_last_line_of_a_renamed_file_needs_a_new_file(life: Life) -> None:
    life.start()
    life.append(b"one\ntw")
    old = life.rotate(create=False)
    life.expect(b"one")
    life.append(b"o", to=old)
    life.expect(b"one")
    life.log.touch()
    life.expect(b"one", b"two")


def test_an_incomplete_frame_at_a_renamed_file_s_end_is_reported(make: Make) -> None:
    life = make(framing=Framing.LENGTH)
    life.start()
    life.append(framed(b"one") + b"\0\0\0\5ab")
    life.expect(b"one")
    life.rotate()
    life.append(framed(b"two"))
    life.expect(b"one", b"two")
    assert life.warned("6 bytes at byte 7 are passed over") == 1


def test_a_deleted_file_is_read_to_its_end_while_it_is_open(life: Life) -> None:
    life.start()
    life.append(b"one\n")
    life.expect(b"one")
    with life.log.open("ab", buffering=0) as writer:
        life.log.unlink()
        writer.write(b"two\n")
    life.append(b"three\n")
    life.expect(b"one", b"two", b"three")


@pytest.mark.parametrize("confirms", [True, False])
def test_a_rotation_without_agent_loses_and_repeats_nothing(life: Life, confirms: bool) -> None:
    life.start(confirms=confirms)
    life.append(b"one\ntwo\n")
    life.expect(b"one", b"two")
    life.kill()
    if not confirms:
        life.received.clear()
    life.append(b"three\n")
    life.rotate("app.log-20260101")
    life.append(b"four\n")
    life.start()
    life.expect(b"one", b"two", b"three", b"four")
    assert not life.said + life.host.said


def test_several_rotations_without_agent_are_read_in_order(life: Life) -> None:
    life.start()
    life.append(b"one\n")
    life.expect(b"one")
    life.kill()
    for number, body in enumerate((b"two", b"three", b"four", b"five"), 1):
        life.append(body + b"\n")
        os.utime(life.log, (number, number))
        for older in range(number - 1, 0, -1):
            (life.directory / f"app.log.{older}").rename(life.directory / f"app.log.{older + 1}")
        life.rotate()
    (life.directory / "app.log.9.gz").write_bytes(b"no log\n")
    (life.directory / "app.log.err").write_bytes(b"another log\n")
    life.append(b"six\n")
    life.start()
    life.expect(b"one", b"two", b"three", b"four", b"five", b"six")
    assert not life.said + life.host.said


def test_a_copy_of_the_log_beside_it_is_not_read(life: Life) -> None:
    life.start()
    life.append(b"one\n")
    life.expect(b"one")
    life.kill()
    life.append(b"two" * 100 + b"\n")
    life.rotate()
    os.utime(life.directory / "app.log.1", (5, 5))
    shutil.copy(life.directory / "app.log.1", life.directory / "app.log.2026-01-01")
    life.append(b"three\n")
    life.start()
    life.expect(b"one", b"two" * 100, b"three")
    assert life.warned("taken for a copy") == 1


@pytest.mark.parametrize("how", ["deleted", "moved away"])
def test_a_file_lost_without_agent_is_reported(life: Life, how: str) -> None:
    life.append(b"one\n")
    life.start()
    life.expect(b"one")
    life.kill()
    keeper = life.log.open("rb")  # or the new file might get the same inode, which a different test covers
    life.append(b"lost\n")
    old = life.rotate()
    if how == "deleted":
        old.unlink()
    else:
        old.rename(life.directory.parent / "elsewhere")
    life.append(b"two\n")
    life.start()
    life.expect(b"one", b"two")
    keeper.close()
    assert life.warned("no longer in its directory") == 1
    life.kill()
    life.start()
    life.expect(b"one", b"two")
    assert life.warned("no longer in its directory") == 1, "it is reported once"


def test_unconfirmed_messages_of_a_deleted_file_are_reported(life: Life) -> None:
    life.append(b"one\ntwo\n")
    life.start(confirms=False)
    life.kill()
    del life.received[2:]  # the beginning of the file, one; two was under way
    keeper = life.log.open("rb")
    life.log.unlink()
    life.append(b"three\n")
    life.start()
    life.expect(b"one", b"three")
    keeper.close()
    assert life.warned("the message at byte 4 was taken, but lost before delivery") == 1


def test_a_directory_that_is_replaced_is_opened_anew(life: Life) -> None:
    life.start()
    life.append(b"one\n")
    life.expect(b"one")
    life.directory.rename(life.directory.parent / "old")
    life.directory.mkdir()
    life.append(b"two\n")
    life.expect(b"one", b"two")
    assert life.warned("no longer in its directory") == 1


def test_several_appending_writers_are_read_in_file_order(life: Life) -> None:
    life.start()
    with life.log.open("ab", buffering=0) as one, life.log.open("ab", buffering=0) as two:
        for number in range(50):
            (one if number % 3 else two).write(b"%d\n" % number)
    life.expect(*(b"%d" % number for number in range(50)))


def test_writers_that_overwrite_each_other_are_reported(life: Life) -> None:
    """Without O_APPEND each has a place of its own, so the second writes over what was read."""
    life.start()
    with life.log.open("r+b", buffering=0) as one, life.log.open("r+b", buffering=0) as two:
        one.write(b"one\n")
        life.expect(b"one")
        two.write(b"two\nthree\n")
        life.expect(b"one", b"two", b"three")
    assert life.warned("was truncated or written anew") == 1


def test_lines_after_a_file_has_ended_are_not_read(life: Life) -> None:
    life.start()
    life.append(b"one\n")
    life.expect(b"one")
    old = life.rotate()
    life.append(b"two\n")
    life.expect(b"one", b"two")
    life.append(b"too late\n", to=old)
    life.append(b"three\n")
    life.expect(b"one", b"two", b"three")
