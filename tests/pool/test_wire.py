from __future__ import annotations

import os
import pickle
import threading

import pytest

import core_samples as samples
from tournant.pool import wire


def through(value, **options):
    """Send a value through a pipe and read it."""
    reading, writing = os.pipe()
    thread = threading.Thread(target=lambda: wire.write(writing, wire.dump(value, **options)))
    thread.start()
    try:
        return wire.Reader(reading).read()
    finally:
        thread.join(20)
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [1, "two", 3.0, {"four": (5,)}],
        b"",
        b"x" * 100,
        b"y" * 70_000,
        [b"a" * (1 << 20), "b", b"c" * (3 << 20)],
        bytearray(b"z" * 200_000),
        "s" * 300_000,
        list(range(200_000)),
        [b"x" * 65_536] * 40,
        [bytes([n % 256]) * 20_000 for n in range(700)],
    ],
)
def test_values_come_out_as_they_went_in(value):
    assert through(value) == value


def test_buffers_travel_out_of_band_and_may_be_written_to():
    np = pytest.importorskip("numpy")
    arrays = [
        np.arange(100_000),
        np.arange(10),
        np.zeros(0),
        np.ones((300, 300), order="F"),
        np.arange(10**5)[::2],
    ]
    for sent, got in zip(arrays, through(arrays), strict=True):
        assert (sent == got).all()
        if got.nbytes > 100:
            got += 1
    pieces = wire.dump(arrays[0])
    assert sum(len(p) for p in pieces if isinstance(p, bytes)) < 2000


def test_large_bytes_are_not_copied_into_the_pickle():
    big = b"x" * (1 << 20)
    assert any(piece is big for piece in wire.dump([1, big, 2]))


def test_functions_go_by_reference_and_what_has_no_name_by_value():
    assert through(samples.inc) is samples.inc
    assert through(lambda n: n + 1)(1) == 2


def test_a_value_that_does_not_unpickle_leaves_the_stream_at_the_next_message():
    reading, writing = os.pipe()
    try:
        wire.write(writing, wire.dump([b"x" * 1000, samples.Stubborn(), b"y" * 30_000]))
        wire.write(writing, wire.dump("the next"))
        reader = wire.Reader(reading)
        with pytest.raises(RuntimeError, match="does not unpickle"):
            reader.read()
        assert reader.read() == "the next"
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("cut", [0, 3, 20, 5_000])
def test_a_stream_that_breaks_off_is_an_end(cut):
    reading, writing = os.pipe()
    data = b"".join(bytes(piece) for piece in wire.dump([b"x" * 10_000, b"y" * 20_000]))
    os.write(writing, data[:cut])
    os.close(writing)
    with pytest.raises(EOFError):
        wire.Reader(reading).read()
    os.close(reading)


def test_writing_to_nobody_is_an_os_error():
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(OSError):
        wire.write(writing, wire.dump("x"))
    os.close(writing)


def test_what_cant_be_pickled_at_all_raises():
    with pytest.raises(Exception, match="pickle"):
        wire.dump(threading.Lock())
    with pytest.raises(Exception, match="pickle"):
        wire.dump_in_band(threading.Lock())


def test_a_large_message_is_checked_for_main_in_every_frame():
    """The name of a class of ``__main__`` may stand behind megabytes of small values."""
    import __main__

    class Point:
        pass

    Point.__module__, Point.__qualname__ = "__main__", "Point"
    __main__.Point = Point
    try:
        pieces = wire.dump([list(range(300_000)), Point()])
        how = wire._HEAD.unpack(pieces[0][: wire._HEAD.size])[1]
        assert how == wire.BY_VALUE
    finally:
        del __main__.Point
    assert wire._HEAD.unpack(wire.dump(list(range(10)))[0][: wire._HEAD.size])[1] == wire.PLAIN
    assert pickle.loads(b"".join(wire.dump_in_band(samples.inc))) is samples.inc
