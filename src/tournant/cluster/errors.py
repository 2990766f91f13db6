"""What can go wrong with a cluster itself, in this library's words; Ray's own error is the cause."""

from __future__ import annotations

from tournant.errors import TournantError


class ClusterError(TournantError):
    """The cluster can't do the run, or can't go on with it."""


class ClusterUnavailable(ClusterError, ConnectionError):
    """Ray is not installed, there is no cluster at the address, or it is not one that this process can join."""


class NodesFailed(ClusterError):
    """No node could be brought to work, or none is left."""
