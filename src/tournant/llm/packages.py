"""The packages that a client needs, imported in one place so that a missing one is told with its extra."""

from __future__ import annotations

from tournant.llm.errors import MissingExtra

try:
    import aiohttp
    import msgspec
    from yarl import URL
except ImportError as missing:
    raise MissingExtra("a client for model APIs", missing.name or "aiohttp", "llm") from None

__all__ = ["URL", "aiohttp", "msgspec"]
