"""Indexes: where embedded documents are kept and found again.

`base` says what an index is; `lance` is the one that is built in.
"""
