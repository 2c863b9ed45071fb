"""What is done with a table's columns that are not plain numbers: words are one-hot encoded, missing values filled in.

`xpnet.fit` takes a treatment for each column by name, and treats the others as numbers that are all there:

>>> treated = {"city": "onehot", "age": "median", "rooms": 1, "id": "drop"}  # fit(..., features=treated)

========================  ==========================================================================================
treatment                 what it makes of a column
========================  ==========================================================================================
``"number"``              the numbers as they are, bools as 0 and 1; a missing one is an error
``"mean"`` ``"median"``   numbers, with missing ones filled in by that of the others
``"most_frequent"``       the same with the most frequent one, of several the smallest
a number                  the same with this number
``"onehot"``              a feature for each value, 1 where a row has it and 0 elsewhere; where values are missing,
                          a feature for that too
``"drop"``                nothing; the table that is predicted may lack it
========================  ==========================================================================================

`number` and `onehot` make the same with further options, and ``"auto"``, or `auto` with exceptions, chooses by what a
column holds. What is learned, which values and which fillings, comes from the training examples alone, unweighted. The
network keeps it, as ``net.features``, and applies it wherever it is given a table; it is saved with the network.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from xpnet import frames
from xpnet.arguments import choice, nearest, real
from xpnet.errors import ArgumentError, DataError
from xpnet.frames import BOOLS, NOTHING, NUMBERS, WORDS, Column

__all__ = ["Features", "auto", "number", "onehot"]

MOST = 100
"""The most values of a column that `auto` makes features of; more are often names or numbers of rows."""

FILLINGS = ("mean", "median", "most_frequent")

Value = str | int | float | bool


# What a user asks for -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Treatment:
    """What is to be done with a column; from `number`, `onehot` or a name.

    Attributes
    ----------
    how : {"number", "onehot", "drop"}
        What it becomes.
    missing : str, float or None
        How missing values are filled in.
    unknown : {"error", "ignore"}
        What a value is that the training examples have not.
    """

    how: str
    missing: str | float | None = None
    unknown: str = "error"


def number(missing: str | float | None = None) -> Treatment:
    """Return the treatment of a column that stays one feature.

    Parameters
    ----------
    missing : {"mean", "median", "most_frequent"}, number or None
        What is filled in for missing values; None refuses them.

    Returns
    -------
    Treatment

    Examples
    --------
    >>> import xpnet
    >>> xpnet.features.number("median")
    Treatment(how='number', missing='median', unknown='error')
    """
    if missing is None or (isinstance(missing, str) and missing in FILLINGS):
        return Treatment("number", missing)
    if isinstance(missing, str):
        choice("missing", missing, FILLINGS, or_else="a number, or None")
    return Treatment("number", real("missing", missing))


def onehot(*, missing: str = "category", unknown: str = "error") -> Treatment:
    """Return the treatment of a column of which each value becomes a feature.

    Parameters
    ----------
    missing : {"category", "most_frequent"}
        Whether missing values are one value more, where the training examples lack some, or are taken for the most
        frequent one.
    unknown : {"error", "ignore"}
        What a value is that the training examples have not: an error, or 0 in every feature.

    Returns
    -------
    Treatment

    Examples
    --------
    >>> import xpnet
    >>> xpnet.features.onehot(unknown="ignore")
    Treatment(how='onehot', missing='category', unknown='ignore')
    """
    choice("missing", missing, ("category", "most_frequent"))
    return Treatment("onehot", missing, choice("unknown", unknown, ("error", "ignore")))


_BY_NAME = {"number": number(), "onehot": onehot(), "drop": Treatment("drop")} | {
    filling: number(filling) for filling in FILLINGS
}


@dataclass(frozen=True)
class Plan:
    """The treatments of a table's columns, before anything is learned; from `auto` or a dict.

    Attributes
    ----------
    given : mapping of str to Treatment
        Of the columns that have one of their own.
    is_auto : bool
        Whether the others are treated by what they hold; else they are numbers.
    unknown : {"error", "ignore"}
        Of the columns that are encoded because of what they hold.
    """

    given: Mapping[str, Treatment] = field(default_factory=dict)
    is_auto: bool = False
    unknown: str = "error"

    def learn(self, tables: Sequence[Any], rows: npt.NDArray[np.int64] | None = None) -> "Features":
        """Return the treatments with what they take from the training examples.

        Parameters
        ----------
        tables : sequence of tables
            Of the same columns, to be joined along the examples.
        rows : (k,) int64 array, optional
            The numbers of the examples to learn from; all by default.

        Raises
        ------
        ArgumentError
            A treatment is of a column that the tables have not.
        DataError
            A column cannot be treated so.
        """
        found = frames.names(tables[0]) or ()
        for name in self.given:
            if name not in found:
                raise ArgumentError(
                    f"features names the column {name!r}, which X has not.{nearest(name, found)} Its columns are "
                    f"{frames.listed(list(map(repr, found)))}."
                )
        dropped = tuple(name for name in found if name in self.given and self.given[name].how == "drop")
        columns = frames.joined(tables, name="X", leave_out=dropped)
        if not columns:
            raise DataError("X has no column that features does not drop; there is nothing to learn from. Keep one.")
        if not len(columns[0].values):
            raise DataError(
                "X must hold at least one example; it has none. Check the filter or file that it comes from."
            )
        seen = columns if rows is None else [column.taken(rows) for column in columns]
        treated = [self.given.get(column.name) or self._chosen(column) for column in seen]
        self._check_readable(columns, treated)
        self._check_few(seen, treated)
        learned = tuple(_learned(column, treatment) for column, treatment in zip(seen, treated, strict=True))
        _check_unlike(learned)
        return Features(learned, dropped)

    def _chosen(self, column: Column) -> Treatment:
        """Return the treatment of a column for which none is given."""
        if not self.is_auto:
            return _BY_NAME["number"]
        if frames.is_wordy(column):
            return onehot(unknown=self.unknown)
        return _BY_NAME["most_frequent" if column.holds == BOOLS else "median"]

    def _check_readable(self, columns: Sequence[Column], treated: Sequence[Treatment]) -> None:
        """Raise when columns hold what their treatments are not for."""
        wrong: dict[str, str] = {}
        for column, treatment in zip(columns, treated, strict=True):
            wanted = (NUMBERS, BOOLS, NOTHING) + ((WORDS,) if treatment.how == "onehot" else ())
            undeclared = column.is_category and column.name not in self.given and treatment.how == "number"
            if column.holds not in wanted or (undeclared and not self.is_auto):
                wrong[column.name] = frames.described(column)
        if wrong:
            listed = frames.listed([f"{name!r} ({holds})" for name, holds in wrong.items()])
            mends = {column.name: "onehot" if frames.is_wordy(column) else "drop" for column in columns}
            raise DataError(
                f"The columns of X must be numbers, or have a treatment for what they hold; {listed} "
                f"{'has' if len(wrong) == 1 else 'have'} none. Pass "
                f"{frames.advice({name: mends[name] for name in wrong}, is_auto=self.is_auto)}."
            )

    def _check_few(self, columns: Sequence[Column], treated: Sequence[Treatment]) -> None:
        """Raise when columns that `auto` would make features of have too many values."""
        distinct = {
            column.name: len(set(column.present().tolist()))
            for column, treatment in zip(columns, treated, strict=True)
            if column.name not in self.given and treatment.how == "onehot"
        }
        many = {name: count for name, count in distinct.items() if count > MOST}
        if many:
            listed = frames.listed([f"{name!r} ({count:,})" for name, count in many.items()])
            raise DataError(
                f"auto makes features of columns with {MOST} different values or fewer; more are in {listed}. Drop "
                f"them, with {frames.advice(dict.fromkeys(many, 'drop'), is_auto=True)}, or say onehot there."
            )


def auto(treatments: Mapping[str, Any] | None = None, *, unknown: str = "error") -> Plan:
    """Return a plan that chooses treatments by what columns hold, which ``features="auto"`` is short for.

    Numbers get ``"median"``, bools ``"most_frequent"``, words and the categories of pandas, polars and pyarrow
    ``"onehot"``, unless there are more than 100 of them; dates and everything else are refused. What was chosen stands
    in ``net.features``.

    Parameters
    ----------
    treatments : dict, optional
        Of the columns that are to be treated otherwise, as `xpnet.fit` takes it.
    unknown : {"error", "ignore"}
        What words are that the training examples have not, see `onehot`.

    Returns
    -------
    Plan

    Examples
    --------
    >>> import xpnet
    >>> plan = xpnet.features.auto({"name": "drop"}, unknown="ignore")  # fit(..., features=plan)
    """
    choice("unknown", unknown, ("error", "ignore"))
    return Plan(_treatments({} if treatments is None else treatments), is_auto=True, unknown=unknown)


def planned(features: Any) -> "Plan | Features | None":
    """Return `fit`'s argument as a plan, or as the learned treatment that it is.

    Raises
    ------
    ArgumentError
        It is of no known form; the message says what is.
    """
    if features is None or isinstance(features, Plan | Features):
        return features
    if isinstance(features, str) and features == "auto":
        return auto()
    return Plan(_treatments(features))


def _treatments(given: Any) -> Mapping[str, Treatment]:
    if not isinstance(given, Mapping):
        raise ArgumentError(
            f'features must be a dict of columns to treatments, such as {{"city": "onehot"}}, "auto", or from '
            f"xpnet.features; it is {given!r}."
        )
    return {str(name): _treatment(str(name), how) for name, how in given.items()}


def _treatment(name: str, how: Any) -> Treatment:
    if isinstance(how, Treatment):
        return how
    if isinstance(how, str | bool) or not np.isscalar(how):
        found = choice(f"features[{name!r}]", how, tuple(_BY_NAME), or_else="a number, or from xpnet.features")
        return _BY_NAME[found]
    return Treatment("number", real(f"features[{name!r}]", how))


# What is learned ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """A column that is one feature.

    Attributes
    ----------
    name : str
        The column's.
    missing : float or None
        What is filled in for missing values; None refuses them.
    """

    name: str
    missing: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The feature's name."""
        return (self.name,)

    def __str__(self) -> str:
        """Return the column's name, with what is filled in."""
        return self.name + ("" if self.missing is None else f" (missing: {self.missing:g})")

    def encode(self, column: Column, into: npt.NDArray[np.float64], *, name: str) -> None:
        """Write the column's numbers, ``(m, 1)``."""
        into[:, 0] = column.values if column.holds != NOTHING else np.nan
        if column.missing.any():
            into[column.missing, 0] = self.missing


@dataclass(frozen=True)
class OneHot:
    """A column of which each value is a feature.

    Attributes
    ----------
    name : str
        The column's.
    holds : {"words", "numbers", "bools"}
        What its values are.
    categories : tuple
        They, sorted.
    missing : str, number, bool or None
        Which of them a missing value is taken for.
    has_missing : bool
        Whether missing values have a feature of their own, the last one.
    unknown : {"error", "ignore"}
        What other values are: an error, or 0 in every feature.
    """

    name: str
    holds: str
    categories: tuple[Value, ...]
    missing: Value | None = None
    has_missing: bool = False
    unknown: str = "error"

    @property
    def names(self) -> tuple[str, ...]:
        """The features' names, such as ``"city=Paris"``."""
        made = [f"{self.name}={value}" for value in self.categories]
        return (*made, f"{self.name} is missing") if self.has_missing else tuple(made)

    def __str__(self) -> str:
        """Return the column's name, with how many features it is."""
        kept = [f"one-hot of {len(self.names)}"]
        kept += [f"missing: {self.missing}"] * (self.missing is not None) + ["others: 0"] * (self.unknown == "ignore")
        return f"{self.name} ({', '.join(kept)})"

    def encode(self, column: Column, into: npt.NDArray[np.float64], *, name: str) -> None:
        """Write 1 into each row's feature of ``(m, n)`` zeros.

        Raises
        ------
        DataError
            A value is unknown.
        """
        places = {value: i for i, value in enumerate(self.categories)}
        numbers = np.full(len(column.values), -1)
        numbers[~column.missing] = [places.get(value, -1) for value in column.present().tolist()]
        if self.has_missing:
            numbers[column.missing] = len(self.categories)
        elif self.missing is not None:
            numbers[column.missing] = places[self.missing]
        known = numbers >= 0
        if self.unknown == "error" and not known.all():
            raise DataError(f"The column {self.name!r} of {name} has {self._unknown(column, ~known)}")
        into[np.flatnonzero(known), numbers[known]] = 1.0

    def _unknown(self, column: Column, where: npt.NDArray[np.bool_]) -> str:
        unseen = sorted(set(map(repr, column.values[where & ~column.missing].tolist())))
        listed = frames.listed(unseen) if unseen else "missing values"
        known = frames.listed([repr(value) for value in self.categories])
        key = json.dumps(self.name, ensure_ascii=False)
        return (
            f"{listed} ({where.sum():,} of {len(where):,} examples); the training "
            f"examples had {known}. Remove such examples, or train with "
            f'fit(..., features={{{key}: xpnet.features.onehot(unknown="ignore")}}), which makes zeros of them.'
        )


@dataclass(frozen=True)
class Features:
    """What a network does with a table's columns, as learned on the training examples. Nothing in it changes.

    Attributes
    ----------
    treatments : tuple of Number and OneHot
        Of the columns, in their order.
    dropped : tuple of str
        Columns that are left out, where a table has them.

    Examples
    --------
    >>> net = xpnet.fit(table, Y, examples="rows", features="auto")  # doctest: +SKIP
    >>> net.features.columns, net.features.names  # doctest: +SKIP
    (('city', 'age'), ('city=Bonn', 'city=Ulm', 'age'))
    """

    treatments: tuple[Number | OneHot, ...]
    dropped: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns that a table must have."""
        return tuple(treatment.name for treatment in self.treatments)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the features that are made of them."""
        return tuple(name for treatment in self.treatments for name in treatment.names)

    @property
    def words(self) -> tuple[str, ...]:
        """The columns that must hold words."""
        return tuple(each.name for each in self.treatments if isinstance(each, OneHot) and each.holds == WORDS)

    def __str__(self) -> str:
        """Return one line: which columns, and what is made of them."""
        return ", ".join(map(str, self.treatments))

    def encode(self, table: Any, *, name: str = "X") -> npt.NDArray[np.float64]:
        """Return a table's rows as numbers, ``(m, n_x)``.

        Parameters
        ----------
        table : pandas, polars or pyarrow table
            Of `columns` in their order; those `dropped` may be among them.
        name : str
            What messages call it.

        Returns
        -------
        (m, n_x) float64 array

        Raises
        ------
        ShapeError
            It has other columns.
        DataError
            A column holds what it did not when it was learned, lacks values for which there is no filling, or has
            unknown ones.

        Examples
        --------
        >>> net.features.encode(table).shape  # doctest: +SKIP
        (100, 3)
        """
        frames.check_names(table, self.columns, name=name, kept_as="net.features.columns", ignored=self.dropped)
        columns = frames.columns(table, name=name, leave_out=self.dropped)
        for column, treatment in zip(columns, self.treatments, strict=True):
            _check_same_kind(column, treatment, name)
        unfilled = [
            column
            for column, treatment in zip(columns, self.treatments, strict=True)
            if isinstance(treatment, Number) and treatment.missing is None
        ]
        frames.refuse_missing(unfilled, name=name)
        made = np.zeros((len(columns[0].values), len(self.names)))
        start = 0
        for column, treatment in zip(columns, self.treatments, strict=True):
            stop = start + len(treatment.names)
            treatment.encode(column, made[:, start:stop], name=name)
            start = stop
        return made


def _check_same_kind(column: Column, treatment: Number | OneHot, name: str) -> None:
    """Raise when a column holds something else than when its treatment was learned."""
    wanted = (NUMBERS, BOOLS) if isinstance(treatment, Number) else (treatment.holds,)
    if column.holds in (*wanted, NOTHING):
        return
    some = column.present()[:1].tolist() if column.holds in (NUMBERS, BOOLS, WORDS) else []
    such = f", such as {some[0]!r}" if some else ""
    raise DataError(
        f"The column {column.name!r} of {name} must hold {wanted[0]}, as when the network was trained; it holds "
        f"{column.holds}{such}. Convert it."
    )


def _learned(column: Column, treatment: Treatment) -> Number | OneHot:
    """Return what the training examples of a column make of its treatment."""
    if column.holds == NOTHING and isinstance(treatment.missing, str):
        raise DataError(
            f"X's column {column.name!r} must have a value in some training example; all are missing. Drop it, with "
            f"{frames.advice({column.name: 'drop'})}."
        )
    present = column.present()
    if column.holds == NUMBERS and not np.isfinite(present).all():
        raise DataError(f"X must be finite; its column {column.name!r} holds an infinite number. Remove such examples.")
    if treatment.how == "onehot":
        return _learned_categories(column, present, treatment)
    filling: Any = treatment.missing
    if isinstance(filling, str):
        present = present.astype(np.float64)
        averages: dict[str, Callable[[Any], Any]] = {"mean": np.mean, "median": np.median}
        filling = float(averages.get(filling, _most_frequent)(present))
    return Number(column.name, filling)


def _learned_categories(column: Column, present: npt.NDArray[Any], treatment: Treatment) -> OneHot:
    values = [_plain(value, column.holds) for value in present.tolist()]
    most_frequent = treatment.missing == "most_frequent"
    return OneHot(
        column.name,
        column.holds,
        tuple(sorted(set(values))),
        missing=_most_frequent(values) if most_frequent else None,
        has_missing=bool(column.missing.any()) and not most_frequent,
        unknown=treatment.unknown,
    )


def _plain(value: Any, holds: str) -> Value:
    """Return a value as JSON has it; a whole number as an int, whatever the column's dtype."""
    if holds == NUMBERS:
        return int(value) if value == math.floor(value) else float(value)
    return str(value) if holds == WORDS else bool(value)


def _most_frequent(values: Any) -> Any:
    """Return the most frequent value, of several the smallest."""
    counts = Counter(values if isinstance(values, list) else values.tolist())
    most = max(counts.values())
    return min(value for value, count in counts.items() if count == most)


def _check_unlike(learned: "Sequence[Number | OneHot]") -> None:
    """Raise when two features have one name: a column ``a=b`` beside the word ``b`` in a column ``a``."""
    counts = Counter(name for each in learned for name in each.names)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"The features made of X's columns must have different names; {frames.listed(list(map(repr, twice)))} "
            "would be there twice. Rename a column."
        )


# In a file ------------------------------------------------------------------------------------------------------------


def packed(features: Features | None) -> dict[str, Any] | None:
    """Return a learned treatment as JSON has it."""
    if features is None:
        return None
    columns = []
    for each in features.treatments:
        kept: dict[str, Any] = {"name": each.name, "missing": each.missing}
        if isinstance(each, OneHot):
            kept |= {"holds": each.holds, "categories": list(each.categories)}
            kept |= {"has_missing": each.has_missing, "unknown": each.unknown}
        columns.append(kept)
    return {"columns": columns, "dropped": list(features.dropped)}


def unpacked(kept: Any) -> Features | None:
    """Return what `packed` was given.

    Raises
    ------
    ValueError
        It is not of that form.
    """
    if kept is None:
        return None
    match kept:
        case {"columns": [_, *_] as columns, "dropped": list(dropped)} if all(
            isinstance(name, str) for name in dropped
        ):
            features = Features(tuple(map(_unpacked, columns)), tuple(dropped))
        case _:
            raise ValueError("features of an unknown form")
    for names in (features.names, (*features.columns, *dropped)):
        if len(set(names)) < len(names):
            raise ValueError("features of one name")
    return features


_KINDS: dict[str, tuple[type, ...]] = {WORDS: (str,), BOOLS: (bool,), NUMBERS: (int, float)}


def _unpacked(kept: Any) -> Number | OneHot:
    match kept:
        case {"name": str(name), "missing": None, **others} if not others:
            return Number(name)
        case {"name": str(name), "missing": float(missing), **others} if not others and math.isfinite(missing):
            return Number(name, missing)
        case {
            "name": str(name),
            "missing": missing,
            "holds": str(holds),
            "categories": [_, *_] as values,
            "has_missing": bool(has_missing),
            "unknown": "error" | "ignore" as unknown,
            **others,
        } if not others and holds in _KINDS:
            _check_categories(values, holds)
            if missing is not None and (has_missing or type(missing) not in _KINDS[holds] or missing not in values):
                raise ValueError(f"a category {missing!r} for missing values")
            return OneHot(name, holds, tuple(values), missing, has_missing, unknown)
        case _:
            raise ValueError("a column's treatment of an unknown form")


def _check_categories(values: Sequence[Any], holds: str) -> None:
    if any(type(value) not in _KINDS[holds] for value in values):
        raise ValueError(f"categories that are not {holds}")
    if holds == NUMBERS and not all(math.isfinite(value) for value in values):
        raise ValueError("categories that are not finite")
    if any(not before < after for before, after in pairwise(values)):
        raise ValueError("categories out of order")
