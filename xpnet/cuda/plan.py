"""A recorded function as few launches on a GPU.

Operations that follow each other element by element, and over the few rows of an output, are one kernel, whose source
is written from the record (`xpnet.cuda.kernels`). Products are left to cuBLAS, and sums over many columns are a kernel
each. A transpose costs nothing: it is another way to count through the same array.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xpnet.cuda import kernels
from xpnet.cuda.kernels import Kernel, Make, Read, Shape, Value
from xpnet.record import Kind, Record, Ref, UnrecordableError


class Operand(NamedTuple):
    """A value, by its number, or its transpose."""

    number: int
    turned: bool = False


class Launch(NamedTuple):
    """A kernel or, where there is none, the product of the two inputs."""

    kernel: Kernel | None
    inputs: tuple[Operand, ...]
    outputs: tuple[int, ...]


class Bound(NamedTuple):
    """A launch with its arrays; the transpose of an input of a product is that array's `T`."""

    kernel: Kernel | None
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


class Plan:
    """The launches of a recorded function.

    Parameters
    ----------
    record : Record
        The function. Its arguments and results are arrays that lie row after row.

    Attributes
    ----------
    launches : list of Launch
        In order.

    Raises
    ------
    UnrecordableError
        The function does what the kernels here cannot.
    """

    def __init__(self, record: Record) -> None:
        self._steps, self._leaves, self._results = record
        if len(set(self._results)) != len(self._results):
            raise UnrecordableError
        self._live = self._reaching_results()
        if any(self._steps[number].operation in ("leaf", "transpose") for number in self._results):
            raise UnrecordableError
        self.launches = [self._launch(group) for group in self._groups()]
        self._last = {
            operand.number: n for n, launch in enumerate(self.launches) for operand in launch.inputs
        }  # the last launch that reads a value
        self._place, self._kinds = self._laid_out()

    def _reaching_results(self) -> set[int]:
        live, waiting = set(), list(self._results)
        while waiting:
            number = waiting.pop()
            if number not in live:
                live.add(number)
                waiting += [ref.number for ref in self._refs(number)]
        return live

    def _refs(self, number: int) -> list[Ref]:
        """Return the values that a step needs."""
        step = self._steps[number]
        return [value for value in step.inputs if isinstance(value, Ref)] if step.operation != "ones_like" else []

    def _operand(self, ref: Ref) -> Operand:
        """Return the value behind transposes."""
        step, number, turned = self._steps[ref.number], ref.number, False
        while step.operation == "transpose":
            number, turned = step.inputs[0].number, not turned
            step = self._steps[number]
        return Operand(number, turned)

    def _operands(self, number: int) -> list[Operand]:
        return [self._operand(ref) for ref in self._refs(number)]

    def _shape(self, number: int) -> Shape:
        return _two(self._steps[number].kind.shape)

    def _groups(self) -> list[list[int]]:
        """Return the steps of each launch: those of one shape together, wherever what they need is known by then."""
        groups: list[list[int]] = []
        of: dict[int, int] = {}
        for number in self._ordered():
            earliest = max(
                (of[operand.number] for operand in self._operands(number) if operand.number in of), default=0
            )
            chained = self._is_chained(number)
            for n in range(earliest, len(groups)):
                others = groups[n]
                if chained and self._is_chained(others[0]) and self._family(others[0]) == self._family(number):
                    turned = any(operand.turned and operand.number in others for operand in self._operands(number))
                    if not turned:  # its transpose is known when all of it is
                        break
            else:
                n = len(groups)
                groups.append([])
            groups[n].append(number)
            of[number] = n
        return groups

    def _family(self, number: int) -> Shape:
        """Return what steps of one kernel have in common: their columns, and their rows where these are many."""
        rows, columns = self._shape(number)
        return (0 if rows <= kernels.FEW else rows, columns)

    def _ordered(self) -> list[int]:
        """Return the steps in an order in which each is known what it needs, the smallest of those at hand first.

        So Adam's few numbers are known before its vectors are gone through, and they are gone through once.
        """
        made = {number for number in self._live if self._steps[number].operation not in ("leaf", "transpose")}
        needs = {number: {operand.number for operand in self._operands(number)} & made for number in made}
        order: list[int] = []
        while needs:
            ready = [number for number, others in needs.items() if others.isdisjoint(needs)]
            order.append(min(ready, key=lambda number: (math.prod(self._shape(number)), number)))
            del needs[order[-1]]
        return order

    def _is_chained(self, number: int) -> bool:
        """Return whether a step makes each number of its result from those in the same place, or in few rows."""
        step = self._steps[number]
        if step.operation is np.matmul:
            return self._shape(step.inputs[0].number)[1] == 1
        if step.operation in ("sum", "max"):
            rows, columns = self._shape(step.inputs[0].number)
            over = {-1: columns, -2: rows, (-2, -1): rows * columns}.get(step.options[0])
            if over is None or (over == 1 and self._shape(number) != (rows, columns)):
                raise UnrecordableError
            return over == 1 or (step.options[0] == -2 and rows <= kernels.FEW)
        if step.operation != "ones_like" and step.operation not in kernels.EXPRESSIONS:
            raise UnrecordableError
        return True

    def _launch(self, group: Sequence[int]) -> Launch:
        number = group[0]
        if self._is_chained(number):
            return self._chain(group)
        if self._steps[number].operation is np.matmul:
            return Launch(None, tuple(self._operands(number)), (number,))
        return self._reduction(number)

    def _chain(self, group: Sequence[int]) -> Launch:
        """Return the launch that does these steps."""
        inputs = list(
            dict.fromkeys(
                operand for number in group for operand in self._operands(number) if operand.number not in group
            )
        )
        outputs = [number for number in group if number in self._results or self._is_used_outside(number, group)]
        values = {operand: self._value(f"x{n}", operand) for n, operand in enumerate(inputs)}
        values |= {Operand(number): self._value(f"v{n}", Operand(number)) for n, number in enumerate(group)}
        kernel = kernels.chain(
            [Read(values[operand], operand.turned) for operand in inputs],
            [self._make(number, values) for number in group],
            [values[Operand(number)] for number in outputs],
        )
        return Launch(kernel, tuple(inputs), tuple(outputs))

    def _value(self, name: str, operand: Operand) -> Value:
        shape = self._shape(operand.number)
        return Value(name, self._type(operand.number), shape[::-1] if operand.turned else shape)

    def _make(self, number: int, values: dict[Operand, Value]) -> Make:
        step = self._steps[number]
        refs = () if step.operation == "ones_like" else step.inputs
        given = (values[self._operand(it)] if isinstance(it, Ref) else it for it in refs)
        return Make(values[Operand(number)], step.operation, tuple(given))

    def _type(self, number: int) -> str:
        return kernels.type_of(self._steps[number].kind.dtype)

    def _is_used_outside(self, number: int, group: Sequence[int]) -> bool:
        return any(
            operand.number == number
            for user in self._live
            if user not in group and self._steps[user].operation not in ("leaf", "transpose")
            for operand in self._operands(user)
        )

    def _reduction(self, number: int) -> Launch:
        step, (operand,) = self._steps[number], self._operands(number)
        axis, kind, (rows, columns) = step.options[0], self._type(number), self._shape(operand.number)
        if operand.turned or kind == "bool" or rows * columns > kernels.LARGEST:
            raise UnrecordableError
        if axis == -2:
            kernel = kernels.over_rows(kind, step.operation, (rows, columns))
        elif step.operation == "max":
            raise UnrecordableError
        else:
            kernel = kernels.over_columns(kind, (rows, columns) if axis == -1 else (1, rows * columns))
        return Launch(kernel, (operand,), (number,))

    # Memory -----------------------------------------------------------------------------------------------------------

    def _laid_out(self) -> tuple[dict[int, int], list[Kind]]:
        """Return the buffer of each value that is neither an argument nor a result, and what the buffers are like."""
        place: dict[int, int] = {}
        kinds: list[Kind] = []
        free: dict[Kind, list[int]] = {}
        for n, launch in enumerate(self.launches):
            dying = [
                number for number in {o.number for o in launch.inputs} if self._last[number] == n and number in place
            ]
            for number in launch.outputs:
                if number in self._results:
                    continue
                kind = self._steps[number].kind
                over = next((d for d in dying if kinds[place[d]] == kind and self._may_overwrite(launch, d)), None)
                if over is not None:
                    dying.remove(over)
                    place[number] = place[over]
                elif free.get(kind):
                    place[number] = free[kind].pop()
                else:
                    place[number] = len(kinds)
                    kinds.append(kind)
            for number in dying:
                free.setdefault(kinds[place[number]], []).append(place[number])
        return place, kinds

    def _may_overwrite(self, launch: Launch, number: int) -> bool:
        """Return whether an output of a launch, of this input's shape, may lie where the input does.

        A chain has read a place, or a column, before it writes there.
        """
        if not self._is_chained(launch.outputs[0]):
            return False
        return [operand for operand in launch.inputs if operand.number == number] == [Operand(number)]

    def buffers(self, make: Callable[[tuple[int, ...], Any], Any]) -> list[Any]:
        """Return what the launches need besides arguments and results, made by ``make(shape, dtype)``."""
        return [make(kind.shape, kind.dtype) for kind in self._kinds]

    def bind(self, arguments: Sequence[Any], results: Sequence[Any], buffers: Sequence[Any]) -> list[Bound]:
        """Return the launches with their arrays.

        Parameters
        ----------
        arguments : sequence of arrays or None
            Of the shapes and dtypes recorded, row after row.
        results : sequence of arrays
            Where the results go; one may be an argument that no later launch reads.
        buffers : sequence of arrays
            From `buffers`.

        Raises
        ------
        UnrecordableError
            A result would be written over an argument that is still needed.
        """
        given = {n: array for n, array in zip(self._leaves, arguments, strict=True) if n is not None}
        made = dict(zip(self._results, results, strict=True))
        self._check_overwritten(given, made)
        arrays = given | made | {number: buffers[n] for number, n in self._place.items()}

        def array(operand: Operand, launch: Launch) -> Any:
            value = arrays[operand.number]
            return value.T if operand.turned and launch.kernel is None else value

        return [
            Bound(
                launch.kernel,
                tuple(array(operand, launch) for operand in launch.inputs),
                tuple(arrays[number] for number in launch.outputs),
            )
            for launch in self.launches
        ]

    def _check_overwritten(self, given: dict[int, Any], made: dict[int, Any]) -> None:
        for number, result in made.items():
            for leaf, argument in given.items():
                if argument is not result:
                    continue
                n = next(n for n, launch in enumerate(self.launches) if number in launch.outputs)
                last = self._last.get(leaf, -1)
                if last > n or (last == n and not self._may_overwrite(self.launches[n], leaf)):
                    raise UnrecordableError


def _two(shape: tuple[int, ...]) -> Shape:
    """Return a shape as rows and columns; a vector is a row."""
    rows, columns = (1, 1, *shape)[-2:]
    if len(shape) > 2 or max(rows, columns) > kernels.LARGEST:
        raise UnrecordableError
    return rows, columns
