"""A provider in a process of its own: `tournant mock-llm`, started, asked, changed and ended."""

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Provider:
    """A running provider.

    Attributes:
        url: its base URL, with ``/v1``.
        pid: its process.
    """

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid
        self.root = url.removesuffix("/v1")

    def control(self, **settings: Any) -> Any:
        """Change its settings while it runs."""
        return self._call("POST", "/control", settings)

    def stats(self) -> Any:
        """Return what it has counted."""
        return self._call("GET", "/stats")

    def reset(self) -> None:
        """Count anew."""
        self._call("DELETE", "/stats")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self.root + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)


@contextmanager
def provider(**options: Any) -> Iterator[Provider]:
    """Run `tournant mock-llm` with these options (``rpm=600`` becomes ``--rpm 600``)."""
    command = [sys.executable, "-m", "tournant", "mock-llm", "--port", "0"]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if "http://" not in line:
                raise RuntimeError(f"the provider did not start: {line!r}")
            url = next(word for word in line.split() if word.startswith("http://"))
            yield Provider(url, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
