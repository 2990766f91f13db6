"""What a server is told: one frozen, validated description. State lives elsewhere.

Every limit of the server is here, with its unit and its default, and nowhere else.
"""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, fields

from tournant.errors import short
from tournant.ingest.indexes.locations import protected
from tournant.limits import InvalidLimit, Rate
from tournant.limits.figures import rate_from
from tournant.serve.errors import InvalidSettings

MIB = 2**20
_OPTIONAL = ("streams_per_key",)


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """The settings of ``tournant serve``. All times are in seconds, all sizes in bytes.

    Attributes:
        index: The folder or URL of the index that is searched and that uploads go into. Default: none.
        llm: Who answers: the base URL of an OpenAI-compatible API (``http://host/v1``), or ``local:FILE.gguf``. Default:
            nobody, and chat and completions are not served.
        model: The model that answers. With a URL it is the only one that is served; default: any that the upstream knows.
            For a local model it is its name; default: the file's.
        llm_api_key_env: The environment variable that holds the upstream's API key. Default: none; then, on a server that
            has no keys of its own, the caller's own ``Authorization`` is passed on.
        embedder: Who embeds, ``static`` or ``onnx:FOLDER``. Default: the index's embedder where there is an index; without
            one, ``/v1/embeddings`` is relayed to the upstream.
        uploads: The folder that keeps uploaded files. Default: beside the index, under its name with ``-uploads`` behind it.
        host: The address to listen on. Default ``127.0.0.1``.
        port: The port to listen on; 0 takes any that is free. Default 8000.
        api_keys: The file of API keys; see `tournant.serve.keys`. Default: none, and everyone who can connect may ask.
        insecure: Allow a public address without keys. Default no.
        cors_origins: Origins (``https://example.org``) whose pages may call the server from a browser. Default: none.
        allowed_hosts: More names that a ``Host`` header may hold on a server on the loopback interface without keys.
            Default: only those of the interface itself, so that no foreign page can reach it under a name of its own.

        max_connections: Connections at once; one more is told 503. Default 8,192.
        max_streams: Answers in progress at once, streamed or not; others queue. Default 2,048.
        max_queued_tokens: Tokens, by estimate, of the requests that queue; what is above is told 503. Default 2,000,000.
        queue_seconds: The longest time in the queue. Default 30.
        requests_per_key: What a key may ask, such as ``"600/min"``, where the file of keys says nothing. Default: no limit.
        tokens_per_key: What a key may use in tokens, read and written, such as ``"1M/min"``. Default: no limit.
        streams_per_key: Answers in progress at once for one key. Default: no limit.

        max_header_bytes: The size of a request's head. Default 64 KiB.
        max_body_bytes: The size of a JSON body. Default 8 MiB.
        max_nesting: How deep a JSON body may nest. Default 32.
        max_texts: How many texts one request may embed, or messages one may hold. Default 2,048.
        max_text_chars: Characters in one text. Default 1,000,000.
        max_upload_bytes: The size of one upload, all its files together. Default 256 MiB.
        max_upload_files: Files in one upload. Default 1,000.
        max_results: The most passages that a search or a retrieval returns. Default 50.
        header_seconds: A request's head must be complete after so long. Default 10.
        body_seconds: A JSON body must be complete after so long. Default 30.
        keep_alive_seconds: How long an idle connection is kept. Default 30.

        client_buffer_bytes: What may wait for one client that reads slowly; above it nothing more is read from the
            upstream for that client. Default 64 KiB.
        slow_reader_seconds: A client that takes nothing for so long, while something waits for it, is closed. Default 20.
        coalesce_seconds: Under load, tokens of one answer may wait this long for each other. At most 0.02, the default;
            0 never waits.
        max_event_bytes: The size of one event of an upstream's stream. Default 1 MiB.
        max_answer_bytes: The size of an upstream's answer that is not streamed. Default 32 MiB.
        connect_seconds: For a connection to the upstream. Default 10.
        first_token_seconds: From the request to the first event of a streamed answer. Default 120.
        between_tokens_seconds: From one event of a streamed answer to the next. Default 60.
        total_seconds: For an answer that is not streamed. Default 600.
        grace_seconds: After the signal to stop, running answers have so long to end. Default 30.

    Raises:
        InvalidSettings: when a setting can't be, or a public address is to be served without keys.
    """

    index: str | None = None
    llm: str | None = None
    model: str | None = None
    llm_api_key_env: str | None = None
    embedder: str | None = None
    uploads: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: str | None = None
    insecure: bool = False
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()

    max_connections: int = 8_192
    max_streams: int = 2_048
    max_queued_tokens: int = 2_000_000
    queue_seconds: float = 30.0
    requests_per_key: Rate | str | None = None
    tokens_per_key: Rate | str | None = None
    streams_per_key: int | None = None

    max_header_bytes: int = 64 * 1024
    max_body_bytes: int = 8 * MIB
    max_nesting: int = 32
    max_texts: int = 2_048
    max_text_chars: int = 1_000_000
    max_upload_bytes: int = 256 * MIB
    max_upload_files: int = 1_000
    max_results: int = 50
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    keep_alive_seconds: float = 30.0

    client_buffer_bytes: int = 64 * 1024
    slow_reader_seconds: float = 20.0
    coalesce_seconds: float = 0.02
    max_event_bytes: int = MIB
    max_answer_bytes: int = 32 * MIB
    connect_seconds: float = 10.0
    first_token_seconds: float = 120.0
    between_tokens_seconds: float = 60.0
    total_seconds: float = 600.0
    grace_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what can't be."""
        if self.index is not None:
            # Whoever prints these settings must not print a password.
            object.__setattr__(self, "index", protected(self.index))
        for field in fields(self):
            _check_figure(field.name, getattr(self, field.name))
        for name in ("requests_per_key", "tokens_per_key"):
            try:
                object.__setattr__(self, name, rate_from(getattr(self, name), name))
            except InvalidLimit as error:
                raise InvalidSettings(str(error)) from None
        for name in ("cors_origins", "allowed_hosts"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(one, str) and one for one in value):
                raise InvalidSettings(f"{name}={short(value)}: give a tuple of strings")
            object.__setattr__(self, name, tuple(value))
        if self.coalesce_seconds > 0.02:
            raise InvalidSettings(
                f"coalesce_seconds={self.coalesce_seconds!r}: a reader would see it; give at most 0.02"
            )
        self._check_llm()
        self._check_address()

    def _check_llm(self) -> None:
        llm = self.llm
        if llm is not None and not llm.startswith(("http://", "https://", "local:")):
            raise InvalidSettings(
                f"llm={short(llm)}: give the base URL of an OpenAI-compatible API, such as "
                "http://127.0.0.1:8080/v1, or a model file as local:FILE.gguf"
            )
        if llm == "local:":
            raise InvalidSettings("llm='local:': name the model file, as in local:FILE.gguf")
        if llm is None and (self.model or self.llm_api_key_env):
            given = "model" if self.model else "llm_api_key_env"
            raise InvalidSettings(f"{given} is given without llm: say whose it is with llm=")
        if self.local_model is not None and self.llm_api_key_env:
            raise InvalidSettings(
                "llm_api_key_env is given, but a local model needs no key: leave it out"
            )

    def _check_address(self) -> None:
        if not isinstance(self.host, str) or not self.host:
            raise InvalidSettings(f"host={short(self.host)}: give an address or a host name")
        if (
            isinstance(self.port, bool)
            or not isinstance(self.port, int)
            or not 0 <= self.port < 65_536
        ):
            raise InvalidSettings(
                f"port={short(self.port)}: give a port from 0 to 65535; 0 takes a free one"
            )
        if not self.is_loopback and self.api_keys is None and not self.insecure:
            raise InvalidSettings(
                f"host={self.host!r} can be reached from other machines, and there are no API keys: anyone could use this "
                "server. Give a file of keys (--api-keys FILE), listen on 127.0.0.1, or say --insecure"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False  # a host name: it may lead anywhere

    @property
    def local_model(self) -> str | None:
        """The path of the local model's file, or ``None`` when there is none."""
        if self.llm is not None and self.llm.startswith("local:"):
            return self.llm.removeprefix("local:")
        return None

    @property
    def upstream(self) -> str | None:
        """The upstream's base URL without a slash at its end, or ``None`` when there is none."""
        if self.llm is None or self.llm.startswith("local:"):
            return None
        return self.llm.rstrip("/")


def _check_figure(name: str, value: object) -> None:
    """Refuse a limit that is no number above 0."""
    whole = name.startswith(("max_", "client_buffer", "streams_per"))
    if not whole and not name.endswith("_seconds"):
        return
    if value is None and name in _OPTIONAL:
        return
    least_ok = name in ("coalesce_seconds", "grace_seconds", "max_queued_tokens")
    fits = (
        isinstance(value, int if whole else (int, float))
        and not isinstance(value, bool)
        and (value > 0 or (least_ok and value == 0))
        and value < math.inf
    )
    if not fits:
        kind = "a whole number" if whole else "seconds"
        bound = "0 or more" if least_ok else "above 0"
        raise InvalidSettings(f"{name}={short(value)}: give {kind}, {bound}")
