"""What can go wrong in the kitchen."""

from __future__ import annotations

from tournant.errors import TournantError


class KitchenError(TournantError):
    """The root of what the kitchen raises; by itself: something was asked for that is not on the menu."""


class ServersFailed(KitchenError):
    """The process with the database server and the upload server did not start, or has ended."""


class WrongDish(KitchenError):
    """One way came to another result than the others: the comparison would be worth nothing."""
