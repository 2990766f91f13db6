"""Finding files: the arguments of an ingest become a stream of files in an order that is always the same.

Nothing is opened. What can't be looked into is reported and skipped, and never makes what is below it look
deleted: see `vanished`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tournant.ingest.errors import UnreadableFile
from tournant.ingest.readers.opening import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterable, Iterator

_BROKEN_LINK = "it is a symbolic link to nothing"
_LINK_LOOP = "it is a symbolic link that leads back to itself"


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file to ingest.

    Attributes:
        path: absolute, as `os.fsdecode` gives it.
        root: the argument it was found under, absolute.
        size: bytes.
        mtime_ns: when its content last changed, in nanoseconds.
    """

    path: str
    root: str
    size: int
    mtime_ns: int

    @property
    def fingerprint(self) -> str:
        """Changes when the file does, as far as size and time can tell."""
        return f"{self.size}-{self.mtime_ns}"


def absolute(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str:
    """The name under which a path is known: absolute and tidy, symbolic links as they are."""
    return os.path.abspath(os.fsdecode(path))


def walk(
    paths: Iterable[str | bytes | os.PathLike[str] | os.PathLike[bytes]],
    *,
    on_problem: Callable[[UnreadableFile], None],
    suffixes: Container[str] | None = None,
    hidden: bool = False,
    follow_links: bool = False,
    exclude: Iterable[str] = (),
    leave_out: Callable[[str, str], bool] | None = None,
) -> Iterator[FoundFile]:
    """Find files.

    Folders are walked depth first, their entries in the order of their names. A file that several
    arguments lead to by the same path is found once, under the first. A path that is itself an argument is always
    taken, whatever its name; links among the arguments are followed.

    Args:
        paths: files and folders.
        on_problem: told of every path that can't be looked at; the walk goes on.
        suffixes: in folders, take only these (lower case, with the dot); None takes all files.
        hidden: also take what begins with a dot. ``.git`` is never entered.
        follow_links: also follow links to folders; each folder is entered once, so loops end.
        exclude: folders that are not entered, such as that of the index.
        leave_out: called with the path of a file or folder and its root; what it says yes to is neither looked at nor
            entered. Arguments that are folders are not asked about.
    """
    roots = [absolute(path) for path in paths]
    finder = _Finder(
        on_problem,
        suffixes,
        hidden,
        follow_links,
        {absolute(path) for path in exclude},
        leave_out or _nothing,
    )
    for root in dict.fromkeys(roots):
        yield from finder.find(root)


class _Finder:
    """One walk: its options, and where it has been."""

    def __init__(
        self,
        on_problem: Callable[[UnreadableFile], None],
        suffixes: Container[str] | None,
        hidden: bool,
        follow_links: bool,
        exclude: Collection[str],
        leave_out: Callable[[str, str], bool],
    ) -> None:
        self._on_problem = on_problem
        self._suffixes = suffixes
        self._hidden = hidden
        self._follow_links = follow_links
        self._exclude = exclude
        self._leave_out = leave_out
        self._files: set[str] = set()  # arguments that are files
        self._folders: set[str] = set()
        self._entered: set[tuple[int, int]] = set()  # with follow_links

    def find(self, root: str) -> Iterator[FoundFile]:
        """Find everything under one argument."""
        try:
            status = os.stat(root)
        except (OSError, ValueError) as error:
            self._report(root, error)
            return
        kind = kind_of(status.st_mode)
        if kind == "a folder":
            yield from self._walk(root, root)
        elif self._leave_out(root, root):
            return
        elif kind is not None:
            self._on_problem(UnreadableFile(root, f"it is {kind}, not a regular file"))
        elif root not in self._files and not self._found_already(root):
            self._files.add(root)
            yield FoundFile(root, root, status.st_size, status.st_mtime_ns)

    def _found_already(self, file: str) -> bool:
        """Whether a walk through its folder has come upon a file and taken it."""
        name = os.path.basename(file)
        taken = self._suffixes is None or _suffix(name) in self._suffixes
        return (
            taken
            and (self._hidden or not name.startswith("."))
            and os.path.dirname(file) in self._folders
        )

    def _walk(self, folder: str, root: str) -> Iterator[FoundFile]:
        waiting = [folder]
        while waiting:
            folder = waiting.pop()
            if folder in self._folders or folder in self._exclude or self._been_in(folder):
                continue
            self._folders.add(folder)
            try:
                with os.scandir(folder) as found:
                    entries = sorted(found, key=_name)
            except OSError as error:
                self._report(folder, error)
                continue
            inner = []
            for entry in entries:
                name = entry.name
                if name[0] == "." and (not self._hidden or name == ".git"):
                    continue
                try:
                    if entry.is_dir(follow_symlinks=self._follow_links):
                        if not self._leave_out(entry.path, root):
                            inner.append(entry.path)
                        continue
                    if self._suffixes is not None and _suffix(name) not in self._suffixes:
                        continue
                    if self._leave_out(entry.path, root):
                        continue
                    if entry.is_file():
                        if self._files and entry.path in self._files:
                            continue
                        status = entry.stat()
                        yield FoundFile(entry.path, root, status.st_size, status.st_mtime_ns)
                    elif not entry.is_dir():  # a link to a folder is no problem
                        kind = kind_of(os.stat(entry.path).st_mode)
                        self._on_problem(
                            UnreadableFile(entry.path, f"it is {kind}, not a regular file")
                        )
                except OSError as error:
                    self._report(entry.path, error)
            waiting += reversed(inner)

    def _been_in(self, folder: str) -> bool:
        if not self._follow_links:
            return False
        try:
            status = os.stat(folder)
        except OSError:
            return False  # scandir will say why
        identity = (status.st_dev, status.st_ino)
        if identity in self._entered:
            return True
        self._entered.add(identity)
        return False

    def _report(self, path: str, error: OSError | ValueError) -> None:
        reason = getattr(error, "strerror", None) or str(error)
        reason = reason[0].lower() + reason[1:]
        if isinstance(error, FileNotFoundError) and os.path.islink(path):
            reason = _BROKEN_LINK
        elif os.path.islink(path) and "symbolic" in reason:
            reason = _LINK_LOOP
        self._on_problem(UnreadableFile(path, reason))


def _nothing(path: str, root: str) -> bool:
    return False


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def vanished(
    known: Iterable[str],
    found: Container[str],
    roots: Iterable[str | bytes | os.PathLike[str] | os.PathLike[bytes]],
    problems: Iterable[str],
) -> list[str]:
    """Say which sources of an index are gone from the disk.

    Args:
        known: the sources in the index.
        found: the paths that a walk over ``roots`` has found.
        roots: the arguments of that walk. Sources elsewhere are not its business.
        problems: the paths that the walk reported. Nothing is known of what is below them, so it stays; that
            includes a root that isn't there, which is more often a typing mistake or an unmounted disk.

    Returns:
        The sources to remove, sorted.
    """
    covered = _Below(map(absolute, roots))
    unsure = _Below(problems)
    return sorted(
        source
        for source in known
        if source not in found and covered.holds(source) and not unsure.holds(source)
    )


class _Below:
    """Whether a path is one of some paths, or below one of them."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._exact = set(paths)
        self._prefixes = tuple(path.rstrip("/") + "/" for path in self._exact)

    def holds(self, path: str) -> bool:
        return path in self._exact or path.startswith(self._prefixes)
