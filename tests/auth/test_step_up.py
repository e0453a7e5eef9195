"""Sensitive actions and the secrets that are sent to people: the rules by themselves."""

from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from chassis.callers import Caller, Kind
from chassis.errors import Code
from services.auth.domain.one_time import CODE_DIGITS, code_of, secret_of
from services.auth.domain.sessions import STEP_UP_AGE, Acr
from services.auth.domain.users import Role, User
from services.auth.errors import StepUpRequired
from services.auth.service.step_up import require_fresh
from tests.fakes import FakeClock

NOW = FakeClock().now()
USER = User(UUID(int=7), "ada@example.com", Role.FREE, 1, NOW, None)
CALLER = Caller(Kind.USER, user_id=USER.id, acr=Acr.AAL1, auth_time=NOW)


def test_a_proof_serves_for_ten_minutes() -> None:
    """Then the refusal says, as RFC 9470 does, how fresh and how strong the next must be."""
    require_fresh(CALLER, USER, NOW + STEP_UP_AGE)
    with pytest.raises(StepUpRequired) as refused:
        require_fresh(CALLER, USER, NOW + STEP_UP_AGE + timedelta(microseconds=1))
    assert (refused.value.code, refused.value.reason) == (
        Code.UNAUTHENTICATED,
        "STEP_UP_REQUIRED",
    )
    assert refused.value.metadata == {"acr_values": "aal1", "max_age": "600"}


def test_who_has_a_second_factor_needs_it() -> None:
    """One factor is not enough for an account that has two, nor is a token without the claims."""
    guarded = replace(USER, mfa_enabled_at=NOW)
    with pytest.raises(StepUpRequired) as refused:
        require_fresh(CALLER, guarded, NOW)
    assert refused.value.metadata["acr_values"] == "aal2"
    require_fresh(replace(CALLER, acr=Acr.AAL2), guarded, NOW)
    with pytest.raises(StepUpRequired):
        require_fresh(replace(CALLER, auth_time=None), USER, NOW)


def test_secrets_are_derived() -> None:
    """A row and a key make one secret and one code; another row or key makes others."""
    row, key, other = uuid4(), bytes(32), bytes([1]) * 32
    assert secret_of(key, row) == secret_of(key, row)
    assert len({secret_of(key, row), secret_of(other, row), secret_of(key, uuid4())}) == 3
    assert len(secret_of(key, row)) == 32
    codes = {code_of(key, uuid4()) for _ in range(200)}
    assert len(codes) > 190
    assert all(len(code) == CODE_DIGITS and code.isdecimal() for code in codes)
