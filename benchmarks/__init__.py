"""Measurements of Tournant beside hand-written code and beside its peers.

Run them with `python -m benchmarks`. Nothing in here is imported by the library.
"""
