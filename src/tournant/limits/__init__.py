"""Limits for stages that wait for somebody else's machine: how many per minute, and how many at once.

Two control loops that know nothing of each other: `RateLimit` (requests and tokens per time, shared by key) and `Adaptive`
(concurrency). Both work outside a pipeline. This room imports nothing of the engine and no HTTP client.
"""

from __future__ import annotations

from tournant.limits.adaptive import Adaptive, AdaptiveSnapshot, Slot, outcome_of
from tournant.limits.admission import Admission, admit
from tournant.limits.clock import SYSTEM, Clock, SystemClock, Timer, VirtualClock
from tournant.limits.concurrency import Controller, Outcome
from tournant.limits.current import current
from tournant.limits.figures import InvalidLimit, Rate
from tournant.limits.rate import RateLimit, Reservation, forget
from tournant.limits.snapshot import BucketSnapshot, LimitSnapshot

__all__ = [
    "SYSTEM",
    "Adaptive",
    "AdaptiveSnapshot",
    "Admission",
    "BucketSnapshot",
    "Clock",
    "Controller",
    "InvalidLimit",
    "LimitSnapshot",
    "Outcome",
    "Rate",
    "RateLimit",
    "Reservation",
    "Slot",
    "SystemClock",
    "Timer",
    "VirtualClock",
    "admit",
    "current",
    "forget",
    "outcome_of",
]
