"""Public archives (.tgz, .tar.bz2), read as a stream: nothing is unpacked, so no path in one can do harm."""

import bz2
import gzip
import tarfile
import zlib
from contextlib import contextmanager
from pathlib import Path

from lab.errors import DataError
from lab.tasks.reading import MAX_LINE, watched

MAX_MEMBER = 2**30  # bytes of a member that is read whole; far above every public file, like ...
MAX_ARCHIVE = 2**34  # ... bytes of an archive when decompressed


class Header(tarfile.TarInfo):
    """A member's header, whose own extension (a long name, say) can't claim more than MAX_LINE bytes of memory."""

    @classmethod
    def frombuf(cls, *arguments):
        header = super().frombuf(*arguments)
        if not (header.isfile() or header.isdir() or header.size <= MAX_LINE):
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


class Bounded:
    """A decompressed stream of at most MAX_ARCHIVE bytes: a small archive may unpack to terabytes."""

    def __init__(self, f):
        self.f, self.left = f, MAX_ARCHIVE

    def read(self, size):
        chunk = self.f.read(size)
        self.left -= len(chunk)
        if self.left < 0:
            raise tarfile.ReadError(f"more than {MAX_ARCHIVE} bytes in it")
        return chunk


@contextmanager
def tar_stream(archive: Path):
    """Yields a tarfile to iterate over once; then the archive is read to its end, where the checksum is.

    Raises DataError for an archive that is broken or far too large."""
    try:
        with watched(archive) as raw, (bz2.open if archive.suffix == ".bz2" else gzip.open)(raw) as f:
            f = Bounded(f)
            with tarfile.open(fileobj=f, mode="r|", tarinfo=Header) as tar:
                yield tar
                while f.read(2**20):
                    pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as e:
        raise DataError(f"{archive}: not a whole archive ({e}); delete it and fetch it again") from None


def content_of(tar, member) -> bytes:
    """A whole member. Raises ReadError, which `tar_stream` turns into DataError, if it is too large for memory."""
    if member.size > MAX_MEMBER:
        raise tarfile.ReadError(f"{member.name} has {member.size} bytes")
    return tar.extractfile(member).read()


def read_members(archive: Path, names: list[str]) -> dict[str, bytes]:
    """Whole members of an archive by their base names. Raises DataError if one is missing."""
    with tar_stream(archive) as tar:
        wanted = (member for member in tar if member.isfile() and member.name in names)
        found = {Path(member.name).name: content_of(tar, member) for member in wanted}
    if missing := next((name for name in names if Path(name).name not in found), None):
        raise DataError(f"{archive}: not a whole archive ({missing} is not in it); delete it and fetch it again")
    return found
