"""What a pipeline's description is refused for. Internal; `tournant.pipeline` calls it."""

from __future__ import annotations

from typing import Any

from tournant import stages as kinds
from tournant.errors import InvalidPipeline, short
from tournant.policies import is_count_or_share


def check_description(
    source: Any,
    key: Any,
    fingerprint: Any,
    ledger: Any,
    version: Any,
    on_error: Any,
    max_failures: Any,
    stall_after: Any,
) -> bool:
    """Raise `InvalidPipeline` for what can't be; return whether the source is a callable that makes one."""
    iterable = hasattr(source, "__iter__") or hasattr(source, "__getitem__")
    is_async = hasattr(source, "__aiter__")
    factory = callable(source) and not iterable and not is_async
    if not (iterable or is_async or factory):
        raise InvalidPipeline(
            f"Pipeline({short(source)}): the source is a {type(source).__name__}; give an iterable, an async iterable, or a "
            "callable that returns one"
        )
    if isinstance(source, (str, bytes)):
        raise InvalidPipeline(
            f"Pipeline({short(source)}): a single {type(source).__name__} would be taken apart into characters; "
            "give a list with it inside"
        )
    for option, value in (("key", key), ("fingerprint", fingerprint)):
        if value is not None and (not callable(value) or kinds.is_coroutine_callable(value)):
            raise InvalidPipeline(
                f"Pipeline({option}={short(value)}): give a plain function of one input"
            )
    if ledger is not None and not (hasattr(ledger, "pending") and hasattr(ledger, "record")):
        raise InvalidPipeline(f"Pipeline(ledger={short(ledger)}): give tn.Ledger(path)")
    if not isinstance(version, str):
        raise InvalidPipeline(f"Pipeline(version={version!r}): give a string")
    if on_error not in ("stop", "skip"):
        raise InvalidPipeline(f'Pipeline(on_error={on_error!r}): give "stop" or "skip"')
    if max_failures is not None and not is_count_or_share(max_failures):
        raise InvalidPipeline(
            f"Pipeline(max_failures={max_failures!r}): give a count (int, 0 or more) or a share (float between 0 and 1)"
        )
    if stall_after is not None and (
        not isinstance(stall_after, (int, float))
        or isinstance(stall_after, bool)
        or not stall_after > 0
    ):
        raise InvalidPipeline(
            f"Pipeline(stall_after={stall_after!r}): give seconds, above 0; float('inf') switches the warning off"
        )
    return factory
