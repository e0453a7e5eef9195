"""
Every method by every kind of caller: admitted or refused exactly as its contract says.

The methods are those of the descriptors, the expectation is their access rule:
a new method is tested on the day it is written, on both transports.
"""

from dataclasses import dataclass, replace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from finity.auth.v1 import auth_pb2
from finity.options.v1 import options_pb2
from finity.usage.v1 import usage_pb2
from grpc import StatusCode, aio

from chassis.contract import Method
from tests.chassis.issuer import unsigned
from tests.chassis.waiting import until
from tests.contracts.descriptors import ROOMS, SERVICES, methods
from tests.contracts.first_answer import first_answer
from tests.contracts.requests import FACTORIES, request_for
from tests.contracts.requests.given import Given
from tests.contracts.requests.mfa import without_factors
from tests.fakes import FakeClock
from tests.running import PASSWORD, House, Metadata, Person, bearer, refusal_of

Outcome = tuple[StatusCode, str]
OK: Outcome = (StatusCode.OK, "")
MISSING: Outcome = (StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING")
INVALID: Outcome = (StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")
EXPIRED: Outcome = (StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")
REVOKED: Outcome = (StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")
DENIED: Outcome = (StatusCode.PERMISSION_DENIED, "ACCESS_DENIED")
NOT_YOURS: Outcome = (StatusCode.PERMISSION_DENIED, "SUBJECT_DENIED")
REQUIRED: Outcome = (StatusCode.INVALID_ARGUMENT, "SUBJECT_REQUIRED")

PUBLIC, USER, ADMIN, SERVICE = (
    options_pb2.PUBLIC,
    options_pb2.USER,
    options_pb2.ADMIN,
    options_pb2.SERVICE,
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One kind of caller with its credentials and whom it names."""

    caller: str
    metadata: Metadata
    subject: str
    expected: Outcome
    person: Person | None = None
    """Logs in right before, if given: the attempt before may have ended all its sessions."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Credentials that admit nobody anywhere but where none are looked at."""

    metadata: Metadata
    expected: Outcome


def test_every_room_and_request_is_covered() -> None:
    """Each served room is enumerated and each factory makes a request some method takes."""
    assert sorted(SERVICES) == ROOMS
    taken = {method.request for room in ROOMS for method in methods(room)}
    assert set(FACTORIES) == taken


@pytest.mark.parametrize("room", ROOMS)
async def test_every_method_admits_whom_its_contract_names(
    house: House, clock: FakeClock, room: str
) -> None:
    """Code and reason of every method for every kind of caller are what its access rule says."""
    expired = await house.person()
    clock.advance(minutes=16)
    rejected = await rejections(house, expired)
    channel = house.auth_channel if room == "auth" else house.usage_channel
    expected, found = {}, {}
    for method in methods(room):
        user, other = await house.person(), await house.person()
        admin = await house.person(role=auth_pb2.ROLE_ADMIN)
        attempts = [
            *(
                Attempt(name, bad.metadata, other.user_id, _public_or(method, bad.expected))
                for name, bad in rejected.items()
            ),
            *admitted(method, house, user, other, admin),
        ]
        given = Given(house, clock, other)
        for attempt in attempts:
            case = f"{method.name} by {attempt.caller}"
            expected[case] = attempt.expected
            metadata = attempt.metadata
            if attempt.person:
                metadata = await fresh(house, attempt.person)
            about = replace(
                given, subject=attempt.subject, metadata=metadata, caller=attempt.person
            )
            request = await request_for(method, about)
            found[case] = await outcome(channel, method, request, metadata)
    assert found == expected


def admitted(
    method: Method, house: House, user: Person, other: Person, admin: Person
) -> list[Attempt]:
    """Returns callers whose credentials are good; what they may do is the contract's to say."""
    as_user = OK if USER in method.allow else DENIED
    as_admin = OK if {USER, ADMIN} & method.allow else DENIED
    as_service = OK if SERVICE in method.allow else DENIED
    # Without a subject a method is nobody's in particular: naming somebody changes nothing.
    about_other = NOT_YOURS if method.subject and as_user == OK else as_user
    nobody = REQUIRED if method.subject and as_service == OK else as_service
    about_admin_other = as_admin
    if method.subject and ADMIN not in method.allow and as_admin == OK:
        about_admin_other = NOT_YOURS
    attempts = [
        ("a user naming nobody", user, "", as_user),
        ("a user naming itself", user, user.user_id, as_user),
        ("a user naming another", user, other.user_id, about_other),
        ("an admin naming me", admin, "me", as_admin),
        ("an admin naming another", admin, other.user_id, about_admin_other),
        ("a service naming a user", None, other.user_id, as_service),
        ("a service naming nobody", None, "", nobody),
    ]
    return [
        Attempt(
            caller,
            house.service,
            subject,
            _public_or(method, expected),
            person,
        )
        for caller, person, subject, expected in attempts
    ]


async def fresh(house: House, person: Person) -> Metadata:
    """Logs somebody in once more: a method may end its session, or add a factor to its account."""
    await without_factors(house, person)
    request = auth_pb2.LoginRequest(email=person.email, password=PASSWORD)
    return bearer((await house.auth.Login(request)).tokens.access_token)


async def rejections(house: House, expired: Person) -> dict[str, Rejected]:
    """Returns credentials of every kind that no rule admits."""
    good = await house.person()
    logged_out, promoted = await house.person(), await house.person()
    await house.auth.Logout(auth_pb2.LogoutRequest(), metadata=logged_out.metadata)
    await house.auth.SetRole(
        auth_pb2.SetRoleRequest(
            user_id=promoted.user_id, role=auth_pb2.ROLE_PRO, reason="contract"
        ),
        metadata=house.service,
    )
    for person in (logged_out, promoted):
        await until(lambda person=person: _revoked_everywhere(house, person))  # type: ignore[misc]
    token = good.tokens.access_token
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    kid = str(jwt.get_unverified_header(token)["kid"])
    stranger = Ed25519PrivateKey.generate()
    forged = jwt.encode(
        {**claims, "role": "admin"}, stranger, algorithm="EdDSA", headers={"kid": kid}
    )
    return {
        "nobody": Rejected((), MISSING),
        "an expired token": Rejected(expired.metadata, EXPIRED),
        "a session that was logged out": Rejected(logged_out.metadata, REVOKED),
        "a token from before a change of role": Rejected(promoted.metadata, REVOKED),
        "a wrong signature": Rejected(bearer(forged), INVALID),
        "alg=none": Rejected(bearer(unsigned({**claims, "role": "admin"}, kid)), INVALID),
        "an unknown service key": Rejected(bearer("fsk_test_" + "x" * 43), INVALID),
        "no bearer": Rejected((("authorization", "Basic dTpw"),), INVALID),
    }


async def _revoked_everywhere(house: House, person: Person) -> bool:
    calls: list[Any] = [
        house.auth.GetUser(auth_pb2.GetUserRequest(), metadata=person.metadata),
        house.usage.GetBalance(usage_pb2.GetBalanceRequest(), metadata=person.metadata),
    ]
    refused = 0
    for call in calls:
        try:
            await call
        except aio.AioRpcError as error:
            refused += refusal_of(error) == REVOKED
    return refused == len(calls)


async def outcome(
    channel: aio.Channel, method: Method, request: Any, metadata: Metadata
) -> Outcome:
    """Makes the call and returns code and reason."""
    try:
        await first_answer(channel, method, request.SerializeToString(), metadata, seconds=20)
    except aio.AioRpcError as error:
        return refusal_of(error)
    return OK


def _public_or(method: Method, otherwise: Outcome) -> Outcome:
    return OK if PUBLIC in method.allow else otherwise
