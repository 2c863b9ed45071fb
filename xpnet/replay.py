"""Functions of NumPy arrays, recorded once and replayed into buffers that are kept.

A function is called once with `Traced` arrays, which compute as arrays do and write down what was done. The record is
then laid out: the same operation on the same arrays is done once, a result goes into a buffer whose former content is
no longer needed, and replaying is one flat list of calls into NumPy. No array is made, and nothing that the function
said is said a second time.

Two products are put in another way, because the same numbers come sooner: one whose inner size is 1 is a broadcast
product (0.1 ns an element instead of 1.1), and a sum over columns is a product with ones (0.05 instead of 0.2).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.mixins import NDArrayOperatorsMixin

Vector = npt.NDArray[Any]
Call = tuple[Callable[..., Any], tuple[Any, ...], Vector]
"""A function, what it takes, and ``out=``, where its result goes."""


class UnrecordableError(Exception):
    """The function does what a record cannot hold; it is to be called plainly instead."""


class _Ref(NamedTuple):
    """An earlier result, by its number."""

    number: int


class _Step(NamedTuple):
    """One operation: a ufunc or a name, what it takes (`_Ref` or a number), its options, and a sample result."""

    operation: Any
    inputs: tuple[Any, ...]
    options: tuple[Any, ...]
    sample: "Vector | _Kind"


class _Kind(NamedTuple):
    """What is left of a sample once the record is whole."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Traced(NDArrayOperatorsMixin):
    """An array that writes down what is done with it."""

    def __init__(self, steps: "_Tape", number: int) -> None:
        self._tape, self.number, self.sample = steps, number, steps.steps[number].sample

    @property
    def shape(self) -> tuple[int, ...]:
        """As an array's."""
        return self.sample.shape

    @property
    def ndim(self) -> int:
        """As an array's."""
        return len(self.sample.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """As an array's."""
        return self.sample.dtype

    def __bool__(self) -> bool:
        raise UnrecordableError

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> "Traced":
        """Record an elementwise operation or a product; ``Z += b`` comes here too, and gives a new result."""
        if method != "__call__" or options or ufunc.nout != 1:
            raise UnrecordableError
        return self._tape.record(ufunc, inputs, (), ufunc(*map(_sample, inputs)))

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> "Traced":
        """Record one of the few other functions that the equations use."""
        if function not in _RECORDED:
            raise UnrecordableError
        name, kept = _RECORDED[function]
        extra = tuple(options.get(key) for key in kept)
        arrays = args if name != "astype" else args[:1]
        extra = extra if name != "astype" else (np.dtype(args[1]),)
        return self._tape.record(name, arrays, extra, np.asarray(function(*map(_sample, args), **options)))


_RECORDED: dict[Any, tuple[str, tuple[str, ...]]] = {
    np.sum: ("sum", ("axis", "keepdims")),
    np.max: ("max", ("axis", "keepdims")),
    np.where: ("where", ()),
    np.astype: ("astype", ()),
    np.ones_like: ("ones_like", ()),
    np.matrix_transpose: ("transpose", ()),
}


def _sample(value: Any) -> Any:
    return value.sample if isinstance(value, Traced) else value


class _Tape:
    """What was recorded so far."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self._known: dict[Any, int] = {}

    def leaf(self, sample: Vector) -> Traced:
        """Return an argument of the recorded function."""
        self.steps.append(_Step("leaf", (), (), sample))
        return Traced(self, len(self.steps) - 1)

    def record(self, operation: Any, inputs: Sequence[Any], options: tuple[Any, ...], sample: Vector) -> Traced:
        """Return the result of an operation, an earlier one when it is the same."""
        given = tuple(_Ref(value.number) if isinstance(value, Traced) else _number(value) for value in inputs)
        key = (operation, given, options)
        if key not in self._known:
            self._known[key] = len(self.steps)
            self.steps.append(_Step(operation, given, options, sample))
        return Traced(self, self._known[key])


def _number(value: Any) -> float:
    if not isinstance(value, bool | int | float):
        raise UnrecordableError
    return value


class Recording:
    """A function of arrays, recorded for their shapes and dtypes.

    Parameters
    ----------
    function : callable
        Takes arrays and returns a sequence of arrays; elementwise operations, products, sums over the last two axes,
        ``max``, ``where``, ``astype`` and transposes.
    arguments : sequence of arrays or None
        Samples of its arguments.
    results : sequence of arrays
        Samples of where each result is to go. One may be an argument, which is then written over: nothing recorded
        later may read it.

    Raises
    ------
    UnrecordableError
        It does anything else, such as looking at a value.
    """

    def __init__(
        self, function: Callable[..., Sequence[Any]], arguments: Sequence[Vector | None], results: Sequence[Vector]
    ) -> None:
        tape = _Tape()
        leaves = [None if argument is None else tape.leaf(argument) for argument in arguments]
        returned = function(*leaves)
        if not all(isinstance(value, Traced) for value in returned):
            raise UnrecordableError
        self._steps = [step._replace(sample=_Kind(step.sample.shape, step.sample.dtype)) for step in tape.steps]
        self._leaves = [None if leaf is None else leaf.number for leaf in leaves]
        self._results = [value.number for value in returned]
        if len(set(self._results)) != len(results) or any(self._is_view(number) for number in self._results):
            raise UnrecordableError
        self._last = {owner: n for n, step in enumerate(self._steps) for owner in self._taken(step)}
        self._check_aliases(arguments, results)
        self._place: dict[int, Vector] = {}
        self._lay_out()

    def _check_aliases(self, arguments: Sequence[Vector | None], results: Sequence[Vector]) -> None:
        """Refuse results that would write over an argument before it was last read."""
        for number, result in zip(self._results, results, strict=True):
            for leaf, argument in zip(self._leaves, arguments, strict=True):
                if leaf is not None and argument is not None and np.may_share_memory(result, argument):
                    elementwise = isinstance(self._steps[number].operation, np.ufunc)
                    if (
                        self._last.get(leaf, -1) > number
                        or not elementwise
                        or self._steps[number].operation is np.matmul
                    ):
                        raise UnrecordableError

    def _is_view(self, number: int) -> bool:
        """Return whether a result is no array of its own: an argument, a transpose, or the sum of a single row."""
        step = self._steps[number]
        one_row = step.operation == "sum" and step.options[0] == -2 and step.sample.shape == self._shape(step.inputs[0])
        return step.operation in ("leaf", "transpose") or one_row

    def _shape(self, ref: _Ref) -> tuple[int, ...]:
        return self._steps[ref.number].sample.shape

    def _owner(self, number: int) -> int:
        """Return the result whose buffer this one lies in."""
        while self._is_view(number) and self._steps[number].operation != "leaf":
            number = self._steps[number].inputs[0].number
        return number

    def _taken(self, step: _Step) -> set[int]:
        return {self._owner(value.number) for value in step.inputs if isinstance(value, _Ref)}

    def _lay_out(self) -> None:
        """Give every result a buffer: its own destination, a dying argument's, a free one, or a new one."""
        free: dict[Any, list[Vector]] = {}
        for n, step in enumerate(self._steps):
            if self._is_view(n):
                continue
            dying = [owner for owner in self._taken(step) if self._last[owner] == n and self._is_free(owner)]
            if n not in self._results:
                kind = (step.sample.shape, step.sample.dtype)
                reused = next((owner for owner in dying if self._may_overwrite(step, owner)), None)
                if reused is not None:
                    dying.remove(reused)
                    self._place[n] = self._place[reused]
                else:
                    pool = free.get(kind)
                    self._place[n] = pool.pop() if pool else np.empty(*kind)
            for owner in dying:
                buffer = self._place[owner]
                free.setdefault((buffer.shape, buffer.dtype), []).append(buffer)

    def _is_free(self, owner: int) -> bool:
        return self._steps[owner].operation != "leaf" and owner not in self._results

    def _may_overwrite(self, step: _Step, owner: int) -> bool:
        """Return whether the step may write over this argument while reading it: elementwise, in the same places."""
        if step.operation is np.matmul or not isinstance(step.operation, np.ufunc):
            return False
        buffer = self._place[owner]
        same = buffer.shape == step.sample.shape and buffer.dtype == step.sample.dtype
        turned = any(isinstance(v, _Ref) and v.number != owner and self._owner(v.number) == owner for v in step.inputs)
        return same and not turned

    def bind(self, arguments: Sequence[Vector | None], results: Sequence[Vector]) -> list[Call]:
        """Return the calls that compute the function of these arguments, to be replayed as often as they change.

        Parameters
        ----------
        arguments : sequence of arrays or None
            Of the shapes and dtypes recorded; the calls keep them and read what is in them then.
        results : sequence of arrays
            Where the results go.
        """
        place = self._place | dict(zip(self._results, results, strict=True))
        bound = {leaf: value for leaf, value in zip(self._leaves, arguments, strict=True) if leaf is not None}
        calls: list[Call] = []
        for n, step in enumerate(self._steps):
            if not self._is_view(n):
                calls += self._calls(step, place[n], bound | place)
        return calls

    def _array(self, value: Any, like: np.dtype[Any], bound: dict[int, Any]) -> Vector:
        if not isinstance(value, _Ref):
            return np.asarray(value, dtype=like)
        if value.number in bound:
            return np.asarray(bound[value.number])
        step = self._steps[value.number]
        inner = self._array(step.inputs[0], like, bound)
        return np.matrix_transpose(inner) if step.operation == "transpose" else inner

    def _calls(self, step: _Step, out: Vector, bound: dict[int, Any]) -> list[Call]:
        floats = [self._steps[v.number].sample.dtype for v in step.inputs if isinstance(v, _Ref)]
        like = next((dtype for dtype in floats if dtype.kind == "f"), out.dtype)
        given = [self._array(value, like, bound) for value in step.inputs]
        if isinstance(step.operation, np.ufunc):
            outer = step.operation is np.matmul and given[0].shape[-1] == 1
            return [(np.multiply if outer else step.operation, tuple(given), out)]
        return _OTHERS[step.operation](out, given, step.options)


def _sums(out: Vector, given: Sequence[Vector], options: tuple[Any, ...]) -> list[Call]:
    (values,), (axis, _) = given, options
    if values.ndim != 2:
        raise UnrecordableError
    rows, columns = values.shape
    if axis == -1:
        return [(np.matmul, (values, np.ones((columns, 1), values.dtype)), out.reshape(rows, 1))]
    if axis == -2:
        return [(np.matmul, (np.ones((1, rows), values.dtype), values), out.reshape(1, columns))]
    if rows == 1:
        return [(np.matmul, (values, np.ones((columns, 1), values.dtype)), out.reshape(1, 1))]
    return [(np.add.reduce, (values, (0, 1)), out)]


def _maxima(out: Vector, given: Sequence[Vector], options: tuple[Any, ...]) -> list[Call]:
    axis, keepdims = options
    return [(np.maximum.reduce, (given[0], axis), out.reshape(given[0].max(axis).shape) if keepdims else out)]


def _choices(out: Vector, given: Sequence[Vector], options: tuple[Any, ...]) -> list[Call]:
    condition, yes, no = given
    return [(_copy, (no,), out), (_copy, (yes, condition), out)]


def _copy(values: Vector, where: Any = True, *, out: Vector) -> None:
    np.copyto(out, values, "unsafe", where)


def _casts(out: Vector, given: Sequence[Vector], options: tuple[Any, ...]) -> list[Call]:
    return [(_copy, (given[0],), out)]


def _ones(out: Vector, given: Sequence[Vector], options: tuple[Any, ...]) -> list[Call]:
    return [(_copy, (np.asarray(1, dtype=out.dtype),), out)]


_OTHERS: dict[str, Callable[[Vector, Sequence[Vector], tuple[Any, ...]], list[Call]]] = {
    "sum": _sums,
    "max": _maxima,
    "where": _choices,
    "astype": _casts,
    "ones_like": _ones,
}


def replay(calls: Sequence[Call]) -> None:
    """Do the calls, one after another."""
    for function, inputs, out in calls:
        function(*inputs, out=out)
