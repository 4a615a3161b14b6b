"""What a preparation leaves out, counted by kind with an example of each."""

from dataclasses import dataclass, field

from nar_scale.errors import DataError
from nar_scale.text import printable

HIDDEN = "hidden"
EXCLUDED = "excluded"
UNCOUNTED = (HIDDEN, EXCLUDED)  # left out by rule or on request


@dataclass
class Skipped:
    """Files and documents that are left out.

    Attributes:
        counts: number by reason, such as "binary".
        examples: path of the first one by reason.
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, example: str, number: int = 1) -> None:
        """Count one more, or several for the same reason."""
        self.counts[reason] = self.counts.get(reason, 0) + number
        self.examples.setdefault(reason, example)

    def update(self, other: "Skipped") -> None:
        """Count all that `other` has."""
        for reason, number in other.counts.items():
            self.add(reason, other.examples[reason], number)

    @property
    def total(self) -> int:
        """Number of all but hidden and excluded files."""
        return sum(number for reason, number in self.counts.items() if reason not in UNCOUNTED)

    def __str__(self) -> str:
        kinds = (
            f"{number:,} {reason} (such as {printable(self.examples[reason])})"
            for reason, number in self.counts.items()
        )
        return ", ".join(kinds) or "nothing"


def refuse_too_many(skipped: Skipped, most: int | None) -> None:
    """Raise a `DataError` if more is left out than may be; None is any number."""
    if most is not None and skipped.total > most:
        raise DataError(
            f"{skipped.total} documents are left out, and max_skipped is {most}: {skipped}; correct or exclude them, "
            "or raise --max-skipped"
        )
