"""The tiers kept in the user's cache folder: the same as computed, never those of other tables, never in the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from yaofang.vocab import conflict_cache
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import Vocabulary, load_vocabulary
from yaofang.vocab.evidence import Row


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "yaofang"


def small() -> Vocabulary:
    return Vocabulary(load_vocabulary().drugs[:40])


def test_cached_tiers_are_those_that_were_computed(own: Path) -> None:
    first = load_conflicts(small())
    (file,) = own.glob("conflicts-*.npy")
    again = load_conflicts(small())
    assert np.array_equal(first.tiers, again.tiers)
    assert again.version == first.version
    assert again.reasons(*small().labels[:2]) == first.reasons(*small().labels[:2])
    assert file.exists()


def test_the_cache_is_used(own: Path) -> None:
    load_conflicts(small())
    (file,) = own.glob("conflicts-*.npy")
    np.save(file, np.full((40, 40), 3, np.uint8))
    assert set(load_conflicts(small()).tiers.ravel().tolist()) == {3}


def test_other_rows_or_another_list_have_a_file_of_their_own(own: Path) -> None:
    load_conflicts(small())
    load_conflicts(Vocabulary(small().drugs[:39]))
    load_conflicts(small(), extra=[Row("metformin", "acarbose", "major", "", "甲: 乙")])
    assert len(list(own.glob("conflicts-*.npy"))) == 3


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY"])
def test_a_torn_file_is_computed_again(own: Path, content: bytes) -> None:
    right = load_conflicts(small()).tiers
    (file,) = own.glob("conflicts-*.npy")
    file.write_bytes(content)
    assert np.array_equal(load_conflicts(small()).tiers, right)


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_conflicts(small()).tiers.any()


def test_only_the_newest_files_are_kept(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conflict_cache, "KEPT", 2)
    for number in range(4):
        conflict_cache.write(f"{number}", np.zeros((2, 2), np.uint8))
    assert len(list(own.glob("conflicts-*.npy"))) == 2


def test_a_lexicon_read_before_its_files_were_edited_is_not_kept_under_their_hash(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yaofang.vocab.conflicts.files_version", lambda: "edited since")
    assert load_conflicts(small()).tiers.any()
    assert list(own.glob("conflicts-*.npy")) == []
