"""The WHERE of a search whose filters are each optional."""

from collections.abc import Sequence

Condition = tuple[str, tuple[object, ...]]
"""SQL with a "{}" for each of its arguments, and those."""


def conditions(found: Sequence[Condition]) -> tuple[str, list[object]]:
    """Returns the clause that joins the conditions, with $1, $2 and so on, and its arguments."""
    texts: list[str] = []
    arguments: list[object] = []
    for text, values in found:
        first = len(arguments) + 1
        texts.append(text.format(*(f"${first + number}" for number in range(len(values)))))
        arguments += values
    return (" WHERE " + " AND ".join(texts) if texts else ""), arguments
