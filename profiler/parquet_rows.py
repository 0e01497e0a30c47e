"""Read the rows of a parquet file, a few at a time, where pyarrow is installed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from specmoe.errors import ArtifactError, UsageError

BATCH_ROWS = 64


def parquet_rows(file: Path, columns: Sequence[str], required: str | None = None) -> Iterator[dict[str, Any]]:
    """Every row as a dict of those of `columns` and `required` that the file has; empty cells are left out.

    Parquet gives every message of a chat all keys that any of them has, the rest empty: these are left out as well.

    Raises `UsageError` where pyarrow is missing, `ArtifactError` where the file is no parquet file or has none of the
    columns.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(f"reading {file} needs pyarrow; install it with: pip install 'specmoe[parquet]'") from error
    try:
        with parquet.ParquetFile(file) as source:
            names = source.schema_arrow.names
            present = [name for name in dict.fromkeys((*columns, *([required] if required else ()))) if name in names]
            if not set(present) & set(columns):
                raise ArtifactError(f"{file} has only the columns {sorted(names)}; one of {list(columns)} was expected")
            for batch in source.iter_batches(batch_size=BATCH_ROWS, columns=present):
                for row in batch.to_pylist():
                    yield _without_empty(row)
    except pyarrow.ArrowException as error:
        raise ArtifactError(f"{file} cannot be read as a parquet file: {str(error).splitlines()[0]}") from error


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_empty(part) for key, part in value.items() if part is not None}
    return [_without_empty(part) for part in value] if isinstance(value, list) else value
