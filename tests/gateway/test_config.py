"""Settings, contracts and the rendered text; nothing runs here but Envoy's own check."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, struct_pb2
from pydantic import ValidationError

from gateway import contracts, envoy
from gateway.config import GatewaySettings
from gateway.errors import GatewayReason
from gateway.render import DESCRIPTORS, render, script

Validate = Callable[[str], "subprocess.CompletedProcess[str]"]


def one_method(package: str = "finity.auth.v1", **rule: Any) -> bytes:
    """Returns a descriptor set with one method and one HTTP rule."""
    files = descriptor_pb2.FileDescriptorSet()
    struct_pb2.DESCRIPTOR.CopyToProto(files.file.add())
    file = files.file.add(name="x.proto", package=package, syntax="proto3")
    file.dependency.append(struct_pb2.DESCRIPTOR.name)
    message = file.message_type.add(name="Ask")
    kinds = descriptor_pb2.FieldDescriptorProto
    message.field.add(name="user_id", number=1, type=kinds.TYPE_STRING, label=1, json_name="userId")
    own = f".{package}.Ask"
    message.field.add(name="inner", number=2, type_name=own, type=11, label=1, json_name="inner")
    free = ".google.protobuf.Struct"
    message.field.add(name="extra", number=3, type_name=free, type=11, label=1, json_name="extra")
    service = file.service.add(name="AskService")
    method = service.method.add(name="Do", input_type=own, output_type=own)
    for name, value in rule.items():
        if name == "streaming":
            method.server_streaming = value
        else:
            setattr(method.options.Extensions[annotations_pb2.http], name, value)
    return files.SerializeToString()


def only_route(**rule: Any) -> contracts.Route:
    (route,) = contracts.routes(one_method(**rule))
    return route


def test_development_defaults() -> None:
    settings = GatewaySettings()
    assert settings.cors_origins == ("http://localhost:3000",)
    assert settings.address("auth") == ("127.0.0.1", 50051)
    assert settings.address("usage") == ("127.0.0.1", 50053)
    assert settings.gateway_admin_port == 0


def test_production_shares_with_nobody_unless_told() -> None:
    assert GatewaySettings(env="production").cors_origins == ()


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINITY_CORS_ORIGINS", "https://a.example, https://b.example:8443")
    monkeypatch.setenv("FINITY_USAGE_ADDRESS", "usage.internal:9000")
    settings = GatewaySettings()
    assert settings.cors_origins == ("https://a.example", "https://b.example:8443")
    assert settings.address("usage") == ("usage.internal", 9000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cors_origins", "example.com"),
        ("cors_origins", "https://a.example/'"),
        ("auth_address", "localhost"),
        ("auth_address", "localhost:99999"),
        ("gateway_max_body_bytes", 1),
        ("gateway_timeout_seconds", 0),
    ],
)
def test_wrong_settings_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        GatewaySettings(**{name: value})  # type: ignore[arg-type]


def test_a_room_without_an_address_is_named() -> None:
    with pytest.raises(KeyError, match="billings"):
        GatewaySettings().address("billings")


@pytest.mark.parametrize(
    ("template", "pattern"),
    [
        ("/v1/users", "/v1/users"),
        ("/v1/users/{user_id}", "/v1/users/[^/:]+"),
        ("/v1/users/{user_id}:do", "/v1/users/[^/:]+:do"),
        ("/v1/{user_id=users/*}/a.json", r"/v1/users/[^/:]+/a\.json"),
        ("/v1/{user_id=**}", "/v1/.+"),
    ],
)
def test_templates_become_expressions(template: str, pattern: str) -> None:
    assert only_route(get=template).pattern == pattern


def test_query_takes_what_path_and_body_leave_over() -> None:
    assert only_route(get="/v1/{user_id}").query == ["extra"]
    assert only_route(post="/v1/a", body="inner").query == ["user_id", "userId", "extra"]
    assert only_route(post="/v1/a", body="*").query == []


def test_shapes_know_both_spellings_and_leave_free_json_alone() -> None:
    message = only_route(post="/v1/a", body="*").body_message
    assert message is not None
    shape = {"user_id": True, "userId": True, "inner": "finity.auth.v1.Ask", "extra": True}
    assert contracts.shapes([message]) == {"finity.auth.v1.Ask": shape}


def test_methods_without_annotation_have_no_route() -> None:
    assert contracts.routes(one_method()) == []
    named = {route.method.name for route in contracts.routes(DESCRIPTORS.read_bytes())}
    assert named.isdisjoint({"ListRevocations", "OpenAccount"})


def test_what_cannot_be_routed_is_named() -> None:
    with pytest.raises(contracts.ContractError, match="no method"):
        render(GatewaySettings(), one_method())
    with pytest.raises(contracts.ContractError, match=r"other\.v1\.AskService\.Do"):
        contracts.routes(one_method(package="other.v1", get="/v1/a"))
    with pytest.raises(contracts.ContractError, match="stream"):
        contracts.routes(one_method(get="/v1/a", streaming=True))


def test_every_reason_is_its_own() -> None:
    # Enum members with equal values would be one member under two names.
    assert len(GatewayReason) == len(GatewayReason.__members__)


def test_default_configuration_is_good(validate: Validate) -> None:
    checked = validate(render(GatewaySettings(env="production")))
    assert checked.returncode == 0, checked.stderr


def test_every_option_together_is_good(validate: Validate) -> None:
    settings = GatewaySettings(
        gateway_admin_port=9901, cors_origins=("*",), auth_address="auth.internal:1"
    )
    checked = validate(render(settings, DESCRIPTORS.read_bytes()))
    assert checked.returncode == 0, checked.stderr


def test_admin_is_off_unless_asked_for() -> None:
    assert "admin" not in json.loads(render(GatewaySettings()))
    admin = json.loads(render(GatewaySettings(gateway_admin_port=9901)))["admin"]
    assert admin["address"]["socket_address"]["address"] == "127.0.0.1"


def test_the_same_input_gives_the_same_text() -> None:
    assert render(GatewaySettings()) == render(GatewaySettings())
    assert script(contracts.routes(DESCRIPTORS.read_bytes())).isascii()


def test_command_names_the_file_and_shares_nothing_with_other_envoys() -> None:
    argv = envoy.command(Path("a b/envoy.json"), 3)
    assert Path(argv[0]).is_file()
    assert argv[argv.index("-c") + 1] == "a b/envoy.json"
    assert argv[argv.index("--concurrency") + 1] == "3"
    assert "--disable-hot-restart" in argv


def test_a_missing_envoy_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: str) -> Any:
        raise ImportError

    monkeypatch.setattr(envoy, "import_module", nothing)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(envoy.EnvoyMissingError, match="embedded"):
        envoy.command(Path("envoy.json"))
