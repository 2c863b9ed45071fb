"""What a worker of a cluster does: it holds parts of the examples, and trains on them together with the others.

A part is consecutive examples of the whole. Every worker runs the same loop, `xpnet.training`'s, on its own parts, with
an engine whose cost and gradient are sums over the columns of all of them; so all take the same steps from the same
parameters. They do so for a segment of some epochs, and the first of them returns where training stands then.
"""

import contextlib
import ctypes
import os
import sys
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from xpnet import allreduce, data, diagnosis, engine, frames, heads, parquet, tables, targets, training
from xpnet import device as devices
from xpnet.activations import Activation
from xpnet.allreduce import Means, Member, Sums
from xpnet.checkpoint import Standing
from xpnet.data import Batch, Examples, Moments, Piece, Source, Window
from xpnet.device import HOST, Place
from xpnet.diagnosis import Sample
from xpnet.engine import Engine
from xpnet.errors import ArgumentError, DataError, DeviceFullError, ShapeError
from xpnet.network import Network, prepared
from xpnet.parquet import Parquet
from xpnet.targets import Task
from xpnet.typing import Array, Layer

SAMPLED = 4_096
"""Examples, of all, that the sizes of the features are estimated from."""

MOST_LABELS = 100_000
"""Distinct numbers with fractions up to which a part names them all when it is asked what Y is."""

_TRIM, _MAP = (-1, "MALLOC_TRIM_THRESHOLD_", 2**28, 2**17), (-3, "MALLOC_MMAP_THRESHOLD_", 2**25, 2**17)
"""Of glibc's mallopt: the parameter, its variable, what a fit sets, and what holds without the variable."""

T = TypeVar("T")


# Files ----------------------------------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """What a file holds, or some of its columns; it is opened where it is used.

    Attributes
    ----------
    path : str
        Ends in ``.npy`` or ``.parquet``.
    column : str, int or None
        The one column that is meant; None is all others.
    without : tuple of str or int
        The columns that are not.
    rows : bytes or None
        Which examples are meant, a bit for each (`np.packbits`); None is all.
    scaling : (float, float) or None
        The mean and deviation by which the one column is standardized.
    """

    path: str
    column: str | int | None = None
    without: tuple[str | int, ...] = ()
    rows: bytes | None = None
    scaling: tuple[float, float] | None = None

    @property
    def numbers(self) -> npt.NDArray[np.int64] | None:
        """The numbers of the examples that are meant, in rising order; None is all."""
        return None if self.rows is None else np.flatnonzero(np.unpackbits(np.frombuffer(self.rows, np.uint8)))

    def column_of(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what is meant of a column's values."""
        values = values if self.rows is None else values[self.numbers]
        return values if self.scaling is None else (values.astype(np.float64) - self.scaling[0]) / self.scaling[1]


class Npy:
    """A ``.npy`` file that is read in slices, and mapped no longer than a slice takes.

    What stays mapped counts as the worker's memory, for which its nanny would end it.

    Parameters
    ----------
    path : str
        Of the file.
    examples : {"columns", "rows"}
        Which way they lie in it.
    without : sequence of int or str
        Numbers of features that are left out.
    numbers : (k,) int64 array or None
        The examples that are meant; None is all.
    """

    def __init__(
        self,
        path: str,
        examples: str,
        without: Sequence[str | int] = (),
        numbers: npt.NDArray[np.int64] | None = None,
    ) -> None:
        array = _mapped(path)
        self.path, self.dtype, self.ndim = path, array.dtype, array.ndim
        self._features, self._numbers = None, numbers
        self._axis = 1 if examples == "rows" else 0
        width, count = array.shape[self._axis], array.shape[1 - self._axis] if numbers is None else numbers.size
        if without:
            left_out = {tables._column_number(str(number), width, path) for number in without}
            self._features = [number for number in range(width) if number not in left_out]
            width = len(self._features)
        self.shape = (count, width) if self._axis else (width, count)

    def __getitem__(self, where: tuple[Any, Any]) -> npt.NDArray[Any]:
        if self._numbers is not None:
            rows, columns = where
            where = (self._numbers[rows], columns) if self._axis else (rows, self._numbers[columns])
        part = np.array(_mapped(self.path)[where])
        return part if self._features is None else part.take(self._features, self._axis)


def _mapped(path: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(np.lib.format.open_memmap(path, mode="r"))
    except OSError:
        raise
    except Exception as error:  # NumPy meets damage with ValueError, OverflowError, TokenError and more
        raise DataError(f"{path} cannot be read as a .npy array: {error}") from error


class Decoded:
    """Parquet files with the same columns as one table that is read in slices, in any order.

    They are decoded once, one after another, into a temporary file (`data.spooled`). Pickled, they are their names
    alone, and are decoded anew where slices are read next.

    Parameters
    ----------
    files : sequence of Stored
        Of numbers; of all of their columns but those `without`.
    """

    def __init__(self, files: Sequence[Stored]) -> None:
        self.files, self.ndim = tuple(files), 2
        self.columns, dtype, _ = _table_of(files[0])
        counts, dtypes = [], [dtype]
        for file in files:  # each is closed again: there may be more than can be open
            columns, dtype, count = _table_of(file)
            if columns != self.columns:
                problem, _ = frames.difference(self.columns, columns)
                raise ShapeError(
                    f"Files must have the same columns in the same order; {file.path} differs from {files[0].path}: "
                    f"{problem}. Select them alike."
                )
            counts.append(count)
            dtypes.append(dtype)
        self.dtype, self._begins = np.result_type(*dtypes), np.cumsum([0, *counts])
        self.ends = np.cumsum([len(self._chosen(i)) for i in range(len(files))])
        self.shape = int(self.ends[-1]), len(self.columns)
        self._open: tuple[int, Parquet] | None = None  # the file that is read, and its number

    def __reduce__(self) -> tuple[Any, ...]:
        return Decoded, (self.files,)

    def __getitem__(self, where: tuple[slice, Any]) -> npt.NDArray[Any]:
        return np.asarray(self._spooled.copied(where[0].start, where[0].stop))

    @cached_property
    def _spooled(self) -> Source:
        made = data.spooled(self._in_turn(), 0)
        self._close()
        return made

    def whole(self) -> npt.NDArray[Any]:
        """Return all rows."""
        rows, source = np.empty(self.shape, self.dtype), self._in_turn()
        for start, stop in source.blocks():
            rows[start:stop] = source.read(start, stop)
        self._close()
        return rows

    def _close(self) -> None:
        """Close the file that is read, and give back what pyarrow keeps of its memory."""
        import pyarrow

        self._open = None
        pyarrow.default_memory_pool().release_unused()

    def _in_turn(self) -> Source:
        """Return the rows that are meant, to be read one after another."""
        m, n_x = int(self._begins[-1]), self.shape[1]
        source = Source(n_x, m, HOST, False, self.columns, self._read, in_turn=True)
        if m == self.shape[0]:
            return source
        return source.subset(np.concatenate([self._begins[i] + self._chosen(i) for i in range(len(self.files))]))

    def _chosen(self, i: int) -> Any:
        """Return the numbers of a file's examples that are meant."""
        chosen = self.files[i].numbers
        return range(int(self._begins[i + 1] - self._begins[i])) if chosen is None else chosen

    def _read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return some of all rows, decoded; those that follow the last ones read come without further ado."""
        rows = np.empty((stop - start, self.shape[1]), self.dtype)
        for i in range(int(np.searchsorted(self._begins, start, side="right")) - 1, len(self.files)):
            begin, end = int(self._begins[i]), int(self._begins[i + 1])
            low, high = max(start, begin), min(stop, end)
            if low >= high:
                break
            if self._open is None or self._open[0] != i:
                self._open = i, _numbers_of(self.files[i])
            rows[low - start : high - start] = self._open[1].read(low - begin, high - begin)
        return rows


def opened(given: Any, examples: str) -> Any:
    """Return what `data.source` and `targets.read` take, for arrays, tables and what is `Stored`."""
    if not isinstance(given, Stored):
        return given
    if given.column is not None:
        return given.column_of(_column_of(given) if is_parquet(given) else _column_of_npy(given, examples))
    if not is_parquet(given):
        return _opened_npy(given, examples)
    if not _is_plain(given):
        table = _converted(given)
        return table if given.rows is None else table.take(given.numbers)
    numbers, chosen = _numbers_of(given), given.numbers
    return numbers if chosen is None else data.source(numbers, examples=examples).subset(chosen)


def is_parquet(given: Any) -> bool:
    """Return whether a chunk is a Parquet file, or some of its columns."""
    return isinstance(given, Stored) and Path(given.path).suffix.lower() == ".parquet"


def _features_of(given: Stored, names: Sequence[str]) -> list[str]:
    """Return which columns are features: neither left out, nor those in which pandas keeps row numbers."""
    for name in given.without:
        tables._check_known(str(name), names, given.path, "column")
    return [name for name in names if name not in given.without and not tables._INDEX.fullmatch(name)]


def _column_of(given: Stored) -> npt.NDArray[Any]:
    """Return the one column of a Parquet file that is meant, read by itself."""
    name, file = str(given.column), parquet._opened(given.path)
    tables._check_known(name, file.schema_arrow.names, given.path, "column")
    try:
        table = file.read([name])
    except (tables._pyarrow(given.path).ArrowException, OSError) as error:
        raise DataError(f"{given.path} cannot be read as Parquet: {error}") from error
    return tables._labels(tables._column(table, name, given.path), name, given.path)


def _table_of(given: Stored) -> tuple[tuple[str, ...], np.dtype[Any], int]:
    """Return the features of a Parquet file of numbers, their dtype, and how many examples it has."""
    table = _numbers_of(given)
    return table.columns, table.dtype, table.shape[0]


def _numbers_of(given: Stored) -> Parquet:
    return Parquet(given.path, _features_of(given, parquet._opened(given.path).schema_arrow.names))


def _is_plain(given: Stored) -> bool:
    """Return whether all features of a Parquet file are numbers that need not be converted, such as categories.

    Raises
    ------
    DataError
        Some are no numbers at all.
    """
    schema = parquet._opened(given.path).schema_arrow
    names = _features_of(given, schema.names)
    if all(tables._is_number(schema.field(name).type) for name in names if schema.names.count(name) == 1):
        return True
    tables._numbers(schema.empty_table(), names, given.path, trained=False)
    return False


def _converted(given: Stored) -> Any:
    table = tables._table(given.path)
    return tables._numbers(table, _features_of(given, table.column_names), given.path, trained=False)


def _opened_npy(given: Stored, examples: str) -> Any:
    if given.without or _mapped(given.path).ndim == 2:
        return Npy(given.path, examples, given.without, given.numbers)
    return given.column_of(_read(given.path))


def _column_of_npy(given: Stored, examples: str) -> npt.NDArray[Any]:
    array = tables._matrix(given.path)
    number = tables._column_number(str(given.column), array.shape[1 if examples == "rows" else 0], given.path)
    return np.array(array[:, number] if examples == "rows" else array[number])


def _read(path: str) -> npt.NDArray[Any]:
    return np.array(_mapped(path))


def count(given: Any, examples: str) -> int:
    """Return how many examples a chunk has."""
    if isinstance(given, Stored) and (chosen := given.numbers) is not None:
        return chosen.size
    if is_parquet(given):
        return int(parquet._opened(given.path).metadata.num_rows)
    shape = _mapped(given.path).shape if isinstance(given, Stored) else given.shape
    return int(shape[0 if examples == "rows" else -1])


# What the command asks ------------------------------------------------------------------------------------------------


class Target(NamedTuple):
    """What there is to know of a file's column that is to be predicted.

    Attributes
    ----------
    labels : (k,) array
        Labels that tell what it means as all of them would.
    moments : Moments or None
        Of numbers, in float64.
    largest : float
        The largest of them.
    """

    labels: npt.NDArray[Any]
    moments: Moments | None
    largest: float


def target(given: Stored) -> Target:
    """Return what there is to know of the column that is meant."""
    labels = targets.read(opened(given, "rows"), examples="rows")
    if labels.dtype.kind == "U" or labels.size == 0:
        return Target(_telling(labels), None, 0.0)
    Y = labels.astype(np.float64)
    mean = Y.mean(keepdims=True)
    squares = np.sum((Y - mean) ** 2, keepdims=True)
    return Target(_telling(labels), Moments(Y.size, mean, squares, "float64"), float(np.abs(Y).max()))


def judged(net: Network, X: Stored, Y: Stored, device: str) -> tuple[Any, Any]:
    """Return how many of a file's examples are meant, and the share told rightly; else their numbers and the network's.

    It is computed by one thread: Dask has others for other files.
    """
    labels = targets.read(opened(Y, "rows"), examples="rows")
    net = net if device == "cpu" else net.to(device)
    source = net._source(opened(X, "rows"), "rows")
    if net.kind.classes is None:
        return labels, devices.to_host(net._output_of(source, threads=1))
    with contextlib.closing(net._outputs(source, 1)) as outputs:
        return labels.shape[-1], targets.score(labels, map(devices.to_host, outputs), net.kind)


# What a part holds ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """A part as it was given.

    Attributes
    ----------
    source : Source
        X.
    labels : (n,) or (n_y, n) array
        Y.
    weight : (n,) float64 array or None
        Of the examples.
    place : Place
        Where it will be computed with.
    chunks : tuple of Source
        X, chunk by chunk.
    """

    source: Source
    labels: npt.NDArray[Any]
    weight: npt.NDArray[np.float64] | None
    place: Place
    chunks: tuple[Source, ...]

    def __sizeof__(self) -> int:
        """Return the bytes held, which is what Dask goes by."""
        it = self.source
        return it.n_examples * it.n_features * 8 * it.in_memory + self.labels.nbytes


class Look(NamedTuple):
    """What is to be known of a part before its fit can begin.

    Attributes
    ----------
    n_features, n_examples : int
        n_x, and the part's examples.
    names : tuple of str or None
        The features' names.
    labels : (k,) or (n_y, k) array
        Labels that tell what Y means as all of the part's would.
    squares : (n_x,) float64 array
        Sums of the features' squares over some of the examples.
    sampled : int
        How many those are.
    labels_squared : float
        The sum of the squares of Y, where it is numbers.
    checksums : tuple of int
        One a chunk: other examples will hardly have the same.
    """

    n_features: int
    n_examples: int
    names: tuple[str, ...] | None
    labels: npt.NDArray[Any]
    squares: npt.NDArray[np.float64]
    sampled: int
    labels_squared: float
    checksums: tuple[int, ...]


def hold(
    X: Sequence[Any],
    Y: Sequence[Any],
    weight: Sequence[Any] | None,
    *,
    examples: str,
    device: str | None,
    name: str = "",
    first: int = 0,
) -> Held:
    """Return a part made of chunks.

    Parameters
    ----------
    X, Y, weight : sequences of arrays, tables or Stored
        A chunk each.
    examples : {"columns", "rows"}
        Which way they lie.
    device : str or None
        Where to compute; None is where X lives.
    name : str
        What messages put before X and Y: ``"validation "``.
    first : int
        The number of its first example in the whole.
    """
    x_name, y_name = f"{name}X", f"{name}Y"
    read = [targets.read(opened(chunk, examples), examples=examples, name=y_name) for chunk in Y]
    place, source, chunks = _sources(X, examples, device, x_name)
    source = replace(source, numbers=range(first, first + source.n_examples))
    for one, labels in zip(chunks, read, strict=True):
        data.check_orientation(one, labels.shape[-1], examples=examples, name=x_name)
    if len({labels.shape[:-1] for labels in read}) > 1:
        raise ShapeError(f"The parts of {y_name} must have the same outputs; they have {[a.shape for a in read[:8]]}.")
    labels = read[0] if len(read) == 1 else np.concatenate(read, axis=-1)
    weights = None if weight is None else [opened(chunk, examples) for chunk in weight]
    return Held(source, labels, None if weights is None else _weights(weights, read), place, chunks)


def _sources(
    X: Sequence[Any], examples: str, device: str | None, name: str
) -> tuple[Place, Source, tuple[Source, ...]]:
    """Return where to compute, and X whole and chunk by chunk."""
    if all(map(is_parquet, X)) and all(map(_is_plain, X)):
        return _of_parquet(X, examples, device, name)
    arrays = [opened(chunk, examples) for chunk in X]
    chunks = tuple(data.source(array, examples=examples, name=name) for array in arrays)
    source = chunks[0] if len(arrays) == 1 else data.source(arrays, examples=examples, name=name)
    return devices.resolve(device, arrays[0]), source, chunks


def _of_parquet(
    files: Sequence[Stored], examples: str, device: str | None, name: str
) -> tuple[Place, Source, tuple[Source, ...]]:
    """Return the same of Parquet files, which are decoded into memory, or where they are large into a file."""
    if examples != "rows":
        raise ShapeError(f'{name} is a table, whose examples are rows. Pass examples="rows".')
    decoded = Decoded(files)
    rows = decoded.whole() if decoded.shape[0] * decoded.shape[1] <= data.PERMUTED else decoded
    source = replace(data.source(rows, examples=examples, name=name), names=decoded.columns)
    bounds = pairwise([0, *(int(end) for end in decoded.ends)])
    return devices.resolve(device, rows), source, tuple(_span(source, *each) for each in bounds)


def _span(source: Source, first: int, end: int) -> Source:
    """Return the source of consecutive examples of another."""
    return source.reading(lambda start, stop: source.read(first + start, first + stop), n_examples=end - first)


def _weights(given: Sequence[Any], read: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """Return the weights of a part, all of which may be 0 when those of others are not."""
    found = []
    for chunk, labels in zip(given, read, strict=True):
        values = targets.unmasked(devices.to_host(chunk), "sample_weight")
        nothing = values.dtype.kind in "biuf" and values.shape == labels.shape[-1:] and not values.any()
        kind = Task("regression", None, 1)  # without class weights the task does not matter
        weight = values if nothing else targets.weights(values, None, labels, kind, labels.shape[-1])
        found.append(np.asarray(weight, dtype=np.float64))
    return np.concatenate(found)


def look(held: Held, *, chunks: int) -> Look:
    """Return what is to be known of a part, of as many `chunks` in all as the fit has."""
    squares, sampled, checksums, begun = np.zeros(held.source.n_features), 0, [], 0
    for chunk in held.chunks:
        labels = held.labels[..., begun : begun + chunk.n_examples]
        weight = None if held.weight is None else held.weight[begun : begun + chunk.n_examples]
        begun += chunk.n_examples
        checksum = chunk.n_examples
        for rows in data.sample(chunk, max(16, SAMPLED // chunks)):
            host = devices.to_host(rows)
            checksum = zlib.crc32(np.ascontiguousarray(host).tobytes(), checksum)
            with np.errstate(all="ignore"):
                squares += (host.astype(np.float64) ** 2).sum(axis=0)
            sampled += host.shape[0]
        for array in (labels, weight):
            checksum = checksum if array is None else _crc_of_labels(array, checksum)
        checksums.append(checksum)
    numbers = held.labels.dtype.kind in "biuf"
    return Look(
        held.source.n_features,
        held.source.n_examples,
        held.source.names,
        _telling(held.labels),
        squares,
        sampled,
        float((held.labels.astype(np.float64) ** 2).sum()) if numbers else 0.0,
        tuple(checksums),
    )


def _crc_of_labels(array: npt.NDArray[Any], checksum: int) -> int:
    """Return a checksum that does not depend on how many letters the longest word of the array has."""
    words = array.dtype.kind == "U"
    content = "\0".join(array.ravel().tolist()).encode() if words else np.ascontiguousarray(array).tobytes()
    return zlib.crc32(content, checksum)


def _telling(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return labels that tell what Y means as all of them would: the distinct ones, or columns that decide."""
    if labels.ndim == 1:
        found: npt.NDArray[Any] = np.unique(labels)
        if labels.dtype.kind != "f" or found.size <= MOST_LABELS:
            return found
        broken = found[np.floor(found) != found][:1]
        return found if broken.size == 0 else np.concatenate([found[:1], found[-1:], broken])
    deciding = [*labels.argmin(axis=1), *labels.argmax(axis=1)]
    if labels.dtype.kind in "biuf":
        sums = labels.sum(axis=0)
        deciding += [int(np.argmax(sums != 1)), int(np.argmax((np.floor(labels) != labels).any(axis=0)))]
    return labels[:, np.unique(deciding)]


def counts(held: Held, *, kind: Task) -> npt.NDArray[np.int64]:
    """Return how many examples of each class a part has."""
    return targets.class_counts(held.labels, kind)


# What is decided for all parts ----------------------------------------------------------------------------------------


class Total(NamedTuple):
    """Examples and their weights, of a part or of several.

    Attributes
    ----------
    examples : int
        How many.
    largest, shares : float or None
        The largest weight, and the sum of all as shares of it; None where there are none. The sum of the weights
        themselves may be beyond float64.
    """

    examples: int
    largest: float | None = None
    shares: float = 0.0

    @property
    def weight(self) -> float:
        """The sum of the weights, each of which is 1 where there are none."""
        return float(self.examples) if self.largest is None else self.largest * self.shares

    @property
    def whole(self) -> tuple[float, float] | None:
        """What `targets.relative` has to know of all weights."""
        return None if self.largest is None else (self.largest, self.examples / self.shares)

    @classmethod
    def of(cls, weight: npt.NDArray[np.float64] | None, examples: int) -> "Total":
        """Return the total of so many examples of these weights."""
        if weight is None:
            return cls(examples)
        largest = float(weight.max(initial=0.0))
        return cls(examples, largest, float((weight / largest).sum()) if largest else 0.0)

    def plus(self, other: "Total") -> "Total":
        """Return both together."""
        examples = self.examples + other.examples
        if self.largest is None or other.largest is None:
            return Total(examples)
        largest = max(self.largest, other.largest) or 1.0
        return Total(
            examples, largest, self.shares * (self.largest / largest) + other.shares * (other.largest / largest)
        )


NOTHING = Total(0)
"""What is there before the parts have said what they have."""


@dataclass(frozen=True)
class Plan:
    """What all parts of a fit share, decided once all were looked at.

    Attributes
    ----------
    kind : Task
        What Y means.
    activation : Activation
        Of the hidden layers.
    sizes : tuple of int
        ``(n[0], …, n[L])``.
    dtype : str
        Of parameters and arithmetic.
    options : training._Options
        Of the loop, as the workers have it: no callbacks, no progress, no checkpoint.
    columns : int
        Of a step, over all parts.
    seed : int
        Of the order, and of what is held out.
    threads : int or None
        CPU threads of a worker; None is as many as Dask gave it.
    tf32 : bool
        Whether GPUs may round the factors of products.
    given : int
        Examples in all, those held out included.
    fraction : float
        The share held out.
    of_class : (k,) float64 array or None
        The classes' weights.
    scaling : tuple of two (n_x,) float64 arrays, or None
        By which X is standardized.
    training, validation : Total
        Of all parts together.
    """

    kind: Task
    activation: Activation
    sizes: tuple[int, ...]
    dtype: str
    options: Any
    columns: int
    seed: int
    threads: int | None
    tf32: bool
    given: int
    fraction: float = 0.0
    of_class: npt.NDArray[np.float64] | None = None
    scaling: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None
    training: Total = NOTHING
    validation: Total | None = None


class Chosen(NamedTuple):
    """Some of a part's examples: those to train on, or those held out."""

    source: Source
    labels: npt.NDArray[Any]
    weight: npt.NDArray[np.float64] | None
    first: int
    """The number of the first among all that were chosen so."""

    @property
    def total(self) -> Total:
        """How much they are."""
        return Total.of(self.weight, self.source.n_examples)


def chosen(held: Held, plan: Plan) -> tuple[Chosen, Chosen | None]:
    """Return a part's examples to train on, and those held out of it by ``validation_fraction``."""
    weight, numbers = held.weight, held.source.numbers
    first = numbers[0] if numbers is not None else 0
    if plan.of_class is not None:
        factors = plan.of_class[targets._members(held.labels, plan.kind)]
        weight = factors if weight is None else weight * factors
    if not plan.fraction:
        return Chosen(held.source, held.labels, weight, first), None
    found = []
    for side in data.split(plan.given, plan.fraction, plan.seed):
        ours = np.flatnonzero(side.mask[first : first + held.source.n_examples])
        source = replace(held.source.subset(ours), numbers=ours + first)
        begin = int(np.count_nonzero(side.mask[:first]))
        found.append(Chosen(source, held.labels[..., ours], None if weight is None else weight[ours], begin))
    return found[0], found[1]


def totals(held: Held, given: Held | None, *, plan: Plan) -> tuple[Total, Total | None]:
    """Return what a part has to train on, and to validate with: held out of it, or `given`."""
    ours, theirs = chosen(held, plan)
    if given is not None:
        _check_alike(given.source, held.source)
        theirs, _ = chosen(given, replace(plan, fraction=0.0, of_class=None))
    return ours.total, None if theirs is None else theirs.total


def _check_alike(given: Source, source: Source) -> None:
    """Raise when the examples to validate with have other features than those to train on."""
    if given.n_features != source.n_features:
        raise ShapeError(
            f"{given.name} must have X's {source.n_features} features; it has {given.n_features}. Pass those."
        )
    if given.names and source.names and given.names != source.names:
        raise ShapeError(
            f"{given.name} must have X's columns in the same order, {', '.join(source.names[:8])}; it has "
            f"{', '.join(given.names[:8])}. Pass its columns as X has them."
        )


def spread(held: Held, *, plan: Plan) -> Moments | None:
    """Return the moments of a part's examples to train on; None when it has none."""
    source = chosen(held, plan)[0].source
    return data.moments(source, plan.dtype) if source.n_examples else None


# A part that is ready -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part(Examples):
    """Consecutive examples of a whole, cut into its shares of the whole's batches.

    Where they are not the whole, a share is filled up to one of a few sizes, for each of which the equations are
    recorded once, with examples of weight 0.

    Attributes
    ----------
    first : int
        The number of its first example in the whole.
    total : int
        Examples of the whole.
    """

    first: int = 0
    total: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether there are no other parts."""
        return self.source.n_examples == self.total

    def whole(self) -> Batch:
        """Return all of its examples, as its share of the whole."""
        if self.source.n_examples == 0:
            return Batch([], self.total)
        return super().whole()._replace(columns=self.total)

    def ordered(
        self, batch_size: int, *, seed: int, epoch: int, shuffle: bool, under_way: int = 3, done: int = 0
    ) -> Generator[Batch, None, None]:
        """Yield its shares of the epoch's batches in order; ``columns`` are those of the whole's batch."""
        how: Any = {"seed": seed, "epoch": epoch, "shuffle": shuffle}
        if self.is_whole:
            yield from super().ordered(batch_size, **how, under_way=under_way, done=done)
        elif self.feed is not None:
            yield from self._fed(batch_size, **how, under_way=under_way, done=done)
        else:
            order = data.windows(self.total, self.source.n_features, batch_size, **how)
            with self._lent() as buffers:
                read = (self._share(window, batch_size, buffers) for window in data._left(order, batch_size, done))
                for piece, shares in read if self.rows is not None else self.in_advance(read):
                    for numbers, columns in shares:
                        yield Batch([piece._replace(numbers=numbers)] if self.source.n_examples else [], columns)

    def _fed(self, batch_size: int, *, under_way: int, **how: Any) -> Generator[Batch, None, None]:
        """Yield the shares on the device, through the ring. Not yet run on a GPU."""
        assert self.feed is not None, "X is at the device"
        host: Any = self.feed.host
        columns: deque[int] = deque()

        def noted() -> Generator[Batch, None, None]:
            with contextlib.closing(host.ordered(batch_size, **how)) as batches:
                for batch in batches:
                    columns.append(batch.columns)
                    piece = batch.pieces[0]
                    yield Batch([piece], piece.columns)

        most = self._filled(min(batch_size, self.source.n_examples), batch_size)
        for batch in self.feed.batches(noted(), most, under_way):
            yield batch._replace(columns=columns.popleft())

    def _filled(self, columns: int, batch_size: int) -> int:
        """Return the size up to which a share is filled: shares differ by about the square root of their mean."""
        mean = batch_size * self.source.n_examples / self.total
        step: int = 2 ** int(np.log2(max(1.0, mean**0.5)))
        return max(1, -(-columns // step)) * step

    def _share(self, window: Window, batch_size: int, buffers: list[Array]) -> tuple[Piece, list[tuple[Array, int]]]:
        """Return the part's examples of a window, and of each batch which of them it has and the whole's columns."""
        met = window.met() - self.first
        ours = np.flatnonzero((met >= 0) & (met < self.source.n_examples))
        numbers = met[ours]
        if self.rows is not None:
            piece = Piece(self.rows, self.Y, self.weight)
        else:
            piece, numbers = self._read_share(window.runs, numbers, buffers)
        bounds = np.arange(0, met.size + batch_size, batch_size).clip(max=met.size)
        ends = np.searchsorted(ours, bounds)
        shares = []
        for i in range(len(bounds) - 1):
            share = numbers[ends[i] : ends[i + 1]]
            empty = np.full(self._filled(share.size, batch_size) - share.size, piece.rows.shape[0] - 1)
            shares.append((self.place.asarray(np.concatenate([share, empty])), int(bounds[i + 1] - bounds[i])))
        return piece, shares

    def _read_share(
        self, runs: Sequence[tuple[int, int]], numbers: npt.NDArray[np.int64], buffers: list[Array]
    ) -> tuple[Piece, Any]:
        """Return the part's examples of some runs, read, and where in them those of these numbers are."""
        n, weight = self.source.n_examples, self.weight
        assert weight is not None, "shares are filled up by weight"
        spans = [(max(start - self.first, 0), min(stop - self.first, n)) for start, stop in runs]
        spans = [(start, stop) for start, stop in spans if start < stop]
        xp = self.place.xp
        # And one more, which weighs nothing.
        piece = Piece(
            self._rows_of(spans, buffers),
            xp.concat([*(self.Y[start:stop, ...] for start, stop in spans), self.Y[:1, ...]]),
            xp.concat([*(weight[start:stop, :] for start, stop in spans), xp.zeros_like(weight[:1, :])]),
        )
        starts = np.asarray([start for start, _ in spans], dtype=np.int64)
        bases = np.cumsum([0, *(stop - start for start, stop in spans)])
        order = np.argsort(starts)
        at = order[np.searchsorted(starts[order], numbers, side="right") - 1] if spans else numbers
        return piece, numbers - starts[at] + bases[at] if spans else numbers

    def _rows_of(self, spans: Sequence[tuple[int, int]], buffers: list[Array]) -> Array:
        """Return the rows of spans, and one more, on NumPy in the buffers in turn.

        Windows in new arrays, of other sizes each, would take several times their size of the worker's memory: what is
        freed between them fits none.
        """
        if not self.place.is_numpy:
            return self.place.xp.concat([*(self.converted(*span) for span in spans), self.converted(0, 1)])
        size = sum(stop - start for start, stop in spans)
        if size >= buffers[0].shape[0]:  # with room to spare, for shares of windows differ
            buffers[0] = np.empty((size + size // 8 + 1, self.source.n_features), self.dtype)
        rows = buffers[0][: size + 1]
        self._fill_runs(rows[:size], spans)
        rows[size:] = self.converted(0, 1)
        buffers.reverse()
        return rows

    def filled(self) -> "Part":
        """Return this part with one more example, which weighs nothing."""
        xp = self.place.xp
        assert self.rows is not None, "X is here"
        assert self.weight is not None, "the weights are here"
        return replace(
            self,
            rows=xp.concat([self.rows, self.rows[:1, :]]),
            Y=xp.concat([self.Y, self.Y[:1, :]]),
            weight=xp.concat([self.weight, xp.zeros_like(self.weight[:1, :])]),
        )

    def _whole(self, *, gathered: bool) -> "Part":
        if self.source.n_examples == 0:
            return self
        here = super()._whole(gathered=gathered)
        assert isinstance(here, Part), "replaced, a part is one"
        return here.filled() if gathered and not self.is_whole else here


@dataclass(frozen=True)
class Ready:
    """A part with which to train.

    Attributes
    ----------
    number : int
        Of the part.
    training : Part
        The examples.
    validation : Part or None
        Those held out or given to validate with.
    """

    number: int
    training: Part
    validation: Part | None

    def __sizeof__(self) -> int:
        """Return the bytes held, which is what Dask goes by."""
        kept = [self.training, *([] if self.validation is None else [self.validation])]
        arrays = [array for part in kept for array in (part.rows, part.Y, part.weight) if array is not None]
        return sum(int(getattr(array, "nbytes", 0)) for array in arrays)


def ready(held: Held, given: Held | None, *, number: int, plan: Plan, first_given: int) -> Ready:
    """Return a part ready to be trained on, at its place.

    Parameters
    ----------
    held, given : Held
        The part, and what there is to validate with besides.
    number : int
        The part's.
    first_given : int
        The number of the first example of `given` in the whole.
    """
    ours, theirs = chosen(held, plan)
    if given is not None:
        theirs, _ = chosen(given, replace(plan, fraction=0.0, of_class=None))
        theirs = theirs._replace(first=first_given)
    gathered = plan.columns < plan.training.examples
    with held.place.active():
        mine = _part(ours, plan, held.place, plan.training, "Y")
        if gathered and not mine.is_whole and mine.weight is None:  # for shares to be filled up
            mine = replace(mine, weight=held.place.xp.ones_like(mine.Y[:, :1]))
        here = mine.kept(gathered=gathered, spare=engine.peak(plan.sizes, _local(plan, mine)))
        valid = None
        if theirs is not None:
            assert plan.validation is not None, "some part has examples to validate with"
            to_validate = _part(theirs, plan, held.place, plan.validation, "validation Y", most=data.WINDOW)
            valid = to_validate.kept(gathered=False)
    return Ready(number, here, valid)  # type: ignore[arg-type]  # `kept` returns what it is called on


def shown(part: Ready, *, share: float) -> Sample | None:
    """Return such a share of a part's examples, one at least, for the diagnosis; None when it has none."""
    it = part.training
    if it.source.n_examples == 0:
        return None
    with it.place.active():
        return diagnosis.sample(it, max(1, int(share * it.source.n_examples)))


def means_of(part: Ready) -> Means:
    """Return what the worker that holds a part can sum by."""
    with part.training.place.active():
        return allreduce.means(part.training.place)


def _local(plan: Plan, part: Part) -> int:
    """Return about how many columns of a step are the part's."""
    return max(1, plan.columns * part.source.n_examples // part.total)


def _part(given: Chosen, plan: Plan, place: Place, total: Total, name: str, *, most: int | None = None) -> Part:
    made = prepared(
        given.source,
        given.labels,
        plan.kind,
        place,
        plan.dtype,
        plan.scaling,
        given.weight,
        most=data.PERMUTED if most is None else most,
        name=name,
        whole=total.whole,
    )
    return Part(**vars(made), first=given.first, total=total.examples)


# The loop -------------------------------------------------------------------------------------------------------------


class Spread(Engine):
    """An engine whose sums go over the columns of all parts; pieces are those of each part here, by its number."""

    sums: Sums

    def gradient(self, theta: Array, pieces: Any) -> tuple[Array, Array]:
        """Return the cost and its gradient, summed over the columns of all parts, the same bits on every worker."""
        total = self.sums.sum({number: self._packed(theta, part) for number, part in pieces.items()})
        total = self.place.asarray(total)
        return total[-1], total[:-1]

    def _packed(self, theta: Array, pieces: Iterable[Piece]) -> Array:
        """Return a part's gradient and, after it, its cost."""
        if isinstance(pieces, list) and not pieces:
            return self.xp.zeros_like(self.xp.concat([theta, theta[:1]]))
        cost, gradient = super().gradient(theta, pieces)
        cost = self.xp.asarray(cost, dtype=gradient.dtype)
        return self.xp.concat([gradient, self.xp.reshape(cost, (1,))])

    def cost(self, layers: Sequence[Layer], pieces: Any) -> Array:
        """Return the cost, summed over the columns of all parts."""
        found = {}
        for number, part in pieces.items():
            empty = isinstance(part, list) and not part
            cost = 0.0 if empty else super().cost(layers, part)
            found[number] = self.xp.reshape(self.xp.asarray(cost, dtype=layers[0].W.dtype), (1,))
        return self.place.asarray(self.sums.sum(found))[0]

    def _launched(self, *_: Any, **__: Any) -> None:
        """Return that a step is no launches of a GPU's: the sums among workers come between."""

    def _sums_of(self, batch: Batch, l2: float, theta: Array) -> tuple[Array, list[Array]]:
        total, gradient = self._summed(batch, l2, theta)
        return total, [gradient]

    def step(self, optimizer: Any, theta: Array, memory: Any, batch: Batch, **options: Any) -> tuple[Array, Any]:
        """Take one step of the optimizer on a batch, as `Engine.step` does.

        Raises
        ------
        DeviceFullError
            Memory ran out in the update, which cannot be taken anew: the others have gone on.
        """
        self._stepping = True
        return super().step(optimizer, theta, memory, batch, **options)

    def _unless_full(self, function: Callable[[], T], columns: int) -> tuple[T] | None:
        stepping, self._stepping = getattr(self, "_stepping", False), False
        made = super()._unless_full(function, columns)
        if made is None and stepping:
            raise DeviceFullError(f"{self.place} must have room for the optimizer's update; it has not.")
        return made


@dataclass(frozen=True)
class Together:
    """The parts that a worker holds, as one set of examples of `training`'s loop.

    Attributes
    ----------
    parts : mapping of int to Part or None
        By their numbers; None has no examples.
    total : int
        Examples of the whole.
    """

    parts: Mapping[int, Part | None]
    total: int

    def __getattr__(self, name: str) -> Any:
        """Return what all parts share: the scaling, the dtype, the source's names."""
        return getattr(next(iter(self.parts.values())), name)

    def whole(self) -> Batch:
        """Return all examples here."""
        empty = Batch([], self.total)
        return _of_all({number: empty if part is None else part.whole() for number, part in self.parts.items()})

    def batches(self, batch_size: int, **how: Any) -> Generator[Batch, None, None]:
        """Yield the shares of each batch."""
        with contextlib.ExitStack() as stack:
            each = [
                stack.enter_context(contextlib.closing(part.batches(batch_size, **how)))
                for part in self.parts.values()
                if part is not None
            ]
            for batches in zip(*each, strict=True):
                yield _of_all(dict(zip(self.parts, batches, strict=True)))


def _of_all(batches: Mapping[int, Batch]) -> Batch:
    pieces: Any = {number: batch.pieces for number, batch in batches.items()}
    return Batch(pieces, next(iter(batches.values())).columns)


def segment(
    parts: Sequence[Ready],
    *,
    plan: Plan,
    at: Standing,
    until: int,
    members: Sequence[Member],
    means: Sequence[Means],
    name: str,
) -> Standing | None:
    """Train up to an epoch on the parts that this worker holds, together with the others.

    Parameters
    ----------
    parts : sequence of Ready
        In the order of their numbers.
    at : Standing
        Where to begin, on the host.
    until : int
        The epochs that are to be ended then.
    members, means : sequences of Member and Means
        All workers, and what each can sum by.
    name : str
        Of the segment; never used again.

    Returns
    -------
    Standing or None
        Where training stands, on the host; None from all workers but the first.

    Raises
    ------
    CutShortError
        Another worker has left, or this is not the worker that was meant.
    """
    from distributed import get_worker

    worker = get_worker()
    if worker.address not in [member.address for member in members]:
        raise allreduce.CutShortError(f"A segment for another worker came to {worker.address}.")
    key = worker.get_current_task()

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state == "executing"

    place, mine = parts[0].training.place, {part.number: part.training for part in parts}
    valid = {part.number: part.validation for part in parts}
    largest = max(_local(plan, part) for part in mine.values())
    if plan.validation is not None:
        largest = max(largest, *(part.source.n_examples for part in mine.values()))
    threads = plan.threads or worker.state.nthreads
    examples: Any = Together(mine, plan.training.examples)  # it has all that the loop asks of examples
    validation: Any = None if plan.validation is None else Together(valid, plan.validation.examples)
    with (
        memory_kept(),
        place.active(),
        engine.running(
            place,
            plan.sizes,
            plan.activation,
            heads.HEADS[plan.kind.head],
            columns=largest,
            threads=threads,
            tf32=plan.tf32,
            make=Spread,
        ) as run,
        contextlib.closing(allreduce.met(worker, members, means, place, name, wanted)) as sums,
    ):
        run.sums = sums  # type: ignore[attr-defined]  # it is a Spread
        loop = training._Training(
            options=plan.options,
            engine=run,
            place=place,
            sizes=plan.sizes,
            examples=examples,
            validation=validation,
            columns=plan.columns,
            weight_sum=plan.training.weight,
            seed=plan.seed,
            theta=place.asarray(at.theta, dtype=plan.dtype),
            make_network=_no_network,
        )
        loop.resume(at.placed(loop.standing(), place))
        while not loop.stop_reason and loop.epoch < until:
            loop._one_epoch()
        return loop.standing().on_host() if worker.address == members[0].address else None


def _no_network(**_: Any) -> Any:
    raise ArgumentError("A worker makes no networks.")


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """Have glibc keep the memory that arrays leave, for the duration of a ``with``, where Dask's nanny has it not.

    Its ``MALLOC_TRIM_THRESHOLD_`` makes every array above 128 KiB new pages: a step of large arrays takes twice as
    long. What the variables ask for holds again afterwards; where they are not set glibc adapts by itself.
    """
    if _TRIM[1] not in os.environ or not sys.platform.startswith("linux"):
        yield
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # another C library
        yield
        return
    for parameter, _, wanted, _ in (_TRIM, _MAP):
        libc.mallopt(parameter, wanted)
    try:
        yield
    finally:
        for parameter, variable, _, default in (_TRIM, _MAP):
            libc.mallopt(parameter, int(os.environ.get(variable, default)))
