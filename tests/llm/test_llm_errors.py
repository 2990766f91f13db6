"""What a provider says becomes one small tree of errors, which travels, tells whether to try again, and gives no key away."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tournant as tn
from tournant.llm import errors
from tournant.llm.faults import Faults, secrets_of

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, errors.LLMError)
]
CALL = "POST http://127.0.0.1:1/v1/chat/completions"


def made(kind):
    if kind is errors.MissingExtra:
        return kind("the client", "aiohttp", "llm")
    return kind("what, where, mend", status=418, retry_after=2.5, code="teapot")


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_travels_with_everything_it_knows(kind):
    error = made(kind)
    error.body = {"error": {"message": "no"}}
    error.add_note("stage 'ask', key 7")
    if kind is errors.LLMTimeout:
        error.which, error.seconds = "first_token", 3.0
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is kind
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)
        assert twin.__notes__ == ["stage 'ask', key 7"]


def test_all_are_tournants_and_some_are_pythons():
    for kind in CLASSES:
        assert issubclass(kind, tn.TournantError)
    assert issubclass(errors.LLMTimeout, TimeoutError)
    assert issubclass(errors.InvalidClient, ValueError)
    assert issubclass(errors.ContextTooLong, errors.BadRequest)
    assert issubclass(errors.MissingExtra, ImportError)


def test_each_kind_has_a_word_of_its_own():
    words = [kind.kind for kind in CLASSES]
    assert len(set(words)) == len(words)


def test_the_transient_ones_are_what_retry_is_given():
    assert set(errors.TRANSIENT) == {kind for kind in CLASSES if kind.transient}
    retry = tn.Retry(on=errors.TRANSIENT)
    for kind in CLASSES:
        assert retry.wants(made(kind), 1) is kind.transient


def test_a_missing_package_is_named_with_its_extra():
    assert "pip install 'tournant[llm]'" in str(errors.MissingExtra("x", "aiohttp", "llm"))


def openai(message, kind=None, code=None):
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def anthropic(kind, message):
    return {"type": "error", "error": {"type": kind, "message": message}}


CASES = [
    # status, body, class, code
    (429, openai("slow down", "requests", "rate_limit_exceeded"), "RateLimited", "rate_limit_exceeded"),
    (429, anthropic("rate_limit_error", "slow down"), "RateLimited", "rate_limit_error"),
    (429, None, "RateLimited", None),
    (429, openai("You exceeded your current quota", "insufficient_quota", "insufficient_quota"), "QuotaExhausted", "insufficient_quota"),
    (400, anthropic("invalid_request_error", "Your credit balance is too low to use the API"), "QuotaExhausted", "invalid_request_error"),
    (402, {"detail": "pay"}, "QuotaExhausted", None),
    (503, openai("busy"), "Overloaded", None),
    (529, anthropic("overloaded_error", "Overloaded"), "Overloaded", "overloaded_error"),
    (500, openai("oops", "server_error"), "ProviderFailed", "server_error"),
    (502, None, "ProviderFailed", None),
    (504, None, "ProviderFailed", None),
    (408, None, "ProviderFailed", None),
    (409, None, "ProviderFailed", None),
    (400, openai("temperature is too hot", "invalid_request_error"), "BadRequest", "invalid_request_error"),
    (422, {"detail": [{"loc": ["body"], "msg": "field required"}]}, "BadRequest", None),
    (400, openai("This model's maximum context length is 8192 tokens", code="context_length_exceeded"), "ContextTooLong", "context_length_exceeded"),
    (400, {"object": "error", "message": "This model's maximum context length is 2048 tokens.", "code": 400}, "ContextTooLong", "400"),
    (400, anthropic("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"), "ContextTooLong", "invalid_request_error"),
    (400, {"error": {"code": 400, "message": "exceeds the available context size", "type": "exceed_context_size_error"}}, "ContextTooLong", "400"),
    (413, anthropic("request_too_large", "too large"), "ContextTooLong", "request_too_large"),
    (401, openai("Incorrect API key provided", code="invalid_api_key"), "AuthenticationFailed", "invalid_api_key"),
    (403, anthropic("permission_error", "no"), "AuthenticationFailed", "permission_error"),
    (404, openai("The model does not exist", code="model_not_found"), "NotFound", "model_not_found"),
    (404, {"error": "model 'x' not found"}, "NotFound", None),
    (307, None, "NotFound", None),
    # an error in a body with 200
    (200, {"error": {"code": 429, "message": "upstream"}}, "RateLimited", "429"),
    (200, anthropic("overloaded_error", "Overloaded"), "Overloaded", "overloaded_error"),
    (200, {"error": "something"}, "ProviderFailed", None),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "name", "code"), CASES)
def test_status_and_body_tell_the_kind(status, body, name, code):
    error = Faults().refused(CALL, status, {}, body)
    assert type(error).__name__ == name
    assert error.code == code
    assert str(error).startswith(CALL)
    assert f"answered {status}" in str(error)
    assert ";" in str(error), "the mend is missing"


def test_an_error_in_a_body_with_200_has_the_status_that_it_stands_for():
    """So that a limit, which judges by the status, sees the throttle."""
    error = Faults().refused(CALL, 200, {}, {"error": {"code": 429, "message": "upstream"}})
    assert error.status == 429
    limit = tn.limits.RateLimit("100/s")
    assert limit.check(error)


def test_how_long_to_wait_and_whom_to_ask_are_kept():
    headers = {"retry-after": "7", "x-request-id": "req-1"}
    error = Faults().refused(CALL, 429, headers, openai("slow down"))
    assert (error.status, error.retry_after, error.request_id) == (429, 7.0, "req-1")
    assert error.body == openai("slow down")


@pytest.mark.parametrize(
    ("body", "of"),
    [
        (openai("x", "tokens"), "tokens"),
        (openai("x", "requests"), "requests"),
        (openai("Rate limit reached on tokens per min (TPM)"), "tokens"),
        (openai("x"), None),
    ],
)
def test_which_limit_was_hit_is_kept_where_it_is_said(body, of):
    assert Faults().refused(CALL, 429, {}, body).of == of


def test_a_refused_key_names_where_the_key_comes_from():
    body = openai("Incorrect API key provided")
    named = Faults((), "the environment variable KITCHEN_KEY").refused(CALL, 401, {}, body)
    assert "KITCHEN_KEY" in str(named)
    assert "api_key_env='NAME'" in str(Faults().refused(CALL, 401, {}, body))


def test_a_redirect_names_where_it_leads():
    error = Faults().refused(CALL, 308, {"location": "https://there/v1"}, None)
    assert "https://there/v1" in str(error)


def test_words_of_a_provider_are_kept_on_one_short_line():
    error = Faults().refused(CALL, 500, {}, None, b"a\n\nb\x1b[2J\x00" + b"c" * 5_000)
    assert "\n" not in str(error)
    assert str(error).isprintable()
    assert "a b" in str(error)
    assert len(str(error)) < 600


@pytest.mark.parametrize(
    "body",
    [[], "words", 7, {"error": []}, {"error": {"message": {"a": 1}}}, {"error": {"code": True}}],
)
def test_any_json_is_an_error_that_can_be_told(body):
    assert type(Faults().refused(CALL, 400, {}, body)).__name__ == "BadRequest"


CANARY = 'sk-canary"0123\\456/789'


@settings(deadline=None)
@given(
    before=st.text(max_size=400),
    after=st.text(max_size=400),
    field=st.sampled_from(["message", "code", "type", "other"]),
    status=st.sampled_from([200, 307, 400, 401, 429, 500]),
    spelling=st.sampled_from(["plain", "json", "url"]),
)
def test_no_text_holds_the_key_whatever_is_echoed(before, after, field, status, spelling):
    plain, url, escaped = CANARY, "sk-canary%220123%5C456%2F789", 'sk-canary\\"0123\\\\456/789'
    said = {"plain": plain, "json": escaped, "url": url}[spelling]
    faults = Faults(secrets_of(CANARY, {}), "KITCHEN_KEY")
    text = f"{before}{said}{after}"
    body = {"error": {"message": "no", field: text, text: [text]}}
    for error in (
        faults.refused(CALL, status, {"location": text}, body),
        faults.refused(CALL, status, {}, None, text.encode(errors="replace")),
        faults.refused(CALL, status, {}, text),
        faults.failed_midway(CALL, body, 3),
        faults.no_answer(CALL, 200, "HTML", text.encode(errors="replace")),
    ):
        shown = f"{error} {error!r} {vars(error)}"
        for secret in (plain, url, escaped):
            assert secret not in shown
        assert said.encode() not in pickle.dumps(error)


def test_a_key_at_the_edge_of_what_is_shown_is_not_shown_in_part():
    faults = Faults(secrets_of(CANARY, {}))
    for before in range(250, 310):
        assert "canary" not in faults.clean("x" * before + CANARY)


def test_headers_that_look_like_credentials_are_secrets_too():
    secrets = secrets_of(None, {"api-key": "azure-123", "X-Title": "kitchen", "Cookie": "crumb"})
    assert set(secrets) == {"azure-123", "crumb"}
    assert "bearer-1" in secrets_of(None, {"Authorization": "Bearer bearer-1"})
