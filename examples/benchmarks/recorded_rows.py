"""The JSON file of a benchmark that measures one row after the other."""

import dataclasses
import json
import pathlib


class RecordedRows:
    """The rows of a file, which is written after each new row.

    A new row takes the place of the row of the same key. Rows with other keys stay, so that a run may
    measure some of them again.

    Args:
        path: The JSON file, None to write nothing.
        key: The fields that tell one row from another.

    Attributes:
        rows: The rows, a dictionary each.
    """

    def __init__(self, path, *key):
        self._path, self._key = path and pathlib.Path(path), key
        exists = self._path and self._path.exists()
        self.rows = json.loads(self._path.read_text()) if exists else []

    def add(self, row, **more):
        """Adds a row and writes the file.

        Args:
            row: A dataclass.
            more: Further fields of the row.
        """
        new = dataclasses.asdict(row) | more
        places = [n for n, old in enumerate(self.rows) if self._name(old) == self._name(new)]
        if places:
            self.rows[places[0]] = new
        else:
            self.rows.append(new)
        if self._path:
            self._path.write_text(json.dumps(self.rows, indent=2) + "\n")

    def _name(self, row):
        return [row.get(field) for field in self._key]
