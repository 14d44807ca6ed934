"""The journal: a killed run loses and repeats nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from yaofang.data.journal import LINES_A_SYNC, Journal, finished, merged
from yaofang.vocab.errors import InputError

SETTINGS = {"model": "a1", "vocab": ["b2", 651], "diagnoses": "auto"}
IDS = [f"{number}-1" for number in range(12)]

WRITER = """
import sys
from yaofang.data.journal import Journal
settings = {"model": "a1", "vocab": ["b2", 651], "diagnoses": "auto"}
journal = Journal(sys.argv[1], settings, resume=True)
todo = [f"{number}-1" for number in range(12) if f"{number}-1" not in journal.done()]
for record_id in todo[: int(sys.argv[2])]:
    journal.append(record_id, {"id": record_id, "drugs": ["二甲双胍"]})
    print(record_id, flush=True)
sys.stdin.read()
"""


def value(record_id: str) -> dict[str, Any]:
    return {"id": record_id, "drugs": ["二甲双胍"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sub.json.journal"


def write(path: Path, ids: list[str]) -> None:
    with Journal(path, SETTINGS, resume=True) as journal:
        for record_id in ids:
            journal.append(record_id, value(record_id))


def test_what_was_appended_is_done_when_the_journal_is_opened_again(path: Path) -> None:
    write(path, IDS[:3])
    with Journal(path, SETTINGS, resume=True) as journal:
        assert journal.done() == {record_id: value(record_id) for record_id in IDS[:3]}
    assert len(path.read_text("utf-8").splitlines()) == 4


def test_a_run_killed_with_kill_9_loses_and_doubles_nothing(path: Path) -> None:
    written: list[str] = []
    for number in (4, 3, 12):
        command = [sys.executable, "-c", WRITER, str(path), str(number)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            todo = min(number, len(IDS) - len(written))
            written += [run.stdout.readline().strip() for _ in range(todo)]
            os.kill(run.pid, signal.SIGKILL)
        with path.open("ab") as handle:  # what a kill in the middle of a write leaves
            handle.write(b'{"id": "11-1", "val')
    assert written == IDS
    assert merged([path], SETTINGS, IDS) == [value(record_id) for record_id in IDS]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_dropped_and_written_again(path: Path, cut: int) -> None:
    write(path, IDS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with Journal(path, SETTINGS, resume=True) as journal:
        assert list(journal.done()) == IDS[:-1]
        journal.append(IDS[-1], value(IDS[-1]))
    assert path.read_bytes() == whole


def test_a_line_of_zeros_and_all_after_it_are_dropped(path: Path) -> None:
    write(path, IDS[:2])
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 64 + b"\n" + b"\0" * 8)
    write(path, [])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("size", [0, 1, 10, 40])
def test_a_torn_header_is_written_anew(path: Path, size: int) -> None:
    write(path, [])
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    write(path, [])
    assert path.read_bytes() == whole


def test_a_journal_of_other_settings_is_refused_with_what_differs_and_the_way_out(path: Path) -> None:
    write(path, IDS[:1])
    before = path.read_bytes()
    for call in (
        lambda: Journal(path, {**SETTINGS, "model": "other", "more": 1}, resume=True),
        lambda: merged([path], {**SETTINGS, "model": "other", "more": 1}, IDS[:1]),
    ):
        with pytest.raises(InputError, match="other settings: model, more") as caught:
            call()
        assert "delete the journal" in str(caught.value)
    assert path.read_bytes() == before


def test_a_journal_with_results_is_not_overwritten_without_resume(path: Path) -> None:
    write(path, IDS[:1])
    with pytest.raises(InputError, match="--resume"):
        Journal(path, SETTINGS, resume=False)
    assert finished([path], SETTINGS) == {IDS[0]}


def test_a_journal_without_results_is_taken_over_without_resume(path: Path) -> None:
    write(path, [])
    Journal(path, SETTINGS, resume=False).close()
    assert len(path.read_bytes().splitlines()) == 1


@pytest.mark.parametrize("content", ["{}\n", "[1]\n", "text\n", "text", '{"format": "other/1", "settings": {}}\n'])
def test_a_file_that_is_no_journal_is_refused_and_left_alone(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(InputError, match="not a journal"):
        Journal(path, SETTINGS, resume=True)
    assert path.read_text() == content


def test_an_id_cannot_be_appended_twice(path: Path) -> None:
    write(path, IDS[:1])
    with pytest.raises(ValueError, match="already"):
        write(path, IDS[:1])


def test_the_journals_of_several_ranks_are_merged_in_record_order(tmp_path: Path) -> None:
    paths = [tmp_path / f"journal.{rank}" for rank in range(3)]
    for rank, path in enumerate(paths):
        write(path, IDS[rank::3])
    assert merged(paths, SETTINGS, IDS[::-1]) == [value(record_id) for record_id in IDS[::-1]]
    assert finished(paths[:2], SETTINGS) == {*IDS[0::3], *IDS[1::3]}


def test_merging_names_what_is_not_finished(path: Path) -> None:
    write(path, IDS[:2])
    with pytest.raises(InputError, match="10 of 12 records are not finished, the first is 2-1"):
        merged([path, path.with_name("absent")], SETTINGS, IDS)


def test_values_with_unusual_line_ends_stay_on_their_line(path: Path) -> None:
    odd = {"text": "甲\u2028乙\x85丙\r\n丁"}
    with Journal(path, SETTINGS, resume=True) as journal:
        journal.append("1-1", odd)
    assert merged([path], SETTINGS, ["1-1"]) == [odd]


def test_lines_are_brought_to_the_disk_in_groups(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    ids = [str(number) for number in range(3 * LINES_A_SYNC)]
    write(path, ids)
    assert len(synced) == 4
    assert finished([path], SETTINGS) == set(ids)
