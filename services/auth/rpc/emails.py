"""EmailService on the wire: message in, use case, message out."""

from uuid import UUID

from finity.auth.v1 import email_pb2, email_pb2_grpc

from chassis.calls import current_call
from chassis.idempotency import key_of
from chassis.times import to_timestamp
from services.auth.domain.emails import Proof
from services.auth.domain.users import normalise_email
from services.auth.rpc.messages import Context, means, to_tokens, to_user
from services.auth.service.emails import NOBODY, EmailService
from services.auth.service.notices import USAGE_THRESHOLD, NoticeService
from services.auth.service.room import Room


class EmailServicer(email_pb2_grpc.EmailServiceServicer):
    """The contract's methods in the contract's order."""

    def __init__(self, room: Room, emails: EmailService, notices: NoticeService) -> None:
        self._emails = emails
        self._notices = notices
        self._secret = room.derive("idempotency")

    async def RequestEmailVerification(
        self, request: email_pb2.RequestEmailVerificationRequest, context: Context
    ) -> email_pb2.RequestEmailVerificationResponse:
        next_at = await self._emails.request_verification(current_call().caller.user_id or NOBODY)
        return email_pb2.RequestEmailVerificationResponse(
            next_mail_time=to_timestamp(next_at) if next_at else None
        )

    async def VerifyEmail(
        self, request: email_pb2.VerifyEmailRequest, context: Context
    ) -> email_pb2.VerifyEmailResponse:
        proof = Proof(request.secret, request.email, request.code)
        await self._emails.verify(proof, address=current_call().address())
        return email_pb2.VerifyEmailResponse()

    async def RequestPasswordReset(
        self, request: email_pb2.RequestPasswordResetRequest, context: Context
    ) -> email_pb2.RequestPasswordResetResponse:
        next_at = await self._emails.request_reset(
            email=request.email, address=current_call().address()
        )
        return email_pb2.RequestPasswordResetResponse(next_mail_time=to_timestamp(next_at))

    async def ResetPassword(
        self, request: email_pb2.ResetPasswordRequest, context: Context
    ) -> email_pb2.ResetPasswordResponse:
        await self._emails.reset_password(
            secret=request.secret,
            new_password=request.new_password,
            key=key_of(request, self._secret, owner=request.secret),
        )
        return email_pb2.ResetPasswordResponse()

    async def RequestSignIn(
        self, request: email_pb2.RequestSignInRequest, context: Context
    ) -> email_pb2.RequestSignInResponse:
        next_at = await self._emails.request_sign_in(
            email=request.email, address=current_call().address()
        )
        return email_pb2.RequestSignInResponse(next_mail_time=to_timestamp(next_at))

    async def SignIn(
        self, request: email_pb2.SignInRequest, context: Context
    ) -> email_pb2.SignInResponse:
        tokens, user = await self._emails.sign_in(
            Proof(request.secret, request.email, request.code),
            means("otp", device=request.device),
            key_of(request, self._secret, owner=request.secret or normalise_email(request.email)),
        )
        return email_pb2.SignInResponse(tokens=to_tokens(tokens), user=to_user(user))

    async def RequestEmailChange(
        self, request: email_pb2.RequestEmailChangeRequest, context: Context
    ) -> email_pb2.RequestEmailChangeResponse:
        next_at = await self._emails.request_change(
            current_call().caller,
            new_email=request.new_email,
            key=key_of(request, self._secret),
        )
        return email_pb2.RequestEmailChangeResponse(next_mail_time=to_timestamp(next_at))

    async def ConfirmEmailChange(
        self, request: email_pb2.ConfirmEmailChangeRequest, context: Context
    ) -> email_pb2.ConfirmEmailChangeResponse:
        user = await self._emails.confirm_change(
            request.secret, key_of(request, self._secret, owner=request.secret)
        )
        return email_pb2.ConfirmEmailChangeResponse(user=to_user(user))

    async def NotifyUser(
        self, request: email_pb2.NotifyUserRequest, context: Context
    ) -> email_pb2.NotifyUserResponse:
        notice = request.usage_threshold
        values = {
            "month": notice.month,
            "percent": str(notice.percent),
            "used": str(notice.used),
            "available": str(notice.available),
        }
        key = key_of(request, self._secret)
        sent = await self._notices.notify(UUID(request.user_id), USAGE_THRESHOLD, values, key)
        return email_pb2.NotifyUserResponse(sent=sent)
