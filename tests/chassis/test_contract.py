"""chassis.contract: what a proto says about its methods, and the sentence when too little."""

import pytest
from finity.auth.v1 import auth_pb2
from finity.options.v1 import options_pb2

from chassis.contract import ContractError, methods_of, sensitive_names, validate
from chassis.refusals import InvalidRequest, MalformedMessage
from tests.chassis import contracts
from tests.chassis.contracts import Rpc, Text
from tests.chassis.probe import CONTRACT, path

OWNER = Text("user_id", subject=True)


def sentence_of(fields: list[Text], rpc: Rpc) -> str:
    """Returns why a service with this contract does not start, its package left out."""
    service = contracts.build(fields, [rpc])
    with pytest.raises(ContractError) as refused:
        methods_of([service])
    return str(refused.value).replace(service.file.package, "probe")


def test_a_contract_is_read_from_its_descriptor() -> None:
    """Path, name, request, access and subject of each method come from the proto."""
    methods = methods_of([CONTRACT])
    names = ("Open", "Own", "Manage", "Serve", "Watch", "Collect", "Exchange")
    assert sorted(methods) == sorted(path(name) for name in names)
    own = methods[path("Own")]
    assert (own.service, own.name, own.subject) == (CONTRACT.full_name, "Own", "user_id")
    assert own.allow == {options_pb2.USER, options_pb2.ADMIN, options_pb2.SERVICE}
    assert own.request.DESCRIPTOR.name == "Ask"


def test_a_method_without_an_access_rule_stops_the_start() -> None:
    """A method nobody gave an access rule is named with what it lacks."""
    assert sentence_of([OWNER], Rpc("Forgotten")) == (
        "/probe.ProbeService/Forgotten has no access rule:"
        " add (finity.options.v1.access) to its proto."
    )


def test_a_public_method_has_no_other_caller() -> None:
    """PUBLIC beside a stricter caller would open the method to anybody."""
    sentence = sentence_of([Text("text")], Rpc("Open", [options_pb2.PUBLIC, options_pb2.USER]))
    assert "is PUBLIC" in sentence


def test_an_unspecified_caller_is_no_access_rule() -> None:
    """CALLER_UNSPECIFIED in a rule admits nobody and stops the start."""
    rule = [options_pb2.USER, options_pb2.CALLER_UNSPECIFIED]
    assert "has no access rule" in sentence_of([OWNER], Rpc("Vague", rule))


def test_a_rule_that_does_not_compile_stops_the_start() -> None:
    """A field rule with a mistake in it is found at the start, not by the first caller."""
    broken = Text("text", rule="this.startsWith(1) + nonsense")
    sentence = sentence_of([broken], Rpc("Open", [options_pb2.PUBLIC]))
    assert sentence.startswith("A rule of probe.PublicAsk does not compile: ")


def test_an_owner_that_is_not_marked_stops_the_start() -> None:
    """A method that admits users must mark whose data the request is about."""
    assert sentence_of([Text("user_id")], Rpc("Own", [options_pb2.USER])) == (
        "/probe.ProbeService/Own admits users but its user_id is not marked as the subject."
    )
    methods_of([contracts.build([Text("user_id")], [Rpc("Serve", [options_pb2.SERVICE])])])


def test_two_subjects_stop_the_start() -> None:
    """A request is about one user."""
    fields = [OWNER, Text("other_id", subject=True)]
    assert "more than one subject field: user_id, other_id" in sentence_of(
        fields, Rpc("Own", [options_pb2.USER])
    )


def test_every_kind_of_stream_is_known() -> None:
    """A method says whether it takes and whether it gives a stream."""
    kinds = {
        method.name: (method.takes_stream, method.streams)
        for method in methods_of([CONTRACT]).values()
        if method.takes_stream or method.streams
    }
    assert kinds == {"Watch": (False, True), "Collect": (True, False), "Exchange": (True, True)}


@pytest.mark.parametrize(
    "raw",
    [b"\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe", b"\x0b\x0b\x0b", b"\0" * 4],
    ids=["tag", "length", "utf8", "group", "noise"],
)
def test_bytes_that_are_no_message_are_malformed(raw: bytes) -> None:
    """Bytes that do not decode, or decode to text that is not UTF-8, are refused as malformed."""
    with pytest.raises(MalformedMessage):
        methods_of([CONTRACT])[path("Open")].parse(raw)


def test_every_broken_field_is_named() -> None:
    """Validation names the path, the rule and the trouble of each field, lists included."""
    request = auth_pb2.RegisterRequest(email="nobody", password="short")
    with pytest.raises(InvalidRequest) as refused:
        validate(request)
    broken = {violation.field: violation.rule for violation in refused.value.violations}
    assert broken == {"email": "string.email", "password": "string.min_len"}
    assert all(violation.description for violation in refused.value.violations)
    validate(auth_pb2.RegisterRequest(email="ada@example.com", password="long enough"))


def test_sensitive_fields_are_found_wherever_they_are() -> None:
    """Every field marked secret in a request or an answer, nested ones too, is known by name."""
    found = sensitive_names([auth_pb2.DESCRIPTOR.services_by_name["AuthService"]])
    assert found == {"password", "access_token", "refresh_token", "token"}
