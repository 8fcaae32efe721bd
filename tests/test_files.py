"""Folders that are whole or absent."""

import pytest

from vitalk.errors import UserError
from vitalk.files import staging


def test_files_appear_together(tmp_path):
    with staging(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "a").read_text() == "1" and len(list(tmp_path.iterdir())) == 1


def test_a_failure_leaves_what_was_there(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")
    with pytest.raises(RuntimeError), staging(tmp_path / "out") as folder:
        (folder / "a").write_text("new")
        raise RuntimeError
    assert (tmp_path / "out" / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_written_is_refused_before_work_starts(tmp_path):
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UserError, match="-o"), staging(target):
            pytest.fail("the work must not begin")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
