"""`Ray`: where a cluster is, and how much of it a run takes. Frozen, validated when built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tournant.errors import InvalidPipeline, short


@dataclass(frozen=True, slots=True)
class Ray:
    """A Ray cluster for ``pipeline.run(cluster=...)``.

    Each node that is used runs one actor, with an engine of its own on the cores that the actor has.

    Attributes:
        address: of the cluster, ``"10.0.0.1:6379"`` or ``"ray://10.0.0.1:6379"``, of which this machine has to be a node;
            ``"ray://10.0.0.1:10001"`` for Ray's client, which needs ``ray[client]``; or ``"local"`` for a Ray that starts and ends
            with the run. Default: the connection that this process has, else ``RAY_ADDRESS``, else the cluster that runs on this
            machine.
        nodes: the most nodes to use. Default: all, also those that join later.
        cpus: cores that an actor asks for, and with which its engine works. Default: all that its node has.
        shard: inputs that a node is dealt at once. Default: a quarter of a second's work, by the node's pace.
        driver_from: the name of the first stage that runs at the driver, with all that follow: a sink with one
            writer, for example. What comes behind `ordered()` always does. Default: every stage runs on the nodes.
        resources: what a node needs to have for an actor beside cores, such as ``{"GPU": 1}``. Nodes without are left out.
        runtime_env: Ray's ``runtime_env`` for the actors: packages, ``working_dir``, environment variables.
        start_timeout: seconds in which a first node has to be ready. Default 60.
        lost_after: seconds without an answer after which a node counts as lost. Default 60.

    Raises:
        InvalidPipeline: a setting can't be as it was given.
    """

    address: str | None = None
    nodes: int | None = None
    cpus: int | None = None
    shard: int | None = None
    driver_from: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    runtime_env: Mapping[str, Any] | None = None
    start_timeout: float = 60.0
    lost_after: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        for name in ("nodes", "cpus", "shard"):
            value = getattr(self, name)
            if value is not None and (
                not isinstance(value, int) or isinstance(value, bool) or value < 1
            ):
                raise InvalidPipeline(f"Ray({name}={value!r}): give a whole number of 1 or more")
        for name in ("start_timeout", "lost_after"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
                raise InvalidPipeline(f"Ray({name}={value!r}): give seconds above 0")
        for name in ("address", "driver_from"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise InvalidPipeline(f"Ray({name}={value!r}): give a text, or leave it out")
        if not isinstance(self.resources, Mapping) or not all(
            isinstance(much, (int, float)) and much > 0 for much in self.resources.values()
        ):
            raise InvalidPipeline(
                f'Ray(resources={short(self.resources)}): give amounts by name, such as {{"GPU": 1}}'
            )


def settings_of(cluster: object) -> Ray:
    """Return the settings that ``cluster=`` stands for.

    Raises:
        InvalidPipeline: it stands for none.
    """
    if isinstance(cluster, Ray):
        return cluster
    if cluster == "ray":
        return Ray()
    if isinstance(cluster, str):
        kind, _, address = cluster.partition(":")
        if kind == "ray" and address.strip("/"):
            # With slashes the whole is Ray's own way to write an address.
            return Ray(address=cluster if address.startswith("//") else address)
    raise InvalidPipeline(
        f'run(cluster={short(cluster)}): give "ray", "ray://HOST:6379", or tn.cluster.Ray(address=..., nodes=...)'
    )
