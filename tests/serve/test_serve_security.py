"""Who may ask, and what a browser may be made to do: keys, hosts, origins, the page's policy."""

from __future__ import annotations

import logging

import pytest
from serving import CHAT, Call, ask, asking, run, serving, talk, upstream

from tournant.serve import InvalidSettings, ServeSettings
from tournant.serve.keys import Keys, read_keys

KEY = "sk-alice-0123456789abcdef"


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(
        f"# who      key\nalice {KEY}  # a comment\n\n'bob' sk-bob-0123456789abcdef requests=5/min streams=2\n"
    )
    return str(path)


# Keys


def test_keys_are_read_with_their_limits(keys):
    found = read_keys(keys)
    assert len(found) == 2
    bob = found.find("sk-bob-0123456789abcdef")
    assert (bob.name, str(bob.requests), bob.tokens, bob.streams) == ("bob", "5/min", None, 2)
    assert found.find(KEY).name == "alice"
    for wrong in ("", KEY[:-1], KEY + "x", KEY.upper()):
        assert found.find(wrong) is None


def test_keys_show_nothing_of_themselves(keys):
    found = read_keys(keys)
    assert KEY not in repr(found)
    assert KEY not in str(vars(found))


def test_keys_are_compared_in_constant_time(monkeypatch, keys):
    compared = []
    import hmac

    real = hmac.compare_digest
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    found = read_keys(keys)
    found.find(KEY)
    found.find("wrong")
    assert len(compared) == 2, "for a key that is unknown as well"
    assert all(len(a) == len(b) == 32 for a, b in compared), (
        "digests of one length, never the key itself"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key"),
        ("alice", "line 1: give a name and a key"),
        ("alice short", "16 ASCII characters"),
        (f"al/ice {KEY}", "a name has letters"),
        (f"anonymous {KEY}", "is not 'anonymous'"),
        (f"a {KEY}\nb {KEY}", "line 2: the name or the key of 'b' is there twice"),
        (f"a {KEY}\na {KEY}1", "line 2: the name or the key of 'a' is there twice"),
        (f"a {KEY} speed=9", "requests=, tokens= and streams="),
        (f"a {KEY} requests=9", "500/min"),
        (f"a {KEY} streams=0", "from 1 on"),
        (f"a '{KEY}", "a quote is not closed"),
    ],
)
def test_a_file_of_keys_that_cannot_be_is_refused_without_showing_a_key(tmp_path, text, says):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(InvalidSettings, match=says) as refused:
        read_keys(str(path))
    assert KEY not in str(refused.value)


def test_a_file_of_keys_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidSettings, match="can't be read: No such file"):
        read_keys(str(tmp_path / "nothing"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidSettings, match="UTF-8"):
        read_keys(str(tmp_path / "binary"))
    assert Keys({}).find("x") is None


def test_every_address_but_the_page_and_the_probes_asks_for_a_key(keys, caplog, capfd):
    caplog.set_level(logging.DEBUG)

    async def main():
        async with upstream(talk) as up, serving(llm=up.url, api_keys=keys) as server:
            open_to_all = {"/", "/healthz", "/readyz", "/openapi.json"}
            asked = 0
            for path, methods in server.app._routes.items():
                for method in methods:
                    body = CHAT if method == "POST" else None
                    for header in ("", f"Bearer {KEY}x", f"Basic {KEY}", KEY, "Bearer ", "Bearer"):
                        status, headers, said = await ask(
                            server, path, body, method, authorization=header
                        )
                        if path in open_to_all:
                            assert status == 200
                            continue
                        assert status == 401, (path, header)
                        assert headers["www-authenticate"] == "Bearer"
                        assert said["error"]["code"] == "invalid_api_key"
                        assert KEY not in str(said)
                        asked += 1
            assert asked > 30
            assert not up.calls
            status, _, _ = await ask(
                server, "/v1/chat/completions", CHAT, authorization=f"bearer {KEY}"
            )
            assert status == 200

    run(main())
    out = capfd.readouterr()
    assert KEY not in caplog.text + out.out + out.err


def test_the_callers_key_is_never_passed_on(keys, monkeypatch):
    async def main():
        async with upstream(talk) as up, serving(llm=up.url, api_keys=keys) as server:
            await ask(server, "/v1/chat/completions", CHAT, authorization=f"Bearer {KEY}")
            assert KEY.encode() not in up.calls[0].head
            assert b"authorization" not in up.calls[0].head.lower()

    run(main())


def test_the_upstreams_key_is_sent_and_nothing_else(monkeypatch):
    monkeypatch.setenv("UPSTREAM_KEY", "sk-upstream-1")

    async def main():
        async with (
            upstream(talk) as up,
            serving(llm=up.url, llm_api_key_env="UPSTREAM_KEY") as server,
        ):
            await ask(server, "/v1/chat/completions", CHAT, authorization="Bearer mine")
            assert b"authorization: Bearer sk-upstream-1\r\n" in up.calls[0].head
            assert b"mine" not in up.calls[0].head

    run(main())


def test_a_gateway_without_any_key_passes_the_callers_on():
    async def main():
        async with upstream(talk) as up, serving(llm=up.url) as server:
            await ask(server, "/v1/chat/completions", CHAT, authorization="Bearer mine")
            assert b"authorization: Bearer mine\r\n" in up.calls[0].head

    run(main())


def test_a_variable_that_is_not_set_is_refused(monkeypatch):
    monkeypatch.delenv("UPSTREAM_KEY", raising=False)
    from tournant.serve import make_app

    with pytest.raises(InvalidSettings, match="UPSTREAM_KEY is not set"):
        make_app(ServeSettings(llm="http://127.0.0.1:1/v1", llm_api_key_env="UPSTREAM_KEY"))


# Addresses


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_a_public_address_without_keys_is_refused(host, keys):
    with pytest.raises(InvalidSettings, match="--insecure"):
        ServeSettings(host=host)
    assert ServeSettings(host=host, insecure=True)
    assert ServeSettings(host=host, api_keys=keys)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "[::1]", "localhost"])
def test_the_loopback_needs_no_keys(host):
    assert ServeSettings(host=host).is_loopback


def test_the_default_address_is_the_loopback():
    assert ServeSettings().host == "127.0.0.1"


# Browsers


def test_a_page_of_another_origin_is_refused_before_any_work():
    async def main():
        async with upstream(talk) as up, serving(llm=up.url) as server:
            for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://[bad"):
                status, headers, _ = await ask(server, "/v1/chat/completions", CHAT, origin=origin)
                assert status == 403
                assert "access-control-allow-origin" not in headers
            assert not up.calls
            own = server.url
            assert (await ask(server, "/v1/chat/completions", CHAT, origin=own))[0] == 200

    run(main())


def test_cors_is_off_by_default_and_can_be_allowed():
    async def main():
        preflight = {"access_control_request_method": "POST", "origin": "https://good.example"}
        async with serving() as server:
            status, headers, _ = await ask(server, "/v1/models", None, "OPTIONS", **preflight)
            assert status == 403
            assert not any(name.startswith("access-control") for name in headers)
        async with (
            upstream(talk) as up,
            serving(llm=up.url, cors_origins=("https://good.example",)) as server,
        ):
            async with asking(
                server, "/v1/chat/completions", None, "OPTIONS", **preflight
            ) as response:
                assert response.status == 204
                assert response.headers["access-control-allow-origin"] == "https://good.example"
                assert "POST" in response.headers["access-control-allow-methods"]
            status, headers, _ = await ask(
                server, "/v1/chat/completions", CHAT, origin="https://good.example"
            )
            assert status == 200
            assert headers["access-control-allow-origin"] == "https://good.example"
            assert headers["vary"] == "Origin"
            status, headers, _ = await ask(
                server, "/v1/chat/completions", CHAT, origin="https://evil.example"
            )
            assert status == 403
            assert "access-control-allow-origin" not in headers

    run(main())


def test_a_name_that_leads_here_is_not_enough_without_keys(keys):
    """DNS rebinding: a page of evil.example whose name now leads to 127.0.0.1 has its own origin for its host."""

    async def main():
        evil = {"host": "evil.example:8000", "origin": "http://evil.example:8000"}
        async with upstream(talk) as up, serving(llm=up.url) as server:
            status, _, _ = await ask(server, "/v1/chat/completions", CHAT, **evil)
            assert status == 421
            assert not up.calls
            for host in ("localhost", "127.0.0.1:1", "[::1]:8000", "LOCALHOST"):
                assert (await ask(server, "/healthz", host=host))[0] == 200
        async with serving(allowed_hosts=("my.box",)) as server:
            assert (await ask(server, "/healthz", host="my.box:80"))[0] == 200
        async with serving(api_keys=keys) as server:  # with keys, the name says nothing
            assert (await ask(server, "/healthz", host="my.box:80"))[0] == 200

    run(main())


def test_the_page_lets_nothing_in_from_outside():
    async def main():
        async with serving() as server:
            status, headers, body = await ask(server, "/")
            assert status == 200
            assert body.lstrip().lower().startswith("<!doctype html")
            policy = dict(
                part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
            )
            assert policy["default-src"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert (
                policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
            )
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            async with asking(server, "/", method="HEAD") as response:
                assert response.status == 200
            async with asking(server, "/", if_none_match=headers["etag"]) as response:
                assert response.status == 304

    run(main())


def test_nothing_outside_of_the_pages_folder_is_served():
    async def main():
        async with serving() as server:
            for path in (
                "/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "/page/../app.py", "//etc/passwd", "/index.html/../../app.py",
                "/%00", "/page/index.html",
            ):  # fmt: skip
                status, _, body = await ask(server, path)
                assert status == 404, path
                assert "import" not in str(body)

    run(main())


def test_what_was_asked_for_is_not_reflected():
    async def main():
        async with serving() as server:
            status, headers, body = await ask(server, "/<script>alert(1)</script>")
            assert status == 404
            assert headers["content-type"] == "application/json"
            assert "script" not in str(body)

    run(main())


def test_an_error_of_the_upstream_does_not_show_its_key(monkeypatch):
    monkeypatch.setenv("UPSTREAM_KEY", "sk-upstream-1")

    async def script(call: Call) -> None:
        await call.reply({"error": {"message": f"bad key: {call.head.decode()}"}}, "403 Forbidden")

    async def main():
        async with (
            upstream(script) as up,
            serving(llm=up.url, llm_api_key_env="UPSTREAM_KEY") as server,
        ):
            status, _, body = await ask(server, "/v1/chat/completions", CHAT)
            assert status == 502
            assert "sk-upstream-1" not in str(body)

    run(main())
