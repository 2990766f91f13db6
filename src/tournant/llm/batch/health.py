"""Whether the provider is there at all: when all wait for it together, and when a batch is given up.

A provider that takes requests and never answers any shows nothing for as long as a call may take, just as a slow one does. So
silence is measured beside failures: the time in which calls were out and nothing came back.

What goes wrong with one request is counted against that request. What can't be its fault (no connection can be made; for
some seconds nothing but failures) is an outage: one call at a time goes out to see, the others wait, and the first answer lets
all go on. Everything here happens on the run's event loop.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from time import monotonic

from tournant.llm.errors import ConnectionFailed, LLMError, LLMTimeout

_FIRST_PROBE = 0.25
_LAST_PROBE = 5.0
#: Failures of all kinds in a row, over so many seconds, that together are an outage.
_ROW = 10
_ROW_SECONDS = 2.0
_AT_THE_START = 30.0


class Health:
    """What is known of the provider.

    Args:
        patience: Seconds without an answer after which the batch is given up; 30 at most while none has ever come and no connection
            can be made.
        clock: Seconds, for tests.
        timeout: Seconds that one call may take. A provider may be silent for so long, and for `patience` on top of that.

    Attributes:
        answered: Whether it has ever answered a request as it should.
        stopped: Nothing more is to be sent.
        error: The failure at which the outage stands, while there is one.
    """

    def __init__(
        self, patience: float, clock: Callable[[], float] = monotonic, timeout: float = 0.0
    ) -> None:
        self.answered = False
        self.stopped = False
        self.error: LLMError | None = None
        self._patience = patience
        self._longest_silence = patience + timeout
        self._out = 0
        self._silence = 0.0
        self._silent_since = 0.0
        self._clock = clock
        self._down_since: float | None = None
        self._probing = False
        self._delay = _FIRST_PROBE
        self._row = 0
        self._row_since = 0.0
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def down(self) -> bool:
        """Whether there is an outage."""
        return self._down_since is not None

    def down_for(self) -> float:
        """Return the seconds that the outage has lasted; 0 without one."""
        since = self._down_since
        return 0.0 if since is None else self._clock() - since

    async def turn(self) -> bool:
        """Wait until it is worth to send a request; return whether it is the one that goes out to see.

        Look at `stopped` afterwards.
        """
        while self._down_since is not None and not self.stopped:
            if self._probing:
                await self._change(None)
                continue
            self._probing = True
            try:
                await self._change(self._delay * random.uniform(0.5, 1.0))
            except BaseException:
                self._probe_ended()
                raise
            if self._down_since is not None and not self.stopped:
                return True
            self._probe_ended()
        return False

    def sent(self) -> None:
        """Take in that a call goes out."""
        if not self._out:
            self._silent_since = self._clock()
        self._out += 1

    def ended(self, heard: bool) -> None:
        """Take in that a call has ended, and whether the provider answered anything at all."""
        now = self._clock()
        self._silence = 0.0 if heard else self.silent_for()
        self._silent_since = now
        self._out -= 1

    def silent_for(self) -> float:
        """Return the seconds in which calls were out since anything came back."""
        return self._silence + (self._clock() - self._silent_since if self._out else 0.0)

    def silence_left(self) -> float:
        """Return for how many seconds of silence more the provider is waited for."""
        return self._longest_silence - self.silent_for()

    def alive(self) -> None:
        """Take in that the provider has answered, be it with a refusal."""
        self._row = 0
        if self._down_since is not None:
            self._down_since = self.error = None
            self._delay = _FIRST_PROBE
            self._probe_ended()

    def failed(self, error: LLMError, probe: bool) -> bool:
        """Take in that a call failed in a way that may pass; return whether it can be the request's own fault.

        Args:
            error: The failure.
            probe: What `turn` said of the call.
        """
        now = self._clock()
        apart = unreachable(error)
        if not self._row:
            self._row_since = now
        self._row += 1
        if self._down_since is not None:
            self.error = error
        elif apart or (self._row >= _ROW and now - self._row_since >= _ROW_SECONDS):
            self._down_since = self._row_since
            self.error = error
        if probe:
            self._delay = min(_LAST_PROBE, 2 * self._delay)
            self._probe_ended()
        return not apart

    def left(self, probe: bool) -> None:
        """Take in that a call was cancelled."""
        if probe:
            self._probe_ended()

    def exhausted(self) -> bool:
        """Tell whether the outage has lasted longer than anyone wants to wait."""
        patience = self._patience
        if not self.answered and self.error is not None and unreachable(self.error):
            patience = min(patience, _AT_THE_START)
        return self.down and self.down_for() >= patience

    def stop(self) -> None:
        """Let nobody wait any longer: nothing more is to be sent."""
        self.stopped = True
        self._wake()

    def _probe_ended(self) -> None:
        if self._probing:
            self._probing = False
            self._wake()

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def _change(self, seconds: float | None) -> None:
        """Wait until something has changed, or for so long."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await asyncio.wait([future], timeout=seconds)
        finally:
            self._waiting.discard(future)


def unreachable(error: LLMError) -> bool:
    """Tell whether a call failed before the request had left: no connection could be made."""
    if isinstance(error, ConnectionFailed):
        return not error.sent
    return isinstance(error, LLMTimeout) and error.which == "connect"
