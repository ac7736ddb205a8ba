"""Atomic files: a reader finds the whole old content or the whole new one, whenever the power fails.

What is written goes to a temporary name in the same folder, is synced to the disk, and is then renamed. Locks keep two
processes from making the same file. Nothing here knows of tasks or runs.
"""

import errno
import hashlib
import json
import os
import shutil
import stat
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lab.errors import RunError

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)

# ---------------------------------------------------------------------- one file


@contextmanager
def replacing(path: Path):
    """Yields a temporary path in the same folder; what was written there is synced and renamed to `path` at the end.

    If the block raises, the old file stays and the temporary one is deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's list of names, onto the disk.

    Some network file systems can't sync a folder. That is passed over: the rename is still atomic there."""
    f = os.open(path, os.O_RDONLY)
    try:
        os.fsync(f)
    except OSError as e:
        if not (path.is_dir() and e.errno in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)):
            raise
    finally:
        os.close(f)


def write_text(path: Path, text: str) -> None:
    """Replace a file by a text, as UTF-8 with `\\n` as line end."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def one_at_a_time(path: Path):
    """Whoever makes `path` does so alone. Others wait here; when it is their turn, they look for it again.

    Yields the seconds of waiting."""
    began = time.time()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = file_lock(path.with_name(f".{path.name}.lock"))
    if not acquire(lock, wait=False):
        print(f"waiting  for {path}, which another process is making", flush=True)
        acquire(lock, wait=True)
    try:
        yield time.time() - began
    finally:
        release(lock)


# ---------------------------------------------------------------------- JSON, and one JSON object a line


def write_json(path: Path, value) -> None:
    """Replace a file by a JSON value, indented."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, kind=object):
    """The JSON value of a file. Raises RunError, which names the file, if it is not JSON or not of this kind."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe would block
            raise ValueError("not a regular file")
        value = json.loads(path.read_text(encoding="utf-8-sig"))  # an editor may have put a mark at its beginning
        if not isinstance(value, kind):
            raise ValueError(f"a {kind.__name__} is expected")
        return value
    except (ValueError, RecursionError) as e:
        raise RunError(f"{path}: cut off or not JSON ({e}); delete its folder to make it anew") from None


def write_jsonl(path: Path, rows) -> None:
    """Replace a file by one JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_jsonl(path: Path, row: dict) -> None:
    """Add one line to a file, which is made if it is missing. The only write here that is not atomic."""
    with open(path, "a", encoding="utf-8", newline="\n") as f:
        f.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: Path, **types) -> list[dict]:
    """The objects of a file, one a line. types: keys that each line must have, with the type of their values.

    Raises RunError, which names the file, if a line is not such an object."""
    try:
        text = path.read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.split("\n") if line]  # not splitlines: U+2028 does not end a line
        for row in rows:
            for key, kind in types.items():
                if not isinstance(row[key], kind):
                    raise ValueError(f"{key} is {row[key]!r:.50}")
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise RunError(f"{path}: cut off or not the JSON lines of a run ({e!r:.200})") from None
    return rows


# ---------------------------------------------------------------------- a folder, and a key to name it by


def write_folder(path: Path, fill) -> None:
    """Replace a folder by another one: `fill(folder)` makes it under a temporary name.

    If anything raises, the old folder is in its place, and no other folder is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new.{os.getpid()}")
    old = path.with_name(f".{path.name}.old.{os.getpid()}")
    try:
        fill(temporary)
        for file in (*temporary.rglob("*"), temporary):
            sync(file)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def short_name(name: str, most: int = 240) -> str:
    """A name of at most `most` bytes for a file or folder: a longer one is cut, and ends in a hash of all of it.

    File systems take 255 bytes; the rest is for names such as `.<name>.new.12345`."""
    raw = name.encode(errors="surrogateescape")
    if len(raw) <= most:
        return name
    return raw[: most - 9].decode(errors="ignore") + "-" + hashlib.sha256(raw).hexdigest()[:8]


def key_of(value) -> str:
    """A short hash of plain JSON values, the same in every process."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


# ---------------------------------------------------------------------- locks


def file_lock(path: Path) -> FileLock:
    """A lock, not yet acquired. A process that dies releases it. Raises RunError where no regular file can be."""
    with suppress(FileNotFoundError):  # it may also be deleted at this moment
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise RunError(f"{path} is a link or a device, not a file to lock; remove it")
    return FileLock(path, fallback_to_soft=False)


def acquire(lock: FileLock, wait: bool) -> bool:
    """Acquire a lock -> whether this process has it now. Raises RunError on a file system without locks."""
    try:
        lock.acquire(blocking=wait)
        return True
    except Timeout:
        return False
    except OSError as e:
        if e.errno not in NO_LOCKS:
            raise
        hint = f"this file system has no locks ({e.strerror}); use a folder on another one"
        raise RunError(f"{lock.lock_file}: {hint}") from None


def release(lock: FileLock) -> None:
    """Delete the lock's file and release it. Whoever waits for it sees that it is gone, and makes it anew."""
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
