"""A set of request ids that stays small: what a batch of millions keeps of each request.

An id is kept as a digest of 16 bytes in one of 4,096 byte arrays, chosen by the digest itself. That is about 18 bytes
an id, where a Python set of such digests takes about 100; and a look-up searches a few hundred bytes in C.
"""

from __future__ import annotations

from hashlib import blake2b

SIZE = 16
_BUCKETS = 4096


def digest_of(custom_id: str) -> bytes:
    """Return what stands for an id: 16 bytes, the same in every run."""
    return blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=SIZE).digest()


class DigestSet:
    """A set of digests of 16 bytes: they can be added and looked up, nothing else."""

    __slots__ = ("_buckets", "_count")

    def __init__(self) -> None:
        self._buckets: list[bytearray | None] = [None] * _BUCKETS
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, digest: bytes) -> bool:
        bucket = self._buckets[(digest[0] << 4) | (digest[1] >> 4)]
        return bucket is not None and _found(bucket, digest)

    def add(self, digest: bytes) -> bool:
        """Put a digest in; return whether it is new."""
        place = (digest[0] << 4) | (digest[1] >> 4)
        bucket = self._buckets[place]
        if bucket is None:
            self._buckets[place] = bytearray(digest)
        elif _found(bucket, digest):
            return False
        else:
            bucket += digest
        self._count += 1
        return True


def _found(bucket: bytearray, digest: bytes) -> bool:
    at = bucket.find(digest)
    while at >= 0 and at % SIZE:  # across two neighbours: chance
        at = bucket.find(digest, at + 1)
    return at >= 0
