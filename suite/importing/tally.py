"""What became of the rows, counted in constant memory."""

from dataclasses import dataclass, field

from finity.usage.v1 import usage_pb2

from suite.importing.rows import Batch

UNREADABLE = "UNREADABLE_ROW"
_SHOWN_LINES = 5
_MOST_KINDS = 20
_OTHER = "for other causes"
_Result = usage_pb2.UsageResult


@dataclass(slots=True)
class Rejection:
    """Rows that were not recorded for the same cause."""

    reason: str
    """ErrorInfo.reason of the service, or UNREADABLE_ROW."""
    message: str
    rows: int = 0
    first_lines: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Tally:
    """Counts of rows."""

    accepted: int = 0
    duplicate: int = 0
    skipped: int = 0
    """Recorded by an earlier run and not sent again."""
    rejections: dict[tuple[str, str], Rejection] = field(default_factory=dict)

    @property
    def rejected(self) -> int:
        return sum(rejection.rows for rejection in self.rejections.values())

    @property
    def rows(self) -> int:
        return self.accepted + self.duplicate + self.skipped + self.rejected

    def add(self, batch: Batch, results: list[usage_pb2.UsageResult]) -> bool:
        """Counts the answer to a batch; True if every row of it is recorded."""
        before = self.rejected
        for line, result in zip(batch.lines, results, strict=True):
            if result.outcome == _Result.OUTCOME_ACCEPTED:
                self.accepted += 1
            elif result.outcome == _Result.OUTCOME_DUPLICATE:
                self.duplicate += 1
            else:
                self.reject(line, result.reason, result.message)
        return self.rejected == before

    def reject(self, line: int, reason: str, message: str) -> None:
        """Counts a row that is not recorded."""
        if (reason, message) not in self.rejections and len(self.rejections) >= _MOST_KINDS:
            message = _OTHER
        kind = self.rejections.setdefault((reason, message), Rejection(reason, message))
        kind.rows += 1
        kind.first_lines = sorted([*kind.first_lines, line])[:_SHOWN_LINES]
