"""The quota of dead letters: every combination of what there is, what there may be and what is full."""

from __future__ import annotations

import itertools

import pytest

from nsbridge.agents.dead.quota import FileSystem, KeptLetter, Quota, shown_size
from nsbridge.config.schema import DeadConfig, WhenFull

LARGE = FileSystem(1 << 40, 1 << 40, 1 << 20, 1 << 20)
BLOCK, DROP = WhenFull.BLOCK, WhenFull.DROP_OLDEST


def quota(sizes: list[int], *, age: float | None = None, **limits: object) -> Quota:
    made = Quota(DeadConfig(max_age=age, **limits))  # type: ignore[arg-type]
    made.replace(KeptLetter(f"{number}", size, float(number)) for number, size in enumerate(sizes))
    return made


def names(letters: tuple[KeptLetter, ...]) -> str:
    return "".join(letter.name for letter in letters)


@pytest.mark.parametrize("when_full", list(WhenFull))
@pytest.mark.parametrize("size", [0, 1, 5, 10, 11, 100])
@pytest.mark.parametrize("max_bytes", [1, 10, 25])
@pytest.mark.parametrize("max_letters", [1, 2, 3])
def test_admission_keeps_both_limits_and_drops_only_what_it_must(
    max_letters: int, max_bytes: int, size: int, when_full: WhenFull
) -> None:
    """With any number of letters, also beyond the limits, which may have been larger."""
    for count in range(5):
        for sizes in itertools.product([0, 5, 12], repeat=count):
            found = quota(list(sizes), max_letters=max_letters, max_bytes=max_bytes, when_full=when_full)
            admission = found.admit(size, LARGE)
            kept = list(sizes[len(admission.drop) :])
            fits = len(kept) < max_letters and (not kept or sum(kept) + size <= max_bytes)
            assert fits != bool(admission.full)
            if when_full is BLOCK:
                assert not admission.drop
            else:
                assert not admission.full
                assert names(admission.drop) == "01234"[: len(admission.drop)]
                if admission.drop:  # with one more kept it would not fit
                    kept = list(sizes[len(admission.drop) - 1 :])
                    assert len(kept) >= max_letters or sum(kept) + size > max_bytes


def test_only_letter_fits_whatever_its_size() -> None:
    """Otherwise a message longer than max_bytes would block its route until the configuration changes."""
    for when_full in WhenFull:
        assert not quota([], max_bytes=1, when_full=when_full).admit(1 << 26, LARGE).full
    assert names(quota([1, 1], max_bytes=3, when_full=DROP).admit(1 << 26, LARGE).drop) == "01"


def test_reason_names_the_limit_as_it_is_configured() -> None:
    assert quota([5, 5], max_letters=2).admit(1, LARGE).full == "2 letters"
    assert quota([64_000_000]).admit(1, LARGE).full == "64 MB"
    assert quota([1 << 22], max_bytes=1 << 22).admit(1, LARGE).full == "4 MiB"


@pytest.mark.parametrize(
    ("room", "size", "full"),
    [
        (FileSystem(800, 800), 700, ""),
        (FileSystem(800, 800), 701, "state_dir has 800 B left, 100 B are kept free"),
        (FileSystem(99, 800), 0, "state_dir has 99 B left, 100 B are kept free"),
        (FileSystem(64_000_000, 1 << 40), 0, ""),
        (FileSystem(64_000_000, 1 << 40), 1, "state_dir has 64 MB left, 64 MB are kept free"),
        (FileSystem(800, 800, 12, 80), 0, ""),
        (FileSystem(800, 800, 11, 80), 0, "state_dir has 11 inodes left, 10 are kept free"),
        (FileSystem(800, 800, 0, 0), 0, ""),
        (FileSystem(1 << 40, 1 << 40, 4098, 1 << 40), 0, ""),
        (FileSystem(1 << 40, 1 << 40, 4097, 1 << 40), 0, "state_dir has 4,097 inodes left, 4,096 are kept free"),
    ],
)
def test_share_of_the_file_system_is_kept_free(room: FileSystem, size: int, full: str) -> None:
    """Also for the only letter: journals must find room."""
    assert quota([]).admit(size, room).full == full


def test_drop_oldest_frees_what_the_file_system_lacks() -> None:
    found = quota([50, 60, 70], when_full=DROP)
    assert names(found.admit(10, FileSystem(0, 800)).drop) == "01"
    assert names(found.admit(10, FileSystem(800, 800, 9, 80)).drop) == "01"


def test_drop_oldest_drops_nothing_without_need() -> None:
    """Something else fills the file system: the letters would be lost and the new one not written."""
    admission = quota([50, 60], when_full=DROP).admit(11, FileSystem(0, 800))
    assert admission.drop == ()
    assert "kept free" in admission.full


def test_letters_are_counted_as_they_come_and_go() -> None:
    found = quota([5, 6])
    assert (found.count, found.bytes) == (2, 11)
    found.add(KeptLetter("x", 7, 9.0))
    found.add(KeptLetter("x", 8, 9.0))
    assert (found.count, found.bytes) == (3, 19)
    for _ in range(2):
        found.remove("0")
    assert (found.count, found.bytes) == (2, 14)
    found.replace([])
    assert (found.count, found.bytes) == (0, 0)


def test_letters_found_are_ordered_by_age_then_by_name() -> None:
    found = Quota(DeadConfig(max_letters=1, when_full=DROP))
    found.replace([KeptLetter("b", 1, 5.0), KeptLetter("c", 1, 4.0), KeptLetter("a", 1, 5.0)])
    assert names(found.admit(1, LARGE).drop) == "cab"


def test_letters_expire_oldest_first() -> None:
    found = quota([1, 1, 1], age=10.0)
    assert found.next_expiry() == 10.0
    assert list(found.expired(9.9)) == []
    assert [letter.name for letter in found.expired(11.0)] == ["0", "1"]
    for letter in found.expired(11.0):
        found.remove(letter.name)
    assert found.next_expiry() == 12.0
    found.remove("2")
    assert found.next_expiry() is None


def test_nothing_expires_without_an_age() -> None:
    found = quota([1])
    assert (list(found.expired(1e12)), found.next_expiry()) == ([], None)


def test_other_limits_count_from_then_on() -> None:
    found = quota([5, 5], max_letters=2)
    assert found.admit(1, LARGE).full
    found.limits = DeadConfig(max_letters=3)
    assert not found.admit(1, LARGE).full


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (64_000_000, "64 MB"), (1 << 22, "4 MiB"), (1 << 10, "1 KiB"), (1_500_000, "1500 kB")],
)
def test_size_is_shown_as_it_may_be_written(size: int, text: str) -> None:
    assert shown_size(size) == text


def test_odd_size_is_shown_rounded() -> None:
    assert shown_size(1_234_567) == "1.2 MB"
