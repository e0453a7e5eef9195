"""chassis.callers: who is calling, and what the contract lets it do."""

import hashlib
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from chassis.callers import PUBLIC, Authenticator, Caller, Kind, admit, settle_subject
from chassis.contract import methods_of
from chassis.refusals import (
    AccessDenied,
    CredentialsInvalid,
    CredentialsMissing,
    SubjectDenied,
    SubjectRequired,
    TokenExpired,
)
from chassis.tokens import TokenVerifier
from tests.chassis.issuer import NAME, Issuer
from tests.chassis.probe import CONTRACT, Ask, path
from tests.fakes import FakeClock

METHODS = methods_of([CONTRACT])
OWN, MANAGE, SERVE = (METHODS[path(name)] for name in ("Own", "Manage", "Serve"))
USER = Caller(Kind.USER, user_id=uuid4(), session_id=uuid4(), role="free")
ADMIN = Caller(Kind.USER, user_id=uuid4(), session_id=uuid4(), role="admin")
SERVICE = Caller(Kind.SERVICE, name="usage")
OLD_KEY, NEW_KEY = "fsk_usage_old_" + "x" * 30, "fsk_usage_new_" + "y" * 30


@pytest.fixture
def issuer(clock: FakeClock) -> Issuer:
    return Issuer(clock)


@pytest.fixture
def authenticator(issuer: Issuer, clock: FakeClock) -> Authenticator:
    digests = tuple(hashlib.sha256(key.encode()).hexdigest() for key in (OLD_KEY, NEW_KEY))
    keys = {"usage": (digests[0].upper(), digests[1])}
    return Authenticator(keys, TokenVerifier(issuer, NAME, clock))


async def test_a_service_is_known_by_either_of_its_keys(authenticator: Authenticator) -> None:
    """While a key rotates the old and the new one both work, and the scheme has no case."""
    for authorization in (f"Bearer {OLD_KEY}", f"bearer {NEW_KEY}"):
        assert await authenticator.authenticate(authorization) == SERVICE


async def test_a_user_is_known_by_its_token(authenticator: Authenticator, issuer: Issuer) -> None:
    """An access token names the user, the session and the role."""
    user_id, session_id = uuid4(), uuid4()
    token = issuer.token_of(user_id, session_id, role="pro")
    caller = await authenticator.authenticate(f"Bearer {token}")
    assert caller == Caller(Kind.USER, user_id=user_id, session_id=session_id, role="pro")


async def test_only_keys_are_known_by_sight(
    authenticator: Authenticator, issuer: Issuer, clock: FakeClock
) -> None:
    """A key counts again and again; a refused one never does, and a token only while it is good."""
    wrong = f"Bearer {OLD_KEY}x"
    token = f"Bearer {issuer.token_of(uuid4(), uuid4(), role='pro')}"
    for _ in range(3):
        assert await authenticator.authenticate(f"Bearer {OLD_KEY}") == SERVICE
        with pytest.raises(CredentialsInvalid):
            await authenticator.authenticate(wrong)
        await authenticator.authenticate(token)
        assert authenticator.known(f"Bearer {OLD_KEY}") == SERVICE
        assert authenticator.known(wrong) is None
        assert authenticator.known(token) is None
    clock.advance(days=1)
    with pytest.raises(TokenExpired):
        await authenticator.authenticate(token)


async def test_no_credentials_are_missing_credentials(authenticator: Authenticator) -> None:
    """A call without authorization is told that it needs some."""
    with pytest.raises(CredentialsMissing):
        await authenticator.authenticate("")


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer",
        "Bearer ",
        "Basic dTpw",
        OLD_KEY,
        f"Bearer {OLD_KEY}x",
        "Bearer fsk_",
        "Bearer x.y.z",
    ],
)
async def test_unknown_credentials_are_invalid(
    authenticator: Authenticator, authorization: str
) -> None:
    """Another scheme, an unknown key and what is no token at all are refused alike."""
    with pytest.raises(CredentialsInvalid):
        await authenticator.authenticate(authorization)


def test_callers_have_stable_keys() -> None:
    """Idempotency keys and logs know a caller by kind and identity."""
    one = UUID(int=1)
    assert Caller(Kind.USER, user_id=one).key == f"user:{one}"
    assert SERVICE.key == "service:usage"
    assert PUBLIC.key == "public"


def test_admission_follows_the_access_rule() -> None:
    """A kind of caller is admitted when the rule lists it, and only then."""
    assert admit(OWN, USER) is False
    assert admit(OWN, ADMIN) is True
    assert admit(OWN, SERVICE) is True
    assert admit(MANAGE, ADMIN) is True
    assert admit(SERVE, SERVICE) is True
    for method, caller in ((MANAGE, USER), (MANAGE, SERVICE), (SERVE, USER), (SERVE, ADMIN)):
        with pytest.raises(AccessDenied):
            admit(method, caller)
    with pytest.raises(AccessDenied):
        admit(OWN, PUBLIC)


@pytest.mark.parametrize("named", ["", "me"])
def test_nobody_named_means_the_caller(named: str) -> None:
    """An empty subject and "me" are the caller's own id, for users and administrators."""
    for caller, anyone in ((USER, False), (ADMIN, True)):
        request = Ask(user_id=named)
        settle_subject(OWN, request, caller, anyone)
        assert request.user_id == str(caller.user_id)


def test_a_user_may_name_only_itself() -> None:
    """A user's own id passes, any other is refused, whatever it looks like."""
    settle_subject(OWN, Ask(user_id=str(USER.user_id)), USER, may_name_anyone=False)
    for other in (str(ADMIN.user_id), str(USER.user_id).upper(), "x", "ME", " me"):
        with pytest.raises(SubjectDenied):
            settle_subject(OWN, Ask(user_id=other), USER, may_name_anyone=False)


def test_administrators_and_services_may_name_anyone() -> None:
    """Another user's id passes unchanged for whoever may name anyone."""
    for caller in (ADMIN, SERVICE):
        request = Ask(user_id=str(USER.user_id))
        settle_subject(OWN, request, caller, may_name_anyone=True)
        assert request.user_id == str(USER.user_id)


@pytest.mark.parametrize("named", ["", "me"])
def test_a_service_must_name_somebody(named: str) -> None:
    """A service is nobody's "me"."""
    with pytest.raises(SubjectRequired):
        settle_subject(OWN, Ask(user_id=named), SERVICE, may_name_anyone=True)


def test_only_in_person_is_without_an_impersonator() -> None:
    """Where users must call themselves, an administrator who acts as one is refused."""
    acting = replace(USER, actor=uuid4())
    assert admit(OWN, acting) is False
    personal = replace(OWN, in_person=True)
    assert admit(personal, USER) is False
    assert admit(personal, SERVICE) is True
    with pytest.raises(AccessDenied):
        admit(personal, acting)
