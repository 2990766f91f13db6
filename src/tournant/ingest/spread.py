"""An ingest on a cluster: what its stages do differently on nodes that may not see what the driver sees.

Nodes read, cut and embed; the driver walks, writes the index and keeps the ledger. So the index needs one writer, and nodes
need to see the files alone. Where a node also sees the index, it keeps the vectors of texts that have not changed.
"""

from __future__ import annotations

import logging
import os
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import tournant as tn
from tournant.ingest import stages
from tournant.ingest.errors import InvalidOption, MissingExtra, UnreadableFile
from tournant.ingest.indexes.locations import is_url, needs_lance, open_index
from tournant.ingest.walk import absolute

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from tournant.ingest.documents import ChunkedDocument
    from tournant.ingest.indexes.base import IndexSettings, StoredIndex
    from tournant.ingest.job import IngestOptions
    from tournant.ingest.walk import FoundFile

logger = logging.getLogger(__name__)


def settings_for(cluster: object, driver_from: str) -> tn.cluster.Ray:
    """Return the settings of an ingest's run.

    Args:
        cluster: what the ingest was given.
        driver_from: the first stage at the driver.

    Raises:
        InvalidPipeline: `cluster` names none.
        InvalidOption: it says itself what runs at the driver.
    """
    settings = tn.cluster.settings_of(cluster)
    if settings.driver_from is not None:
        raise InvalidOption(
            f"cluster=Ray(driver_from={settings.driver_from!r}): an ingest writes at the driver by itself; leave it out"
        )
    return replace(settings, driver_from=driver_from)


def joined(cluster: object) -> AbstractContextManager[None]:
    """Be in the cluster before the index is opened: what can't be joined leaves no empty index, and Ray forks before LanceDB is there."""
    return nullcontext() if cluster is None else tn.cluster.joined(tn.cluster.settings_of(cluster))


class Sees:
    """The first stage on a node: ends the run where a node can't do its part, rather than to fail at every file.

    Args:
        packages: what has to be installed.
    """

    def __init__(self, *packages: str) -> None:
        self._packages = packages
        self._seen: set[str] = set()

    def __call__(self, file: FoundFile) -> None:
        """Look at the folder that `file` was found in, once.

        Raises:
            MissingExtra: a package is not installed here.
            UnreadableFile: the folder is not there.
        """
        folder = os.path.dirname(file.path) if file.path == file.root else file.root
        if folder in self._seen:
            return
        for package in self._packages:
            if find_spec(package.replace("-", "_")) is None:
                raise MissingExtra(f"an ingest on the node {platform.node()}", package, "ingest")
        if not os.path.lexists(folder):
            raise UnreadableFile(
                folder,
                f"the driver found files in it, and the node {platform.node()} has no such folder; nodes read the files "
                "themselves: mount the folder on all of them, at the same path",
            )
        self._seen.add(folder)


class NodeRecall:
    """A node's look at the vectors that the index has. What it can't see is embedded again, which changes nothing but the time.

    Args:
        index: the index's folder, absolute, or its URL.
        settings: what it was built with.
    """

    def __init__(self, index: str, settings: IndexSettings) -> None:
        self._place = index, settings
        self._index: StoredIndex | None = None
        self._recall: stages.Recall | None = None
        self._open()

    def _open(self) -> None:
        self.close()
        try:
            self._index = open_index(*self._place)
            self._recall = stages.Recall(self._index, self._index.sources())
        except Exception as error:
            self.close()
            logger.info("this node embeds again what has not changed: %s", error)

    def __call__(self, documents: list[ChunkedDocument]) -> list[ChunkedDocument | stages.Recalled]:
        """Attach known vectors to documents that the index has in an earlier state."""
        for _ in range(2):
            if self._recall is None:
                break
            try:
                return self._recall(documents)
            except Exception:
                # The driver writes meanwhile, and cleans up: look at the table as it is now.
                self._open()
        return list(documents)

    def close(self) -> None:
        """Close the index."""
        index, self._index, self._recall = self._index, None, None
        if index is not None:
            index.close()


def recall(
    documents: list[ChunkedDocument], there: NodeRecall
) -> list[ChunkedDocument | stages.Recalled]:
    """Attach known vectors, with the node's look at the index."""
    return there(documents)


def close_recall(there: NodeRecall) -> None:
    """Close a worker's look at the index."""
    there.close()


def first(options: IngestOptions) -> Callable[[FoundFile], None]:
    """Return what the first stage does with a file: load what will be needed, or on a node look whether all is there."""
    if options.cluster is None:
        return stages.Preload(needs_lance(options.index))
    return Sees("semantic-text-splitter")


def recalling(options: IngestOptions, index: StoredIndex, known: Container[str]) -> dict[str, Any]:
    """Return what looks up the vectors of chunks that have not changed, as arguments of a stage."""
    if options.cluster is None:
        return {"fn": stages.Recall(index, known)}
    place = options.index
    if not is_url(place):
        place = absolute(os.path.expanduser(place))
    there = partial(NodeRecall, place, index.settings)
    return {"fn": recall, "state": tn.PerWorker(there, close=close_recall)}
