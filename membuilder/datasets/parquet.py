"""Reads and writes tables as Parquet files. Only this file imports pyarrow, when a table is read or written.

A column is `str` or `int` (both may be null), a dict of columns for a struct, or a list of one column for a list.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from membuilder.datasets.files import FILE
from membuilder.errors import DataError
from membuilder.files import atomic

if TYPE_CHECKING:
    import pyarrow as pa

Column = type | dict[str, "Column"] | list["Column"]
ROWS_AT_ONCE, BYTES_AT_ONCE = 64, 1 << 24
"""Of a table that is streamed, at most, but for a row that is larger alone; a row of Memalpha is up to 2 MB."""
_BUFFER = 1 << 20
"""Bytes of a column that are read at once; other programs write a table as one group of rows."""


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Column]) -> None:
    """Write the rows, whole or not at all. A row without one of the columns is an error."""
    import pyarrow.parquet as pq

    table = _table(rows, _schema(columns))
    with atomic(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, Column]) -> None:
    """Write rows as they come, a few of them in memory at a time; the file is there whole or not at all."""
    import pyarrow.parquet as pq

    schema = _schema(columns)
    with atomic(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for some in _groups(rows):
            writer.write_table(_table(some, schema))


def _groups(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    some, size = [], 0
    for row in rows:
        some.append(row)
        size += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(some) == ROWS_AT_ONCE or size >= BYTES_AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


def read_table(path: Path) -> list[dict[str, Any]]:
    """Return the rows; raises DataError for what is no Parquet file."""
    return list(read_rows(path))


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows, or some columns of them, a few in memory at a time; raises DataError for what is no Parquet."""
    _refuse_no_file(path)
    import pyarrow.parquet as pq

    with _readable(path), pq.ParquetFile(path, buffer_size=_BUFFER) as file:
        told = file.metadata
        size = sum(told.row_group(group).total_byte_size for group in range(told.num_row_groups))
        fitting = BYTES_AT_ONCE * told.num_rows // max(size, 1)
        for batch in file.iter_batches(min(max(fitting, 1), ROWS_AT_ONCE), columns=columns):
            yield from batch.to_pylist()


def column_types(path: Path) -> dict[str, str]:
    """Return the Arrow type of each column, by its name; raises DataError for what is no Parquet file."""
    _refuse_no_file(path)
    import pyarrow.parquet as pq

    with _readable(path):
        schema = pq.read_schema(path)
        return {name: str(kind) for name, kind in zip(schema.names, schema.types, strict=True)}


def _refuse_no_file(path: Path) -> None:
    if not path.is_file():  # a folder of Parquet files would be read as one table
        raise DataError(path, FILE, "path", f"is {'a folder' if path.is_dir() else 'no file'}; name a Parquet file")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a time that Python has not
        raise DataError(path, FILE, "Parquet", f"cannot be read as a Parquet file: {error}") from error


def _schema(columns: Mapping[str, Column]) -> "pa.Schema":
    import pyarrow as pa

    return pa.schema([pa.field(name, _type(column)) for name, column in columns.items()])


def _table(rows: Sequence[Mapping[str, Any]], schema: "pa.Schema") -> "pa.Table":
    import pyarrow as pa

    return pa.table([[row[name] for row in rows] for name in schema.names], schema=schema)


def _type(column: Column) -> "pa.DataType":
    import pyarrow as pa

    if isinstance(column, dict):
        return pa.struct([pa.field(name, _type(inner)) for name, inner in column.items()])
    if isinstance(column, list):
        return pa.list_(_type(column[0]))
    return {str: pa.string(), int: pa.int64(), bool: pa.bool_()}[column]
