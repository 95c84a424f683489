"""Tables as Parquet files; the only file that imports pyarrow.

A column is `str` or `int` (both may be null), a dict of columns for a struct, or a list of one column for a list.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from membuilder.datasets.files import FILE
from membuilder.errors import DataError

Column = type | dict[str, "Column"] | list["Column"]
_PLAIN = {str: pa.string(), int: pa.int64(), bool: pa.bool_()}


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Column]) -> None:
    """Whole or not at all. A row without one of the columns is an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: pa.array([row[name] for row in rows], type=_type(column)) for name, column in columns.items()}
    partial = path.with_name(f"{path.name}.part")
    pq.write_table(pa.table(arrays), partial, compression="zstd")
    partial.replace(path)


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows; raises DataError for what is no Parquet file."""
    try:
        return pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(path, FILE, "Parquet", f"cannot be read as a Parquet file: {error}") from error


def _type(column: Column) -> pa.DataType:
    if isinstance(column, dict):
        return pa.struct([pa.field(name, _type(inner)) for name, inner in column.items()])
    if isinstance(column, list):
        return pa.list_(_type(column[0]))
    return _PLAIN[column]
