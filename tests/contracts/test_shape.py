"""The shape of the contracts: pages, idempotency, comments."""

import pytest
from google.protobuf.descriptor import MethodDescriptor

from tests.contracts.descriptors import ROOMS, SERVICES, comments, elements, files

READS = ("Get", "List", "Validate", "Search", "Check", "Export", "Explain", "Watch", "Summarize")
# A mutating method without idempotency_key, and what makes it safe to repeat instead.
CLIENT_IDS = {
    "RefreshSession": ("refresh_token", "one token has one successor, however often it is sent"),
    "Logout": ("", "the session of the token that makes the call is over after one call or two"),
    "RevokeToken": ("refresh_token", "a session ends once, by whichever of its tokens"),
    "StartDeviceLogin": ("", "a second code is one that nobody approves; it ends in ten minutes"),
    "PollDeviceLogin": ("device_code", "one code opens one session"),
    "InspectDeviceLogin": ("user_code", "it only looks"),
    "ApproveDeviceLogin": ("user_code", "a code is approved once; again by the same user is so"),
    "DenyDeviceLogin": ("user_code", "a code that was denied stays so"),
    "ImportUsers": ("users", "an address that has an account is a duplicate, left as it is"),
    "RequestEmailVerification": ("", "one mail a minute is sent, however often it is asked for"),
    "VerifyEmail": ("secret", "a secret verifies once; sent again it changes nothing"),
    "RequestPasswordReset": ("email", "one mail a minute is sent, however often it is asked for"),
    "RequestSignIn": ("email", "one mail a minute is sent, however often it is asked for"),
    "NameSession": ("session_id", "naming it the same again changes nothing"),
    "RevokeSession": ("session_id", "a session ends once"),
    "RevokeOtherSessions": ("", "sessions end once; what the caller wants over is over"),
    "EnrolTotp": ("", "an enrolment replaces the one that waits"),
    "DisableTotp": ("", "an app that is removed is not there any more after one call or two"),
    "StartPasskeyRegistration": ("", "each call makes a challenge of its own"),
    "StartPasskeyAssertion": ("", "each call makes a challenge of its own"),
    "SignInWithPasskey": ("credential_json", "its challenge works once"),
    "CompleteSignIn": ("challenge", "a challenge opens one session"),
    "StepUp": ("", "a proof once more is only fresher; a code or challenge works once"),
    "OpenAccount": ("user_id", "opening an open account changes nothing"),
    "GrantCredits": ("source_ref", "(source, source_ref) is unique per user"),
    "VoidGrant": ("grant_id", "a grant is voided once"),
    "SetOverdraftLimit": ("overdraft_limit", "the same limit again changes nothing"),
    "VerifyLedger": ("", "it only looks, and remembers how far"),
    "RecordUsage": ("event", "event_id is made by the caller, once per tool call"),
    "RecordUsageBatch": ("events", "each event has its own event_id"),
    "ReserveCredits": ("reservation_id", "made by the caller, once per reservation"),
    "CommitReservation": ("reservation_id", "a reservation is committed once"),
    "ReleaseReservation": ("reservation_id", "a reservation is released once"),
    "ExtendReservation": ("reservation_id", "an end only moves away, to the same time from now"),
    "LeaseCredits": ("lease_id", "made by the caller, once per lease"),
    "SettleLease": ("lease_id", "a lease is settled once"),
    "IngestUsage": ("events", "each event has its own event_id"),
    "StartSignIn": ("", "a flow more changes nothing: it ends by itself in 10 minutes"),
    "FinishSignIn": ("flow", "made by the service for one use; a repeat is refused"),
    "StartLinking": ("", "a flow more changes nothing: it ends by itself in 10 minutes"),
    "FinishLinking": ("flow", "made by the service for one use; a repeat is refused"),
    "UnlinkIdentity": ("identity_id", "unlinking what is not linked changes nothing"),
    "EraseUser": ("user_id", "closing a closed account changes nothing"),
    "SetQuota": ("tool_name", "setting it the same again changes nothing"),
    "DeleteQuota": ("tool_name", "deleting what is not there changes nothing"),
    "SetTimeZone": ("time_zone", "moving to where the account is changes nothing"),
    "SetAccountRole": ("sequence", "a change that is not newer changes nothing"),
    "DeleteAccount": ("", "a deletion that was asked for keeps its day"),
    "CancelDeletion": ("", "cancelling what nobody asked for changes nothing"),
}


def all_methods() -> list[MethodDescriptor]:
    return [method for room in ROOMS for service in SERVICES[room] for method in service.methods]


def mutating() -> list[MethodDescriptor]:
    return [method for method in all_methods() if not method.name.startswith(READS)]


@pytest.mark.parametrize("method", all_methods(), ids=lambda method: method.name)
def test_a_list_is_read_in_pages(method: MethodDescriptor) -> None:
    """A List method that can grow has page_size, page_token and next_page_token (AIP-158)."""
    if not method.name.startswith("List") or method.name == "ListRevocations":
        # Revocations are bounded by one access token's lifetime and read whole.
        return
    asked, answered = method.input_type.fields_by_name, method.output_type.fields_by_name
    assert {"page_size", "page_token"} <= set(asked)
    assert "next_page_token" in answered
    assert any(field.is_repeated for field in method.output_type.fields)


@pytest.mark.parametrize("method", mutating(), ids=lambda method: method.name)
def test_what_changes_something_may_be_sent_twice(method: MethodDescriptor) -> None:
    """A mutating method has idempotency_key, or is listed above with what stands for it."""
    fields = method.input_type.fields_by_name
    if "idempotency_key" in fields:
        assert method.name not in CLIENT_IDS
        return
    field, why = CLIENT_IDS[method.name]
    assert why
    assert not field or field in fields


def test_the_list_of_client_ids_is_current() -> None:
    """No method is listed that is gone."""
    assert set(CLIENT_IDS) <= {method.name for method in mutating()}


@pytest.mark.parametrize("method", all_methods(), ids=lambda method: method.name)
def test_requests_and_responses_are_named_after_their_method(method: MethodDescriptor) -> None:
    """Each method has a request and a response of its own, named as Buf has it."""
    assert method.input_type.name == f"{method.name}Request"
    assert method.output_type.name == f"{method.name}Response"


@pytest.mark.parametrize("name", sorted(files()))
def test_everything_is_commented(name: str) -> None:
    """Every service, method, message, field, enum and value has a comment that is a sentence."""
    file = files()[name]
    said = comments(file)
    bare = [element for path, element in elements(file) if not said.get(path, "").endswith(".")]
    assert bare == []


@pytest.mark.parametrize("name", sorted(files()))
def test_required_and_bounded_fields_say_so(name: str) -> None:
    """A request field says in its comment whether it may be left out."""
    file = files()[name]
    said = comments(file)
    silent = []
    for number, message in enumerate(file.message_type):
        if not message.name.endswith("Request"):
            continue
        for index, field in enumerate(message.field):
            comment = said.get((4, number, 2, index), "")
            if not comment.startswith(("Required", "Optional", "A user's id, or")):
                silent.append(f"{message.name}.{field.name}")
    assert silent == []
