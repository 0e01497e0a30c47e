"""One thing that was looked at."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

# "missing" is what specmoe cannot work without, "absent" what only some work needs.
Status = Literal["usable", "absent", "missing"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """what: its name. detail: what was found, such as a version or a size. serves: what it is needed for."""

    what: str
    status: Status
    detail: str
    serves: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
