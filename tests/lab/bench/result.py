"""What was measured: samples by quantity and contender, their medians, and ratios of paired samples. No I/O."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Quantity:
    """One thing that is measured, in `unit`."""

    name: str
    unit: str
    more_is_better: bool = True


Sample = tuple[Quantity, float]


@dataclass
class Result:
    """All samples of one suite. `subject` is the contender that the others are compared with."""

    suite: str
    title: str
    subject: str
    samples: dict[Quantity, dict[str, dict[int, float]]] = field(default_factory=dict)
    """Quantity → contender → round → value. Samples of the same round are a pair: they ran one after the other."""
    failures: list[str] = field(default_factory=list)

    def add(self, contender: str, at: int, samples: Iterable[Sample]) -> None:
        for quantity, value in samples:
            self.samples.setdefault(quantity, {}).setdefault(contender, {})[at] = value

    def fail(self, contender: str, what: str, reason: str) -> None:
        self.failures.append(f"{contender}: {what}: {reason}")

    def median(self, quantity: Quantity, contender: str) -> float | None:
        values = self.values(quantity, contender)
        return median(values) if values else None

    def values(self, quantity: Quantity, contender: str) -> list[float]:
        return list(self.samples.get(quantity, {}).get(contender, {}).values())

    def contenders(self, quantity: Quantity) -> list[str]:
        """The subject first, the others in the order in which they were first measured."""
        found = list(self.samples.get(quantity, {}))
        return sorted(found, key=lambda name: name != self.subject)

    def ratio(self, quantity: Quantity, contender: str) -> float | None:
        """The subject's value divided by the contender's: the median over the rounds that have both."""
        ours = self.samples.get(quantity, {}).get(self.subject, {})
        theirs = self.samples.get(quantity, {}).get(contender, {})
        ratios = [ours[at] / theirs[at] for at in ours.keys() & theirs.keys() if theirs[at]]
        return median(ratios) if ratios else None

    def document(self) -> Mapping[str, Any]:
        """For scripts."""
        return {
            "suite": self.suite,
            "title": self.title,
            "subject": self.subject,
            "quantities": [
                {
                    "name": quantity.name,
                    "unit": quantity.unit,
                    "more_is_better": quantity.more_is_better,
                    "contenders": {
                        name: {
                            "median": self.median(quantity, name),
                            "samples": self.values(quantity, name),
                            "subject_ratio": self.ratio(quantity, name),
                        }
                        for name in self.contenders(quantity)
                    },
                }
                for quantity in self.samples
            ],
            "failures": self.failures,
        }
