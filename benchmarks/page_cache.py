"""Have the files of a folder in the system's page cache, or not, before something that reads them is measured."""

import os
from pathlib import Path


def set_page_cache(folder: Path, page_cache: str) -> None:
    """Read all files of the folder ("warm"), or have the system drop their pages ("cold")."""
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            if page_cache == "warm":
                while file.read(2**24):
                    pass
            else:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
