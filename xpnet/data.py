"""Where X comes from, in which order its examples are met, and the batches that training sees.

Inside, an example's numbers lie together in memory: a batch is ``rows[order].T``, ``(n_x, b)``, for gathering rows of
C-ordered data is 60 times faster than gathering its columns. The order is a function of the shape, the seed and the
epoch alone, so every device meets the same examples in the same order.
"""

import gc
import mmap
import operator
import shutil
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import array_api_compat
import numpy as np
import numpy.typing as npt

from xpnet import device as devices
from xpnet import frames, selection, targets
from xpnet.arguments import choice, true_or_false, whole
from xpnet.cuda import CudaDevice, Filling, Ring, Timing, gathered
from xpnet.device import HOST, Place
from xpnet.errors import ArgumentError, DataError, DeviceMemoryWarning, ShapeError
from xpnet.features import Features
from xpnet.parquet import Parquet
from xpnet.selection import Picked, Selection
from xpnet.typing import Array, Namespace

RUN = 4_096
"""Consecutive examples that are read together when data is too large for one permutation."""

WINDOW = 2**24
"""Numbers of X (64 MiB in float32) that are shuffled together when data is too large for one permutation."""

PERMUTED = 2**28
"""Up to this many numbers of X (1 GiB in float32), every epoch is one permutation of all examples, for which files are
kept in memory whole; larger files, and those whose order does not matter, are read a window or less at a time."""

READ = 2**22
"""Numbers of X that are read, checked or converted at a time."""

MAPPED = 2**21
"""Bytes of a mapped file that the system may map, besides those asked for, where any are read: a huge page of them."""

CONVERTED = 2**17
"""Numbers of X that are standardized at a time: 1 MiB in float64, which stays in a core's cache."""

RESIDENT = 0.8
"""Share of a GPU's free memory that examples and a step on a batch may take together, by estimate, for the examples to
be kept there; the rest is for what estimates leave out. Larger examples stay where they are and go through a ring."""

T = TypeVar("T")


def _nothing() -> None:
    """Let go of nothing."""


class Piece(NamedTuple):
    """Some examples at the place where they are computed with.

    Attributes
    ----------
    rows : (k, n_x) float array
    Y : (k, n_y) float array
    weight : (k, 1) float array or None
    numbers : (b,) int64 array or None
        Which of the k examples are meant, in order; None is all of them.
    lent : bool
        Whether the arrays will hold other examples when this piece is done with.
    labeled : (b,) int64 array or None
        Which rows of Y and weight those examples have, when these are not the k's, but a window's of a file.
    """

    rows: Array
    Y: Array
    weight: Array | None = None
    numbers: Array | None = None
    lent: bool = False
    labeled: Array | None = None

    @property
    def columns(self) -> int:
        """How many examples are meant."""
        return int((self.rows if self.numbers is None else self.numbers).shape[0])

    @property
    def picks(self) -> tuple[Array, Array, Array]:
        """Which rows are meant of `rows`, of `Y` and of `weight`."""
        labeled = self.numbers if self.labeled is None else self.labeled
        return self.numbers, labeled, labeled

    def cut(self, span: slice) -> "Piece":
        """Return the piece of those columns alone."""
        if self.numbers is not None:
            labeled = None if self.labeled is None else self.labeled[span]
            return Piece(self.rows, self.Y, self.weight, self.numbers[span], self.lent, labeled)
        rows, Y, weight = (None if array is None else array[span, ...] for array in self[:3])
        return Piece(rows, Y, weight)

    def taken(self, place: Place) -> tuple[Array, Array, Array | None]:
        """Return the columns' ``X (n_x, b)``, ``Y (n_y, b)`` and ``weight (1, b)``, ready for the equations."""
        taken = (
            array if chosen is None or array is None else place.xp.take(array, chosen, axis=0)
            for array, chosen in zip(self[:3], self.picks, strict=True)
        )
        X, Y, weight = (None if array is None else place.xp.matrix_transpose(array) for array in taken)
        return X, Y, weight


class Batch(NamedTuple):
    """The columns of one step, in pieces that can be gone through again."""

    pieces: Iterable[Piece]
    columns: int


@dataclass(frozen=True)
class Source:
    """Examples that can be read in slices, wherever they are kept.

    Attributes
    ----------
    n_features, n_examples : int
        n_x and m.
    place : Place
        Where slices come out.
    in_memory : bool
        False for files: memmaps, h5py, zarr and their like, which are read a few blocks at a time.
    names : tuple of str or None
        The features' names, when a table has them.
    read : callable
        ``read(start, stop)``, the examples' rows, ``(stop - start, n_x)``.
    name : str
        What messages call it.
    numbers : (n_examples,) int64 array, range, Selection or None
        The examples' numbers in what was given, when this is a subset of it.
    apart : bool
        Whether, in a file, the numbers of an example lie apart and those of a feature together.
    in_turn : bool
        Whether examples are to be read one after another: elsewhere, those before them have to be decoded too.
    mapped : (m, n_x) array or None
        The rows of a memmap in which they lie one after another: examples can be picked out of the file itself.
    let_go : callable
        Gives back the pages of memory that reading has mapped; what `read` returned may be read from disk again then.
    """

    n_features: int
    n_examples: int
    place: Place
    in_memory: bool
    names: tuple[str, ...] | None
    read: Callable[[int, int], Array]
    name: str = "X"
    numbers: npt.NDArray[np.int64] | range | Selection | None = None
    apart: bool = False
    in_turn: bool = False
    mapped: Array | None = None
    let_go: Callable[[], None] = _nothing

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return self.n_examples * self.n_features

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield the bounds of slices of about `READ` numbers."""
        step = max(1, READ // self.n_features)
        for start in range(0, self.n_examples, step):
            yield start, min(start + step, self.n_examples)

    def reading(self, read: Callable[[int, int], Array], **changes: Any) -> "Source":
        """Return this source with another way to read and other changes; what is mapped has none of these."""
        return replace(self, read=read, **{"mapped": None} | changes)

    def copied(self, start: int, stop: int) -> Array:
        """Return some rows; of a file in memory of their own, for which no page stays mapped."""
        rows = self.read(start, stop)
        if self.in_memory:
            return rows
        rows = self.place.xp.asarray(rows, copy=True)
        self.let_go()
        return rows

    def subset(self, numbers: npt.NDArray[np.int64] | Selection) -> "Source":
        """Return the source of these examples only; their numbers rise."""

        def read(start: int, stop: int) -> Array:
            chosen = numbers[start:stop]
            if chosen.size == 0:
                return self.read(0, 0)
            found = [taken(some) for some in self._near(chosen)]
            with self.place.active():  # X may be on another GPU than the one that computes
                return found[0] if len(found) == 1 else self.place.xp.concat(found)

        def taken(some: npt.NDArray[np.int64]) -> Array:
            rows = self.read(int(some[0]), int(some[-1]) + 1)
            with self.place.active():
                rows = self.place.xp.take(rows, self.place.asarray(some - some[0]), axis=0)
            self.let_go()
            return rows

        return self.reading(read, n_examples=int(numbers.size), numbers=numbers)

    def _near(self, chosen: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """Cut examples of a file into those that lie within about `READ` numbers: they may be few and far between."""
        if self.in_memory:
            return [chosen]
        step = max(1, READ // self.n_features)
        bounds = np.arange(int(chosen[0]) + step, int(chosen[-1]) + 1, step)
        return [some for some in np.split(chosen, np.searchsorted(chosen, bounds)) if some.size]

    def feature(self, number: int) -> str:
        """Return how messages call this feature."""
        return f"feature {number} ({self.names[number]!r})" if self.names else f"feature {number}"

    def check_finite(self, rows: Array, start: int, dtype: str, *, xp: Namespace) -> None:
        """Check the rows of the examples from `start` on, in the `dtype` that they were cast to.

        Raises
        ------
        DataError
            A number is not finite; the message says which, and whether it was before the cast.
        """
        # A sum is finite only if all its terms are; the costlier look at each follows only when it is not.
        with np.errstate(all="ignore"):
            if bool(xp.isfinite(xp.sum(rows))):
                return
        wrong = ~np.isfinite(devices.to_host(rows))
        if not wrong.any():
            return
        row, feature = (int(i) for i in np.argwhere(wrong)[0])
        example = start + row
        value = devices.to_host(self.read(example, example + 1))[0, feature]
        where = f"{self.feature(feature)} of example {example if self.numbers is None else self.numbers[example]}"
        if np.isfinite(value):
            raise DataError(
                f"{self.name} must fit in {dtype}; {where} is {value:g}, beyond its range. Scale it, or pass "
                'dtype="float64".'
            )
        raise DataError(f"{self.name} must be finite; {where} is {value}. Remove such examples or fill in the values.")


def source(
    X: Any,
    *,
    examples: str = "columns",
    name: str = "X",
    features: Features | None = None,
    names: Sequence[str] | None = None,
) -> Source:
    """Return `X` as a source.

    Parameters
    ----------
    X : array, memmap, h5py or zarr array, table, Parquet, nested list of numbers, or a list of these
        ``(n_x, m)``, or ``(m, n_x)`` with ``examples="rows"``; real numbers. Several are joined along m. A source is
        returned as it is.
    examples : {"columns", "rows"}
        Which way the examples lie.
    name : str
        What messages call it.
    features : Features, optional
        How tables are encoded; arrays are taken as encoded already.
    names : sequence of str, optional
        The columns that tables must have when they are not encoded.

    Raises
    ------
    DataError
        It is empty, complex, or not numbers.
    ShapeError
        It is not 2-D, the parts have different features, or a table has other columns than it must.
    """
    choice("examples", examples, ("columns", "rows"))
    tables = frames.tables(X, examples=examples, name=name)
    called = [f"{name}[{i}]" if isinstance(X, list | tuple) else name for i in range(len(tables))]
    if tables and features is not None:
        encoded = [features.encode(table, name=each) for table, each in zip(tables, called, strict=True)]
        return replace(source(encoded, examples="rows", name=name), names=features.names)
    for table, each in zip(tables, called, strict=True):
        if names is not None:
            frames.check_names(table, names, name=each, kept_as="net.feature_names" if name == "X" else "")
    made = X if isinstance(X, Source) else _made(X, examples, name)
    if names is not None and made.names is not None and made.names != tuple(names):
        problem, _ = frames.difference(names, made.names)
        raise ShapeError(
            f"{name} must have the columns trained on, in their order; {problem}. Name them with "
            "xpnet.Parquet(path, columns=net.feature_names)."
        )
    return made


def _made(X: Any, examples: str, name: str) -> Source:
    if isinstance(X, list | tuple) and X and all(map(_is_whole_one, X)):
        return _joined([_one(part, examples, f"{name}[{i}]") for i, part in enumerate(X)], list(X), name)
    return _one(X, examples, name)


def _is_whole_one(part: Any) -> bool:
    """Return whether a part of a list is examples, rather than a row of a nested list."""
    return hasattr(part, "read_row_group") or (hasattr(part, "shape") and len(part.shape) == 2)


def _one(X: Any, examples: str, name: str) -> Source:
    if isinstance(X, Parquet) or hasattr(X, "read_row_group"):
        return _of_parquet(X if isinstance(X, Parquet) else Parquet(X), examples, name)
    names = frames.names(X)
    if names is not None:
        frames.tables(X, examples=examples, name=name)
        X = frames.numbers(X, name=name)
    elif not hasattr(X, "shape"):
        X = _from_lists(X, name)
    elif hasattr(X, "tocsr"):
        raise DataError(f"{name} must be a dense array, (n_x, m); it is a {type(X).__name__}. Pass {name}.toarray().")
    elif not hasattr(X, "__getitem__") or not hasattr(X, "dtype"):
        raise _no_array(X, name)
    shape = tuple(X.shape)
    rows = examples == "rows"
    _check_shape(shape, rows, name)
    n_examples, n_features = shape if rows else shape[::-1]
    _check_numeric(X, name)
    X = targets.unmasked(X, name)
    place = devices.place_of(X)
    # An array may be a map all the same, `numpy.asarray` makes one of it: that is taken for memory.
    is_map = isinstance(X, np.memmap)
    in_memory = array_api_compat.is_array_api_obj(X) and not is_map
    let_go = _unmapping(X)
    strides = X.strides if is_map else (2, 1)  # what is no array is read in C order
    apart = rows == (strides[0] < strides[1])

    def read(start: int, stop: int) -> Array:
        part = X[start:stop, :] if rows else X[:, start:stop]
        if is_map and apart:
            return _by_features(part if rows else part.T, let_go)
        if not array_api_compat.is_array_api_obj(part) or isinstance(part, np.memmap):
            part = np.asarray(part)
        return part if rows else place.xp.matrix_transpose(part)

    by_example = X if rows or not is_map else X.T
    together = is_map and by_example.flags.c_contiguous and by_example.flags.aligned
    return Source(
        int(n_features),
        int(n_examples),
        place,
        in_memory,
        names,
        read,
        name,
        apart=apart,
        mapped=np.asarray(by_example) if together else None,
        let_go=let_go,
    )


def _by_features(part: npt.NDArray[Any], let_go: Callable[[], None]) -> npt.NDArray[Any]:
    """Return a copy of some rows of a map, ``(k, n_x)``, in which a feature's numbers lie together, as they do there.

    Some features at a time: each lies in another place of the file, around which the system may map `MAPPED` bytes.
    """
    rows = np.empty(part.shape[::-1], part.dtype).T
    step = max(1, READ * 4 // MAPPED)
    for at in range(0, part.shape[1], step):
        np.copyto(rows[:, at : at + step], part[:, at : at + step])
        let_go()
    return rows


def _of_parquet(X: Parquet, examples: str, name: str) -> Source:
    if examples != "rows":
        raise ShapeError(f'{name} is a table, whose examples are rows. Pass examples="rows".')
    _check_shape(X.shape, True, name)
    n_examples, n_features = X.shape
    return Source(n_features, n_examples, HOST, False, X.columns, X.read, name, in_turn=True)


def _unmapping(X: Any) -> Callable[[], None]:
    """Return what gives back the pages of a memmap that have been read; they stay in the system's cache.

    Mapped, they would count as this process's memory until the system needs them elsewhere. Those of a private map
    (``mode="c"``) may hold what is in no file, and are left alone.
    """
    base = X if isinstance(X, np.memmap) and X.mode != "c" else None
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    if base is None or not hasattr(mmap, "MADV_DONTNEED"):
        return _nothing
    return partial(base.madvise, mmap.MADV_DONTNEED)


def spooled(source: Source, most: int) -> Source:
    """Return a source whose examples can be read in any order, and often, from one that is to be read in turn.

    That of up to `most` numbers, which will be kept in memory, is returned as it is.

    They are decoded once, into a temporary file without a name, which is gone when nothing refers to it any more.

    Raises
    ------
    DataError
        The disk has no room for it.
    """
    if not source.in_turn or source.size <= most:
        return source
    dtype, shape = source.read(0, 1).dtype, (source.n_examples, source.n_features)
    needed, folder = dtype.itemsize * source.size, tempfile.gettempdir()
    if (free := shutil.disk_usage(folder).free) < needed:
        raise DataError(
            f"{source.name} is read in random order from a temporary file of {needed / 2**30:.1f} GiB, and {folder} "
            f"has {free / 2**30:.1f} GiB free. Set TMPDIR to a folder that has more."
        )
    with tempfile.TemporaryFile(prefix="xpnet-") as file:
        for start, stop in source.blocks():
            file.write(np.ascontiguousarray(source.read(start, stop)).data)
        file.flush()
        rows = np.memmap(file, dtype=dtype, mode="r", shape=shape)
    made = _one(rows, "rows", source.name)
    return source.reading(made.read, in_turn=False, mapped=made.mapped, let_go=made.let_go)


def _no_array(X: Any, name: str) -> DataError:
    what = "None" if X is None else f"of type {type(X).__name__}"
    lazy = next((way for way in ("collect", "to_table", "read_all") if hasattr(X, way)), None)
    mend = "an array, a table or a list" if lazy is None else f'{name}.{lazy}(), with examples="rows"'
    return DataError(f"{name} must be an array of numbers, (n_x, m); it is {what}. Pass {mend}.")


def _check_shape(shape: tuple[int, ...], rows: bool, name: str) -> None:
    wanted = "(m, n_x), one row an example" if rows else "(n_x, m), one column an example"
    if len(shape) == 1:
        example, feature = (
            (f"{name}[None, :]", f"{name}[:, None]") if rows else (f"{name}[:, None]", f"{name}[None, :]")
        )
        raise ShapeError(
            f"{name} must be 2-D, {wanted}; its shape is {shape}. One example is {example}; one feature is {feature}."
        )
    if len(shape) != 2:
        flat = f"{name}.reshape(len({name}), -1){'' if rows else '.T'}"
        raise ShapeError(
            f"{name} must be 2-D, {wanted}; its shape is {shape}. If its first axis counts examples, pass {flat}."
        )
    if 0 in shape:
        raise DataError(
            f"{name} must hold at least one example and one feature; its shape is {shape}. Check the filter or the "
            "file that it comes from."
        )


def _joined(parts: list[Source], arrays: list[Any], name: str) -> Source:
    first = parts[0]
    for i, part in enumerate(parts):
        if part.n_features != first.n_features:
            raise ShapeError(
                f"The parts of {name} must have the same features; {name}[0] has {first.n_features}, "
                f"{name}[{i}] has {part.n_features}. Parts are joined along the examples."
            )
        if part.names and first.names and part.names != first.names:
            problem, _ = frames.difference(first.names, part.names)
            raise ShapeError(
                f"{name}[{i}] must have the columns of {name}[0], in their order; {problem}. Pass its columns as "
                f"{name}[0] has them."
            )
    devices.same_place(*((f"{name}[{i}]", array) for i, array in enumerate(arrays)))
    ends = np.cumsum([part.n_examples for part in parts])

    def read(start: int, stop: int) -> Array:
        found: list[Array] = []
        for part, end in zip(parts, ends, strict=True):
            begin = int(end) - part.n_examples
            low, high = max(start, begin), min(stop, int(end))
            if low < high or (low == high and not found and part is parts[-1]):
                found.append(first.place.asarray(part.read(low - begin, high - begin)))
        with first.place.active():
            return found[0] if len(found) == 1 else first.place.xp.concat(found)

    def let_go() -> None:
        for part in parts:
            part.let_go()

    return first.reading(
        read,
        n_examples=int(ends[-1]),
        in_memory=all(part.in_memory for part in parts),
        name=name,
        in_turn=any(part.in_turn for part in parts),
        let_go=let_go,
    )


def _from_lists(X: Any, name: str) -> npt.NDArray[Any]:
    try:
        values = np.asarray(X)
    except ValueError as error:
        raise ShapeError(
            f"{name} must be an array of numbers, (n_x, m); it is a {type(X).__name__} whose rows differ in length. "
            "Give each the same number of values."
        ) from error
    if values.ndim == 0:
        raise _no_array(X, name)
    return values


def _check_numeric(X: Any, name: str) -> None:
    kind = devices.dtype_name(X)
    if kind.startswith("complex"):
        raise DataError(f"{name} must be real numbers; it is {kind}. Pass its real and imaginary parts as features.")
    if not kind.startswith(("float", "bfloat", "int", "uint", "bool")):
        raise DataError(f"{name} must be numbers; its dtype is {kind}. Encode words as numbers, or cast with astype.")


# Order ----------------------------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """Examples that are shuffled together.

    Attributes
    ----------
    runs : list of (start, stop)
        Consecutive examples, to be read one after another.
    order : (k,) int64 array
        The order in which the k examples read are met.
    """

    runs: list[tuple[int, int]]
    order: npt.NDArray[np.int64]

    def met(self) -> npt.NDArray[np.int64]:
        """Return the examples' numbers in all of the data, in that order, ``(k,)``."""
        return np.concatenate([np.arange(*run) for run in self.runs])[self.order]


def windows(m: int, n_x: int, batch_size: int, *, seed: int, epoch: int, shuffle: bool) -> Iterator[Window]:
    """Yield the order in which one epoch meets m examples.

    Up to `PERMUTED` numbers it is one permutation of all of them. Larger data is cut into runs of `RUN` consecutive
    examples; the runs are taken in random order, as many at a time as make `WINDOW` numbers or one batch, and the
    examples of each such window are permuted. A last, shorter run joins the last window, so that every epoch has
    windows of the same sizes. Nothing here depends on where the data is kept.
    """
    generator = np.random.default_rng([seed, 1, epoch])
    if m * n_x <= PERMUTED:
        yield Window([(0, m)], generator.permutation(m) if shuffle else np.arange(m))
        return
    starts = np.arange(m // RUN) * RUN
    if shuffle:
        starts = generator.permutation(starts)
    runs_at_once = max(1, -(-batch_size // RUN), WINDOW // (n_x * RUN))
    for i in range(0, max(1, starts.size), runs_at_once):
        runs = [(int(start), int(start) + RUN) for start in starts[i : i + runs_at_once]]
        if i + runs_at_once >= starts.size and m % RUN:
            runs.append((m - m % RUN, m))
        size = sum(stop - start for start, stop in runs)
        yield Window(runs, generator.permutation(size) if shuffle else np.arange(size))


def _left(order: Iterator[Window], batch_size: int, done: int) -> Iterator[Window]:
    """Yield what is left of the windows after so many batches of them."""
    for window in order:
        if done * batch_size < window.order.size:
            yield window._replace(order=window.order[done * batch_size :])
        done -= min(done, -(-window.order.size // batch_size))


def ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """Yield from `items`, making up to `depth` of them in advance on another thread."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="xpnet-read") as reader:
        waiting = deque(reader.submit(next, items, end) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(reader.submit(next, items, end))
            yield item  # type: ignore[misc]  # `end` is the only thing in the queue that is not a T


# Batches --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Encoded:
    """The equations' Y by rows, ``(m, n_y)``, encoded as it is asked for: it may be n_y times as large as the labels.

    Attributes
    ----------
    labels : (m,) or (n_y, m) array, or Picked
        From `xpnet.targets.read`.
    task : Task
        What they are encoded for.
    dtype : str
        Of the numbers.
    """

    labels: npt.NDArray[Any] | Picked
    task: targets.Task
    dtype: str

    @property
    def shape(self) -> tuple[int, int]:
        """As an array's."""
        return int(self.labels.shape[-1]), self.task.n_outputs

    def __getitem__(self, key: tuple[Any, Any]) -> Array:
        """Return some of its rows, ``Y[start:stop, ...]``, or one column, ``Y[:, i]``, as an array does."""
        rows, columns = key
        if columns is not ...:
            return np.concatenate([part[:, columns] for part in self.parts()])
        return np.ascontiguousarray(targets.encode(self.labels[..., rows], self.task).T, dtype=self.dtype)

    def parts(self) -> Iterator[Array]:
        """Yield all its rows, some after others."""
        for start in range(0, self.shape[0], targets.COLUMNS):
            yield self[start : start + targets.COLUMNS, ...]


@dataclass(frozen=True)
class Examples:
    """X, Y and weights at the place where they are computed with, to be cut into batches.

    Attributes
    ----------
    source : Source
        X as it was given.
    place : Place
        Where batches come out.
    dtype : str
        The parameters' dtype.
    scaling : tuple of two (n_x,) float64 arrays, or None
        The mean and deviation by which X is standardized.
    Y : (m, n_y) float array, or Encoded
        Targets, at `place` once the examples are `kept`; until then anywhere. Of what is streamed, encoded as needed.
    weight : (m, 1) float array or None
        Factors of the columns, where Y is; their mean is 1.
    rows : (m, n_x) float array or None
        X, at `place` and standardized, when it is kept there whole.
    feed : Feed or None
        What brings batches to `place`, when X is on the host and stays there; `Y` and `weight` are there too then.
    buffers : list of (k, n_x) float array
        For windows read from files, when no pass uses them.
    checked : set of int
        Where runs begin that were read from a file and found finite: they are not looked at again in every epoch.
    most : int
        Numbers of X up to which a file is kept in memory whole; larger ones are streamed.
    """

    source: Source
    place: Place
    dtype: str
    scaling: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None
    Y: Array
    weight: Array | None = None
    rows: Array | None = None
    feed: "Feed | None" = None
    buffers: list[Array] = field(default_factory=list)
    checked: set[int] = field(default_factory=set)
    most: int = field(default_factory=lambda: PERMUTED)

    @property
    def total(self) -> int:
        """The examples that batches are of: all, also where these are a part of them."""
        return self.source.n_examples

    @property
    def large(self) -> bool:
        """Whether it has more than `most` numbers."""
        return self.source.size > self.most

    @property
    def streamed(self) -> bool:
        """Whether it is never in memory whole."""
        return self.large and not self.source.in_memory

    def kept(self, *, gathered: bool, spare: int = 0) -> "Examples":
        """Return these examples with X at `place` whole, when it is in memory and there is room for it.

        On the host, files of up to `most` numbers are kept too. A GPU has room when the estimate of all that will
        be there is within `RESIDENT` of what is free; where it has, files are kept there too. Where it has not, batches
        are brought there through a ring.

        Parameters
        ----------
        gathered : bool
            Whether batches will be picked out of it, for which its rows should each lie together.
        spare : int
            About how many numbers a step needs at most besides the examples, see `xpnet.engine.peak`. As a step can
            be taken in parts, no more than half of the room is denied to the examples for it.
        """
        if not self.place.is_cuda:
            return self._there() if self.streamed else self._whole(gathered=gathered)
        if self._fits(spare, gathered=gathered) and (whole := self._whole_or_none(gathered=gathered)) is not None:
            return whole
        if self.source.place.name == self.place.name:
            return self._there()  # X is in that memory already, in another form
        weight = None if self.weight is None else HOST.asarray(self.weight)
        host = replace(self, place=HOST, Y=HOST.asarray(self.Y), weight=weight)
        host = host if self.streamed else host._whole(gathered=gathered)
        return replace(host, place=self.place, rows=None, feed=Feed(host, self.place))

    def _fits(self, spare: int, *, gathered: bool) -> bool:
        """Return whether `place` has room for X whole, by estimate."""
        room, item = self.place.room(), np.dtype(self.dtype).itemsize
        it = self.source
        if room is None or (it.place == self.place and self.scaling is None and not (gathered and self._is_turned())):
            return True
        limit = RESIDENT * room
        return item * it.n_examples * it.n_features + min(item * spare, limit / 2) <= limit

    def _is_turned(self) -> bool:
        """Return whether X is in memory, but an example's numbers do not lie together there."""
        if not self.source.in_memory:
            return False
        flags = getattr(self.source.read(0, self.source.n_examples), "flags", None)
        return flags is not None and not flags.c_contiguous

    def _there(self) -> "Examples":
        """Return these examples with Y and weights at `place`."""
        weight = None if self.weight is None else self.place.asarray(self.weight)
        Y = self.Y if isinstance(self.Y, Encoded) else self.place.asarray(self.Y)
        return replace(self, Y=Y, weight=weight)

    def _whole_or_none(self, *, gathered: bool) -> "Examples | None":
        """Return these examples with X at `place` whole, or None when memory runs out, which is released then."""
        try:
            return self._whole(gathered=gathered)
        except Exception as error:
            if not devices.is_full(error):
                raise
        gc.collect()
        self.place.release()
        return None

    def _whole(self, *, gathered: bool) -> "Examples":
        """Return these examples with X at `place` whole."""
        # CuPy takes page-locked memory as large as the array that it uploads, so that goes block by block.
        uploaded = self.place.is_cuda and self.source.place != self.place
        turned = gathered and self.place.is_cuda and self._is_turned()
        if self.scaling is None and self.source.in_memory and not uploaded and not turned:
            rows = convert(self.source.read(0, self.source.n_examples), None, self.place, self.dtype)
            if gathered and self.place.is_numpy:
                rows = np.ascontiguousarray(rows)
            for start, stop in self.source.blocks():
                self.source.check_finite(rows[start:stop, :], start, self.dtype, xp=self.place.xp)
        elif self.place.is_numpy:
            m = self.source.n_examples
            rows = self.fill(self.empty(m, together=gathered or self.scaling is not None), 0, m)
        else:
            rows = self._assembled()
        return replace(self._there(), rows=rows)

    def _assembled(self) -> Array:
        """Return all rows at `place`, converted block by block; row after row where arrays can be written to."""
        xp, it = self.place.xp, self.source
        if not self.place.is_cuda:
            return xp.concat([self.converted(*block) for block in it.blocks()])
        rows = xp.empty((it.n_examples, it.n_features), dtype=getattr(xp, self.dtype))
        for start, stop in it.blocks():
            rows[start:stop, :] = self.converted(start, stop)
            it.let_go()
        return rows

    def empty(self, count: int, *, together: bool) -> Array:
        """Return an array on the host for the rows of so many examples.

        Unless they should each lie together, they will lie as in the file, for the same bits as if that had been in
        memory: BLAS goes through the one and the other in different ways.
        """
        n_x = self.source.n_features
        apart = self.source.apart and not together
        return np.empty((n_x, count), self.dtype).T if apart else np.empty((count, n_x), self.dtype)

    def fill(self, rows: Array, start: int, stop: int) -> Array:
        """Write these examples' rows, checked and standardized, into an array on the host, `READ` numbers at a time."""
        step = max(1, READ // self.source.n_features)
        for at in range(start, stop, step):
            end = min(at + step, stop)
            self._fill(rows[at - start : end - start], at, end)
            self.source.check_finite(rows[at - start : end - start], at, self.dtype, xp=np)
            self.source.let_go()
        return rows

    def _fill(self, rows: Array, start: int, stop: int) -> None:
        given = self.source.read(start, stop)
        with np.errstate(all="ignore"):
            if self.scaling is None:
                np.copyto(rows, devices.to_host(given), casting="unsafe")
            else:
                step = max(1, CONVERTED // self.source.n_features)
                for at in range(0, stop - start, step):
                    rows[at : at + step] = convert(given[at : at + step, ...], self.scaling, HOST, self.dtype)

    def _check_once(self, rows: Array, start: int) -> None:
        """Check the rows of the run that begins there, unless that was done in an earlier epoch."""
        if start not in self.checked:
            self.source.check_finite(rows, start, self.dtype, xp=np)
            self.checked.add(start)

    def converted(self, start: int, stop: int) -> Array:
        """Return these examples' rows, ``(stop - start, n_x)``, at `place`, checked and standardized."""
        rows = convert(self.source.read(start, stop), self.scaling, self.place, self.dtype)
        self.source.check_finite(rows, start, self.dtype, xp=self.place.xp)
        return rows

    def whole(self) -> Batch:
        """Return all examples as one batch, for a full-batch step, a cost or a score."""
        if self.feed is not None:
            return Batch(self.feed, self.source.n_examples)
        if self.rows is None:
            return Batch(_Reread(self), self.source.n_examples)
        piece = Piece(self.rows, self.Y, self.weight)
        if not (self.place.is_numpy and self.large):
            return Batch([piece], self.source.n_examples)
        # In the pieces in which a file is read, for the same bits: sums depend on what is added first.
        return Batch([piece.cut(slice(*block)) for block in self.source.blocks()], self.source.n_examples)

    def batches(
        self, batch_size: int, *, seed: int, epoch: int, shuffle: bool = True, done: int = 0
    ) -> Generator[Batch, None, None]:
        """Yield the epoch's batches of `batch_size` columns; the last of each window may be smaller.

        Each is to be done with when the next is asked for. A pass that is left before its end should be closed; one
        that goes on from there leaves out the batches `done`, and does not read the windows that are.
        """
        if batch_size < self.total:
            yield from self.ordered(batch_size, seed=seed, epoch=epoch, shuffle=shuffle, done=done)
        elif not done:
            yield self.whole()

    def ordered(
        self, batch_size: int, *, seed: int, epoch: int, shuffle: bool, under_way: int = 3, done: int = 0
    ) -> Generator[Batch, None, None]:
        """Yield the epoch's batches in order, also when one holds all examples and its order does not matter.

        Each is one piece, but for those that the ring, which has `under_way` slots, has too little memory for.
        """
        if self.feed is not None:
            columns = min(batch_size, self.source.n_examples)
            batches = self.feed.host.ordered(batch_size, seed=seed, epoch=epoch, shuffle=shuffle, done=done)
            yield from self.feed.batches(batches, columns, under_way)
            return
        order = windows(
            self.source.n_examples, self.source.n_features, batch_size, seed=seed, epoch=epoch, shuffle=shuffle
        )
        order = _left(order, batch_size, done)
        with self._lent() as buffers:
            read = self._kept(order) if self.rows is not None else self.in_advance(self._read(order, buffers))
            for window in read:
                count = window.columns
                for start in range(0, count, batch_size):
                    stop = min(start + batch_size, count)
                    yield Batch([window.cut(slice(start, stop))], stop - start)
                if window.labeled is not None:
                    self.source.let_go()  # of pages that picking out has mapped

    def in_advance(self, read: Iterator[T]) -> Iterator[T]:
        """Yield what is read, the next of it on another thread while the last is computed with.

        Not from a GPU's memory: there another thread has another device, and another stream.
        """
        return read if self.place.is_cuda else ahead(read, 1)

    @contextmanager
    def _lent(self) -> Iterator[list[Array]]:
        """Lend two buffers for windows, those of an earlier pass if they are free, for the duration of a ``with``.

        New memory costs as much time as what is written to it.
        """
        empty = np.empty((0, self.source.n_features), self.dtype)
        buffers = [self.buffers.pop() if self.buffers else empty for _ in range(2)]
        try:
            yield buffers
        finally:
            self.buffers.extend(buffers)

    def _kept(self, order: Iterable[Window]) -> Iterator[Piece]:
        """Yield X, Y and weights whole, with the examples of a window in the order in which to meet them."""
        for window in order:
            yield Piece(self.rows, self.Y, self.weight, self.place.asarray(window.met()))

    def _read(self, order: Iterable[Window], buffers: list[Array]) -> Iterator[Piece]:
        """Yield a window's rows, targets and weights, and the order in which to meet them, at `place`.

        On NumPy they go into two buffers in turn, for one to be filled while the other is computed with, or are met
        where a file is mapped.
        """
        for window in order:
            Y, weight = (self._of_runs(array, window) for array in (self.Y, self.weight))
            if (mapped := self._mapped) is not None:
                self._touch(mapped, window.runs)
                yield Piece(mapped, Y, weight, window.met(), labeled=window.order)
                continue
            if self.place.is_numpy:
                if (size := sum(stop - start for start, stop in window.runs)) > buffers[0].shape[0]:
                    buffers[0] = np.empty((size, self.source.n_features), self.dtype)
                rows = buffers[0][:size]
                self._fill_runs(rows, window.runs)
                buffers.reverse()
            else:
                rows = self.place.xp.concat([self.converted(*run) for run in window.runs])
            yield Piece(rows, Y, weight, self.place.asarray(window.order))

    @property
    def _row_bytes(self) -> int:
        return self.source.n_features * np.dtype(self.dtype).itemsize

    @property
    def _mapped(self) -> Array | None:
        """A mapped file's rows, if batches can be picked out of them as they are, which saves a copy of each window."""
        rows = self.source.mapped
        if rows is None or rows.dtype != self.dtype or self.scaling is not None or not self.place.is_numpy:
            return None
        # Of two windows' buffers for copies, no more than those may be mapped.
        return rows if RUN * self._row_bytes >= MAPPED / 2 else None

    def _touch(self, mapped: Array, runs: Sequence[tuple[int, int]]) -> None:
        """Have the system read runs of a mapped file, for batches to be picked out of its cache."""
        page = max(1, mmap.PAGESIZE // mapped.itemsize)
        for start, stop in self._letting_go(runs):
            rows = mapped[start:stop]
            if start in self.checked:
                np.add.reduce(rows.reshape(-1)[::page])
            else:
                self._check_once(rows, start)

    def _fill_runs(self, rows: Array, runs: Sequence[tuple[int, int]]) -> None:
        """Write the rows of runs one after another into an array on the host."""
        done = 0
        for start, stop in self._letting_go(runs):
            run = rows[done : done + stop - start]
            self._fill(run, start, stop)
            self._check_once(run, start)
            done += stop - start

    def _letting_go(self, runs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Yield the runs to be read, and give back what that may have mapped when it is as much as `READ` numbers."""
        mapped = 0
        for start, stop in runs:
            yield start, stop
            mapped += (stop - start) * self._row_bytes + MAPPED
            if mapped >= 4 * READ:
                self.source.let_go()
                mapped = 0
        self.source.let_go()

    def _of_runs(self, array: Any, window: Window) -> Array:
        """Return the window's rows of Y or of weights."""
        return None if array is None else self.place.xp.concat([array[slice(*run), ...] for run in window.runs])


@dataclass(frozen=True)
class _Reread:
    """The pieces of data that is not kept whole: read anew each time they are gone through."""

    examples: Examples

    def __iter__(self) -> Iterator[Piece]:
        it = self.examples
        read = ((self._rows(*block), it.Y[slice(*block), ...], block) for block in it.source.blocks())
        for rows, Y, block in it.in_advance(read):
            yield Piece(rows, Y, None if it.weight is None else it.weight[slice(*block), ...])
            it.source.let_go()

    def _rows(self, start: int, stop: int) -> Array:
        rows = self.examples.converted(start, stop)
        # As they would lie in memory, where what is standardized is kept so.
        turned = self.examples.scaling is not None and self.examples.place.is_numpy
        return np.ascontiguousarray(rows) if turned else rows


def moved(*several: Examples | None) -> dict[str, float]:
    """Return what went through the rings of examples, as `Network.timing` has it; nothing where there were none."""
    timings = [examples.feed.timing for examples in several if examples is not None and examples.feed is not None]
    if not timings:
        return {}
    return {
        "bytes_moved": sum(timing.bytes for timing in timings),
        "hidden_copy_seconds": sum(timing.hidden for timing in timings),
        "exposed_copy_seconds": sum(timing.exposed for timing in timings),
        "compute_seconds": sum(timing.computing for timing in timings),
    }


class Feed:
    """Examples in host memory, or in files, that a device gets through a ring; gone through, it gives each once.

    A ring lives for one pass. Its slots are as large as the batches; where the device or the host refuses so much
    memory they are halved, for good, and a batch comes in pieces.

    Not yet run on a GPU.

    Parameters
    ----------
    host : Examples
        At `HOST`, whole or not.
    place : Place
        Where they go.

    Attributes
    ----------
    timing : Timing
        Of the passes so far.
    """

    def __init__(self, host: Examples, place: Place) -> None:
        self.host, self.place, self.timing = host, place, Timing()
        self.arrays = [(host.source.n_features, host.dtype), (int(host.Y.shape[1]), host.dtype)]
        if host.weight is not None:
            self.arrays.append((1, host.dtype))
        self._most: int | None = None

    def __iter__(self) -> Iterator[Piece]:
        """Yield all examples in pieces of about `READ` numbers, each to be done with when the next is asked for."""
        columns = max(1, READ // sum(width for width, _ in self.arrays))
        with self._ring(min(columns, self.host.source.n_examples), 3) as ring:
            yield from _through(ring, self.host.whole().pieces)

    def batches(
        self, batches: Generator[Batch, None, None], columns: int, under_way: int
    ) -> Generator[Batch, None, None]:
        """Yield the host's batches, of so many columns at most, on the device."""
        with closing(batches), self._ring(columns, under_way) as ring:
            if ring.columns < columns:
                for batch in batches:
                    yield Batch(_Split(ring, batch), batch.columns)
            else:
                for piece in _through(ring, (piece for batch in batches for piece in batch.pieces)):
                    yield Batch([piece], piece.columns)

    @contextmanager
    def _ring(self, columns: int, under_way: int) -> Iterator[Ring]:
        """Make a ring for the duration of a ``with``, for so many columns at a time or as many as there is room for."""
        refused = None
        columns = columns if self._most is None else min(columns, self._most)
        while (ring := self._made(columns, under_way, last=columns == 1)) is None:
            refused, columns = refused or columns, columns // 2
            gc.collect()
            self.place.release()
        if refused is not None:
            self._most = columns
            warnings.warn(
                f"There is no memory for {under_way} slots of {refused} columns each, page-locked on the host and on "
                f"{self.place}. {columns} are taken at a time from here on, which is slower and changes roundings "
                "alone. A smaller batch_size needs less.",
                DeviceMemoryWarning,
                stacklevel=2,
            )
        try:
            with ring:
                yield ring
        finally:
            self.timing = Timing(*map(operator.add, self.timing, ring.timing))

    def _made(self, columns: int, under_way: int, *, last: bool) -> Ring | None:
        try:
            return Ring(columns, self.arrays, device=CudaDevice(self.place), slots=under_way)
        except MemoryError:
            if last:
                raise
            return None


@dataclass(frozen=True)
class _Split:
    """The pieces of a batch that is larger than the ring's slots; they can be gone through again."""

    ring: Ring
    batch: Batch

    def __iter__(self) -> Iterator[Piece]:
        yield from _through(self.ring, self.batch.pieces)


def _through(ring: Ring, pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the host's pieces on the device, in smaller pieces where they have more columns than a slot."""
    for lent in ring.through(_fillings(pieces, ring.columns)):
        rows, Y, *weight = lent
        yield Piece(rows, Y, weight[0] if weight else None, lent=True)


def _fillings(pieces: Iterable[Piece], columns: int) -> Iterator[Filling]:
    for piece in pieces:
        for start in range(0, piece.columns, columns):
            part = piece.cut(slice(start, start + columns))
            arrays = [array for array in part[:3] if array is not None]
            yield gathered(arrays, None if part.numbers is None else part.picks[: len(arrays)])


def convert(
    rows: Array,
    scaling: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None,
    place: Place,
    dtype: str,
) -> Array:
    """Return rows at `place` in `dtype`, standardized first when there is a `scaling`.

    Of float64 X, and of any on the host, the mean is taken in float64 before the cast: 10⁹ ± 1 keeps its digits.
    """
    # What does not fit or is not finite is found and named by `Source.check_finite`.
    with np.errstate(all="ignore"):
        if scaling is None:
            return place.asarray(rows, dtype=dtype)
        at, wide = devices.place_of(rows), _wide(rows, dtype)
        with at.active():
            mean, deviation = (at.asarray(part, dtype=wide) for part in scaling)
            scaled = (at.asarray(rows, dtype=wide) - mean) / deviation
        return place.asarray(scaled, dtype=dtype)


def _wide(rows: Array, dtype: str) -> str:
    """Return the dtype to standardize in: float64 on the host, and elsewhere where X has it."""
    return "float64" if devices.place_of(rows).is_numpy or devices.dtype_name(rows) == "float64" else dtype


class Moments(NamedTuple):
    """What a scaling is made of, for so many examples.

    Attributes
    ----------
    n : int
        The examples.
    mean, squares : (n_x,) float64 arrays
        The features' means, and the sums of their squared distances from them.
    dtype : str
        In which the numbers were read.
    """

    n: int
    mean: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]
    dtype: str

    def merged(self, other: "Moments") -> "Moments":
        """Return those of both, by the formula of `scaling_of`."""
        n, k, shift = self.n, other.n, other.mean - self.mean
        squares = self.squares + (other.squares + shift**2 * (n * k / (n + k)))
        return Moments(n + k, self.mean + shift * (k / (n + k)), squares, other.dtype)


def scaling_of(source: Source, dtype: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the features' means and deviations, ``(n_x,)`` each; constant features get a deviation of 1.

    Blocks are merged by the formula of [1]_, in float64 on the host, where the naive Σx² − (Σx)²/m loses every digit
    of a feature whose mean is large.

    Raises
    ------
    DataError
        A number is not finite, or its square is not.

    References
    ----------
    .. [1] T. Chan, G. Golub, R. LeVeque, Updating formulae and a pairwise algorithm for computing sample variances,
       1979.
    """
    return scaling_from(source, moments(source, dtype))


@np.errstate(all="ignore")
def moments(source: Source, dtype: str) -> Moments:
    """Return the features' means and squares over all examples, block by block."""
    xp = source.place.xp
    found = Moments(0, np.zeros(source.n_features), np.zeros(source.n_features), "float32")
    for start, stop in source.blocks():
        rows = source.read(start, stop)
        wide = _wide(rows, dtype)
        rows = convert(rows, None, source.place, wide)
        if source.place.is_numpy:
            rows = np.ascontiguousarray(rows)  # for the same bits whatever the order of X in memory
        source.check_finite(rows, start, wide, xp=xp)
        source.let_go()
        guess = xp.asarray(rows[:1, :], copy=True)  # at the mean: less it, a constant feature is exactly constant
        rows = rows - guess
        rest = xp.mean(rows, axis=0)
        rows -= rest
        rows *= rows
        mean = devices.to_host(guess[0, :]).astype(np.float64) + devices.to_host(rest).astype(np.float64)
        squares = devices.to_host(xp.sum(rows, axis=0)).astype(np.float64)
        found = found.merged(Moments(stop - start, mean, squares, wide))
    return found


@np.errstate(all="ignore")
def scaling_from(source: Source, found: Moments) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the scaling that moments amount to; `source` is for the messages, which are `scaling_of`'s."""
    deviation = np.sqrt(found.squares / found.n)
    if not np.isfinite(deviation).all():
        worst = int(np.argmin(np.isfinite(deviation)))
        raise DataError(
            f"{source.name} must be smaller to be standardized; {source.feature(worst)} has squares beyond "
            f"{found.dtype}. Scale it first."
        )
    constant = deviation <= (1e-12 if found.dtype == "float64" else 1e-6) * np.abs(found.mean)
    return found.mean, np.where(constant | (deviation == 0.0), 1.0, deviation)


class Loader:
    """Batches of X and Y on a device, in a new order each time they are gone through.

    Parameters
    ----------
    X : array, memmap, table, or a list of them
        ``(n_x, m)``, or ``(m, n_x)`` with ``examples="rows"``.
    Y : array, optional
        Numbers, ``(m,)`` or ``(n_y, m)``; ``(m, n_y)`` with ``examples="rows"``.
    batch_size : int
        Columns in a batch; the last may be smaller, as may that of each window when X is larger than `PERMUTED`.
    shuffle : bool
        Whether each pass takes the examples in a new random order.
    random_state : int
        The order's seed.
    device : str, optional
        Where batches come out; None is where X lives. What fits in a GPU's memory is brought there once; what does not
        goes there batch by batch, through page-locked memory, while the last batch is computed with.
    prefetch : int
        Batches made ready in advance on another thread; 0 is none. Each takes up memory, also on a GPU.
    dtype : {"float32", "float64"}
        The batches' dtype.
    examples : {"columns", "rows"}
        Which way the examples of X, and of a 2-D Y, lie. Batches always have them as columns.

    Attributes
    ----------
    epoch : int
        Passes begun.

    Examples
    --------
    >>> import xpnet
    >>> X, Y = xpnet.datasets.flower()
    >>> for X_batch, Y_batch in xpnet.Loader(X, Y, batch_size=256):
    ...     print(X_batch.shape, Y_batch.shape)
    (2, 256) (256,)
    (2, 144) (144,)
    """

    def __init__(
        self,
        X: Any,
        Y: Any = None,
        *,
        batch_size: int = 256,
        shuffle: bool = True,
        random_state: int = 0,
        device: str | None = None,
        prefetch: int = 2,
        dtype: str = "float32",
        examples: str = "columns",
    ) -> None:
        self.X, self.Y, self.examples = X, Y, examples
        self.batch_size = whole("batch_size", batch_size, low=1)
        self.random_state = whole("random_state", random_state, low=0)
        self.prefetch = whole("prefetch", prefetch, low=0)
        self.shuffle = true_or_false("shuffle", shuffle)
        self.device, self.dtype, self.epoch = device, dtype, 0
        made = spooled(source(X, examples=examples), PERMUTED)
        devices.same_place(("X", X), ("Y", Y))
        self.place = made.place if device is None else devices.resolve(device)
        devices.check_dtype(self.place, dtype)
        rows = np.zeros((made.n_examples, 1), dtype) if Y is None else self._targets(Y, made)
        self._flat = Y is not None and np.ndim(Y) == 1
        with self.place.active():
            given = Examples(made, self.place, dtype, None, convert(rows, None, self.place, dtype), most=PERMUTED)
            self._examples = given.kept(gathered=True)

    def _targets(self, Y: Any, made: Source) -> npt.NDArray[Any]:
        """Return Y's rows, one an example."""
        labels = targets.read(Y, examples=self.examples)
        check_orientation(made, labels.shape[-1], examples=self.examples)
        if labels.dtype.kind == "U":
            raise DataError(
                f"A Loader's Y must be numbers; it holds words, such as {labels.flat[0]!s}. Pass words to fit."
            )
        return np.atleast_2d(labels).T

    def __len__(self) -> int:
        """Return the number of batches of one pass."""
        return sum(
            -(-window.order.size // self.batch_size)
            for window in windows(
                self._examples.source.n_examples,
                self._examples.source.n_features,
                self.batch_size,
                seed=0,
                epoch=0,
                shuffle=False,
            )
        )

    def __iter__(self) -> Iterator[Any]:
        """Yield ``(X_batch, Y_batch)``, or ``X_batch`` alone when there is no Y."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        batches = self._batches(epoch)
        if self.prefetch and not self.place.is_cuda:
            yield from ahead(batches, self.prefetch)
        else:
            yield from batches  # what is on a GPU is made in the caller's stream; the ring has a thread of its own

    def _batches(self, epoch: int) -> Iterator[Any]:
        with (
            self.place.active(),
            closing(
                self._examples.ordered(
                    self.batch_size,
                    seed=self.random_state,
                    epoch=epoch,
                    shuffle=self.shuffle,
                    under_way=self.prefetch + 1,
                )
            ) as batches,
        ):
            for batch in batches:
                X, Y = self._batch(batch)
                if self.Y is None:
                    yield X
                else:
                    yield X, Y[0, :] if self._flat else Y

    def _batch(self, batch: Batch) -> tuple[Array, Array]:
        """Return a batch's X and Y, the caller's to keep."""
        xp, fed = self.place.xp, self._examples.feed is not None
        # What a ring lends is written over by the next batch; a copy on the device costs little beside the way there.
        parts = [
            [xp.asarray(array, copy=True) if fed else array for array in piece.taken(self.place)[:2]]
            for piece in batch.pieces
        ]
        X, Y = (found[0] if len(found) == 1 else xp.concat(found, axis=-1) for found in zip(*parts, strict=True))
        return X, Y


def batch_columns(batch_size: int | str, m: int) -> int:
    """Return the columns of a step, a function of m alone.

    ``"auto"`` is m/32 rounded down to a power of two, at least 32 and at most 4,096; ``"full"`` is m.

    Raises
    ------
    ArgumentError
        It is neither of these nor a whole number of 1 or more.
    """
    if isinstance(batch_size, str):
        if choice("batch_size", batch_size, ("auto", "full"), or_else="a whole number") == "full":
            return m
        return min(m, max(32, min(4_096, 2 ** ((m // 32).bit_length() - 1) if m >= 32 else 32)))
    return min(m, whole("batch_size", batch_size, low=1))


def split(m: int, fraction: float, seed: int) -> tuple[Selection, Selection]:
    """Return the examples to train on and those held out."""
    held = round(m * fraction)
    if not 0 < held < m:
        raise ArgumentError(
            f"validation_fraction must leave at least one example on each side; {fraction:g} of {m} examples is {held}."
        )
    return selection.split(m, held, [seed, 2])


def check_orientation(source: Source, n_targets: int, *, examples: str, name: str = "X") -> None:
    """Raise when X and Y differ in m, naming the transpose when that would fit.

    Raises
    ------
    ShapeError
        X has not as many examples as Y.
    """
    if source.n_examples == n_targets:
        return
    shape = (source.n_examples, source.n_features)
    if examples == "columns":
        shape = shape[::-1]
    problem = f"{name} is {shape} and Y has {n_targets} example{'s' * (n_targets > 1)}: examples are {examples} here."
    if n_targets == 1:
        column = (source.n_examples, 1) if examples == "columns" else (1, source.n_examples)
        raise ShapeError(f"{problem} If Y is {column}, pass Y.T.")
    if source.n_features == n_targets:
        other = 'examples="rows"' if examples == "columns" else 'examples="columns"'
        raise ShapeError(f"{problem} Pass {name}.T or {other}.")
    raise ShapeError(f"{problem} {name} has {source.n_examples}; give it and Y the same examples.")


def sample(source: Source, count: int = 4_096) -> Sequence[Array]:
    """Return the rows of up to `count` examples, and of `READ` numbers, taken evenly in 16 slices."""
    count = min(count, max(16, READ // source.n_features))
    if source.n_examples <= count:
        return [source.read(0, source.n_examples)]
    width = count // 16
    starts = range(0, source.n_examples - width, source.n_examples // 16)
    return [source.copied(start, start + width) for start in starts]
