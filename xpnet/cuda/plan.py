"""A recorded function as few launches on a GPU.

Operations that follow each other element by element are one kernel, whose source is written from the record; products
are left to cuBLAS; sums and maxima over an axis are three small kernels. All arrays lie row after row, so that a kernel
knows no strides: a transpose is another way to count through the same array, and costs nothing.

The kernels' sources name no sizes, so that a program has one for each chain of operations whatever the batch.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xpnet.record import Kind, Record, Ref, Step, UnrecordableError

THREADS = 256
"""Threads of a block, of a chain or of a sum over columns that are fewer than `LONG`."""

LONG = 2**14
"""Columns from which a sum over them is worth the largest block that there is, `MOST` threads."""

MOST = 1_024

_LARGEST = 2**31 - 1
"""Rows and columns are counted in C's int."""

_TYPES = {"float32": "float", "float64": "double", "bool": "bool"}

_EXPRESSIONS: dict[Any, str] = {
    np.add: "{} + {}",
    np.subtract: "{} - {}",
    np.multiply: "{} * {}",
    np.matmul: "{} * {}",  # of a column and a row
    np.divide: "{} / {}",
    np.power: "pow({}, {})",
    np.negative: "-{}",
    np.square: "{0} * {0}",
    np.reciprocal: "1 / {}",
    np.absolute: "fabs({})",
    np.sqrt: "sqrt({})",
    np.exp: "exp({})",
    np.expm1: "expm1({})",
    np.log: "log({})",
    np.log1p: "log1p({})",
    np.tanh: "tanh({})",
    np.sin: "sin({})",
    np.cos: "cos({})",
    np.arctan: "atan({})",
    # As NumPy's and CuPy's, which hand nan on; C's fmax would hide it.
    np.maximum: "({0} > {1} || {0} != {0}) ? {0} : {1}",
    np.minimum: "({0} < {1} || {0} != {0}) ? {0} : {1}",
    np.greater: "{} > {}",
    np.greater_equal: "{} >= {}",
    np.less: "{} < {}",
    np.less_equal: "{} <= {}",
    np.equal: "{} == {}",
    np.not_equal: "{} != {}",
    "where": "{} ? {} : {}",
    "astype": "{}",
    "sum": "{}",  # of one number
    "max": "{}",
}

_CHAIN = """\
extern "C" __global__ void launch({parameters}, int rows, int columns)
{{
    for (int r = blockIdx.y * blockDim.y + threadIdx.y; r < rows; r += gridDim.y * blockDim.y)
        for (int c = blockIdx.x * blockDim.x + threadIdx.x; c < columns; c += gridDim.x * blockDim.x) {{
            const long long i = (long long)r * columns + c;
            {body}
        }}
}}
"""

_OVER_ROWS = """\
extern "C" __global__ void launch(const {type}* a, {type}* o, int rows, int columns)
{{
    for (int c = blockIdx.x * blockDim.x + threadIdx.x; c < columns; c += gridDim.x * blockDim.x) {{
        {type} v = a[c];
        for (int r = 1; r < rows; r++) {{
            const {type} w = a[(long long)r * columns + c];
            v = {combined};
        }}
        o[c] = v;
    }}
}}
"""

_OVER_COLUMNS = """\
extern "C" __global__ void launch(const {type}* a, {type}* o, int rows, int columns)
{{
    __shared__ {type} part[{most}];
    const int t = threadIdx.x;
    for (int r = blockIdx.x; r < rows; r += gridDim.x) {{
        {type} v = 0;
        for (int c = t; c < columns; c += blockDim.x)
            v += a[(long long)r * columns + c];
        part[t] = v;
        __syncthreads();
        for (int half = blockDim.x / 2; half > 0; half /= 2) {{
            if (t < half)
                part[t] += part[t + half];
            __syncthreads();
        }}
        if (t == 0)
            o[r] = part[0];
        __syncthreads();
    }}
}}
"""

GATHER = """\
extern "C" __global__ void launch(const {type}* a, const long long* numbers, {type}* o, int rows, int columns)
{{
    for (int r = blockIdx.y * blockDim.y + threadIdx.y; r < rows; r += gridDim.y * blockDim.y) {{
        const long long from = numbers[r] * columns;
        for (int c = blockIdx.x * blockDim.x + threadIdx.x; c < columns; c += gridDim.x * blockDim.x)
            o[(long long)r * columns + c] = a[from + c];
    }}
}}
"""
"""The rows ``a[numbers]``; `gather` fills in the type."""

Shape = tuple[int, int]


class Grid(NamedTuple):
    """How many blocks a kernel is launched in, and of how many threads."""

    blocks: tuple[int, ...]
    threads: tuple[int, ...]


class Kernel(NamedTuple):
    """A kernel, called ``launch``, for so many rows and columns.

    It takes pointers to its inputs, pointers to its outputs, and the rows and the columns as C's int.
    """

    source: str
    shape: Shape
    grid: Grid


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
                if chained and self._is_chained(others[0]) and self._shape(others[0]) == self._shape(number):
                    turned = any(operand.turned and operand.number in others for operand in self._operands(number))
                    if not turned:  # its transpose is known when all of it is
                        break
            else:
                n = len(groups)
                groups.append([])
            groups[n].append(number)
            of[number] = n
        return groups

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
        """Return whether a step makes each number of its result from the numbers in the same place."""
        step = self._steps[number]
        if step.operation is np.matmul:
            return self._shape(step.inputs[0].number)[1] == 1
        if step.operation in ("sum", "max"):
            rows, columns = self._shape(step.inputs[0].number)
            over = {-1: columns, -2: rows, (-2, -1): rows * columns}.get(step.options[0])
            if over is None:
                raise UnrecordableError
            return over == 1
        if step.operation != "ones_like" and step.operation not in _EXPRESSIONS:
            raise UnrecordableError
        return True

    def _launch(self, group: Sequence[int]) -> Launch:
        step = self._steps[group[0]]
        if self._is_chained(group[0]):
            return self._chain(group)
        if step.operation is np.matmul:
            return Launch(None, tuple(self._operands(group[0])), (group[0],))
        return self._reduction(group[0], step)

    # Kernels ----------------------------------------------------------------------------------------------------------

    def _chain(self, group: Sequence[int]) -> Launch:
        """Return the kernel that does these steps, element by element."""
        shape = self._shape(group[0])
        inputs = dict.fromkeys(
            operand for number in group for operand in self._operands(number) if operand.number not in group
        )
        outputs = [number for number in group if number in self._results or self._is_used_outside(number, group)]
        names = {operand: f"x{n}" for n, operand in enumerate(inputs)} | {
            Operand(number): f"v{n}" for n, number in enumerate(group)
        }
        reads = [
            f"const {self._type(operand.number)} {names[operand]} = a{n}[{self._index(operand, shape)}];"
            for n, operand in enumerate(inputs)
        ]
        makes = [
            f"const {self._type(number)} {names[Operand(number)]} = {self._expression(number, names)};"
            for number in group
        ]
        # At the end, for an output may lie where an input does.
        writes = [f"o{n}[i] = {names[Operand(number)]};" for n, number in enumerate(outputs)]
        parameters = [f"const {self._type(operand.number)}* a{n}" for n, operand in enumerate(inputs)] + [
            f"{self._type(number)}* o{n}" for n, number in enumerate(outputs)
        ]
        body = ("\n" + " " * 12).join(reads + makes + writes)
        source = _CHAIN.format(parameters=", ".join(parameters), body=body)
        return Launch(Kernel(source, shape, _spread(shape)), tuple(inputs), tuple(outputs))

    def _is_used_outside(self, number: int, group: Sequence[int]) -> bool:
        return any(
            operand.number == number
            for user in self._live
            if user not in group and self._steps[user].operation not in ("leaf", "transpose")
            for operand in self._operands(user)
        )

    def _index(self, operand: Operand, shape: Shape) -> str:
        """Return where an operand's number for row r and column c lies."""
        rows, columns = self._shape(operand.number)
        if operand.turned:
            rows, columns = columns, rows
        if rows == 1:
            return "0" if columns == 1 else "c"
        if columns == 1:
            return "r"
        if (rows, columns) != shape:
            raise UnrecordableError
        return "(long long)c * rows + r" if operand.turned else "i"

    def _type(self, number: int) -> str:
        return _type(self._steps[number].kind)

    def _expression(self, number: int, names: dict[Operand, str]) -> str:
        step = self._steps[number]
        if step.operation == "ones_like":
            return "1"
        dtypes = [self._steps[value.number].kind.dtype for value in step.inputs if isinstance(value, Ref)]
        like = next((_TYPES[dtype.name] for dtype in dtypes if dtype.kind == "f"), self._type(number))
        given = [
            names[self._operand(value)] if isinstance(value, Ref) else f"({like}){_literal(value)}"
            for value in step.inputs
        ]
        return _EXPRESSIONS[step.operation].format(*given)

    def _reduction(self, number: int, step: Step) -> Launch:
        (operand,), axis = self._operands(number), step.options[0]
        rows, columns = self._shape(operand.number)
        kind = self._type(number)
        if operand.turned or kind == "bool":
            raise UnrecordableError
        if axis == -2:
            combined = "v + w" if step.operation == "sum" else _EXPRESSIONS[np.maximum].format("v", "w")
            source = _OVER_ROWS.format(type=kind, combined=combined)
            grid = _spread((1, columns))
        elif step.operation == "max":
            raise UnrecordableError
        else:
            rows, columns = (rows, columns) if axis == -1 else (1, rows * columns)
            source = _OVER_COLUMNS.format(type=kind, most=MOST)
            grid = Grid((min(rows, 65_535), 1), (THREADS if columns < LONG else MOST, 1))
        if max(rows, columns) > _LARGEST:
            raise UnrecordableError
        return Launch(Kernel(source, (rows, columns), grid), (operand,), (number,))

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
        """Return whether an output of a launch may lie where this input does: each place read before it is written."""
        if launch.kernel is None or not self._is_chained(launch.outputs[0]):
            return False
        used = [operand for operand in launch.inputs if operand.number == number]
        return used == [Operand(number)] and self._shape(number) == launch.kernel.shape

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


def gather(array: Any, count: int) -> Kernel:
    """Return the kernel that picks `count` rows out of an array ``(k, n)``: ``array, numbers -> (count, n)``."""
    shape = (count, int(array.shape[1]))
    return Kernel(GATHER.format(type=_TYPES[array.dtype.name]), shape, _spread(shape))


def _two(shape: Iterable[int]) -> Shape:
    """Return a shape as rows and columns; a vector is a row."""
    rows, columns = (1, 1, *shape)[-2:]
    if len(tuple(shape)) > 2 or max(rows, columns) > _LARGEST:
        raise UnrecordableError
    return rows, columns


def _type(kind: Kind) -> str:
    if kind.dtype.name not in _TYPES:
        raise UnrecordableError
    return _TYPES[kind.dtype.name]


def _literal(value: float) -> str:
    """Return a number as C has it, to the last bit."""
    if math.isnan(value):
        raise UnrecordableError
    if math.isinf(value):
        return "(1e308 * 10)" if value > 0 else "(-1e308 * 10)"
    return repr(float(value))


def _spread(shape: Shape) -> Grid:
    """Return a grid whose threads have one column each, and as many rows as it takes."""
    rows, columns = shape
    wide = min(THREADS, max(32, 1 << (columns - 1).bit_length()))
    tall = min(THREADS // wide, 1 << (rows - 1).bit_length())
    return Grid((min(-(-columns // wide), 2**16), min(-(-rows // tall), 65_535)), (wide, tall))
