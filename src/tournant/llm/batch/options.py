"""What a batch is told: one frozen value, checked when it is built, and what is made of it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tournant.errors import short
from tournant.limits import Adaptive, InvalidLimit, RateLimit
from tournant.llm.batch.errors import InvalidBatch
from tournant.llm.errors import InvalidClient

if TYPE_CHECKING:
    from tournant.cluster import Ray
    from tournant.llm.batch.requests import Form
    from tournant.llm.client import Client

DEFAULT_URL = "https://api.openai.com/v1"
URL_VARIABLE = "OPENAI_BASE_URL"
KEY_VARIABLE = "OPENAI_API_KEY"
#: The stage that writes results; it needs the file, so on a cluster it is the driver's.
WRITE = "write"
_TABLES = {".csv": None, ".tsv": "\t"}


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """What to ask, of whom, and how.

    Attributes:
        input: The file of requests: OpenAI's batch format; with `prompt`, JSON lines or (``.csv``, ``.tsv``) a table.
        output: The file of results. Made where there is none; where there is one, the batch goes on from it.
        prompt: The user's message, with the names of fields in braces. Default: the input holds whole requests.
        system: The system's message, with `prompt`. Default: none.
        max_tokens: Tokens of the longest answer, with `prompt`. Default: the provider's.
        model: The model that every request is sent to, whatever its body says; needed with `prompt`.
            Default: what the bodies say.
        base_url: Where the API is. Default: ``$OPENAI_BASE_URL``, or OpenAI's.
        api_key_env: The environment variable that holds the key. Default: ``OPENAI_API_KEY`` if it is set; otherwise
            none is sent.
        rpm: Requests per minute. Default: found out.
        tpm: Tokens per minute. Default: found out.
        concurrency: The fewest and the most calls at once; between them it is found out. Default (1, 256).
        retries: How often a request is sent again after a failure that may pass. Default 5.
        timeout: Seconds for one attempt. Default 600.
        price: What a million tokens cost, read and written. Default: nothing is reckoned.
        retry_refused: Ask again what the provider has refused in an earlier run (400, context too long). Default: no.
        patience: Seconds for which a provider that cannot be reached is waited for, 30 at most where it has never
            answered. Default 300.
        limit: A `RateLimit` to share with the rest of a program, in place of `rpm` and `tpm`.
        headers: Further headers for every request.
        cluster: Ask from the nodes of a cluster, as in ``pipeline.run(cluster=...)``; rates are shared by all of them, `concurrency`
            is each node's. Default: from this machine.

    Raises:
        InvalidBatch: when an option can't be.
    """

    input: str
    output: str
    prompt: str | None = None
    system: str | None = None
    max_tokens: int | None = None
    model: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    rpm: float | None = None
    tpm: float | None = None
    concurrency: tuple[int, int] = (1, 256)
    retries: int = 5
    timeout: float = 600.0
    price: tuple[float, float] | None = None
    retry_refused: bool = False
    patience: float = 300.0
    limit: RateLimit | None = None
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    cluster: Ray | str | None = None

    def __post_init__(self) -> None:
        """Refuse what can't be."""
        for name in ("input", "output"):
            value = getattr(self, name)
            if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
                raise InvalidBatch(f"{name}={short(value)}: give the path of a file")
            object.__setattr__(self, name, os.fspath(value))
        for name in ("prompt", "system", "model", "base_url", "api_key_env"):
            _check_text(name, getattr(self, name))
        table = os.path.splitext(self.input)[1].lower() in _TABLES
        if self.prompt is None:
            for name in ("system", "max_tokens"):
                if getattr(self, name) is not None:
                    raise InvalidBatch(
                        f"{name} belongs to a prompt: give prompt too, or put it into the requests' bodies"
                    )
            if table:
                raise InvalidBatch(
                    f"the input {short(self.input, 200)} is a table: give a prompt that names its columns, such as "
                    "'Summarise: {text}'"
                )
        elif self.model is None:
            raise InvalidBatch("a prompt needs a model to be sent to: give model (--model NAME)")
        for name in ("rpm", "tpm", "timeout"):
            value = getattr(self, name)
            if value is not None and not _positive(value):
                raise InvalidBatch(f"{name}={short(value)}: give a number above 0")
        if self.limit is not None and not isinstance(self.limit, RateLimit):
            raise InvalidBatch(
                f"limit={short(self.limit)}: give a RateLimit, such as tn.RateLimit('500/min'), or rpm and tpm"
            )
        if not _pair(self.concurrency) or not all(map(_whole, self.concurrency)):
            raise InvalidBatch(
                f"concurrency={short(self.concurrency)}: give the fewest and the most calls at once, such as (1, 64)"
            )
        if self.limit is not None and (self.rpm is not None or self.tpm is not None):
            raise InvalidBatch("limit= and rpm= or tpm= contradict each other: give one of them")
        if not _whole(self.retries) or self.retries < 0:
            raise InvalidBatch(f"retries={short(self.retries)}: give a whole number, 0 or more")
        if self.max_tokens is not None and (not _whole(self.max_tokens) or self.max_tokens < 1):
            raise InvalidBatch(
                f"max_tokens={short(self.max_tokens)}: give a whole number from 1 on"
            )
        if not _number(self.patience) or not 0 <= self.patience < math.inf:
            raise InvalidBatch(f"patience={short(self.patience)}: give seconds, 0 or more")
        if self.cluster is not None:
            from tournant.cluster import settings_of

            settings = settings_of(self.cluster)
            if settings.driver_from is not None:
                raise InvalidBatch(
                    f"cluster=Ray(driver_from={settings.driver_from!r}): a batch writes its results at the driver by itself; leave it out"
                )
            object.__setattr__(self, "cluster", replace(settings, driver_from=WRITE))
        if self.price is not None and not (
            _pair(self.price) and all(_number(p) and 0 <= p < math.inf for p in self.price)
        ):
            raise InvalidBatch(
                f"price={short(self.price)}: give what a million tokens cost, read and written, such as (0.15, 0.60)"
            )


def form_of(options: BatchOptions) -> Form:
    """Return how the input holds requests.

    Raises:
        InvalidBatch: when the prompt can't be used.
    """
    from tournant.llm.batch.fields import CsvRows, JsonLines, PromptMaker
    from tournant.llm.batch.requests import BatchLines
    from tournant.llm.batch.templates import Template

    if options.prompt is None:
        return BatchLines(options.model)
    assert options.model is not None
    make = PromptMaker(Template(options.prompt), options.model, options.system, options.max_tokens)
    suffix = os.path.splitext(options.input)[1].lower()
    return CsvRows(make, _TABLES[suffix]) if suffix in _TABLES else JsonLines(make)


def client_of(options: BatchOptions) -> Client:
    """Return the client.

    Raises:
        InvalidBatch: when the address or the key's variable can't be used.
    """
    from tournant.llm.client import Client
    from tournant.llm.timeouts import Timeouts

    variable = options.api_key_env
    if variable is None and os.environ.get(KEY_VARIABLE, "").strip():
        variable = KEY_VARIABLE
    elif variable is not None and not os.environ.get(variable, "").strip():
        # Whoever gives the key itself in place of a name shall not see it in a message.
        name = f" {variable}" if re.fullmatch(r"[A-Z_][A-Z0-9_]{0,60}", variable) else ""
        raise InvalidBatch(
            f"the environment variable{name} that is to hold the API key is not set: export the key in it, and give its "
            "name, not the key"
        )
    url = options.base_url if options.base_url is not None else os.environ.get(URL_VARIABLE)
    try:
        return Client(
            url or DEFAULT_URL,
            api_key_env=variable,
            timeouts=Timeouts(connect=min(10.0, options.timeout), total=options.timeout),
            headers=options.headers,
        )
    except InvalidClient as error:
        raise InvalidBatch(str(error)) from None


def limits_of(options: BatchOptions) -> tuple[RateLimit, Adaptive]:
    """Return the rate and the concurrency.

    Raises:
        InvalidBatch: when they can't be.
    """
    try:
        limit = options.limit or RateLimit(
            None if options.rpm is None else f"{options.rpm:f}/min",
            None if options.tpm is None else f"{options.tpm:f}/min",
        )
        return limit, Adaptive(*options.concurrency)
    except (InvalidLimit, TypeError) as error:
        raise InvalidBatch(f"the limits can't be: {error}") from None


def _check_text(name: str, value: object) -> None:
    if value is None or (isinstance(value, str) and value.strip()):
        return
    # Who gives the key itself in place of its variable's name shall not see it in a message.
    given = "" if name == "api_key_env" and value != "" else f"={short(value)}"
    raise InvalidBatch(f"{name}{given}: give a text that is not empty, or leave it out")


def _pair(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
