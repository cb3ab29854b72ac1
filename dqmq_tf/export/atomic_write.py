"""Files that belong together are written whole, or not at all."""

import os
import pathlib
import shutil
import tempfile


def write_together(contents):
    """Writes files such that either all are new and whole, or all are as they were.

    Each is written beside its place first; then they are renamed, one after another. If that
    fails, those already renamed get their old contents back.

    Args:
        contents: `{path: bytes or str}`; the folders are there.

    Raises:
        OSError: If a file cannot be written; nothing has changed then.
    """
    new, old, done = {}, {}, []
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


def _temporary(path):
    descriptor, name = tempfile.mkstemp(dir=pathlib.Path(path).absolute().parent, suffix=".part")
    os.close(descriptor)
    return name
