"""Garbage collections of this process, told to the runs that are open."""

from __future__ import annotations

import gc
import threading
import weakref
from time import perf_counter
from typing import Any, Protocol

#: Seconds below which a collection is not worth a mark.
LEAST = 0.001

_lock = threading.Lock()
_listeners: tuple[weakref.ref[Listener], ...] = ()
_began = 0.0


class Listener(Protocol):
    """Who is told."""

    def mark(self, kind: str, text: str, *, lasted: float = 0.0, at: float | None = None) -> None:
        """Take the news of a collection."""


def listen(listener: Listener) -> None:
    """Tell `listener` of collections from now on, for as long as it lives."""
    global _listeners
    with _lock:
        _listeners = (*_listeners, weakref.ref(listener))
        if _on_collection not in gc.callbacks:
            gc.callbacks.append(_on_collection)


def listen_no_more(listener: Listener) -> None:
    """Tell `listener` no more."""
    global _listeners
    with _lock:
        _listeners = tuple(each for each in _listeners if each() not in (listener, None))
        if not _listeners and _on_collection in gc.callbacks:
            gc.callbacks.remove(_on_collection)


def _on_collection(phase: str, info: dict[str, Any]) -> None:
    """Measure a collection. It may come at any moment in any thread, so this takes no lock."""
    global _began
    if phase == "start":
        _began = perf_counter()
        return
    began, _began = _began, 0.0
    lasted = perf_counter() - began
    if began and lasted >= LEAST:
        text = f"garbage collection of generation {info['generation']}: {lasted * 1e3:.1f} ms"
        for each in _listeners:
            listener = each()
            if listener is not None:
                listener.mark("gc", text, lasted=lasted, at=began)
