import os

import pytest

from dqmq_tf.export import atomic_write


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_all_are_written(tmp_path):
    (tmp_path / "a").write_text("old")
    atomic_write.write_together({tmp_path / "a": b"one", tmp_path / "b": "two"})
    assert (tmp_path / "a").read_bytes() == b"one"
    assert (tmp_path / "b").read_text() == "two"
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_failing_rename_changes_nothing(failing, tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old a")
    (tmp_path / "c").write_text("old c")
    replace, calls = os.replace, []

    def fail_once(source, destination):
        calls.append(destination)
        if len(calls) == failing:
            raise OSError("disk full")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(OSError, match="disk full"):
        atomic_write.write_together({tmp_path / name: f"new {name}" for name in "abc"})
    assert names(tmp_path) == ["a", "c"]
    assert (tmp_path / "a").read_text() == "old a"
    assert (tmp_path / "c").read_text() == "old c"


def test_a_failing_write_changes_nothing(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileNotFoundError):
        atomic_write.write_together({tmp_path / "a": b"new", tmp_path / "missing" / "b": b"new"})
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
@pytest.mark.parametrize("unnamed_files", [True, False])
def test_files_have_the_permissions_that_the_umask_leaves(
    unnamed_files, umask, mode, tmp_path, monkeypatch
):
    if not unnamed_files:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    before = os.umask(umask)
    try:
        atomic_write.write_together({tmp_path / "a": b"new"})
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_the_file_it_points_to_is_written(exists, tmp_path):
    for folder in ("links", "files"):
        (tmp_path / folder).mkdir()
    if exists:
        (tmp_path / "files" / "a").write_text("old")
    link = tmp_path / "links" / "a"
    link.symlink_to("../files/a")
    atomic_write.write_together({link: b"new", tmp_path / "files" / "b": b"new"})
    assert link.is_symlink() and names(tmp_path / "links") == ["a"]
    assert (tmp_path / "files" / "a").read_text() == "new"
    assert names(tmp_path / "files") == ["a", "b"]
