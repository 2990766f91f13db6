"""``/openapi.json``: what this server answers to, with the limits that it really has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tournant._version import __version__
from tournant.serve.bodies import Receive, Scope, Send
from tournant.serve.respond import respond
from tournant.serve.settings import ServeSettings


class OpenAPI:
    """The document.

    Args:
        settings: The server's settings.
        routes: Its addresses.
    """

    def __init__(self, settings: ServeSettings, routes: Mapping[str, Any]) -> None:
        self._body = msgspec.json.encode(document(settings, routes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``GET /openapi.json``."""
        await respond(send, 200, self._body)


def document(settings: ServeSettings, routes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of a server with these routes."""
    known = _operations(settings)
    paths: dict[str, Any] = {}
    for path, methods in routes.items():
        paths[path] = {method.lower(): _with_errors(known[path], path) for method in methods}
    paths["/v1/models/{model}"] = {
        "get": _with_errors(
            {
                "summary": "One model.",
                "parameters": [
                    {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
                ],
                "responses": {
                    "200": _json("A model.", {"$ref": "#/components/schemas/Model"}),
                    "404": _error("No such model."),
                },
            },
            "/v1/models",
        )
    }
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Tournant", "version": __version__},
        "paths": paths,
        "components": {"schemas": _schemas(settings)},
    }
    if settings.api_keys is not None:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
    return found


_OPEN = ("/healthz", "/readyz", "/openapi.json")


def _with_errors(operation: dict[str, Any], path: str) -> dict[str, Any]:
    responses = dict(operation["responses"])
    for status, what in (("401", "The API key is missing or unknown."), ("403", "A page of another origin asked."),
                         ("421", "The host name is not this server's.")):  # fmt: skip
        responses.setdefault(status, _error(what))
    if "requestBody" in operation:
        more = {
            "400": "The body is wrong.", "404": "There is no such model, or nobody to answer.",
            "408": "The body did not come in time.", "413": "The body or a text of it is too large.",
            "429": "The limits of this key are used up; see Retry-After.",
            "502": "The upstream failed.", "504": "The upstream took too long.",
        }  # fmt: skip
        for status, what in more.items():
            responses.setdefault(status, _error(what))
    responses.setdefault(
        "503", _error("There is no room now, or the server is stopping; see Retry-After.")
    )
    found = {**operation, "responses": dict(sorted(responses.items()))}
    if path in _OPEN:
        found["security"] = []
    return found


def _operations(settings: ServeSettings) -> dict[str, dict[str, Any]]:
    anything: dict[str, Any] = {"type": "object"}
    stream = {"text/event-stream": {"schema": {"type": "string"}}}
    answer = {
        "200": {
            "description": "The answer; with stream, as events that end with data: [DONE] or with an event named error.",
            "content": {"application/json": {"schema": anything}, **stream},
        }
    }
    return {
        "/healthz": {
            "summary": "Whether the process lives.",
            "responses": {"200": _json("It does.", anything)},
        },
        "/readyz": {
            "summary": "Whether it takes requests.",
            "responses": {"200": _json("It does.", anything)},
        },
        "/metrics": {
            "summary": "Metrics for Prometheus.",
            "responses": {
                "200": {
                    "description": "Metrics.",
                    "content": {"text/plain": {"schema": {"type": "string"}}},
                }
            },
        },
        "/openapi.json": {
            "summary": "This document.",
            "responses": {"200": _json("The document.", anything)},
        },
        "/v1/stats": {
            "summary": "What the server does now.",
            "responses": {"200": _json("Figures.", anything)},
        },
        "/v1/stats/stream": {
            "summary": "The same, every second.",
            "responses": {"200": {"description": "Events.", "content": stream}},
        },
        "/v1/models": {
            "summary": "The models.",
            "responses": {
                "200": _json("The list.", {"$ref": "#/components/schemas/Models"}),
                "502": _error("The upstream lists none."),
                "504": _error("The upstream took too long."),
            },
        },
        "/v1/chat/completions": {
            "summary": "Answer a conversation.",
            "requestBody": _body("Chat"),
            "responses": answer,
        },
        "/v1/completions": {
            "summary": "Continue a text.",
            "requestBody": _body("Completion"),
            "responses": answer,
        },
        "/v1/embeddings": {
            "summary": "Embed texts.",
            "requestBody": _body("Embedding"),
            "responses": {"200": _json("The vectors.", anything)},
        },
        "/v1/search": {
            "summary": "Find passages in the index.",
            "requestBody": _body("Search"),
            "responses": {"200": _json("The passages.", anything)},
        },
        "/v1/documents": {
            "summary": "Put files into the index.",
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {
                        "schema": {
                            "type": "object",
                            "properties": {
                                "files": {
                                    "type": "array",
                                    "items": {"type": "string", "format": "binary"},
                                }
                            },
                        }
                    }
                },
            },
            "responses": {"200": {"description": "Progress, as events.", "content": stream}},
        },
    }


def _schemas(settings: ServeSettings) -> dict[str, Any]:
    text = {"type": "string", "maxLength": settings.max_text_chars}
    answers = {
        "model": {"type": "string"},
        "stream": {"type": "boolean"},
        "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
        "max_tokens": {"type": "integer", "minimum": 1},
        "max_completion_tokens": {"type": "integer", "minimum": 1},
        "temperature": {"type": "number"},
    }
    chat: dict[str, Any] = {
        "messages": {
            "type": "array",
            "minItems": 1,
            "maxItems": settings.max_texts,
            "items": {
                "type": "object",
                "required": ["role"],
                "properties": {
                    "role": {"type": "string"},
                    "content": {
                        "anyOf": [
                            text,
                            {"type": "array", "items": {"type": "object"}},
                            {"type": "null"},
                        ]
                    },
                },
            },
        },
        **answers,
    }
    if settings.index is not None:
        chat["retrieve"] = {
            "type": "object",
            "properties": {"k": {"type": "integer", "minimum": 1, "maximum": settings.max_results}},
        }
    return {
        "Error": {
            "type": "object",
            "required": ["error"],
            "properties": {
                "error": {
                    "type": "object",
                    "required": ["message", "type", "param", "code"],
                    "properties": {
                        "message": {"type": "string"},
                        "type": {"type": "string"},
                        "param": {"type": ["string", "null"]},
                        "code": {"type": ["string", "null"]},
                    },
                }
            },
        },
        "Model": {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}},
        "Models": {
            "type": "object",
            "required": ["object", "data"],
            "properties": {
                "object": {"const": "list"},
                "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
            },
        },
        "Chat": {"type": "object", "required": ["messages"], "properties": chat},
        "Completion": {
            "type": "object",
            "required": ["prompt"],
            "properties": {
                "prompt": {"anyOf": [text, {"type": "array", "minItems": 1}]},
                **answers,
            },
        },
        "Embedding": {
            "type": "object",
            "required": ["input"],
            "properties": {
                "model": {"type": "string"},
                "input": {
                    "anyOf": [
                        text,
                        {
                            "type": "array",
                            "items": text,
                            "minItems": 1,
                            "maxItems": settings.max_texts,
                        },
                    ]
                },
                "encoding_format": {"enum": ["float", "base64"]},
            },
        },
        "Search": {
            "type": "object",
            "required": ["query"],
            "properties": {
                "query": text,
                "k": {"type": "integer", "minimum": 1, "maximum": settings.max_results},
                "mode": {"enum": ["hybrid", "vector", "text"]},
            },
        },
    }


def _json(what: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": what, "content": {"application/json": {"schema": schema}}}


def _error(what: str) -> dict[str, Any]:
    return _json(what, {"$ref": "#/components/schemas/Error"})


def _body(name: str) -> dict[str, Any]:
    return {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}},
    }
