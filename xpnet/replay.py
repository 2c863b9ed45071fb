"""Functions of NumPy arrays, recorded once and replayed into buffers that are kept.

A function is called once with arrays that write down what is done with them (`xpnet.record`). The record is then laid
out: a result goes into a buffer whose former content is no longer needed, and replaying is one flat list of calls into
NumPy. No array is made, and nothing that the function said is said a second time.

Some of it is put in another way, because the same numbers come sooner:

- A product whose inner size is 1 is a broadcast product: 0.1 to 0.4 ns an element instead of 1.1.
- A sum over columns is a product with ones: 0.05 ns instead of 0.2.
- ``(a r ∘ D) B``, a a column and r a row, is ``a ∘ ((D ∘ r) B)`` or ``a ∘ (D (rᵀ ∘ B))``, whichever of D and B is
  smaller. It is how one output unit's error goes back through the hidden layer, and saves up to three passes over D.
- ``W X + b`` of few features and many units is one product, of W and b side by side with X over a row of ones.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from xpnet.record import Kind, Ref, Step, UnrecordableError, Vector, record

LARGE = 2**14
"""Numbers from which an array is worth a pass less; below, it is calls that count."""

TALL = 32
"""Rows from which an array of examples is laid out example after example, where that is asked for."""

Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and what it takes, where its result goes included: ``out=`` costs a small call 0.2 of its 0.5 µs."""


class _Apart(NamedTuple):
    """An array ``a r ∘ D`` that is not made: a, then D and rᵀ, or ``D ∘ r`` and None."""

    column: Ref
    inner: Ref
    turned: Ref | None


class _Rewriting:
    """Steps with every ``(a r ∘ D) B`` and ``W X + b`` put as the module's docstring says."""

    def __init__(self, steps: Sequence[Step], results: Sequence[int]) -> None:
        self.steps, self.results = steps, results
        self.users: dict[int, list[int]] = {}
        for n, step in enumerate(steps):
            for value in step.inputs:
                if isinstance(value, Ref):
                    self.users.setdefault(value.number, []).append(n)
        self.new: list[Step] = []
        self.where: dict[int, Ref] = {}

    def done(self) -> tuple[list[Step], list[int]]:
        """Return the steps and the numbers of the results among them."""
        found = {n: outer for n in range(len(self.steps)) if (outer := self._outer(n)) is not None}
        biased = {n: product for n in range(len(self.steps)) if (product := self._biased(n)) is not None}
        apart: dict[int, _Apart] = {}
        for n, step in enumerate(self.steps):
            if n in found:
                apart[n] = self._take_apart(n, found[n])
            elif n in biased:
                self.where[n] = self._with_bias(step, self.steps[biased[n]])
            elif step.inputs and isinstance(step.inputs[0], Ref) and step.inputs[0].number in apart:
                self.where[n] = self._put_late(step, apart[step.inputs[0].number])
            elif n not in found.values() and n not in biased.values():
                self.where[n] = self._add(step.operation, self._moved(step.inputs), step.options, step.kind)
        return self.new, [self.where[number].number for number in self.results]

    def _outer(self, n: int) -> int | None:
        """Return which argument of step n is a ``a r`` that can be taken apart; None when there is none."""
        step = self.steps[n]
        if step.operation is not np.multiply or n in self.results or math.prod(step.kind.shape) < LARGE:
            return None
        if n not in self.users or not all(self._scales(user, n) for user in self.users[n]):
            return None
        if not all(isinstance(value, Ref) and self._shape(value) == step.kind.shape for value in step.inputs):
            return None
        for number in (value.number for value in step.inputs):
            made = self.steps[number]
            alone = number not in self.results and self.users[number] == [n]
            if alone and made.operation is np.matmul and self._shape(made.inputs[0])[-1] == 1:
                return int(number)
        return None

    def _scales(self, user: int, n: int) -> bool:
        """Return whether a scale of the rows of n is a scale of the rows of what `user` makes of it."""
        step = self.steps[user]
        if step.operation is np.matmul:
            return bool(step.inputs[0] == Ref(n) and step.inputs[1] != Ref(n))
        return step.operation == "sum" and step.options == (-1, True)

    def _take_apart(self, n: int, outer: int) -> "_Apart":
        """Return the parts of step n, ``a r ∘ D``."""
        step = self.steps[n]
        column, row = self._moved(self.steps[outer].inputs)
        (inner,) = self._moved([value for value in step.inputs if value != Ref(outer)])
        others = [self.steps[user].inputs[1] for user in self.users[n] if self.steps[user].operation is np.matmul]
        if all(math.prod(self._shape(other)) < math.prod(step.kind.shape) for other in others):
            turned = self._add("transpose", (row,), (), Kind((step.kind.shape[1], 1), step.kind.dtype))
            return _Apart(column, inner, turned)
        return _Apart(column, self._add(np.multiply, (inner, row), (), step.kind), None)

    def _put_late(self, step: Step, apart: "_Apart") -> Ref:
        """Add what a step makes of ``a r ∘ D``, the column a last."""
        column, inner, turned = apart
        if step.operation is np.matmul:
            (other,) = self._moved(step.inputs[1:])
            if turned is not None:
                other = self._add(np.multiply, (other, turned), (), self.steps[step.inputs[1].number].kind)
            made = self._add(np.matmul, (inner, other), (), step.kind)
        elif turned is not None:
            made = self._add(np.matmul, (inner, turned), (), step.kind)
        else:
            made = self._add("sum", (inner,), step.options, step.kind)
        return self._add(np.multiply, (column, made), (), step.kind)

    def _biased(self, n: int) -> int | None:
        """Return the product that step n adds a bias to, when it pays to make both one."""
        step = self.steps[n]
        if step.operation is not np.add or not all(isinstance(value, Ref) for value in step.inputs):
            return None
        product, bias = (value.number for value in step.inputs)
        made, shape = self.steps[product], step.kind.shape
        alone = made.operation is np.matmul and self.users[product] == [n] and product not in self.results
        if not alone or math.prod(shape) < LARGE or self.steps[bias].kind.shape != (shape[0], 1):
            return None
        given = all(self.steps[value.number].operation == "leaf" for value in (*made.inputs, step.inputs[1]))
        return product if given and 4 * self._shape(made.inputs[0])[1] <= min(shape) else None

    def _with_bias(self, step: Step, product: Step) -> Ref:
        W, X, b = self._moved((*product.inputs, step.inputs[1]))
        rows, features = self._shape(product.inputs[0])
        dtype, columns = step.kind.dtype, step.kind.shape[1]
        weights = self._add("join", (W, b), (-1,), Kind((rows, features + 1), dtype))
        examples = self._add("join", (X, 1.0), (-2,), Kind((features + 1, columns), dtype))
        return self._add(np.matmul, (weights, examples), (), step.kind)

    def _shape(self, value: Ref) -> tuple[int, ...]:
        return tuple(self.steps[value.number].kind.shape)

    def _moved(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(self.where[value.number] if isinstance(value, Ref) else value for value in inputs)

    def _add(self, operation: Any, inputs: Sequence[Any], options: tuple[Any, ...], kind: Any) -> Ref:
        self.new.append(Step(operation, tuple(inputs), options, kind))
        return Ref(len(self.new) - 1)


class Recording:
    """A function of arrays, recorded for their shapes and dtypes.

    Parameters
    ----------
    function : callable
        Takes arrays and returns a sequence of arrays; elementwise operations, products, sums over the last two axes,
        ``max``, ``where``, ``astype`` and transposes.
    arguments : sequence of arrays or None
        Like its arguments: of their shapes and dtypes.
    results : sequence of arrays
        Like those that each result is to go to. One may be an argument, which is then written over: nothing recorded
        later may read it.
    turned : int, optional
        Buffers with this many columns, and `TALL` rows or more, are laid out column after column: the order in which
        BLAS writes a product of small inner size up to half as fast again.

    Raises
    ------
    UnrecordableError
        It does anything else, such as looking at a value.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[Any]],
        arguments: Sequence[Vector | None],
        results: Sequence[Vector],
        *,
        turned: int | None = None,
    ) -> None:
        steps, self._leaves, returned = record(function, arguments)
        self._steps, self._results = _Rewriting(steps, returned).done()
        self._turned = turned
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
        one_row = step.operation == "sum" and step.options[0] == -2 and step.kind.shape == self._shape(step.inputs[0])
        return step.operation in ("leaf", "transpose") or one_row

    def _shape(self, ref: Ref) -> tuple[int, ...]:
        return self._steps[ref.number].kind.shape

    def _owner(self, number: int) -> int:
        """Return the result whose buffer this one lies in."""
        while self._is_view(number) and self._steps[number].operation != "leaf":
            number = self._steps[number].inputs[0].number
        return number

    def _taken(self, step: Step) -> set[int]:
        return {self._owner(value.number) for value in step.inputs if isinstance(value, Ref)}

    def _lay_out(self) -> None:
        """Give every result a buffer: its own destination, a dying argument's, a free one, or a new one."""
        free: dict[Any, list[Vector]] = {}
        for n, step in enumerate(self._steps):
            if self._is_view(n):
                continue
            dying = [owner for owner in self._taken(step) if self._last[owner] == n and self._is_free(owner)]
            if n not in self._results:
                kind = Kind(*step.kind)
                reused = next((owner for owner in dying if self._may_overwrite(step, owner)), None)
                if reused is not None:
                    dying.remove(reused)
                    self._place[n] = self._place[reused]
                else:
                    pool = free.get(kind)
                    self._place[n] = pool.pop() if pool else self._empty(step)
            for owner in dying:
                buffer = self._place[owner]
                free.setdefault(Kind(buffer.shape, buffer.dtype), []).append(buffer)

    def _empty(self, step: Step) -> Vector:
        shape, dtype = step.kind.shape, step.kind.dtype
        turned = len(shape) == 2 and shape[1] == self._turned and (shape[0] >= TALL or step.operation == "join")
        return np.empty(shape, dtype, order="F" if turned else "C")

    def _is_free(self, owner: int) -> bool:
        return self._steps[owner].operation != "leaf" and owner not in self._results

    def _may_overwrite(self, step: Step, owner: int) -> bool:
        """Return whether the step may write over this argument while reading it: elementwise, in the same places."""
        if step.operation is np.matmul or not isinstance(step.operation, np.ufunc):
            return False
        buffer = self._place[owner]
        same = buffer.shape == step.kind.shape and buffer.dtype == step.kind.dtype
        turned = any(isinstance(v, Ref) and v.number != owner and self._owner(v.number) == owner for v in step.inputs)
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
        if not isinstance(value, Ref):
            return np.asarray(value, dtype=like)
        if value.number in bound:
            return np.asarray(bound[value.number])
        step = self._steps[value.number]
        inner = self._array(step.inputs[0], like, bound)
        return np.matrix_transpose(inner) if step.operation == "transpose" else inner

    def _calls(self, step: Step, out: Vector, bound: dict[int, Any]) -> list[Call]:
        floats = [self._steps[v.number].kind.dtype for v in step.inputs if isinstance(v, Ref)]
        like = next((dtype for dtype in floats if dtype.kind == "f"), out.dtype)
        given = [self._array(value, like, bound) for value in step.inputs]
        if isinstance(step.operation, np.ufunc):
            outer = step.operation is np.matmul and given[0].shape[-1] == 1
            if step.operation in (np.maximum, np.minimum):  # NumPy 2.4 wants the keyword there
                return [(partial(step.operation, out=out), tuple(given))]
            return [(np.multiply if outer else step.operation, (*given, out))]
        return _OTHERS[step.operation](out, given, step.options)


def _sums(out: Vector, given: Sequence[Vector], options: tuple[Any, ...]) -> list[Call]:
    (values,), (axis, _) = given, options
    if values.ndim != 2:
        raise UnrecordableError
    rows, columns = values.shape
    if axis == -1:
        return [(np.matmul, (values, np.ones((columns, 1), values.dtype), out.reshape(rows, 1)))]
    if axis == -2:
        return [(np.matmul, (np.ones((1, rows), values.dtype), values, out.reshape(1, columns)))]
    if rows == 1:
        return [(np.matmul, (values, np.ones((columns, 1), values.dtype), out.reshape(1, 1)))]
    return [(np.add.reduce, (values, (0, 1), None, out))]


def _maxima(out: Vector, given: Sequence[Vector], options: tuple[Any, ...]) -> list[Call]:
    axis, keepdims = options
    out = out.reshape(given[0].max(axis).shape) if keepdims else out
    return [(np.maximum.reduce, (given[0], axis, None, out))]


def _choices(out: Vector, given: Sequence[Vector], options: tuple[Any, ...]) -> list[Call]:
    condition, yes, no = given
    return [(np.copyto, (out, no, "unsafe")), (np.copyto, (out, yes, "unsafe", condition))]


def _casts(out: Vector, given: Sequence[Vector], options: tuple[Any, ...]) -> list[Call]:
    return [(np.copyto, (out, given[0], "unsafe"))]


def _ones(out: Vector, given: Sequence[Vector], options: tuple[Any, ...]) -> list[Call]:
    return [(np.copyto, (out, np.asarray(1, dtype=out.dtype)))]


def _joined(out: Vector, given: Sequence[Vector], options: tuple[Any, ...]) -> list[Call]:
    parts = (out[:, :-1], out[:, -1:]) if options == (-1,) else (out[:-1], out[-1:])
    return [(np.copyto, (part, values)) for part, values in zip(parts, given, strict=True)]


_OTHERS: dict[str, Callable[[Vector, Sequence[Vector], tuple[Any, ...]], list[Call]]] = {
    "sum": _sums,
    "max": _maxima,
    "where": _choices,
    "astype": _casts,
    "ones_like": _ones,
    "join": _joined,
}


def replay(calls: Sequence[Call]) -> None:
    """Do the calls, one after another."""
    for function, arguments in calls:
        function(*arguments)
