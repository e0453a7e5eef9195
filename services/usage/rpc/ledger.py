"""LedgerService on the wire: message in, use case, message out."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from finity.usage.v1 import ledger_pb2, ledger_pb2_grpc

from chassis.callers import ADMIN_ROLE, Kind
from chassis.calls import current_call
from chassis.pages import PageTokens
from chassis.times import to_timestamp
from services.usage.domain import accounts
from services.usage.domain.accounts import Posting
from services.usage.domain.grants import BurnOrder
from services.usage.domain.proofs import Fault
from services.usage.rpc.messages import Context, act_of, to_balance, to_grant
from services.usage.service.ledger import Expiry, LedgerService
from services.usage.service.proofs import ProofService

DEFAULT_PAGE = 50
TO_KIND = {kind: ledger_pb2.EntryKind.Value(f"ENTRY_KIND_{kind.name}") for kind in accounts.Kind}


class LedgerServicer(ledger_pb2_grpc.LedgerServiceServicer):
    """The contract's methods in the contract's order."""

    def __init__(
        self, ledger: LedgerService, proofs: ProofService, pages: PageTokens, secret: bytes
    ) -> None:
        self._ledger = ledger
        self._proofs = proofs
        self._pages = pages
        self._secret = secret

    async def ListGrants(
        self, request: ledger_pb2.ListGrantsRequest, context: Context
    ) -> ledger_pb2.ListGrantsResponse:
        scope, after = f"ListGrants:{request.user_id}", None
        if request.page_token:
            after = _read_order(self._pages.decode(request.page_token, scope))
        grants, more, expiries = await self._ledger.list_grants(
            UUID(request.user_id), after=after, limit=request.page_size or DEFAULT_PAGE
        )
        token = self._pages.encode(_write_order(grants[-1].burn_order), scope) if more else ""
        return ledger_pb2.ListGrantsResponse(
            grants=map(to_grant, grants), next_page_token=token, expiries=map(_expiry, expiries)
        )

    async def ListEntries(
        self, request: ledger_pb2.ListEntriesRequest, context: Context
    ) -> ledger_pb2.ListEntriesResponse:
        scope, before = f"ListEntries:{request.user_id}", None
        if request.page_token:
            before = int(self._pages.decode(request.page_token, scope)[0])
        entries, more = await self._ledger.list_entries(
            UUID(request.user_id), before=before, limit=request.page_size or DEFAULT_PAGE
        )
        token = self._pages.encode((str(entries[-1].version),), scope) if more else ""
        return ledger_pb2.ListEntriesResponse(entries=_entries(entries), next_page_token=token)

    async def VoidGrant(
        self, request: ledger_pb2.VoidGrantRequest, context: Context
    ) -> ledger_pb2.VoidGrantResponse:
        grant, balance = await self._ledger.void_grant(
            UUID(request.user_id), UUID(request.grant_id), act_of(request, self._secret)
        )
        return ledger_pb2.VoidGrantResponse(grant=to_grant(grant), balance=to_balance(balance))

    async def AdjustCredits(
        self, request: ledger_pb2.AdjustCreditsRequest, context: Context
    ) -> ledger_pb2.AdjustCreditsResponse:
        posting, balance, grant = await self._ledger.adjust_credits(
            UUID(request.user_id), request.amount, act_of(request, self._secret)
        )
        return ledger_pb2.AdjustCreditsResponse(
            entry=_entry(posting),
            balance=to_balance(balance),
            grant=to_grant(grant) if grant else None,
        )

    async def SetOverdraftLimit(
        self, request: ledger_pb2.SetOverdraftLimitRequest, context: Context
    ) -> ledger_pb2.SetOverdraftLimitResponse:
        balance = await self._ledger.set_overdraft_limit(
            UUID(request.user_id), request.overdraft_limit, act_of(request, self._secret)
        )
        return ledger_pb2.SetOverdraftLimitResponse(
            balance=to_balance(balance), overdraft_limit=balance.overdraft_limit
        )

    async def CorrectUsage(
        self, request: ledger_pb2.CorrectUsageRequest, context: Context
    ) -> ledger_pb2.CorrectUsageResponse:
        posting, balance, _ = await self._ledger.correct_usage(
            UUID(request.user_id),
            request.credits,
            act_of(request, self._secret),
            event_id=UUID(request.event_id) if request.event_id else None,
            entry_id=UUID(request.entry_id) if request.entry_id else None,
        )
        return ledger_pb2.CorrectUsageResponse(entry=_entry(posting), balance=to_balance(balance))

    async def VerifyLedger(
        self, request: ledger_pb2.VerifyLedgerRequest, context: Context
    ) -> ledger_pb2.VerifyLedgerResponse:
        scope, after = f"VerifyLedger:{request.from_start}", None
        if request.user_id:
            proof = await self._proofs.verify_account(UUID(request.user_id))
        else:
            if request.page_token:
                after = UUID(self._pages.decode(request.page_token, scope)[0])
            proof = await self._proofs.verify_page(
                after, request.page_size or DEFAULT_PAGE, whole=request.from_start
            )
        token = self._pages.encode((str(proof.last),), scope) if proof.last else ""
        return ledger_pb2.VerifyLedgerResponse(
            verified_accounts=proof.accounts,
            faults=map(_fault, proof.faults),
            next_page_token=token,
        )


def _fault(fault: Fault) -> ledger_pb2.LedgerFault:
    return ledger_pb2.LedgerFault(
        user_id=str(fault.user_id),
        check=ledger_pb2.LedgerCheck.Value(f"LEDGER_CHECK_{fault.check.name}"),
        expected=fault.expected,
        found=fault.found,
    )


def _entries(postings: Sequence[Posting]) -> list[ledger_pb2.Entry]:
    caller = current_call().caller
    told = caller.kind is Kind.SERVICE or caller.role == ADMIN_ROLE
    return [_entry(posting, told=told) for posting in postings]


def _entry(posting: Posting, *, told: bool = True) -> ledger_pb2.Entry:
    """Who did it and why is `told` to those who may do such things."""
    return ledger_pb2.Entry(
        entry_id=str(posting.id),
        kind=TO_KIND[posting.kind],
        amount=posting.amount,
        balance_after=posting.balance_after,
        version=posting.version,
        create_time=to_timestamp(posting.at),
        draws=[
            ledger_pb2.Draw(grant_id=str(draw.grant_id), amount=draw.amount)
            for draw in posting.draws
        ],
        grant_id=_text(posting.grant_id),
        reservation_id=_text(posting.reservation_id),
        reverses_entry_id=_text(posting.reverses_id),
        actor=_text(posting.actor if told else None),
        note=_text(posting.note if told else None),
    )


def _text(value: UUID | str | None) -> str:
    return str(value) if value else ""


def _expiry(expiry: Expiry) -> ledger_pb2.Expiry:
    return ledger_pb2.Expiry(expire_time=to_timestamp(expiry.at), credits=expiry.credits)


def _write_order(order: BurnOrder) -> tuple[str, ...]:
    priority, expires, paid, effective, created, grant_id = order
    times = [moment.isoformat() for moment in (expires, effective, created)]
    return (str(priority), times[0], "paid" if paid else "", *times[1:], str(grant_id))


def _read_order(key: tuple[str, ...]) -> BurnOrder:
    priority, expires, paid, effective, created, grant_id = key
    times = [datetime.fromisoformat(text) for text in (expires, effective, created)]
    return (int(priority), times[0], bool(paid), times[1], times[2], UUID(grant_id))
