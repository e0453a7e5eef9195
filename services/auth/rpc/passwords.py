"""PasswordService on the wire: message in, use case, message out."""

from collections import Counter

from finity.auth.v1 import auth_pb2, password_pb2, password_pb2_grpc

from chassis.calls import current_call
from chassis.idempotency import key_of
from services.auth.domain.imports import Imported, Newcomer, Outcome, Rejection
from services.auth.domain.passwords import Hint, Weakness
from services.auth.domain.users import Role, normalise_email
from services.auth.rpc.messages import FROM_ROLE, Context
from services.auth.service.imports import ImportService
from services.auth.service.passwords import PasswordService
from services.auth.service.room import Room

_WEAKNESS = {
    kind: password_pb2.PasswordWeakness.Value(f"PASSWORD_WEAKNESS_{kind.name}") for kind in Weakness
}
_HINT = {
    hint: password_pb2.PasswordHintCode.Value(f"PASSWORD_HINT_CODE_{hint.name}") for hint in Hint
}
_OUTCOME = {
    kind: password_pb2.ImportOutcome.Value(f"IMPORT_OUTCOME_{kind.name}") for kind in Outcome
}
_REJECTION = {
    kind: password_pb2.ImportRejection.Value(f"IMPORT_REJECTION_{kind.name}") for kind in Rejection
}
_ACCEPTABLE = password_pb2.PASSWORD_WEAKNESS_UNSPECIFIED
_TAKEN = password_pb2.IMPORT_REJECTION_UNSPECIFIED


class PasswordServicer(password_pb2_grpc.PasswordServiceServicer):
    """The contract's methods in the contract's order."""

    def __init__(self, room: Room, passwords: PasswordService, imports: ImportService) -> None:
        self._passwords = passwords
        self._imports = imports
        self._secret = room.derive("idempotency")

    async def CheckPasswordStrength(
        self, request: password_pb2.CheckPasswordStrengthRequest, context: Context
    ) -> password_pb2.CheckPasswordStrengthResponse:
        estimate, weakness = await self._passwords.strength(
            request.password, normalise_email(request.email), current_call().address()
        )
        return password_pb2.CheckPasswordStrengthResponse(
            score=estimate.score,
            acceptable=weakness is None,
            weakness=_WEAKNESS[weakness] if weakness else _ACCEPTABLE,
            warning=_hint(estimate.warning) if estimate.warning else None,
            suggestions=map(_hint, estimate.suggestions),
        )

    async def ChangePassword(
        self, request: password_pb2.ChangePasswordRequest, context: Context
    ) -> password_pb2.ChangePasswordResponse:
        call = current_call()
        ended = await self._passwords.change(
            caller=call.caller,
            current=request.current_password,
            new=request.new_password,
            address=call.address(),
            key=key_of(request, self._secret),
        )
        return password_pb2.ChangePasswordResponse(ended_sessions=ended)

    async def ImportUsers(
        self, request: password_pb2.ImportUsersRequest, context: Context
    ) -> password_pb2.ImportUsersResponse:
        results = await self._imports.import_users(
            [_newcomer(user) for user in request.users], actor=current_call().caller.key
        )
        counts = Counter(result.outcome for result in results)
        return password_pb2.ImportUsersResponse(
            results=map(_result, results),
            created=counts[Outcome.CREATED],
            duplicates=counts[Outcome.DUPLICATE],
            rejected=counts[Outcome.REJECTED],
        )


def _hint(hint: Hint) -> password_pb2.PasswordHint:
    return password_pb2.PasswordHint(code=_HINT[hint], text=hint)


def _newcomer(user: password_pb2.ImportedUser) -> Newcomer:
    stamp = user.create_time
    unspecified = user.role == auth_pb2.ROLE_UNSPECIFIED
    return Newcomer(
        email=normalise_email(user.email),
        role=Role.FREE if unspecified else FROM_ROLE.get(user.role),
        email_verified=user.email_verified,
        created=(stamp.seconds, stamp.nanos) if user.HasField("create_time") else None,
        password_hash=user.password_hash,
    )


def _result(result: Imported) -> password_pb2.ImportResult:
    return password_pb2.ImportResult(
        outcome=_OUTCOME[result.outcome],
        user_id=str(result.user_id) if result.user_id else "",
        rejection=_REJECTION[result.rejection] if result.rejection else _TAKEN,
    )
