"""``tournant mock-llm``: started, asked, changed and ended as people do."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tournant.cli import main, make_parser
from tournant.cli.mock_llm import summary
from tournant.llm.mock import MockSettings

LINE = re.compile(r"mock-llm listening on (http://127\.0\.0\.1:\d+/v1) \(Ctrl-C stops it\)\n")


@contextmanager
def running(*options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "tournant", "mock-llm", "--port", "0", *options]
    # A shell's background job ignores SIGINT, and its children inherit that.
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        try:
            assert process.stdout is not None
            match = LINE.fullmatch(process.stdout.readline())
            assert match is not None
            yield process, match[1]
        finally:
            if process.poll() is None:
                process.kill()


def call(url: str, body: Any = None, method: str | None = None, **headers: str) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


QUESTION = {"model": "m", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 5}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_comes_and_says_what_it_saw(number):
    with running("--rpm", "0.001", "--seed", "3") as (process, url):
        assert call(url + "/chat/completions", QUESTION)["usage"]["completion_tokens"] == 5
        with pytest.raises(urllib.error.HTTPError) as caught:
            call(url + "/chat/completions", QUESTION)
        caught.value.close()
        root = url.removesuffix("/v1")
        assert call(root + "/control", {"rpm": None})["rpm"] is None
        call(url + "/chat/completions", QUESTION)
        assert call(root + "/stats")["ok"] == 2
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0
        assert err == ""
        assert "3 requests: 2 answered, 1 times 429; at most 1 at once" in out
        assert "1 answered more than once" in out
        assert json.loads(out.splitlines()[-1])["refused"] == 1


def test_it_ends_at_once_while_calls_are_open():
    with running("--hang-rate", "1") as (process, url):
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(
                urllib.request.Request(url + "/chat/completions", json.dumps(QUESTION).encode()),
                timeout=0.2,
            )
        process.terminate()
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "1 hung" in out


def test_the_key_comes_from_the_environment_and_is_never_shown():
    with running("--api-key-env", "THE_KEY", THE_KEY="canary-key") as (process, url):
        with pytest.raises(urllib.error.HTTPError, match="401") as caught:
            call(url + "/chat/completions", QUESTION)
        assert b"canary" not in caught.value.read()
        call(url + "/chat/completions", QUESTION, Authorization="Bearer canary-key")
        process.terminate()
        out, err = process.communicate(timeout=30)
        assert "canary" not in out + err


def test_every_option_reaches_its_setting(monkeypatch):
    seen: list[MockSettings] = []

    async def serve(settings: MockSettings, model_file: str | None) -> dict[str, Any]:
        seen.append(settings)
        assert model_file == "model.gguf"
        return STATS

    monkeypatch.setattr("tournant.cli.mock_llm._serve", serve)
    monkeypatch.setenv("THE_KEY", "key")
    wanted = MockSettings(
        host="::1", port=99, rpm=1.5, tpm=2.0, burst=3.0, headers="none", latency="uniform:1,2", token_interval="0.5",
        knee=4, error_rate=0.01, overload_rate=0.02, hang_rate=0.03, garbage_rate=0.04, half_rate=0.05, reset_rate=0.06,
        cut_rate=0.07, stream_error_rate=0.08, api_key="key", context=5, quota=6, models=("a", "b"), answer_tokens=7,
        dimensions=8, seed=-9, max_body=1024,
    )  # fmt: skip
    arguments = (
        "mock-llm --host ::1 --port 99 --rpm 1.5 --tpm 2 --burst 3 --headers none --latency uniform:1,2 --token-interval 0.5 "
        "--knee 4 --error-rate 0.01 --overload-rate 0.02 --hang-rate 0.03 --garbage-rate 0.04 --half-rate 0.05 "
        "--reset-rate 0.06 --cut-rate 0.07 --stream-error-rate 0.08 --api-key-env THE_KEY --context 5 --quota 6 --model a "
        "--model b --answer-tokens 7 --dimensions 8 --seed -9 --max-body 1K --model-file model.gguf"
    )
    assert main(arguments.split()) == 0
    assert seen == [wanted]


def test_without_options_the_settings_are_the_defaults(monkeypatch):
    seen: list[MockSettings] = []

    async def serve(settings: MockSettings, model_file: str | None) -> dict[str, Any]:
        seen.append(settings)
        assert model_file is None
        return STATS

    monkeypatch.setattr("tournant.cli.mock_llm._serve", serve)
    assert main(["mock-llm"]) == 0
    assert seen == [MockSettings(port=8080)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rpm", "0"], "rpm=0.0: give a number above 0"),
        (["--rpm", "nan"], "rpm=nan"),
        (["--rpm", "many"], "--rpm"),
        (["--latency", "slow"], "latency='slow' is no latency: give seconds"),
        (["--error-rate", "1.5"], "1 % is 0.01"),
        (["--error-rate", "0.6", "--hang-rate", "0.6"], "together they are at most 1"),
        (["--port", "99999"], "port=99999"),
        (["--headers", "azure"], "--headers"),
        (["--api-key-env", "NOT_SET_ANYWHERE"], "--api-key-env NOT_SET_ANYWHERE: this environment variable is not set"),
    ],
)  # fmt: skip
def test_wrong_usage_is_exit_2_with_the_mend(capsys, arguments, said):
    assert main(["mock-llm", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_what_cannot_be_served_is_exit_1(capsys, tmp_path):
    from tournant.llm.mock import serving

    with serving() as server:
        assert main(["mock-llm", "--port", str(server.port)]) == 1
    assert "Address already in use; give another --port" in capsys.readouterr().err
    assert main(["mock-llm", "--port", "0", "--model-file", str(tmp_path / "none.gguf")]) == 1
    assert "none.gguf" in capsys.readouterr().err


def test_it_takes_as_many_descriptors_as_it_may():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        with running() as (process, _):
            assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_help_loads_no_server():
    program = (
        "import sys; from tournant.cli import main; main(['mock-llm', '--help']); "
        "print([m for m in ('asyncio.events', 'msgspec', 'httptools', 'aiohttp') if m in sys.modules], file=sys.stderr)"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert "--token-interval" in out.stdout
    assert out.stderr.strip() == "[]"
    assert "mock-llm" in make_parser().format_help()


STATS = {
    "requests": 1_234, "ok": 1_000, "refused": 200, "errors": 30, "overloads": 0, "hung": 4, "garbage": 0, "half": 0,
    "resets": 0, "cut": 0, "stream_errors": 0, "left": 0, "peak": 64, "tokens_in": 5, "tokens_out": 6_000,
    "bodies": {"distinct": 1, "answered_again": 0},
}  # fmt: skip


def test_the_summary():
    lines = summary(STATS).splitlines()
    assert (
        lines[0]
        == "1,234 requests: 1,000 answered, 200 times 429, 30 500, 4 hung; at most 64 at once"
    )
    assert lines[1] == "5 tokens in, 6,000 out; 1 distinct body, 0 answered more than once"
    assert json.loads(lines[2]) == STATS
