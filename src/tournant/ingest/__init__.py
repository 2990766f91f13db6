"""Ingest: files in, a searchable index out.

The rooms are small and know little of each other: `walk` finds files, `readers` turn a file's bytes
into a `Document`, `chunkers` cut it, `embedders` turn the pieces into vectors, and `indexes` store them and
search. Each kind is a Protocol with one conforming test suite. Nothing heavy is imported before it is used, so
a worker process pays only for what its stage needs.
"""
