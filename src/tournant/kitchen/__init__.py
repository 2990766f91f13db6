"""The kitchen: one small job cooked in five ways, so that one sees what waits, what thinks, and what helps.

The job is what a service does all day. For each order there is a database query (`tasks.query`, waits), image processing
(`tasks.blur` thinks in Python and holds the GIL; `tasks.compress` thinks in C and lets go of it), and a file upload (`tasks.upload`,
waits). The servers are real and ours; the rows, pixels and digests are real too, and every way must come to the same ones.

    with Kitchen() as kitchen:
        for cooked in kitchen.compare("thinking"):
            print(cooked.way, cooked.seconds, cooked.at_once, cooked.busy_cores)

Two numbers tell the ways apart. `Cooked.at_once` is concurrency: how many steps were under way at once. `Cooked.busy_cores` is
parallelism: how many cores worked at once. ``tournant kitchen`` prints both.

The room is built on the public API and on the standard library; nothing else in Tournant uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tournant.kitchen.cooked import Cooked
    from tournant.kitchen.cooking import Kitchen
    from tournant.kitchen.errors import KitchenError, ServersFailed, WrongDish
    from tournant.kitchen.pitfall import PITFALLS, Pitfall
    from tournant.kitchen.plates import Plate, Setting, Step
    from tournant.kitchen.reasons import why
    from tournant.kitchen.servers import Servers
    from tournant.kitchen.trial import Demonstration, Trial, attempt, demonstrate
    from tournant.kitchen.ways import WAYS, WORKS

_HOMES = {
    "tournant.kitchen.cooked": ("Cooked",),
    "tournant.kitchen.cooking": ("Kitchen",),
    "tournant.kitchen.errors": ("KitchenError", "ServersFailed", "WrongDish"),
    "tournant.kitchen.pitfall": ("PITFALLS", "Pitfall"),
    "tournant.kitchen.plates": ("Plate", "Setting", "Step"),
    "tournant.kitchen.reasons": ("why",),
    "tournant.kitchen.servers": ("Servers",),
    "tournant.kitchen.trial": ("Demonstration", "Trial", "attempt", "demonstrate"),
    "tournant.kitchen.ways": ("WAYS", "WORKS"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "PITFALLS",
    "WAYS",
    "WORKS",
    "Cooked",
    "Demonstration",
    "Kitchen",
    "KitchenError",
    "Pitfall",
    "Plate",
    "Servers",
    "ServersFailed",
    "Setting",
    "Step",
    "Trial",
    "WrongDish",
    "attempt",
    "demonstrate",
    "why",
]


def __getattr__(name: str) -> Any:
    import importlib

    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'tournant.kitchen' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
