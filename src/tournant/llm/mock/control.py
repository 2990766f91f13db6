"""``/control`` and ``/stats``: changing the provider while it runs, and asking what it has seen.

The body of ``POST /control`` is a JSON object of settings, by their names in `MockSettings`, and of two orders: ``"down"`` (seconds
in which connections are refused, those to ``/control`` too, so that it can't be cut short; those that are open are reset at once) and ``"reset"`` (one or several of ``"stats"``,
``"limits"``, ``"settings"``, ``"connections"``). Everything in it happens, or, with a reply of 400, nothing. The reply holds the settings in force.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from tournant.errors import short
from tournant.llm.mock import wording
from tournant.llm.mock.http import Exchange
from tournant.llm.mock.settings import InvalidMockSettings

if TYPE_CHECKING:
    from tournant.llm.mock.provider import Provider

_RESETS = ("stats", "limits", "settings", "connections")
_LONGEST_DOWN = 3_600.0


class Control:
    """Changes a provider."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def apply(self, orders: Mapping[str, Any]) -> dict[str, Any]:
        """Do what is ordered, all of it or nothing; return the settings in force.

        Being down and cutting connections are left to the caller: the reply goes first.

        Raises:
            InvalidMockSettings: for a name or a value that can't be.
        """
        provider = self._provider
        changes = {name: value for name, value in orders.items() if name not in ("down", "reset")}
        resets = resets_of(orders)
        down_of(orders)
        base = provider.first if "settings" in resets else provider.settings
        settings = base.changed(changes)
        if settings is not provider.settings:
            provider.change(settings)
        if "limits" in resets:
            provider.forget_usage()
        if "stats" in resets:
            provider.stats.reset(provider.loop.time())
        return settings.as_dict()

    def carry_out(self, orders: Mapping[str, Any]) -> None:
        """Cut connections or go down, where that is ordered."""
        seconds = down_of(orders)
        if seconds:
            self._provider.go_down(seconds)
        elif "connections" in resets_of(orders):
            self._provider.cut_all()

    def get(self, exchange: Exchange) -> None:
        """``GET /control``: the settings in force."""
        exchange.reply(200, wording.encode(self._provider.settings.as_dict()))

    def post(self, exchange: Exchange) -> None:
        """``POST /control``: other settings, and orders."""
        try:
            orders = msgspec.json.decode(exchange.body or b"{}")
            if not isinstance(orders, dict):
                raise InvalidMockSettings(
                    f"the body is {short(orders)}: send a JSON object of settings"
                )
            in_force = self.apply(orders)
        except msgspec.DecodeError as error:
            self._refuse(
                exchange, f'the body is no JSON ({error}): send an object like {{"rpm": 60}}'
            )
            return
        except InvalidMockSettings as error:
            self._refuse(exchange, str(error))
            return
        cuts = bool(down_of(orders)) or "connections" in resets_of(orders)
        if cuts:
            exchange.close_after()
        exchange.reply(200, wording.encode(in_force))
        if cuts:
            self.carry_out(orders)

    def get_stats(self, exchange: Exchange) -> None:
        """``GET /stats``: what it has counted."""
        exchange.reply(200, wording.encode(self._provider.stats_now()))

    def reset_stats(self, exchange: Exchange) -> None:
        """``DELETE /stats``: count anew; the reply is what had been counted."""
        counted = wording.encode(self._provider.stats_now())
        self._provider.stats.reset(self._provider.loop.time())
        exchange.reply(200, counted)

    def _refuse(self, exchange: Exchange, message: str) -> None:
        exchange.reply(400, wording.error_body(message, "invalid_request_error"))


def resets_of(orders: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what is to be reset.

    Raises:
        InvalidMockSettings: for what can't be.
    """
    given = orders.get("reset", ())
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, (list, tuple)) or not all(name in _RESETS for name in names):
        raise InvalidMockSettings(
            f"reset={short(given)}: give one or a list of {', '.join(_RESETS)}"
        )
    return tuple(names)


def down_of(orders: Mapping[str, Any]) -> float:
    """Return for how many seconds to be down, 0 for not at all.

    Raises:
        InvalidMockSettings: for what can't be.
    """
    seconds = orders.get("down", 0)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        seconds = math.nan
    if not 0 <= seconds <= _LONGEST_DOWN:
        raise InvalidMockSettings(
            f"down={short(orders['down'])}: give seconds from 0 to {_LONGEST_DOWN:.0f}"
        )
    return float(seconds)
