"""Guards: what a program claims to do concurrently is checked while it runs, and mistakes are named with the line that makes them.

They are on in every run, and usable alone in any asyncio program (`watch`), from the command line (``tournant watch``) and in
pytest. The room knows nothing of pipelines: the engine hands it what it needs to name stages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tournant.guards.finding import Finding
    from tournant.guards.gil import GilProbe, Scaling
    from tournant.guards.loopwatch import Loopwatch
    from tournant.guards.watch import Watch, watch

_HOME_OF = {
    "Finding": "finding",
    "GilProbe": "gil",
    "Loopwatch": "loopwatch",
    "Scaling": "gil",
    "Watch": "watch",
    "watch": "watch",
}

__all__ = ["Finding", "GilProbe", "Loopwatch", "Scaling", "Watch", "watch"]


def __getattr__(name: str) -> Any:
    import importlib

    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'tournant.guards' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tournant.guards.{home}"), name)
    globals()[name] = value
    return value
