"""Settings are refused when they can't be, with what, where and the mend; the command line gives them all."""

from __future__ import annotations

import argparse
import dataclasses

import pytest

from tournant.cli import serve
from tournant.serve import InvalidSettings, ServeSettings
from tournant.serve.upstream import Upstream


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"llm": "127.0.0.1:8000"}, "give the base URL"),
        ({"llm": "local:"}, "name the model file"),
        ({"model": "m"}, "model is given without llm"),
        ({"llm_api_key_env": "X"}, "llm_api_key_env is given without llm"),
        ({"llm": "local:x.gguf", "llm_api_key_env": "X"}, "a local model needs no key"),
        ({"port": 70_000}, "give a port from 0 to 65535"),
        ({"port": True}, "give a port"),
        ({"host": ""}, "give an address"),
        ({"max_streams": 0}, "max_streams=0: give a whole number, above 0"),
        ({"max_streams": 1.5}, "give a whole number"),
        ({"max_connections": True}, "give a whole number"),
        ({"max_queued_tokens": -1}, "0 or more"),
        ({"grace_seconds": -1}, "0 or more"),
        ({"slow_reader_seconds": 0}, "give seconds, above 0"),
        ({"slow_reader_seconds": float("nan")}, "give seconds"),
        ({"total_seconds": float("inf")}, "give seconds"),
        ({"coalesce_seconds": 0.1}, "at most 0.02"),
        ({"streams_per_key": 0}, "give a whole number"),
        ({"requests_per_key": "many"}, "500/min"),
        ({"tokens_per_key": 5}, "say how many in how long"),
        ({"cors_origins": "https://x.example"}, "give a tuple of strings"),
    ],
)
def test_what_cannot_be_is_refused(options, says):
    with pytest.raises(InvalidSettings, match=says):
        ServeSettings(**options)


@pytest.mark.parametrize(
    "url",
    ["http://", "http://user:secret@host/v1", "http://host/v1?key=secret", "http://host:99999/v1"],
)
def test_an_upstream_that_cannot_be_is_refused_without_its_secret(url):
    with pytest.raises(InvalidSettings, match="llm") as refused:
        Upstream(url, None, 1)
    assert "secret" not in str(refused.value)


def test_a_key_that_no_header_can_hold_is_refused():
    with pytest.raises(InvalidSettings, match="characters that no header can"):
        Upstream("http://host/v1", "sk-1\r\nx: y", 1)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ServeSettings().port = 1


def parse(*arguments: str) -> ServeSettings:
    parser = argparse.ArgumentParser()
    serve.add_to(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
    return serve.settings_of(parser.parse_args(["serve", *arguments]))


def test_without_arguments_the_defaults_hold():
    assert parse() == ServeSettings()


def test_every_argument_arrives():
    given = parse(
        "--index", "i", "--llm", "http://h/v1", "--model", "m", "--llm-api-key-env", "E", "--embedder", "static",
        "--uploads", "u", "--host", "0.0.0.0", "--port", "0", "--api-keys", "k", "--insecure", "--cors-origin", "https://a",
        "--cors-origin", "https://b", "--allowed-host", "n", "--max-connections", "1", "--max-streams", "2",
        "--max-queued-tokens", "0", "--queue-seconds", "4", "--requests-per-key", "5/min", "--tokens-per-key", "6/min",
        "--streams-per-key", "7", "--max-body-bytes", "8K", "--max-upload-bytes", "9MB", "--slow-reader-seconds", "10",
        "--first-token-seconds", "11", "--between-tokens-seconds", "12", "--total-seconds", "13", "--grace-seconds", "0",
    )  # fmt: skip
    assert given == ServeSettings(
        index="i", llm="http://h/v1", model="m", llm_api_key_env="E", embedder="static", uploads="u", host="0.0.0.0", port=0,
        api_keys="k", insecure=True, cors_origins=("https://a", "https://b"), allowed_hosts=("n",), max_connections=1,
        max_streams=2, max_queued_tokens=0, queue_seconds=4, requests_per_key="5/min", tokens_per_key="6/min", streams_per_key=7,
        max_body_bytes=8_192, max_upload_bytes=9_000_000, slow_reader_seconds=10, first_token_seconds=11,
        between_tokens_seconds=12, total_seconds=13, grace_seconds=0,
    )  # fmt: skip


def test_wrong_settings_are_wrong_usage(capsys):
    parser = argparse.ArgumentParser()
    serve.add_to(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
    assert serve.run(parser.parse_args(["serve", "--host", "0.0.0.0"])) == 2
    assert "--insecure" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parser.parse_args(["serve", "--grace-seconds", "soon"])


def test_defaults_in_the_help_are_the_defaults():
    import re

    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    serve.add_to(commands, argparse.ArgumentParser(add_help=False))
    text = " ".join(commands.choices["serve"].format_help().split())
    defaults = ServeSettings()
    for option, value in re.findall(
        r"--([\w-]+) \S+ (?:(?!--)[^(])*\(default: (\d[\dA-Za-z]*)\)", text
    ):
        actual = getattr(defaults, option.replace("-", "_"))
        shown = {"8MiB": 8 * 2**20, "256MiB": 256 * 2**20}.get(value) or float(value)
        assert actual == shown, option
