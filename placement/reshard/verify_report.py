"""What a verification proved, check by check, every problem that it found, and what it could not check."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

Result = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class VerifyCheck:
    """One thing to check: `proven` says what holds when there are no `problems` (each one sentence).

    skipped: why nothing was checked, and so nothing is proven; empty for a check that was made.
    """

    name: str
    proven: str = ""
    problems: tuple[str, ...] = ()
    skipped: str = ""

    @property
    def result(self) -> Result:
        if self.problems:
            return "failed"
        return "skipped" if self.skipped else "passed"

    @property
    def passed(self) -> bool:
        return self.result == "passed"


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """The checks of one compiled checkpoint, in the order in which they were made."""

    out: Path
    layout: str
    checks: tuple[VerifyCheck, ...]

    @property
    def passed(self) -> bool:
        """Nothing is wrong with what was checked; `skipped` names what was not."""
        return not any(check.problems for check in self.checks)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of the checks that were not made."""
        return tuple(check.name for check in self.checks if check.result == "skipped")

    @property
    def summary(self) -> str:
        """One line: how many checks passed, failed and were skipped, the latter two by name."""
        failed = tuple(check.name for check in self.checks if check.result == "failed")
        parts = [f"{sum(check.passed for check in self.checks)} of {len(self.checks)} checks passed"]
        parts += [
            f"{len(names)} {word} ({', '.join(names)})"
            for word, names in (("FAILED", failed), ("SKIPPED", self.skipped))
            if names
        ]
        return ", ".join(parts)

    def with_check(self, check: VerifyCheck) -> "VerifyReport":
        """This report and one more check."""
        return replace(self, checks=(*self.checks, check))

    def to_json(self) -> dict[str, Any]:
        """For programs: `{"out", "layout", "passed", "skipped": [name], "checks": [{"name", "result", "passed",
        "proven", "problems", "skipped"}]}`; `result` is "passed", "failed" or "skipped"."""
        checks = [
            {
                "name": check.name,
                "result": check.result,
                "passed": check.passed,
                "proven": check.proven,
                "problems": list(check.problems),
                "skipped": check.skipped,
            }
            for check in self.checks
        ]
        return {
            "out": str(self.out),
            "layout": self.layout,
            "passed": self.passed,
            "skipped": list(self.skipped),
            "checks": checks,
        }
