"""The operations on files that the protocol is made of, and what each relies on."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from nar_scale.files import NO_LINKS


class SharedDirectory:
    """A directory that workers on many hosts share; every method is one operation on one of its files.

    Nothing more is asked of the file system than what NFS from version 3 on and Lustre have: a file that is created
    exclusively has one creator; a link or a rename is there whole or not at all; what was written to a file before it
    was closed is seen by who opens it afterwards. Listings may be old, and locks are not used.

    A test can interleave several workers between any two of these calls, and end one of them there.

    Args:
        path: of the directory, which must exist when a method is called.
    """

    def __init__(self, path: Path):
        self.path = path

    def list(self) -> list[str]:
        """The names in the directory."""
        return os.listdir(self.path)

    def create(self, name: str) -> bool:
        """Create an empty file; of several callers one does, and gets True."""
        try:
            os.close(os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            return False
        return True

    def append(self, name: str, content: bytes, durable: bool = False) -> None:
        """Add to a file that exists; a caller that is killed meanwhile may have added less.

        Args:
            name: of the file.
            content: is written at its end.
            durable: whether it survives a loss of power from now on.

        Raises:
            FileNotFoundError: there is no such file.
        """
        descriptor = os.open(self.path / name, os.O_WRONLY | os.O_APPEND)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none. It is opened, since NFS then asks its server anew."""
        try:
            with open(self.path / name, "rb") as file:
                return os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes | None:
        """What is in a file; None if there is none."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self.size(name) is not None

    def publish(self, name: str, as_name: str) -> None:
        """Give a finished file its final name, unless a file has it; of several callers one does.

        On a file system without hard links the last one does; then too, nobody sees half a file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        try:
            with suppress(FileExistsError):
                os.link(self.path / name, self.path / as_name)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            os.replace(self.path / name, self.path / as_name)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(self.path / name)
