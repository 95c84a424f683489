"""Reads and writes tables as Parquet files. Only this file imports pyarrow, when a table is read or written.

A column is `str` or `int` (both may be null), a dict of columns for a struct, or a list of one column for a list.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from membuilder.datasets.files import FILE
from membuilder.errors import DataError
from membuilder.files import atomic

if TYPE_CHECKING:
    import pyarrow as pa

Column = type | dict[str, "Column"] | list["Column"]


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Column]) -> None:
    """Write the rows, whole or not at all. A row without one of the columns is an error."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {name: pa.array([row[name] for row in rows], type=_type(column)) for name, column in columns.items()}
    with atomic(path) as partial:
        pq.write_table(pa.table(arrays), partial, compression="zstd")


def read_table(path: Path) -> list[dict[str, Any]]:
    """Return the rows; raises DataError for what is no Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():  # a folder of Parquet files would be read as one table
        raise DataError(path, FILE, "path", f"is {'a folder' if path.is_dir() else 'no file'}; name a Parquet file")
    try:
        return pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a time that Python has not
        raise DataError(path, FILE, "Parquet", f"cannot be read as a Parquet file: {error}") from error


def _type(column: Column) -> "pa.DataType":
    import pyarrow as pa

    if isinstance(column, dict):
        return pa.struct([pa.field(name, _type(inner)) for name, inner in column.items()])
    if isinstance(column, list):
        return pa.list_(_type(column[0]))
    return {str: pa.string(), int: pa.int64(), bool: pa.bool_()}[column]
