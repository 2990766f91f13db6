"""What can go wrong where runs are handed to other tools."""

from __future__ import annotations

from tournant.errors import TournantError


class MissingExtra(TournantError, ImportError):
    """A package that an export needs is not installed.

    Args:
        purpose: what was asked for, as the subject of a sentence.
        package: the package that is missing.
        extra: the extra of Tournant that brings it.
    """

    def __init__(self, purpose: str, package: str, extra: str) -> None:
        super().__init__(purpose, package, extra)
        self.purpose, self.package, self.extra = purpose, package, extra

    def __str__(self) -> str:
        return (
            f"{self.purpose} needs the package {self.package!r}, which is not installed; "
            f"pip install 'tournant[{self.extra}]'"
        )


class InvalidExport(TournantError, ValueError):
    """An option of an export can't be as it was given."""
