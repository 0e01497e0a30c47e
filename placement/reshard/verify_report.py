"""What a verification proved, check by check, and every problem that it found."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class VerifyCheck:
    """One thing that was checked: `proven` says what holds when there are no `problems` (each one sentence)."""

    name: str
    proven: str
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.problems


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """The checks of one compiled checkpoint, in the order in which they were made."""

    out: Path
    layout: str
    checks: tuple[VerifyCheck, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def with_check(self, check: VerifyCheck) -> "VerifyReport":
        """This report and one more check."""
        return replace(self, checks=(*self.checks, check))

    def to_json(self) -> dict[str, Any]:
        """For programs: `{"out", "layout", "passed", "checks": [{"name", "passed", "proven", "problems"}]}`."""
        checks = [
            {"name": check.name, "passed": check.passed, "proven": check.proven, "problems": list(check.problems)}
            for check in self.checks
        ]
        return {"out": str(self.out), "layout": self.layout, "passed": self.passed, "checks": checks}
