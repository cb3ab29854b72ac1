"""Writes files that belong together: all of them, or none."""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping


def write_together(contents: Mapping[pathlib.Path, bytes | str]) -> None:
    """Writes several files completely, or leaves all of them unchanged.

    Each file is written under a temporary name in its folder. Then the files are renamed one after
    another. If this fails for a file, the files that were already replaced get their old contents back.

    Args:
        contents: `{path: bytes or str}`. The folders must exist.

    Raises:
        OSError: If a file cannot be written. In this case, no file has changed.
    """
    new: dict[pathlib.Path, str] = {}
    old: dict[pathlib.Path, str] = {}
    done: list[pathlib.Path] = []
    try:
        for path, data in contents.items():
            new[path] = _temporary(path)
            with open(new[path], "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(new[path], 0o644)
        if len(contents) > 1:
            for path in contents:
                if pathlib.Path(path).exists():
                    old[path] = _temporary(path)
                    shutil.copy2(path, old[path])
        for path in contents:
            os.replace(new[path], path)
            done.append(path)
    except BaseException:
        for path in done:
            if path in old:
                os.replace(old[path], path)
            else:
                pathlib.Path(path).unlink()
        raise
    finally:
        for temporary in (*new.values(), *old.values()):
            pathlib.Path(temporary).unlink(missing_ok=True)


def _temporary(path: pathlib.Path) -> str:
    """Creates an empty temporary file in the folder of a path and returns its name."""
    descriptor, name = tempfile.mkstemp(dir=pathlib.Path(path).absolute().parent, suffix=".part")
    os.close(descriptor)
    return name
