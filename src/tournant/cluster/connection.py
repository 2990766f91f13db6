"""The one place that talks to Ray's API: connecting, looking at the nodes, starting actors; and Ray's failures in our words."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from tournant.cluster.errors import ClusterError, ClusterUnavailable

if TYPE_CHECKING:
    from tournant.cluster.settings import Ray

#: Seconds in which somebody has to listen at the address.
_REACH = 5.0
#: Begins the address of Ray's client, and what its port is unless somebody changed it.
_CLIENT, _CLIENT_PORT = "ray://", ":10001"
#: What begins an HTTP/2 connection: the preface and an empty SETTINGS frame; and the type of that frame.
_SETTINGS = 4
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0])
#: Connections that runs of this process share; whoever comes first connects, whoever goes last disconnects.
_lock = threading.Lock()
_users = 0
_ours = False


class ClusterNode(NamedTuple):
    """A node that could work.

    Attributes:
        id: Ray's.
        name: what people call it.
        cores: that it has.
        resources: everything that it has.
    """

    id: str
    name: str
    cores: int
    resources: dict[str, float]


def load() -> Any:
    """Import Ray.

    Raises:
        ClusterUnavailable: it is not installed.
    """
    # A library must not send statistics from its user's machine; whoever wants to sets this to 1.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's own handler would print a stack and abort the process at SIGTERM, which is how a run is asked to drain.
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    try:
        import ray
    except ImportError as error:
        raise ClusterUnavailable(
            f"a run on a cluster needs Ray, which can't be imported ({error}): pip install 'tournant[ray]'"
        ) from error
    return ray


def connect(settings: Ray) -> Any:
    """Join the cluster, unless this process has; `disconnect` must follow. Blocks for a second or so.

    Returns:
        The module ``ray``.

    Raises:
        ClusterUnavailable: there is no cluster at the address, or it can't be joined.
    """
    global _users, _ours
    ray = load()
    with _lock:
        if not ray.is_initialized():
            _join(ray, settings)
            _ours = True
        else:
            _same(ray, settings)
            if _users == 0:
                _ours = False
        _users += 1
    return ray


def disconnect(ray: Any) -> None:
    """Leave the cluster when the last run of this process has, if it was joined by a run."""
    global _users
    with _lock:
        _users -= 1
        if _users == 0 and _ours:
            ray.shutdown()


@contextmanager
def joined(settings: Ray) -> Iterator[None]:
    """Be in the cluster for a while, so that runs in it need not join, and what can't be joined is known before anything else is done.

    Raises:
        ClusterUnavailable: there is no cluster at the address, or it can't be joined.
    """
    # Not on the main thread, where Ray would take SIGTERM for itself.
    with ThreadPoolExecutor(1, "tournant-cluster") as thread:
        ray = thread.submit(connect, settings).result()
        try:
            yield
        finally:
            thread.submit(disconnect, ray).result()


def _same(ray: Any, settings: Ray) -> None:
    """Refuse another cluster than the one that this process has joined: Ray knows one at a time."""
    if settings.address is None or settings.address in ("auto", "local"):
        return
    address = _own_address(settings.address)
    joined = ray.get_runtime_context().gcs_address
    if "://" not in address and joined != address:
        raise ClusterUnavailable(
            f"this process has joined the Ray cluster at {joined} and can't use the one at {settings.address} as well: call "
            "ray.shutdown() before, or leave the address out"
        )


def _reachable(address: str) -> None:
    """Find out at once whether anything like Ray listens; Ray itself would try for minutes.

    Ray speaks gRPC, so HTTP/2: a server of that greets with a SETTINGS frame (RFC 9113, section 3.4).

    Raises:
        OSError: nobody listens, or something else does.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH) as there:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return
        there.sendall(_GREETING)
        try:
            said = there.recv(9)
        except TimeoutError as error:
            raise OSError(f"what listens there said nothing in {_REACH:.0f} seconds") from error
        if len(said) < 4 or said[3] != _SETTINGS:
            raise OSError("what listens there is not Ray")


def _own_address(address: str) -> str:
    """Return what Ray is to be given: ``ray://`` means its client where that is what listens, else the cluster itself."""
    plain = address.removeprefix(_CLIENT)
    if plain == address or plain.endswith(_CLIENT_PORT):
        return address
    try:
        import grpc  # type: ignore[import-untyped, unused-ignore]  # noqa: F401
        from ray._raylet import GcsClient  # type: ignore[attr-defined, unused-ignore]
    except ImportError:
        return plain
    try:
        GcsClient(address=plain).get_all_node_info(timeout=_REACH)
    except Exception:
        return address
    return plain


def _join(ray: Any, settings: Ray) -> None:
    address = settings.address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        _reachable(address.removeprefix(_CLIENT))
        options: dict[str, Any] = {"address": _own_address(address), "logging_level": "error"}
        if address == "local":
            options["include_dashboard"] = False
        ray.init(**options)
    except (OSError, ValueError) as error:
        where = (
            f"at {address}" if address != "auto" else "on this machine, and RAY_ADDRESS is not set"
        )
        raise ClusterUnavailable(
            f"there is no Ray cluster {where} ({_first_line(error)}). Start one with `ray start --head` and join it from the "
            "other machines with `ray start --address=HOST:6379`, or give the address of one: "
            'tn.cluster.Ray(address="HOST:6379"), on the command line --cluster ray://HOST:6379; "local" starts one in this process'
        ) from error
    except ImportError as error:
        raise ClusterUnavailable(
            f"{address} needs Ray's client, which is not installed ({error}): pip install 'ray[client]', or give the address of "
            "the cluster itself, HOST:6379"
        ) from error
    except Exception as error:
        said, mend = _first_line(error), "see the cause above"
        if "version" in str(error).lower():
            # Which versions there are stands on the lines that follow.
            said = " ".join(str(error).split())[:400]
            mend = "use the same versions of Ray and Python here as there"
        raise ClusterUnavailable(
            f"the Ray cluster at {address} can't be joined ({type(error).__name__}: {said}); {mend}"
        ) from error


def nodes(ray: Any, settings: Ray) -> list[ClusterNode]:
    """Return the living nodes that have what an actor needs, the largest first. Blocks for a moment."""
    found = []
    for node in ray.nodes():
        resources = dict(node["Resources"])
        cores = int(resources.get("CPU", 0))
        if (
            node["Alive"]
            and cores >= (settings.cpus or 1)
            and all(resources.get(name, 0) >= much for name, much in settings.resources.items())
        ):
            name = node.get("NodeManagerHostname") or node["NodeManagerAddress"]
            found.append(ClusterNode(node["NodeID"], name, settings.cpus or cores, resources))
    return sorted(found, key=lambda node: -node.cores)


def start_node(ray: Any, settings: Ray, node: ClusterNode, path: list[str]) -> Any:
    """Ask Ray for an actor on `node`, which may have to wait for its cores. Returns its handle."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from tournant.cluster.node import Node

    resources = dict(settings.resources)
    options: dict[str, Any] = {
        "num_cpus": node.cores,
        "num_gpus": resources.pop("GPU", 0),
        "resources": resources or None,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node.id, soft=False),
        # deal, listen, give_back and stop may be under way at once.
        "max_concurrency": 6,
        "max_restarts": 0,
        "max_task_retries": 0,
    }
    if settings.runtime_env:
        options["runtime_env"] = dict(settings.runtime_env)
    return ray.remote(Node).options(**options).remote(node.cores, path)


def start_limiter(ray: Any, limits: list[Any]) -> Any:
    """Start the actor that holds the rate limits; Ray starts it again if it dies. Returns its handle."""
    from tournant.cluster.leases import Limiter

    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "max_concurrency": 1000}
    return ray.remote(Limiter).options(**options).remote(limits)


async def answer(ref: Any, timeout: float | None = None) -> Any:
    """Wait for what an actor answers, on any loop.

    Raises:
        TimeoutError: it took longer than `timeout` seconds.
        ray.exceptions.RayError: the actor is lost.
    """
    # Not wait_for: Ray's future must not be cancelled under Ray, whose thread would still set it.
    future = asyncio.wrap_future(ref.future())
    future.add_done_callback(_seen)
    await asyncio.wait([future], timeout=timeout)
    if not future.done():
        raise TimeoutError(f"no answer in {timeout} seconds")
    return future.result()


def _seen(future: asyncio.Future[Any]) -> None:
    """Look at an answer that may come too late for anybody, so that asyncio does not complain about it."""
    if not future.cancelled():
        future.exception()


def unavailable(error: BaseException, what: str) -> ClusterError:
    """Return Ray's `error` in our words."""
    told = ClusterError(f"{what}: {type(error).__name__}: {_first_line(error)}")
    told.__cause__ = error
    return told


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
