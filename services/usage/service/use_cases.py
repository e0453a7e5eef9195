"""All that the room can do, put together once."""

from services.usage.service.accounts import AccountService
from services.usage.service.ledger import LedgerService
from services.usage.service.metering import MeteringService
from services.usage.service.proofs import ProofService
from services.usage.service.quotas import QuotaService
from services.usage.service.reports import ReportService
from services.usage.service.reservations import ReservationService
from services.usage.service.room import Room
from services.usage.service.standings import StandingService


class UseCases:
    """The services over one room; the queues of two, `meter` and `desk`, must be running."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.accounts = AccountService(room)
        self.metering = MeteringService(room)
        self.reservations = ReservationService(room)
        self.ledger = LedgerService(room, self.accounts)
        self.proofs = ProofService(room)
        self.reports = ReportService(room)
        self.quotas = QuotaService(room)
        self.standings = StandingService(room)
