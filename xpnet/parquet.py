"""Parquet files as numbers, decoded a few rows at a time."""

import os
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xpnet.arguments import file_path
from xpnet.errors import ArgumentError, DataError, MissingPackageError, ShapeError

DECODED = 2**20
"""Numbers that are decoded at a time."""

BUFFER = 2**18
"""Bytes of a column that are read from the file at a time; without a limit it is all of a row group's."""


class Parquet:
    """The numbers of a Parquet file, or of several with the same columns, as one table of which rows are examples.

    `xpnet.fit`, a network's methods and `xpnet.Loader` take it as X with ``examples="rows"``, and a
    ``pyarrow.parquet.ParquetFile`` likewise, of which all columns are features. It is decoded from its beginning to its
    end, a few rows at a time (of a ParquetFile, with ``pre_buffer=False`` and a ``buffer_size``; else a row group at a
    time). Training, which shuffles, decodes it once into memory, or where it has more than 2²⁸ numbers into a temporary
    file.

    Parameters
    ----------
    path : path, ParquetFile, or a list of them
        The files, joined along their rows. A folder is all files in it that end in ``.parquet``, by name, numbers by
        their size: ``part.2.parquet`` comes before ``part.10.parquet``.
    columns : sequence of str, optional
        The features, in this order; all columns by default. They are numbers without missing ones.

    Attributes
    ----------
    columns : tuple of str
        The features.
    shape : (int, int)
        ``(m, n_x)``.
    dtype : NumPy dtype
        That all their numbers fit in.

    Raises
    ------
    DataError
        A column is not there, is there twice, or is not numbers; the files differ in their columns or cannot be read.
    MissingPackageError
        pyarrow is not installed: ``pip install "xpnet[data]"``.

    Examples
    --------
    >>> import xpnet
    >>> X = xpnet.Parquet("houses.parquet", columns=["area", "rooms"])  # doctest: +SKIP
    >>> net = xpnet.fit(X, prices, examples="rows")  # doctest: +SKIP
    """

    def __init__(self, path: Any, columns: Sequence[str] | None = None) -> None:
        given = list(path) if isinstance(path, list | tuple) else [path]
        if not given:
            raise ArgumentError("path must be a Parquet file or a list of them; the list is empty. Name a file.")
        self._files = [_opened(file) for each in given for file in _in_folder(each)]
        self.columns = _columns(self._files[0].schema_arrow, columns)
        dtypes = [_dtypes(file.schema_arrow, self.columns, i) for i, file in enumerate(self._files)]
        self.dtype = np.result_type(*(dtype for each in dtypes for dtype in each))
        counts = [
            file.metadata.row_group(i).num_rows for file in self._files for i in range(file.metadata.num_row_groups)
        ]
        self._groups = [(file, i) for file in self._files for i in range(file.metadata.num_row_groups)]
        self._starts = np.cumsum([0, *counts])
        self.shape = int(self._starts[-1]), len(self.columns)
        # Where decoding stands: in which group, before which row, and what is decoded but not yet read.
        self._lock = threading.Lock()
        self._batches: Iterator[npt.NDArray[Any]] = iter(())
        self._group, self._at = -1, 0
        self._rest = np.empty((0, self.shape[1]), self.dtype)

    def __repr__(self) -> str:
        m, n_x = self.shape
        return f"<Parquet {m} × {n_x}, {self.dtype}, {len(self._groups)} row groups>"

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return some rows; those that follow the last ones read come without further ado.

        Parameters
        ----------
        start, stop : int
            The first, and the one after the last.

        Returns
        -------
        (stop - start, n_x) array

        Raises
        ------
        DataError
            Numbers are missing among them, or the file is damaged.

        Examples
        --------
        >>> import xpnet
        >>> xpnet.Parquet("houses.parquet").read(0, 10).shape  # doctest: +SKIP
        (10, 3)
        """
        rows = np.empty((stop - start, self.shape[1]), self.dtype)
        done = 0
        with self._lock:
            while done < len(rows):
                part = self._next(start + done)[: len(rows) - done]
                rows[done : done + len(part)] = part
                done += len(part)
                self._rest = self._rest[len(part) :]
                self._at += len(part)
        return rows

    def _next(self, row: int) -> npt.NDArray[Any]:
        """Return decoded rows from this one on, one at least; decoding begins at its row group, or goes on."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if group != self._group or row < self._at:
            self._group, self._at = group, int(self._starts[group])
            self._batches = _decoded(*self._groups[group], self.columns, self.dtype)
            self._rest = self._rest[:0]
        while row >= self._at + len(self._rest):
            self._at += len(self._rest)
            self._rest = next(self._batches)
        self._rest = self._rest[row - self._at :]
        self._at = row
        return self._rest


def _decoded(file: Any, group: int, columns: Sequence[str], dtype: np.dtype[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield the rows of a row group, some after others; it refers to no Parquet, so that one ends with its last use."""
    try:
        for batch in file.iter_batches(max(1, DECODED // len(columns)), row_groups=[group], columns=list(columns)):
            yield _rows(batch, columns, dtype)
    except OSError as error:  # pyarrow's own errors are kinds of it, of ValueError, or of both
        raise DataError(f"A Parquet file cannot be read: {error}. Take a whole copy of it.") from error


def _rows(batch: Any, columns: Sequence[str], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    rows = np.empty((batch.num_rows, len(columns)), dtype)
    for i, name in enumerate(columns):
        column = batch.column(name)
        if column.null_count:
            raise DataError(
                f"X must have no missing values; the column {name!r} has some. Fill them in or remove those rows."
            )
        rows[:, i] = _plain(column)
    return rows


def _in_folder(path: Any) -> list[Any]:
    """Return the files of a folder, or what else was given."""
    if not isinstance(path, str | bytes | os.PathLike) or not os.path.isdir(path):
        return [path]
    folder = os.fsdecode(path)
    found = sorted(Path(folder).glob("*.parquet"), key=lambda file: _numbers_by_size(file.name))
    if not found:
        raise ArgumentError(f"path must be Parquet files or a folder of them; {folder} has none that ends in .parquet.")
    return list(found)


def _numbers_by_size(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _opened(path: Any) -> Any:
    """Return a ParquetFile that reads a little at a time; one that was given is taken as it is."""
    if hasattr(path, "read_row_group"):
        return path
    path = file_path("path", path)
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackageError(
            'Parquet needs pyarrow, which is not installed. Run: pip install "xpnet[data]"'
        ) from error
    os.stat(path)  # what is not there is named by the system
    try:
        source = pyarrow.OSFile(os.fsencode(path))  # as a string it would have to be UTF-8
        file = pyarrow.parquet.ParquetFile(source, buffer_size=BUFFER, pre_buffer=False)
        len(file.schema_arrow.names)  # decodes them
        return file
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error


def _columns(schema: Any, wanted: Sequence[str] | None) -> tuple[str, ...]:
    there = list(schema.names)  # a new list each time that it is asked for
    names = tuple(there) if wanted is None else tuple(wanted)
    if isinstance(wanted, str):
        raise ArgumentError(f"columns must be a sequence of names; it is the word {wanted!r}. Pass [{wanted!r}].")
    counts = Counter(there)
    for name in names:
        if (count := counts[name]) != 1:
            came = "it is not there" if count == 0 else f"it is there {count} times"
            raise DataError(f"The column {name!r} must be in the Parquet file once; {came}. It has {_listed(schema)}.")
    if not names:
        raise DataError("X must have columns; the Parquet file, or columns=, names none. Name the features.")
    return names


def _dtypes(schema: Any, names: Sequence[str], number: int) -> list[np.dtype[Any]]:
    """Return the columns' NumPy dtypes."""
    from pyarrow import types

    found, wrong, there = [], [], set(schema.names)
    for name in names:
        if name not in there:
            raise ShapeError(
                f"The Parquet files must have the same columns; file {number} lacks {name!r}. It has {_listed(schema)}."
            )
        kind = schema.field(name).type
        if types.is_decimal(kind):
            found.append(np.dtype(np.float64))
        elif types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
            found.append(np.dtype(kind.to_pandas_dtype()))
        else:
            wrong.append(f"{name!r} ({kind})")
    if wrong:
        raise DataError(
            f"The columns of X must be numbers; {', '.join(wrong[:8])} {'is' if len(wrong) == 1 else 'are'} not. "
            "Pass columns=[…], or encode them as numbers."
        )
    return found


def _listed(schema: Any) -> str:
    more = f" and {len(schema.names) - 8} more" if len(schema.names) > 8 else ""
    return ", ".join(map(repr, schema.names[:8])) + more


def _plain(column: Any) -> npt.NDArray[Any]:
    from pyarrow import float64, types

    column = column.cast(float64()) if types.is_decimal(column.type) else column
    return np.asarray(column.to_numpy(zero_copy_only=False))
