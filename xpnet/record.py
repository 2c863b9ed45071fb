"""What a function does with arrays, written down by calling it once with arrays that hold no numbers.

A `Traced` array has a shape and a dtype, and every operation on it becomes a `Step`, the same operation on the same
arrays one step. Who runs the steps reads them: `xpnet.replay` on NumPy, `xpnet.cuda.plan` on a GPU. What the function
says is said in the function alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.mixins import NDArrayOperatorsMixin

Vector = npt.NDArray[Any]


class UnrecordableError(Exception):
    """The function does what a record cannot hold; it is to be called plainly instead."""


class Ref(NamedTuple):
    """An earlier result, by its number."""

    number: int


class Step(NamedTuple):
    """One operation: a ufunc or a name, what it takes (`Ref` or a number), its options, and what it makes."""

    operation: Any
    inputs: tuple[Any, ...]
    options: tuple[Any, ...]
    kind: "Kind"


class Kind(NamedTuple):
    """What is known of an array without computing it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Traced(NDArrayOperatorsMixin):
    """An array without numbers, that writes down what is done with it."""

    def __init__(self, steps: "Tape", number: int) -> None:
        self._tape, self.number = steps, number
        self.shape, self.dtype = steps.steps[number].kind

    @property
    def ndim(self) -> int:
        """As an array's."""
        return len(self.shape)

    def __bool__(self) -> bool:
        raise UnrecordableError

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> "Traced":
        """Record an elementwise operation or a product; ``Z += b`` comes here too, and gives a new result."""
        if method != "__call__" or options or ufunc.nout != 1:
            raise UnrecordableError
        return self._tape.record(ufunc, inputs, (), _kind_of(ufunc, inputs))

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> "Traced":
        """Record one of the few other functions that the equations use."""
        if function not in _RECORDED:
            raise UnrecordableError
        name, kept = _RECORDED[function]
        extra = tuple(options.get(key) for key in kept)
        arrays = args if name != "astype" else args[:1]
        extra = extra if name != "astype" else (np.dtype(args[1]),)
        made = np.asarray(function(*map(_blank, args), **options))
        return self._tape.record(name, arrays, extra, Kind(made.shape, made.dtype))


def _kind_of(ufunc: Any, inputs: Sequence[Any]) -> Kind:
    """Return what a ufunc makes of these, without computing it."""
    shapes = [value.shape if isinstance(value, Traced) else () for value in inputs]
    kinds = [value.dtype if isinstance(value, Traced) else type(_number(value)) for value in inputs]
    dtype = ufunc.resolve_dtypes((*kinds, None))[-1]
    if ufunc is not np.matmul:
        if ufunc.signature is not None:
            raise UnrecordableError
        return Kind(np.broadcast_shapes(*shapes), dtype)
    left, right = shapes
    if len(left) != 2 or len(right) != 2 or left[1] != right[0]:
        raise UnrecordableError
    return Kind((left[0], right[1]), dtype)


_RECORDED: dict[Any, tuple[str, tuple[str, ...]]] = {
    np.sum: ("sum", ("axis", "keepdims")),
    np.max: ("max", ("axis", "keepdims")),
    np.where: ("where", ()),
    np.astype: ("astype", ()),
    np.ones_like: ("ones_like", ()),
    np.matrix_transpose: ("transpose", ()),
}


def _blank(value: Any) -> Any:
    """Return an array like a traced one, which takes no memory."""
    return np.broadcast_to(np.zeros((), value.dtype), value.shape) if isinstance(value, Traced) else value


class Tape:
    """What was recorded so far."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._known: dict[Any, int] = {}

    def leaf(self, argument: Vector) -> Traced:
        """Return an argument of the recorded function."""
        self.steps.append(Step("leaf", (), (), Kind(argument.shape, argument.dtype)))
        return Traced(self, len(self.steps) - 1)

    def record(self, operation: Any, inputs: Sequence[Any], options: tuple[Any, ...], kind: Kind) -> Traced:
        """Return the result of an operation, an earlier one when it is the same."""
        given = tuple(Ref(value.number) if isinstance(value, Traced) else _number(value) for value in inputs)
        key = (operation, given, options)
        if key not in self._known:
            self._known[key] = len(self.steps)
            self.steps.append(Step(operation, given, options, kind))
        return Traced(self, self._known[key])


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnrecordableError
    return value


class Record(NamedTuple):
    """What a function did: its steps, and the numbers of its arguments (None as given) and results among them."""

    steps: list[Step]
    leaves: list[int | None]
    results: list[int]


def record(function: Callable[..., Sequence[Any]], arguments: Sequence[Vector | None]) -> Record:
    """Return what a function of arrays does.

    Parameters
    ----------
    function : callable
        Takes arrays and returns a sequence of arrays; elementwise operations, products, sums over the last two axes,
        ``max``, ``where``, ``astype`` and transposes.
    arguments : sequence of arrays or None
        Like its arguments: of their shapes and dtypes.

    Raises
    ------
    UnrecordableError
        It does anything else, such as looking at a value.
    """
    tape = Tape()
    leaves = [None if argument is None else tape.leaf(argument) for argument in arguments]
    returned = function(*leaves)
    if not all(isinstance(value, Traced) for value in returned):
        raise UnrecordableError
    return Record(
        tape.steps, [None if leaf is None else leaf.number for leaf in leaves], [value.number for value in returned]
    )
