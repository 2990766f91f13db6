"""The admission of the stage call in progress: how a callable settles what its own call used.

The engine sets it around every call of a stage that has a limit. It is a context variable, so it holds in whatever the call
awaits, in tasks that it starts, and in the thread of a blocking stage.
"""

from __future__ import annotations

from contextvars import ContextVar

from tournant.limits.admission import Admission

admission: ContextVar[Admission | None] = ContextVar("tournant_admission", default=None)
"""What `current` returns. For the engine; everybody else reads it with `current`."""


def current() -> Admission | None:
    """Return the `Admission` of the stage call that this code runs in, or ``None`` outside of one.

    ::

        async def ask(prompt):
            reply = await post(prompt)
            if (call := tn.limits.current()) is not None:
                call.observe(reply.headers)
                call.settle(reply.usage.total_tokens)
            return reply.text
    """
    return admission.get()
