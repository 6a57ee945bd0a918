"""List the images in folders on this machine."""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vggfeat.core import activity
from vggfeat.core.dicom_head import HEAD_BYTES, is_dicom_head
from vggfeat.core.file_types import IMAGE_EXTENSIONS, archive_suffix, extension
from vggfeat.core.text import quoted
from vggfeat.errors import DecodeError
from vggfeat.images.image_list import FileList
from vggfeat.images.skipped import HIDDEN_FOLDER, HIDDEN_IMAGE, NOT_REGULAR
from vggfeat.images.streams import open_file

if TYPE_CHECKING:
    from collections.abc import Iterable


_FOLDERS_PER_NOTICE = 500


@dataclass(slots=True)
class FolderWalk:
    """The images in folders; links to folders are followed once all real folders are read."""

    found: FileList = field(default_factory=FileList)
    skipped: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    _seen: set[tuple[int, int]] = field(default_factory=set)
    _links: list[bytes] = field(default_factory=list)

    def read(self, folders: Iterable[bytes]) -> None:
        """Read all `folders` with their subfolders, then the folders that links in them name."""
        for folder in sorted(folders, key=lambda path: (os.path.islink(path), path)):
            self._read_tree(folder)
        while self._links:
            links, self._links = sorted(self._links), []
            for link in links:
                self._read_tree(link)

    def _read_tree(self, top: bytes) -> None:
        waiting = [top]
        while waiting:
            waiting += sorted(self._read_folder(waiting.pop()), reverse=True)

    def _read_folder(self, folder: bytes) -> list[bytes]:
        """Take the images of one folder, and return the real folders in it."""
        try:
            status = os.stat(folder)
            identity = (status.st_dev, status.st_ino)
            if identity in self._seen:
                return []
            self._seen.add(identity)
            with os.scandir(folder) as listing:
                entries = list(listing)
        except OSError as error:
            self.unreadable.append(f"{quoted(folder)} ({error.strerror})")
            return []
        folders = []
        if len(self._seen) % _FOLDERS_PER_NOTICE == 0:
            activity.begins(f"listing images: {len(self.found)}")
        for entry in entries:
            if entry.name.startswith(b"."):
                self._count_hidden(entry)
            elif not self._is_folder(entry):
                self._take(entry)
            elif entry.is_symlink():
                self._links.append(entry.path)
            else:
                folders.append(entry.path)
        return folders

    def _count_hidden(self, entry: os.DirEntry[bytes]) -> None:
        if self._is_folder(entry):
            self.skipped[HIDDEN_FOLDER] += 1
        elif extension(entry.name) in IMAGE_EXTENSIONS:
            self.skipped[HIDDEN_IMAGE] += 1

    def _is_folder(self, entry: os.DirEntry[bytes]) -> bool:
        try:
            return entry.is_dir()
        except PermissionError:
            # The target of this link may not be read. It counts as a folder, which is reported,
            # unless it is named like an image, which fails later.
            return extension(entry.name) not in IMAGE_EXTENSIONS
        except OSError:  # a link that leads to itself
            return False

    def _take(self, entry: os.DirEntry[bytes]) -> None:
        kind = extension(entry.name)
        if kind not in IMAGE_EXTENSIONS and not _is_unnamed_dicom(entry.path):
            self.skipped[os.fsdecode(archive_suffix(entry.name) or kind)] += 1
            return
        try:
            status = entry.stat()
        except OSError:  # a broken link, or gone already: a row that fails with its reason
            self.found.add(entry.path, 0, 0)
            return
        if stat.S_ISREG(status.st_mode):
            self.found.add(entry.path, status.st_size, status.st_mtime_ns)
        else:
            self.skipped[NOT_REGULAR] += 1


def _is_unnamed_dicom(path: bytes) -> bool:
    """Return whether a file is DICOM under a name as scanners give: no extension, or digits."""
    kind = extension(os.path.basename(path))
    if kind and not kind.isdigit():
        return False
    try:
        with open_file(path) as stream:
            return is_dicom_head(stream.read(HEAD_BYTES))
    except DecodeError:
        return False
