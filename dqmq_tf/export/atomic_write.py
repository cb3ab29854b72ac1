"""Writes files that belong together: all of them, or none."""

import os
import pathlib
import secrets
import shutil
from collections.abc import Mapping


def write_together(contents: Mapping[pathlib.Path, bytes | str]) -> None:
    """Writes several files completely, or leaves all of them unchanged.

    Each file is written under a temporary name in its folder. Then the files are renamed one after
    another. If this fails for a file, the files that were already replaced get their old contents back.
    A new file has the permissions that the process gives to new files. Where a path is a symbolic link,
    the file that it points to is written.

    Args:
        contents: `{path: bytes or str}`. The folders must exist.

    Raises:
        OSError: If a file cannot be written. In this case, no file has changed.
    """
    contents = {pathlib.Path(os.path.realpath(path)): data for path, data in contents.items()}
    new: dict[pathlib.Path, str] = {}
    old: dict[pathlib.Path, str] = {}
    done: list[pathlib.Path] = []
    try:
        for path, data in contents.items():
            new[path] = _temporary_name(path)
            _write(new[path], data.encode() if isinstance(data, str) else data)
        if len(contents) > 1:
            for path in contents:
                if path.exists():
                    old[path] = _temporary_name(path)
                    shutil.copy2(path, old[path])
        for path in contents:
            os.replace(new[path], path)
            done.append(path)
    except BaseException:
        for path in done:
            if path in old:
                os.replace(old[path], path)
            else:
                path.unlink()
        raise
    finally:
        for temporary in (*new.values(), *old.values()):
            pathlib.Path(temporary).unlink(missing_ok=True)


def _temporary_name(path: pathlib.Path) -> str:
    """Returns the name of a hidden file that does not exist yet, in the folder of a path."""
    return str(path.with_name(f".{path.name}.{secrets.token_hex(8)}.part"))


def _write(name: str, data: bytes) -> None:
    """Writes a new file, which gets its name only when it is complete, where the system can do so."""
    try:
        # A file without a name disappears when its process is killed.
        descriptor = os.open(os.path.dirname(name), os.O_TMPFILE | os.O_WRONLY, 0o666)
        is_named = False
    except (AttributeError, OSError):
        descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        is_named = True
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
        if not is_named:
            # Python follows the link to the open file only if it is given a folder descriptor.
            os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=descriptor)
