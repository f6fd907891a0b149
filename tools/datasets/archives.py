"""Named files read out of a tar or a Debian package, without unpacking anything onto the disk."""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO

from batude_onnx.errors import DataError


def tar_members(path: Path, wanted: Collection[str]) -> dict[str, bytes]:
    """The contents of those regular files in the tar (any compression) `path` whose base name is `wanted`.

    Names that are not there are left out. Raises DataError if the archive is missing, cut short or no tar.
    """
    try:
        with path.open("rb") as file:
            return _read_tar(file, wanted, path)
    except OSError as error:
        raise _unreadable(path, error) from error


def deb_members(path: Path, wanted: Collection[str]) -> dict[str, bytes]:
    """The same for a Debian package: an `ar` archive whose member data.tar.* holds the files (deb(5))."""
    try:
        with path.open("rb") as file:
            if file.read(8) != b"!<arch>\n":
                raise DataError(f"{path}: not a Debian package; give the .deb, or the folder it installs")
            while len(header := file.read(60)) == 60:
                name, size = header[:16].decode("ascii", "replace").rstrip(" /"), header[48:58].strip()
                if header[58:] != b"`\n" or not size.isdigit():
                    break
                if name.startswith("data.tar"):
                    content = file.read(int(size))
                    if len(content) < int(size):
                        break
                    return _read_tar(io.BytesIO(content), wanted, path)
                # Members start on even offsets.
                file.seek(int(size) + int(size) % 2, io.SEEK_CUR)
    except OSError as error:
        raise _unreadable(path, error) from error
    raise DataError(f"{path}: the Debian package is cut short or damaged; download it again")


def _read_tar(file: IO[bytes], wanted: Collection[str], path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:*") as tar:
            for member in tar:
                name = member.name.rsplit("/", 1)[-1]
                content = tar.extractfile(member) if member.isreg() and name in wanted else None
                if content is not None:
                    found[name] = content.read()
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise _unreadable(path, error) from error
    return found


def _unreadable(path: Path, error: Exception) -> DataError:
    said = error.strerror if isinstance(error, OSError) else str(error).split("\n")[0].rstrip(":")
    reason = said or type(error).__name__
    return DataError(f"{path}: not readable as an archive ({reason}); it is cut short, damaged or something else: fetch it again")
