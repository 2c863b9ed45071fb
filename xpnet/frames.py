"""Tables in memory: the columns of a pandas, polars or pyarrow table, and what each of them holds.

None of the three is imported. A table is what has names of columns and gives a column by its name; its columns are
read by NumPy and asked by their own methods what is missing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xpnet.errors import DataError, ShapeError

NUMBERS, BOOLS, WORDS, NOTHING = "numbers", "bools", "words", "nothing but missing values"

LISTED = 8
"""The most columns that a message names."""

_CATEGORIES = ("category", "Categorical", "Enum", "dictionary<")
"""How the types of columns begin that pandas, polars and pyarrow keep as categories."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes
    ----------
    name : str
        Its name, as a string.
    holds : str
        `NUMBERS`, `BOOLS`, `WORDS` or `NOTHING`; anything else, such as ``"datetime64[us]"``, cannot be learned from.
    values : (m,) array
        Real numbers, bools, or words as objects; where they are missing, anything.
    missing : (m,) bool array
        Where there is no value; nan is none.
    is_category : bool
        Whether the table's library keeps it as categories.
    """

    name: str
    holds: str
    values: npt.NDArray[Any]
    missing: npt.NDArray[np.bool_]
    is_category: bool = False

    def taken(self, rows: npt.NDArray[np.int64]) -> "Column":
        """Return the column of these rows alone."""
        holds = NOTHING if self.missing[rows].all() else self.holds
        return Column(self.name, holds, self.values[rows], self.missing[rows], self.is_category)

    def present(self) -> npt.NDArray[Any]:
        """Return the values that are not missing."""
        return np.asarray(self.values[~self.missing])


def names(X: Any) -> tuple[str, ...] | None:
    """Return the columns' names of a table, as strings; None for anything else."""
    keys = _keys(X)
    return None if keys is None else tuple(map(str, keys))


def _keys(X: Any) -> Any:
    keys = getattr(X, "column_names", None) or (getattr(X, "columns", None) if hasattr(X, "to_numpy") else None)
    return None if isinstance(keys, str) else keys


def tables(X: Any, *, examples: str, name: str) -> list[Any]:
    """Return the tables that X consists of: itself, or those that it lists; none when it is not of tables alone.

    Raises
    ------
    ShapeError
        It is of tables, and `examples` is not ``"rows"``.
    """
    parts = list(X) if isinstance(X, list | tuple) else [X]
    if not parts or any(names(part) is None for part in parts):
        return []
    if examples != "rows":
        raise ShapeError(f'{name} is a table, whose examples are rows. Pass examples="rows".')
    return parts


def joined(parts: Sequence[Any], *, name: str, leave_out: Sequence[str] = ()) -> list[Column]:
    """Return the columns of several tables, but those to leave out, joined along the examples.

    Raises
    ------
    ShapeError
        They have different columns.
    """
    if len(parts) == 1:
        return columns(parts[0], name=name, leave_out=leave_out)
    for i, part in enumerate(parts):
        check_names(part, names(parts[0]) or (), name=f"{name}[{i}]", kept_as="", whose=f"of {name}[0]")
    found = [columns(part, name=f"{name}[{i}]", leave_out=leave_out) for i, part in enumerate(parts)]
    return [_joined(several) for several in zip(*found, strict=True)]


def columns(table: Any, *, name: str, leave_out: Sequence[str] = ()) -> list[Column]:
    """Return a table's columns but those to leave out, in their order.

    Raises
    ------
    DataError
        It has no columns, or two of one name.
    """
    found = names(table) or ()
    twice = sorted({repr(key) for key in found if found.count(key) > 1}) if len(set(found)) < len(found) else []
    if twice or not found:
        came = (
            f"{', '.join(twice[:LISTED])} {'is' if len(twice) == 1 else 'are'} there twice" if twice else "it has none"
        )
        raise DataError(f"{name} must have columns of different names; {came}. Rename or add columns.")
    keys = zip(found, _keys(table), strict=True)
    return [_column(table[key], called) for called, key in keys if called not in leave_out]


def numbers(table: Any, *, name: str) -> npt.NDArray[Any]:
    """Return a table of numbers as an array, ``(m, n_x)``.

    Raises
    ------
    DataError
        A column holds something else, or lacks values.
    """
    found = columns(table, name=name)
    wrong = [column for column in found if column.holds not in (NUMBERS, BOOLS, NOTHING) or column.is_category]
    if wrong:
        shown = listed([f"{column.name!r} ({described(column)})" for column in wrong])
        treated = {column.name: "onehot" if is_wordy(column) else "drop" for column in wrong}
        raise DataError(
            f"The columns of {name} must be numbers; {shown} {'is' if len(wrong) == 1 else 'are'} not. Drop them, or "
            f"train with {advice(treated)}."
        )
    refuse_missing(found, name=name)
    return np.column_stack([column.values for column in found])


def is_wordy(column: Column) -> bool:
    """Return whether a column holds words, or categories of any kind, and not measurements."""
    return column.holds == WORDS or (column.is_category and column.holds in (NUMBERS, BOOLS))


def refuse_missing(found: Sequence[Column], *, name: str) -> None:
    """Raise when one of the columns lacks values.

    Raises
    ------
    DataError
        It does; the message says how many, and how to have them filled in.
    """
    lacking = {column.name: int(column.missing.sum()) for column in found if column.missing.any()}
    if lacking:
        shown = listed([f"{key!r} ({count:,})" for key, count in lacking.items()])
        treated = {
            column.name: "drop" if column.holds == NOTHING else "median" for column in found if column.missing.any()
        }
        raise DataError(
            f"{name} has missing values in {shown}. Fill them in, remove those rows, or train with {advice(treated)}."
        )


def advice(treated: Mapping[str, str], *, is_auto: bool = False) -> str:
    """Return the call of `xpnet.fit` that treats columns so, as one would write it."""
    shown = json.dumps(dict(list(treated.items())[:LISTED]), ensure_ascii=False)
    shown = shown[:-1] + ", ...}" if len(treated) > LISTED else shown
    return f"fit(..., features={f'xpnet.features.auto({shown})' if is_auto else shown})"


def check_names(
    table: Any,
    known: Sequence[str],
    *,
    name: str,
    kept_as: str,
    ignored: Sequence[str] = (),
    whose: str = "trained on",
) -> None:
    """Raise when a table has not exactly the columns that are known, in their order.

    Parameters
    ----------
    table : pandas, polars or pyarrow table
        With names of columns.
    known : sequence of str
        The names to be found.
    name : str
        What messages call the table.
    kept_as : str
        The expression that gives the names to a user, such as ``"net.feature_names"``; empty when there is none.
    ignored : sequence of str
        Columns that may be there or not.
    whose : str
        What messages say of the columns known.

    Raises
    ------
    ShapeError
        It has not; the message names what it lacks, what it also has, or what is out of place.
    """
    keys = [key for key in _keys(table) if str(key) not in ignored]
    problem, lacks = difference(known, [str(key) for key in keys])
    if not problem:
        return
    mend = "Pass those columns alone, in that order"
    if lacks:
        mend = "Add or rename columns"
    elif kept_as and all(isinstance(key, str) for key in keys):
        picked = f"list({kept_as})"
        mend = f"Pass {name}.select({picked})" if hasattr(table, "column_names") else f"Pass {name}[{picked}]"
    raise ShapeError(f"{name} must have the columns {whose}, in their order; {problem}. {mend}.")


def difference(known: Sequence[str], given: Sequence[str]) -> tuple[str, bool]:
    """Return in words how given names differ from those known, nothing where they do not; and whether some lack."""
    if tuple(known) == tuple(given):
        return "", False
    lacking = [repr(key) for key in known if key not in set(given)]
    extra = [repr(key) for key in given if key not in set(known)]
    if not lacking and not extra:
        moved = [repr(now) for was, now in zip(known, given, strict=False) if was != now]
        return f"{listed(moved)} are out of place", False
    parts = [f"it lacks {listed(lacking)}"] * bool(lacking) + [f"it also has {listed(extra)}"] * bool(extra)
    return " and ".join(parts), bool(lacking)


def listed(words: Sequence[str]) -> str:
    """Return words in a row, and how many more there are than fit."""
    return ", ".join(words[:LISTED]) + (f" and {len(words) - LISTED} more" if len(words) > LISTED else "")


def described(column: Column) -> str:
    """Return what a column holds, in words."""
    return f"categories that are {column.holds}" if column.is_category and column.holds != WORDS else column.holds


def _joined(several: Sequence[Column]) -> Column:
    """Return one column of those, which hold the same or else are called by all that they hold."""
    holds = sorted({column.holds for column in several} - {NOTHING}) or [NOTHING]
    blank: Any = {BOOLS: False, WORDS: None}.get(holds[0], np.nan)
    values = [np.full(len(column.values), blank) if column.holds == NOTHING else column.values for column in several]
    return Column(
        several[0].name,
        " and ".join(holds),
        np.concatenate(values),
        np.concatenate([column.missing for column in several]),
        any(column.is_category for column in several),
    )


def plain(values: Any) -> npt.NDArray[Any]:
    """Return a table, ``(m, k)``, or a column, ``(m,)``, as NumPy reads it; missing values are None, NA or nan."""
    if getattr(values, "column_names", None):
        return np.column_stack([np.asarray(_decoded(column)) for column in values.columns])
    return np.asarray(_decoded(values))


# Columns --------------------------------------------------------------------------------------------------------------


def _decoded(values: Any) -> Any:
    """Return a column of pyarrow's without its dictionary, in which NumPy reads a missing value as another one."""
    kind: Any = getattr(values, "type", None)
    return values.cast(kind.value_type) if hasattr(kind, "index_type") else values


def _column(values: Any, name: str) -> Column:
    kind = str(getattr(values, "dtype", getattr(values, "type", "")))
    is_category = kind.startswith(_CATEGORIES)
    try:
        array = np.asarray(_decoded(values))
    except Exception:  # whatever a library raises for a type that NumPy has not
        return Column(name, kind, np.empty(len(values), dtype=object), np.zeros(len(values), dtype=bool))
    if array.ndim != 1 or array.dtype.kind not in "biufOTU":
        return Column(name, kind, array, np.zeros(len(array), dtype=bool))
    if array.dtype.kind in "biuf":
        # In these only nan is missing: a column of whole numbers or bools that lacks some becomes floats or objects.
        missing = np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, dtype=bool)
        holds = NOTHING if missing.all() else BOOLS if array.dtype.kind == "b" else NUMBERS
        return Column(name, holds, array, missing, is_category)
    missing = np.asarray(values.isna() if hasattr(values, "isna") else values.is_null(), dtype=bool)
    return _of_objects(name, array.astype(object), missing, kind, is_category)


def _of_objects(
    name: str, array: npt.NDArray[Any], missing: npt.NDArray[np.bool_], kind: str, is_category: bool
) -> Column:
    """Return a column of Python's objects as what all of them are."""
    from decimal import Decimal  # 2 ms, of which importing xpnet may cost 60 in all

    kinds = set(map(type, array[~missing].tolist()))
    if not kinds:
        return Column(name, NOTHING, np.full(array.shape, np.nan), missing, is_category)
    if all(issubclass(each, str) for each in kinds):
        return Column(name, WORDS, array, missing, is_category)
    if all(issubclass(each, bool | np.bool_) for each in kinds):
        return Column(name, BOOLS, np.where(missing, False, array).astype(bool), missing, is_category)
    numeric = int | float | np.integer | np.floating | Decimal
    if all(issubclass(each, numeric) and not issubclass(each, bool) for each in kinds):
        return _of_numbers(name, array, missing, is_category)
    all_of_them = " and ".join(sorted(each.__name__ for each in kinds))
    return Column(name, all_of_them if kind == "object" else kind, array, missing)


def _of_numbers(name: str, array: npt.NDArray[Any], missing: npt.NDArray[np.bool_], is_category: bool) -> Column:
    filled = np.where(missing, 0, array).tolist()
    values = np.asarray(filled)
    try:
        values = np.asarray([float(value) for value in filled]) if values.dtype.kind == "O" else values
    except OverflowError:
        return Column(name, "numbers beyond float64", array, missing)
    missing = missing | np.isnan(values)
    return Column(name, NOTHING if missing.all() else NUMBERS, values, missing, is_category)
