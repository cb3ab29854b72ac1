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
