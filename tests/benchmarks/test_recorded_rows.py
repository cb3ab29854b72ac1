"""The rows that benchmarks write to their JSON files."""

import dataclasses
import json

from recorded_rows import RecordedRows


@dataclasses.dataclass
class Row:
    network: str
    target: str
    seconds: float


def test_a_row_replaces_that_of_its_key_in_place_and_others_stay(tmp_path):
    path = tmp_path / "rows.json"
    first = RecordedRows(path, "network", "target")
    for row in (Row("a", "android", 1.0), Row("a", "simulation", 2.0), Row("b", "android", 3.0)):
        first.add(row, verdict="kept")
    again = RecordedRows(path, "network", "target")
    again.add(Row("a", "simulation", 4.0), verdict="missed")
    assert again.rows == json.loads(path.read_text())
    assert [row["seconds"] for row in again.rows] == [1.0, 4.0, 3.0]
    assert [row["verdict"] for row in again.rows] == ["kept", "missed", "kept"]


def test_without_a_path_rows_are_kept_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = RecordedRows(None, "network")
    rows.add(Row("a", "android", 1.0))
    assert len(rows.rows) == 1 and not list(tmp_path.iterdir())
