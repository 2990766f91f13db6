from __future__ import annotations

import argparse

import pytest

from tournant.cli.arguments import byte_size, natural, positive


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4096", 4_096),
        ("4096b", 4_096),
        ("64k", 65_536),
        ("10MB", 10_000_000),
        ("10 MiB", 10_485_760),
        ("1.5GiB", 1_610_612_736),
        ("2T", 2 * 2**40),
    ],
)
def test_sizes_are_understood(text: str, count: int) -> None:
    assert byte_size(text) == count


@pytest.mark.parametrize("text", ["", "MB", "-1", "0", "1.2.3", "10 apples", "1iB", "1e3"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        byte_size(text)


def test_whole_numbers() -> None:
    assert (natural("0"), positive("12")) == (0, 12)
    for text in ("", "-1", "1.5", "x", "²"):
        with pytest.raises(argparse.ArgumentTypeError):
            natural(text)
    with pytest.raises(argparse.ArgumentTypeError, match="too small"):
        positive("0")
