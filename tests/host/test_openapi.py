from __future__ import annotations

import json
import re
from collections.abc import Iterator

import attrs
from http_kit import Host

import semibot
from semibot.host.openapi import DATA, PARAMETERS, SCHEMAS, describe
from semibot.host.routes import ROUTES

DOCUMENT = json.loads(json.dumps(describe("1.2.3")))


def operations() -> Iterator[tuple[str, str, dict]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_every_route_is_described_and_nothing_else() -> None:
    described = {(method, path): each["operationId"] for method, path, each in operations()}
    assert described == {(route.method, route.path): route.name for route in ROUTES}
    assert len({route.name for route in ROUTES}) == len(ROUTES)


async def test_every_route_that_is_described_is_answered() -> None:
    host = Host()
    for method, path, operation in operations():
        target = re.sub(r"\{\w+\}", "app.js", path)
        answer = await host.ask(method, target, b"{" if method == "POST" else None)
        assert answer.status != 405, operation["operationId"]
        if answer.status == 404:
            assert answer.code == "SESSION_NOT_FOUND"
        assert str(answer.status) in operation["responses"], (path, answer.status)


async def test_the_host_serves_its_description() -> None:
    answer = await Host().ask("GET", "/openapi.json", headers={})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["openapi"] == "3.1.0"
    assert answer.json["info"]["version"] == semibot.__version__
    assert answer.json["paths"] == DOCUMENT["paths"]


def test_references_lead_somewhere_and_names_are_used() -> None:
    text = json.dumps(DOCUMENT)
    references = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert references == set(SCHEMAS) == set(DOCUMENT["components"]["schemas"])
    said = {each["name"] for _, _, operation in operations() for each in operation["parameters"]}
    assert said == set(PARAMETERS)
    assert set(DATA) <= {route.name for route in ROUTES}


def test_parameters_of_paths_are_those_of_the_path() -> None:
    for _, path, operation in operations():
        in_path = [each["name"] for each in operation["parameters"] if each["in"] == "path"]
        assert in_path == re.findall(r"\{(\w+)\}", path)


def test_bodies_are_described_as_they_are_read() -> None:
    by_name = {route.name: route for route in ROUTES}
    for _, _, operation in operations():
        route = by_name[operation["operationId"]]
        if route.body is None:
            assert "requestBody" not in operation
            continue
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        fields = attrs.fields(route.body)
        assert list(schema["properties"]) == [field.name for field in fields]
        needed = [field.name for field in fields if field.default is attrs.NOTHING]
        assert schema["required"] == needed
        assert schema["additionalProperties"] is False
        assert operation["requestBody"]["required"] is route.must_have_body
    start = DOCUMENT["paths"]["/api/v1/chat/start"]["post"]["requestBody"]
    properties = start["content"]["application/json"]["schema"]["properties"]
    assert properties["on_busy"] == {"enum": ["interrupt", "enqueue", "reject"]}
    assert properties["agentId"] == {"type": ["null", "string"]}
    assert properties["openclaw_config"] == {"type": ["null", "object"]}
    assert properties["message"]["type"] == "string"


def test_public_routes_ask_for_no_token() -> None:
    public = {route.name for route in ROUTES if route.is_public}
    for _, _, operation in operations():
        name = operation["operationId"]
        assert (operation.get("security") == []) == (name in public)
        assert ("401" in operation["responses"]) == (name not in public)
