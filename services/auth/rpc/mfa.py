"""MfaService on the wire: message in, use case, message out."""

from uuid import UUID

from finity.auth.v1 import mfa_pb2, mfa_pb2_grpc

from chassis.calls import current_call
from chassis.idempotency import key_of
from chassis.pages import PageTokens
from chassis.times import to_timestamp
from services.auth.domain.mfa import Factor, FactorKind
from services.auth.rpc.messages import Context, means, to_tokens, to_user
from services.auth.service.mfa import MfaService
from services.auth.service.passkeys import PasskeyService
from services.auth.service.proofs import Proof, ProofKind, ProofService
from services.auth.service.room import Room

DEFAULT_PAGE = 50
_TO_KIND = {
    FactorKind.TOTP: mfa_pb2.FACTOR_KIND_TOTP,
    FactorKind.PASSKEY: mfa_pb2.FACTOR_KIND_PASSKEY,
}


class MfaServicer(mfa_pb2_grpc.MfaServiceServicer):
    """The contract's methods in the contract's order."""

    def __init__(
        self, room: Room, factors: MfaService, passkeys: PasskeyService, proofs: ProofService
    ) -> None:
        self._factors = factors
        self._passkeys = passkeys
        self._proofs = proofs
        self._pages = PageTokens(room.derive("pages"))
        self._secret = room.derive("idempotency")

    async def EnrolTotp(
        self, request: mfa_pb2.EnrolTotpRequest, context: Context
    ) -> mfa_pb2.EnrolTotpResponse:
        enrolled = await self._factors.enrol_totp(current_call().caller)
        return mfa_pb2.EnrolTotpResponse(
            secret=enrolled.secret,
            provisioning_uri=enrolled.uri,
            expire_time=to_timestamp(enrolled.expires_at),
        )

    async def ConfirmTotp(
        self, request: mfa_pb2.ConfirmTotpRequest, context: Context
    ) -> mfa_pb2.ConfirmTotpResponse:
        codes = await self._factors.confirm_totp(
            current_call().caller, request.totp_code, key_of(request, self._secret)
        )
        return mfa_pb2.ConfirmTotpResponse(recovery_codes=codes)

    async def DisableTotp(
        self, request: mfa_pb2.DisableTotpRequest, context: Context
    ) -> mfa_pb2.DisableTotpResponse:
        await self._factors.disable_totp(current_call().caller)
        return mfa_pb2.DisableTotpResponse()

    async def RegenerateRecoveryCodes(
        self, request: mfa_pb2.RegenerateRecoveryCodesRequest, context: Context
    ) -> mfa_pb2.RegenerateRecoveryCodesResponse:
        codes = await self._factors.regenerate_recovery_codes(
            current_call().caller, key_of(request, self._secret)
        )
        return mfa_pb2.RegenerateRecoveryCodesResponse(recovery_codes=codes)

    async def StartPasskeyRegistration(
        self, request: mfa_pb2.StartPasskeyRegistrationRequest, context: Context
    ) -> mfa_pb2.StartPasskeyRegistrationResponse:
        started = await self._passkeys.start_registration(current_call().caller)
        return mfa_pb2.StartPasskeyRegistrationResponse(
            options_json=started.options, expire_time=to_timestamp(started.expires_at)
        )

    async def FinishPasskeyRegistration(
        self, request: mfa_pb2.FinishPasskeyRegistrationRequest, context: Context
    ) -> mfa_pb2.FinishPasskeyRegistrationResponse:
        passkey_id, codes = await self._passkeys.finish_registration(
            current_call().caller,
            credential=request.credential_json,
            name=request.name,
            key=key_of(request, self._secret),
        )
        return mfa_pb2.FinishPasskeyRegistrationResponse(
            passkey_id=str(passkey_id), recovery_codes=codes
        )

    async def DeletePasskey(
        self, request: mfa_pb2.DeletePasskeyRequest, context: Context
    ) -> mfa_pb2.DeletePasskeyResponse:
        await self._passkeys.delete(
            current_call().caller, UUID(request.passkey_id), key_of(request, self._secret)
        )
        return mfa_pb2.DeletePasskeyResponse()

    async def ListFactors(
        self, request: mfa_pb2.ListFactorsRequest, context: Context
    ) -> mfa_pb2.ListFactorsResponse:
        scope = f"ListFactors:{request.user_id}"
        after = None
        if request.page_token:
            after = UUID(self._pages.decode(request.page_token, scope)[0])
        factors, last, left = await self._factors.list_factors(
            UUID(request.user_id), after=after, limit=request.page_size or DEFAULT_PAGE
        )
        return mfa_pb2.ListFactorsResponse(
            factors=map(_to_factor, factors),
            next_page_token=self._pages.encode((str(last),), scope) if last else "",
            recovery_codes_left=left,
        )

    async def StartPasskeyAssertion(
        self, request: mfa_pb2.StartPasskeyAssertionRequest, context: Context
    ) -> mfa_pb2.StartPasskeyAssertionResponse:
        started = await self._passkeys.start_assertion(current_call().address())
        return mfa_pb2.StartPasskeyAssertionResponse(
            options_json=started.options, expire_time=to_timestamp(started.expires_at)
        )

    async def SignInWithPasskey(
        self, request: mfa_pb2.SignInWithPasskeyRequest, context: Context
    ) -> mfa_pb2.SignInWithPasskeyResponse:
        tokens, user = await self._proofs.sign_in_with_passkey(
            request.credential_json, means(device=request.device)
        )
        return mfa_pb2.SignInWithPasskeyResponse(tokens=to_tokens(tokens), user=to_user(user))

    async def CompleteSignIn(
        self, request: mfa_pb2.CompleteSignInRequest, context: Context
    ) -> mfa_pb2.CompleteSignInResponse:
        tokens, user = await self._proofs.complete_sign_in(
            challenge=request.challenge,
            proof=_proof(request),
            address=current_call().address(),
        )
        return mfa_pb2.CompleteSignInResponse(tokens=to_tokens(tokens), user=to_user(user))

    async def StepUp(
        self, request: mfa_pb2.StepUpRequest, context: Context
    ) -> mfa_pb2.StepUpResponse:
        call = current_call()
        tokens = await self._proofs.step_up(call.caller, _proof(request), call.address())
        return mfa_pb2.StepUpResponse(
            access_token=tokens.access_token,
            access_token_expire_time=to_timestamp(tokens.access_token_expires_at),
        )

    async def ResetMfa(
        self, request: mfa_pb2.ResetMfaRequest, context: Context
    ) -> mfa_pb2.ResetMfaResponse:
        user = await self._factors.reset(
            current_call().caller,
            user_id=UUID(request.user_id),
            reason=request.reason,
            key=key_of(request, self._secret),
        )
        return mfa_pb2.ResetMfaResponse(user=to_user(user))


def _proof(request: mfa_pb2.CompleteSignInRequest | mfa_pb2.StepUpRequest) -> Proof:
    kind = str(request.WhichOneof("proof"))
    return Proof(ProofKind(kind), getattr(request, kind))


def _to_factor(factor: Factor) -> mfa_pb2.Factor:
    used = factor.last_used_at
    return mfa_pb2.Factor(
        factor_id=str(factor.id),
        kind=_TO_KIND[factor.kind],
        name=factor.name,
        create_time=to_timestamp(factor.created_at),
        last_use_time=to_timestamp(used) if used else None,
    )
