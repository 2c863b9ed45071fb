"""Tables in files: the examples that the command reads and the predictions that it writes. Rows are examples here.

CSV and Parquet go through pyarrow, which is imported when one of them is met; .npy and .npz need NumPy alone. Rows of
.npy and Parquet files with more than `LARGE` numbers are read as they are needed.
"""

import contextlib
import csv
import difflib
import io
import math
import os
import re
import shlex
import stat
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from xpnet import data, files, selection
from xpnet.errors import ArgumentError, DataError, MissingPackageError, ShapeError, XpnetWarning
from xpnet.features import Features
from xpnet.parquet import Parquet
from xpnet.selection import Selection

READABLE = (".csv", ".parquet", ".npy", ".npz")
"""The endings of files that are read."""

WRITABLE = (".csv", ".parquet")
"""The endings of files that are written."""

LISTED = 8
"""The most names that a message lists."""

LARGE = data.WINDOW
"""Numbers in a .npy or Parquet file beyond which they are not all read at once."""

CHUNK = 65_536
"""Rows of a CSV that are made text at a time."""

_INDEX = re.compile(r"(?:__index_level_\d+__|Unnamed: 0)?")
"""Columns in which pandas keeps its row numbers: no features, though they would often give the target away."""


@dataclass(frozen=True)
class Labeled:
    """Examples with their targets.

    Attributes
    ----------
    X : (m, n_x) array, pyarrow table or Source
        Numbers; a table has the features' names.
    Y : (m,) or (m, n_y) array
        Labels or numbers.
    """

    X: Any
    Y: npt.NDArray[Any]

    def rows(self, side: Selection) -> "Labeled":
        """Return these examples."""
        if isinstance(self.X, data.Source):
            return Labeled(self.X.subset(side), self.Y[side.mask])
        return Labeled(self.X.take(np.asarray(side)) if _is_arrow(self.X) else self.X[side.mask], self.Y[side.mask])


def read_labeled(path: str, target: str, *, drop: Collection[str] = (), treated: bool = False) -> Labeled:
    """Return the examples of a file and their targets.

    Parameters
    ----------
    path : str
        Ends in one of `READABLE`.
    target : str
        The column to predict: its name in .csv and .parquet, its number in .npy (negative ones count from the end),
        the array's name in .npz.
    drop : collection of str
        Columns or arrays, named as `target` is, to leave out.
    treated : bool
        Whether features may be words or missing, as `fit` has a treatment for them; then only of a table.

    Returns
    -------
    Labeled

    Raises
    ------
    OSError
        The file is not there or may not be read.
    ArgumentError
        It is of no known format, or has no such column.
    DataError
        It is damaged or empty, or its features are not all finite numbers.
    MissingPackageError
        Its format needs pyarrow.
    """
    suffix = _format(path)
    if treated and suffix in (".npy", ".npz"):
        raise ArgumentError(
            f"features needs columns with names, which a {suffix} file has not; {path} is one. Leave it out."
        )
    choose = None if treated else partial(_features, target=target, drop=drop, path=path)
    match suffix:
        case ".npy":
            return _labeled_matrix(_matrix(path), target, drop, path)
        case ".npz":
            return _labeled_arrays(_arrays(path), target, drop, path)
        case ".parquet" if X := _streamed(path, choose):
            return Labeled(X, _target(path, target, drop))
        case _:
            return _labeled_table(_table(path), target, drop, path, treated=treated)


def read_features(path: str, *, n_features: int, names: Sequence[str] | None, features: Features | None = None) -> Any:
    """Return the examples of a file as the network that was trained on such features needs them.

    Parameters
    ----------
    path : str
        Ends in one of `READABLE`.
    n_features : int
        Features of the network.
    names : sequence of str or None
        Their names: a table's columns are picked by them and others are ignored. Without them, and for .npy and .npz,
        the columns have to be exactly these features in this order.
    features : Features, optional
        How the network encodes a table, whose columns then are those that it has been trained on. Arrays are encoded
        already.

    Returns
    -------
    (m, n_features) array, pyarrow table or Source

    Raises
    ------
    OSError, ArgumentError, DataError, MissingPackageError
        As `read_labeled`; `ShapeError` when the features are others.
    """
    choose = None if features else partial(_known, n_features=n_features, names=names, path=path)
    match _format(path):
        case ".npy":
            X = _matrix(path)
        case ".npz":
            X = _only_matrix(_arrays(path), n_features, path)
        case ".parquet" if source := _streamed(path, choose):
            return source
        case _:
            return _features_of_table(path, n_features, names, features)
    if X.shape[1] != n_features:
        raise ShapeError(
            f"{path} has {X.shape[1]} columns and the network was trained on {n_features} features. Leave out the "
            "target and whatever else is not a feature."
        )
    return _rows_of(X, path) if isinstance(X, np.memmap) and X.size > LARGE else _checked(X, path)


def split(m: int, fraction: float, seed: int) -> tuple[Selection, Selection]:
    """Return the rows to train on and those held out, to score the network on.

    Raises
    ------
    ArgumentError
        One side would have no row.
    """
    held = round(m * fraction)
    if fraction and not 0 < held < m:
        raise ArgumentError(f"--test-fraction must leave a row on each side; {fraction:g} of {m} rows is {held}.")
    return selection.split(m, held, [seed, 3])  # 0 to 2 are fit's: weights, order, validation


# Formats --------------------------------------------------------------------------------------------------------------


def _format(path: str) -> str:
    """Return the file's ending when it is one that is read and the file can be."""
    size = os.stat(path).st_size
    suffix = Path(path).suffix.lower()
    if not os.path.isfile(path) or suffix not in READABLE:
        problem = "is a folder" if os.path.isdir(path) else "is not a file of a known format"
        raise ArgumentError(f"{path} {problem}; expected one that ends in {_either(READABLE)}.")
    with open(path, "rb"):  # what may not be read raises here, in words that name the file
        if size == 0:
            raise DataError(f"{path} is empty.")
    return suffix


def _pyarrow(path: str) -> Any:
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        problem = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        raise MissingPackageError(f'{path} needs pyarrow, which {problem}. Run: pip install "xpnet[data]"') from error
    return pyarrow


def _table(path: str, words: Collection[str] = ()) -> Any:
    """Return a CSV or Parquet file as a pyarrow table; of a CSV these columns are words, whatever they look like."""
    pyarrow = _pyarrow(path)
    is_csv = path.lower().endswith(".csv")
    try:
        table = _csv(path, pyarrow, words) if is_csv else _parquet(path, pyarrow)
        names = table.column_names  # decodes them
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        kind = "CSV in UTF-8" if is_csv else "Parquet"
        raise DataError(f"{path} cannot be read as {kind}: {error}") from error
    if table.num_rows == 0:
        raise DataError(f"{path} has the columns {_listed(names)} and no rows.")
    return table


def _csv(path: str, pyarrow: Any, words: Collection[str]) -> Any:
    def read(block_size: int | None) -> Any:
        return pyarrow.csv.read_csv(
            pyarrow.OSFile(os.fsencode(path)),  # as a string it would have to be UTF-8
            read_options=pyarrow.csv.ReadOptions(block_size=block_size),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                column_types=dict.fromkeys(words, pyarrow.string()),
            ),
        )

    try:
        return read(None)
    except pyarrow.ArrowInvalid:
        # pyarrow infers types from the first block: 1, 2, … there and 2.5 later is an error. Look at all of it.
        return read(min(os.stat(path).st_size + 1, 2**31 - 1))


def _parquet(path: str, pyarrow: Any) -> Any:
    # Not read_table, which makes columns out of folders' names: year=2024/data.parquet.
    with pyarrow.parquet.ParquetFile(pyarrow.OSFile(os.fsencode(path))) as file:
        _check_fits(4 * file.metadata.num_rows * file.metadata.num_columns, path)  # in float32
        return file.read()


def _streamed(path: str, choose: Callable[[Sequence[str]], Sequence[str]] | None) -> data.Source | None:
    """Return the columns chosen of a large Parquet file, as they are needed.

    None when it is small, when there is nothing to choose with, and when not all of them are numbers.
    """
    if choose is None:
        return None
    pyarrow = _pyarrow(path)
    try:
        with pyarrow.parquet.ParquetFile(pyarrow.OSFile(os.fsencode(path))) as file:
            schema, size = file.schema_arrow, file.metadata.num_rows * file.metadata.num_columns
            columns = schema.names  # decodes them
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError):
        return None  # which is said when it is read
    names = choose(columns) if size > LARGE else ()
    if not names or len(set(columns)) < len(columns) or not all(_is_number(schema.field(name).type) for name in names):
        return None
    return data.source(Parquet(path, names), examples="rows", name=path)


def _target(path: str, target: str, drop: Collection[str]) -> npt.NDArray[Any]:
    """Return the target's column of a Parquet file alone."""
    pyarrow = _pyarrow(path)
    with pyarrow.parquet.ParquetFile(pyarrow.OSFile(os.fsencode(path))) as file:
        names, table = file.schema_arrow.names, file.read([target])
    _warn_of_numbering([name for name in names if name != target and name not in drop], path)
    return _labels(_column(table, target, path), target, path)


def _rows_of(array: npt.NDArray[Any], path: str, columns: Sequence[int] | None = None) -> data.Source:
    """Return the rows of a mapped file, of these columns, as they are needed."""
    source = data.source(array, examples="rows", name=path)
    if columns is None:
        return source

    def read(start: int, stop: int) -> npt.NDArray[Any]:
        return np.take(source.read(start, stop), columns, axis=1)

    return source.reading(read, n_features=len(columns))


def _matrix(path: str) -> npt.NDArray[Any]:
    """Return a .npy file, mapped rather than read, and never unpickled."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of headers that Python 2 wrote
            array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy meets damage with ValueError, OverflowError, TokenError and more
        raise DataError(f"{path} cannot be read as a .npy array: {error}") from error
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "biuf":
        raise DataError(
            f"{path} must hold a table of numbers, (m, n_x), rows being examples; it holds {_described(array)}."
        )
    return array


def _arrays(path: str) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a .npz file by name, never unpickled."""
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not a zip file")
        with zipfile.ZipFile(path) as file:
            _check_fits(sum(member.file_size for member in file.infolist()), path)
        with warnings.catch_warnings(action="ignore"), np.load(path, allow_pickle=False) as file:
            return {name: array for name in file.files if isinstance(array := file[name], np.ndarray)}
    except DataError:
        raise
    except Exception as error:  # as above, and what zip files and decompression raise
        raise DataError(f"{path} cannot be read as .npz arrays: {error}") from error


def _check_fits(size: int, path: str) -> None:
    """Check that memory could hold what a file expands to, before it does: a megabyte may expand to a thousand."""
    memory = _memory()
    if size > memory:
        raise DataError(
            f"{path} must expand to less than the {memory / 2**30:.3g} GiB of memory that this computer has; it says "
            f"{size / 2**30:.3g} GiB. Pass fewer rows or columns."
        )


def _memory() -> float:
    """Return the bytes of memory of this computer, where it tells."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return math.inf


# Features and targets -------------------------------------------------------------------------------------------------


def _labeled_matrix(array: npt.NDArray[Any], target: str, drop: Collection[str], path: str) -> Labeled:
    chosen, *left_out = (_column_number(text, array.shape[1], path) for text in (target, *drop))
    Y = _column_of(array, chosen, path)
    _checked(Y[:, None], path, [f"column {chosen}"])
    kept = [i for i in range(array.shape[1]) if i not in {chosen, *left_out}]
    if not kept:
        raise DataError(f"{path} has no column besides the target; there is nothing to learn from.")
    if array.size > LARGE:
        return Labeled(_rows_of(array, path, kept), Y)
    return Labeled(_checked(array[:, kept], path, [f"column {i}" for i in kept]), Y)


def _column_of(array: npt.NDArray[Any], number: int, path: str) -> npt.NDArray[Any]:
    """Return one column of a mapped file, for which all of it is gone through."""
    Y, source = np.empty(array.shape[0], array.dtype), _rows_of(array, path)
    for start, stop in source.blocks():
        Y[start:stop] = array[start:stop, number]
        source.let_go()
    return Y


def _column_number(text: str, width: int, path: str) -> int:
    try:
        number = range(width)[int(text)]
    except (ValueError, IndexError):
        raise ArgumentError(
            f"{path} has no column {text!r}: a .npy file's columns go by numbers, here 0 to {width - 1}, or -1 for "
            "the last."
        ) from None
    return number


def _labeled_arrays(arrays: dict[str, npt.NDArray[Any]], target: str, drop: Collection[str], path: str) -> Labeled:
    for name in (target, *drop):
        _check_known(name, list(arrays), path, "array")
    rest = [name for name in arrays if name != target and name not in drop]
    if len(rest) != 1:
        found = f"the arrays {_listed(rest)}" if rest else "no array"
        raise DataError(
            f"{path} has {found} besides {target!r}; expected one, the features. Leave others out with --drop."
        )
    X, Y = arrays[rest[0]], arrays[target]
    _check_features(X, rest[0], path)
    if Y.ndim not in (1, 2) or Y.shape[0] != X.shape[0]:
        raise ShapeError(
            f"{path} must have a row of {target!r} for each of the {X.shape[0]} rows of {rest[0]!r}; {target!r} is "
            f"{_described(Y)}."
        )
    _checked(Y.reshape(-1, 1), path, [repr(target)])
    return Labeled(_checked(X, path), Y)


def _only_matrix(arrays: dict[str, npt.NDArray[Any]], n_features: int, path: str) -> npt.NDArray[Any]:
    """Return the one array that can be the features."""
    fitting = [name for name, array in arrays.items() if array.ndim == 2 and array.shape[1] == n_features]
    if len(fitting) != 1:
        held = ", ".join(f"{name!r} {array.shape}" for name, array in list(arrays.items())[:LISTED]) or "none"
        raise ShapeError(
            f"{path} must have one array of the {n_features} features that the network was trained on, "
            f"(m, {n_features}); its arrays are {held}."
        )
    _check_features(arrays[fitting[0]], fitting[0], path)
    return arrays[fitting[0]]


def _check_features(X: npt.NDArray[Any], name: str, path: str) -> None:
    if X.ndim != 2 or X.size == 0 or X.dtype.kind not in "biuf":
        raise DataError(
            f"{name!r} in {path} must be a table of numbers, (m, n_x), rows being examples; it is {_described(X)}."
        )


def _labeled_table(table: Any, target: str, drop: Collection[str], path: str, *, treated: bool) -> Labeled:
    names = _features(table.column_names, target=target, drop=drop, path=path)
    _warn_of_numbering([name for name in table.column_names if name != target and name not in drop], path)
    Y = _labels(_column(table, target, path), target, path)
    if treated:
        return Labeled(_picked(table, names, path), Y)
    return Labeled(_numbers(table, names, path, trained=False), Y)


def _features(columns: Sequence[str], *, target: str, drop: Collection[str], path: str) -> list[str]:
    """Return which of the columns are features, to be trained on."""
    for name in (target, *drop):
        _check_known(name, columns, path, "column")
    names = [name for name in columns if name != target and name not in drop and not _INDEX.fullmatch(name)]
    if not names:
        raise DataError(f"{path} has no column besides the target {target!r}; there is nothing to learn from.")
    return names


def _warn_of_numbering(columns: Sequence[str], path: str) -> None:
    numbering = [name for name in columns if _INDEX.fullmatch(name)]
    if numbering:
        warnings.warn(
            f"{path} has the column {_listed(numbering)}, in which pandas keeps row numbers; it is left out.",
            XpnetWarning,
            stacklevel=2,
        )


def _known(columns: Sequence[str], *, n_features: int, names: Sequence[str] | None, path: str) -> Sequence[str]:
    """Return which of the columns are the features that a network was trained on."""
    given, there = [name for name in columns if not _INDEX.fullmatch(name)], set(columns)
    lacking = [name for name in names or () if name not in there]
    if lacking:
        raise ShapeError(f"{path} lacks columns that the network was trained on: {_listed(lacking)}.")
    if not names and len(given) != n_features:
        raise ShapeError(
            f"{path} has {len(given)} columns and the network was trained on {n_features} features without names. "
            "Leave out the target and whatever else is not a feature."
        )
    return names or given


def _features_of_table(path: str, n_features: int, names: Sequence[str] | None, features: Features | None) -> Any:
    table = _table(path, () if features is None else features.words)
    if features is not None:
        chosen = _known(table.column_names, n_features=n_features, names=features.columns, path=path)
        return _picked(table, chosen, path)
    return _numbers(
        table, _known(table.column_names, n_features=n_features, names=names, path=path), path, trained=True
    )


def _picked(table: Any, names: Sequence[str], path: str) -> Any:
    """Return these columns as a pyarrow table of whatever they hold."""
    return _pyarrow(path).table({name: _single(table, name, path) for name in names})


def _numbers(table: Any, names: Sequence[str], path: str, *, trained: bool) -> Any:
    """Return these columns as a pyarrow table of finite numbers, which a network is to be or has been trained on."""
    columns = {name: _column(table, name, path) for name in names}
    wrong = {name: column for name, column in columns.items() if not _is_numeric(column)}
    if wrong:
        listed = _listed([f"{name!r} ({column.type})" for name, column in wrong.items()], quoted=False)
        encode = _or_pass(
            {name: "onehot" for name, column in wrong.items() if _is_wordy(column)}, "Leave them out with --drop"
        )
        mend = "Encode them as they were when it was trained." if trained else encode
        raise DataError(f"{path} has columns that are not numbers: {listed}. {mend}")
    missing, infinite = zip(*map(_gaps, columns.values()), strict=True)
    lacking = {} if trained else {name: "median" for name, count in zip(names, missing, strict=True) if count}
    _refuse_gaps(path, [repr(name) for name in names], missing, infinite, treated=lacking)
    return _pyarrow(path).table(columns)


def _or_pass(treated: Mapping[str, str], mend: str) -> str:
    """Return what mends columns, or the option that treats them so."""
    return f"{mend}, or pass {as_option(treated)}." if treated else f"{mend}."


def as_option(treated: Mapping[str, str]) -> str:
    """Return the command's option that treats columns so, as one would write it in a shell."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([f"{name}={how}" for name, how in treated.items()])
    return f"--features {shlex.quote(line.getvalue())}"


def _labels(column: Any, target: str, path: str) -> npt.NDArray[Any]:
    """Return the target's column as labels or numbers."""
    words = _is_wordy(column)
    if not words and not _is_numeric(column):
        raise DataError(
            f"The target {target!r} in {path} is of type {column.type}; expected words, whole numbers or bools as "
            "labels, or numbers. Encode it as one of them."
        )
    missing, infinite = (column.null_count, 0) if words else _gaps(column)
    _refuse_gaps(path, [repr(target)], [missing], [infinite])
    return np.asarray(column.to_pylist(), dtype=str) if words else np.asarray(column.to_numpy())


def _column(table: Any, name: str, path: str) -> Any:
    """Return the one column of that name: a category as what it stands for, a decimal number as a float."""
    import pyarrow

    column = _single(table, name, path)
    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pyarrow.float64()) if pyarrow.types.is_decimal(column.type) else column


def _single(table: Any, name: str, path: str) -> Any:
    """Return the one column of that name."""
    places = table.schema.get_all_field_indices(name)
    if len(places) > 1:
        raise DataError(f"{path} has {len(places)} columns named {name!r}. Rename them.")
    return table.column(places[0])


def _is_wordy(column: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(column.type) or types.is_large_string(column.type))


def _is_numeric(column: Any) -> bool:
    from pyarrow import types

    # A column of which everything is missing has the type null; it is called missing, not wordy.
    return _is_number(column.type) or types.is_null(column.type)


def _is_number(kind: Any) -> bool:
    from pyarrow import types

    return any(test(kind) for test in (types.is_integer, types.is_floating, types.is_boolean))


def _gaps(column: Any) -> tuple[int, int]:
    """Return how many numbers of a column are missing and how many infinite."""
    values = np.asarray(column.to_numpy(), dtype=np.float64)  # missing ones become nan
    return int(np.isnan(values).sum()), int(np.isinf(values).sum())


def _is_arrow(X: Any) -> bool:
    return hasattr(X, "column_names")


def _checked(X: npt.NDArray[Any], path: str, names: Sequence[str] | None = None) -> npt.NDArray[Any]:
    """Return `X`, whose columns messages call `names`, when all of it is finite."""
    if X.dtype.kind == "f" and not np.isfinite(X).all():
        called = names or [f"column {i}" for i in range(X.shape[1])]
        _refuse_gaps(path, called, np.isnan(X).sum(axis=0).tolist(), np.isinf(X).sum(axis=0).tolist())
    return X


def _refuse_gaps(
    path: str,
    names: Sequence[str],
    missing: Sequence[int],
    infinite: Sequence[int],
    *,
    treated: Mapping[str, str] = MappingProxyType({}),
) -> None:
    for what, counts in (("missing", missing), ("infinite", infinite)):
        found = [f"{name} ({count:,})" for name, count in zip(names, counts, strict=True) if count]
        if found:
            mend = _or_pass(treated if what == "missing" else {}, "Fill them in or remove those rows")
            raise DataError(f"{path} has {what} values in {_listed(found, quoted=False)}. {mend}")


# Words ----------------------------------------------------------------------------------------------------------------


def _check_known(name: str, names: Sequence[str], path: str, what: str) -> None:
    if name in names:
        return
    lowered = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), list(lowered), n=1)
    hint = f" Did you mean {lowered[close[0]]!r}?" if close else ""
    if len(names) == 1 and re.search(r"[;\t]", names[0]):
        hint = " Columns must be separated by commas."
    raise ArgumentError(f"{path} has no {what} {name!r}.{hint} Its {what}s are {_listed(names)}.")


def _listed(names: Sequence[str], *, quoted: bool = True) -> str:
    """Return ``'a', 'b' and 3 more``."""
    shown = ", ".join(repr(name) if quoted else name for name in names[:LISTED])
    return shown + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def _either(endings: Sequence[str]) -> str:
    return f"{', '.join(endings[:-1])} or {endings[-1]}"


def _described(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype} of shape {array.shape}"


# Writing --------------------------------------------------------------------------------------------------------------


def check_output(path: str, *, option: str, inputs: Collection[str], endings: Sequence[str] = ()) -> None:
    """Check, before the work that leads to it, that a file can be written.

    Parameters
    ----------
    path : str
        Of the file.
    option : str
        What the command calls it.
    inputs : collection of str
        Files that it must not overwrite.
    endings : sequence of str
        What it has to end in, when that matters.

    Raises
    ------
    ArgumentError
        It cannot; the message says why.
    MissingPackageError
        It is to be Parquet and pyarrow is not there.
    OSError
        The name is too long, or a loop of links.
    """
    folder = os.path.dirname(path) or "."
    if endings and not path.lower().endswith(tuple(endings)):
        raise ArgumentError(f"{option} must end in {_either(endings)}; it is {path!r}.")
    if not os.path.isdir(folder):
        raise ArgumentError(f"{option} must be in a folder that is there; {folder!r} is not. Make it first.")
    with contextlib.suppress(FileNotFoundError):
        if not path or not stat.S_ISREG(os.stat(path).st_mode):
            what = "a folder" if os.path.isdir(path) else "a device" if path else "no name"
            raise ArgumentError(f"{option} must name a file; {path!r} is {what}.")
    if not os.access(folder, os.W_OK):
        raise ArgumentError(f"{option} must be in a folder that may be written to; {folder!r} may not.")
    if os.path.realpath(path) in map(os.path.realpath, inputs):
        raise ArgumentError(f"{option} must be another file than the ones read; {path!r} would be overwritten.")
    if endings and path.lower().endswith(".parquet"):
        _pyarrow(path)


def write(path: str, parts: Iterable[Mapping[str, npt.NDArray[Any]]]) -> None:
    """Write a table, whole or not at all.

    Parameters
    ----------
    path : str
        Ends in one of `WRITABLE`.
    parts : iterable of mappings of str to (b,) array
        Some rows after others, one part at least: their columns by name, the same in each.

    Raises
    ------
    OSError
        It cannot be written; a file that was there before is untouched.
    """
    with files.replacing(path) as temporary:
        if path.lower().endswith(".parquet"):
            pyarrow = _pyarrow(path)
            tables = (pyarrow.table({key: _writable(column) for key, column in part.items()}) for part in parts)
            first = next(tables)
            with open(temporary, "xb") as file, pyarrow.parquet.ParquetWriter(file, first.schema) as writer:
                for table in chain([first], tables):
                    writer.write_table(table)
        else:
            with open(temporary, "x", encoding="utf-8", errors="backslashreplace", newline="") as text:
                write_csv(parts, text)


def _writable(column: npt.NDArray[Any]) -> Any:
    """Return the column for pyarrow: words as Python's, halves of letters as their numbers, which UTF-8 cannot hold."""
    if column.dtype.kind != "U":
        return column
    return [word.encode(errors="backslashreplace").decode() for word in column.tolist()]


def write_csv(parts: Iterable[Mapping[str, npt.NDArray[Any]]], file: TextIO) -> None:
    """Write a table as CSV; numbers have the digits that tell them from their neighbors.

    Parameters
    ----------
    parts : iterable of mappings of str to (b,) array
        As `write` takes them.
    file : text file
        Where to.
    """
    writer = csv.writer(file, lineterminator="\n")
    for number, columns in enumerate(parts):
        if number == 0:
            writer.writerow(columns)
        for start in range(0, min(map(len, columns.values())), CHUNK):
            writer.writerows(
                zip(*(column[start : start + CHUNK].astype(str).tolist() for column in columns.values()), strict=True)
            )
