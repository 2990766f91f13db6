"""What can go wrong with a batch as a whole. What goes wrong with one request is an `LLMError`, and goes into the results."""

from __future__ import annotations

from tournant.errors import TournantError


class BatchError(TournantError):
    """The root of everything that keeps a batch from being run to its end."""


class InvalidBatch(BatchError, ValueError):
    """An option of a batch can't be as it was given."""


class InputRefused(BatchError):
    """The file of requests can't be used: unreadable, empty, changed while it was read, or with one ``custom_id`` twice."""


class ResultsRefused(BatchError):
    """The file of results can't be used: in use, not writable, full, or the file of something else."""


class BatchStopped(BatchError):
    """The batch was given up, since no request could have been answered: the key is refused, the quota used up, the provider gone.

    What was answered before is in the results; running the batch again goes on from there. The cause is chained.
    """
