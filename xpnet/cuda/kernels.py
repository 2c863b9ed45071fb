"""The sources of kernels.

Arrays lie row after row, so that a kernel knows no strides; a transpose is another way to count through the same array.
Sources name no sizes but those of few rows, so that a program has one for each chain of operations whatever the batch.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xpnet.record import UnrecordableError

THREADS = 256
"""Threads of a block, of a chain or of a sum over columns that are fewer than `LONG`."""

LONG = 2**14
"""Columns from which a sum over them is worth the largest block that there is, `MOST` threads."""

MOST = 1_024

FEW = 16
"""Rows that a thread may go through, with their numbers in its registers."""

LARGEST = 2**31 - 1
"""Rows and columns are counted in C's int."""

Shape = tuple[int, int]

_TYPES = {"float32": "float", "float64": "double", "bool": "bool"}

EXPRESSIONS: dict[Any, str] = {
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

_TWO = {"sum": np.add, "max": np.maximum}

_BY_NUMBER = """\
extern "C" __global__ void launch({parameters}, int rows, int columns)
{{
    for (int r = blockIdx.y * blockDim.y + threadIdx.y; r < rows; r += gridDim.y * blockDim.y)
        for (int c = blockIdx.x * blockDim.x + threadIdx.x; c < columns; c += gridDim.x * blockDim.x) {{
            const long long i = (long long)r * columns + c;
            {body}
        }}
}}
"""

_BY_COLUMN = """\
extern "C" __global__ void launch({parameters}, int rows, int columns)
{{
    for (int c = blockIdx.x * blockDim.x + threadIdx.x; c < columns; c += gridDim.x * blockDim.x) {{
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

_GATHER = """\
extern "C" __global__ void launch(const {type}* a, const long long* numbers, {type}* o, int rows, int columns)
{{
    for (int r = blockIdx.y * blockDim.y + threadIdx.y; r < rows; r += gridDim.y * blockDim.y) {{
        const long long from = numbers[r] * columns;
        for (int c = blockIdx.x * blockDim.x + threadIdx.x; c < columns; c += gridDim.x * blockDim.x)
            o[(long long)r * columns + c] = a[from + c];
    }}
}}
"""


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


class Value(NamedTuple):
    """A number, a row of them or all of a chain's, as its source calls them."""

    name: str
    type: str
    shape: Shape

    def at_row(self) -> str:
        """Return what the value is in row r."""
        return self.name if self.shape[0] == 1 else f"{self.name}[r]"


class Read(NamedTuple):
    """An input of a chain: where it is, and whether its transpose is meant."""

    value: Value
    turned: bool


class Make(NamedTuple):
    """An operation of a chain: what it makes, and of which values and numbers."""

    value: Value
    operation: Any
    given: tuple[Value | float, ...]

    def reduced(self) -> Value | None:
        """Return what it makes one row of, when that has several."""
        if self.operation not in ("sum", "max") or not isinstance(self.given[0], Value):
            return None
        return self.given[0] if self.given[0].shape[0] > self.value.shape[0] else None

    def expression(self) -> str:
        """Return the operation in C, for one number."""
        if self.operation == "ones_like":
            return "1"
        types = [value.type for value in self.given if isinstance(value, Value)]
        like = next((kind for kind in types if kind != "bool"), self.value.type)
        given = [it.at_row() if isinstance(it, Value) else f"({like}){_literal(it)}" for it in self.given]
        return EXPRESSIONS[self.operation].format(*given)


def chain(reads: Sequence[Read], makes: Sequence[Make], writes: Sequence[Value]) -> Kernel:
    """Return the kernel of operations that follow each other.

    Where all are of one shape, each thread does one number of it after another. Otherwise, as of a softmax's outputs
    and their sums, each does a column after another, of `FEW` rows at most.
    """
    parameters = [f"const {read.value.type}* a{n}" for n, read in enumerate(reads)] + [
        f"{value.type}* o{n}" for n, value in enumerate(writes)
    ]
    shapes = {make.value.shape for make in makes}
    if len(shapes) == 1 and all(make.reduced() is None for make in makes):
        (shape,) = shapes
        lines, template = _by_number(reads, makes, writes, shape), _BY_NUMBER
    else:
        shape = (1, makes[0].value.shape[1])
        lines, template = _by_column(reads, makes, writes), _BY_COLUMN
    body = ("\n" + " " * (12 if template is _BY_NUMBER else 8)).join(lines)
    return Kernel(template.format(parameters=", ".join(parameters), body=body), shape, _spread(shape))


def _by_number(reads: Sequence[Read], makes: Sequence[Make], writes: Sequence[Value], shape: Shape) -> list[str]:
    lines = []
    for n, (value, turned) in enumerate(reads):
        if 1 not in value.shape and value.shape != shape:
            raise UnrecordableError
        whole = "(long long)c * rows + r" if turned else "i"
        lines.append(f"const {value.type} {value.name} = a{n}[{_index(value, whole)}];")
    for make in makes:
        # As the values are used in one row at a time here, none is an array.
        given = tuple(it._replace(shape=(1, 1)) if isinstance(it, Value) else it for it in make.given)
        lines.append(f"const {make.value.type} {make.value.name} = {make._replace(given=given).expression()};")
    # At the end, for an output may lie where an input does.
    return lines + [f"o{n}[i] = {value.name};" for n, value in enumerate(writes)]


def _by_column(reads: Sequence[Read], makes: Sequence[Make], writes: Sequence[Value]) -> list[str]:
    lines = []
    for n, (value, turned) in enumerate(reads):
        rows = value.shape[0]
        index = _index(value, f"(long long)c * {rows} + r" if turned else "(long long)r * columns + c")
        lines.append(_assigned(value, f"a{n}[{index}]"))
    for make in makes:
        value, several = make.value, make.reduced()
        if several is None:
            lines.append(_assigned(value, make.expression()))
            continue
        combined = EXPRESSIONS[_TWO[make.operation]].format(value.name, several.at_row())
        lines.append(f"{value.type} {value.name} = {several.name}[0];")
        lines.append(f"for (int r = 1; r < {several.shape[0]}; r++) {value.name} = {combined};")
    for n, value in enumerate(writes):
        index = "c" if value.shape[0] == 1 else "(long long)r * columns + c"
        lines.append(f"{_each_row(value)}o{n}[{index}] = {value.at_row()};")
    return lines


def _assigned(value: Value, expression: str) -> str:
    if value.shape[0] == 1:
        return f"const {value.type} {value.name} = {expression};"
    return f"{value.type} {value.name}[{value.shape[0]}]; {_each_row(value)}{value.at_row()} = {expression};"


def _each_row(value: Value) -> str:
    return "" if value.shape[0] == 1 else f"for (int r = 0; r < {value.shape[0]}; r++) "


def _index(value: Value, whole: str) -> str:
    """Return where a value's number for row r and column c lies."""
    rows, columns = value.shape
    if rows == 1:
        return "0" if columns == 1 else "c"
    return "r" if columns == 1 else whole


def over_rows(kind: str, operation: str, shape: Shape) -> Kernel:
    """Return the kernel of a sum or maximum of each column: ``(rows, columns) -> (1, columns)``."""
    combined = EXPRESSIONS[_TWO[operation]].format("v", "w")
    return Kernel(_OVER_ROWS.format(type=kind, combined=combined), shape, _spread((1, shape[1])))


def over_columns(kind: str, shape: Shape) -> Kernel:
    """Return the kernel of a sum of each row: ``(rows, columns) -> (rows, 1)``."""
    grid = Grid((min(shape[0], 65_535), 1), (THREADS if shape[1] < LONG else MOST, 1))
    return Kernel(_OVER_COLUMNS.format(type=kind, most=MOST), shape, grid)


def gather(array: Any, count: int) -> Kernel:
    """Return the kernel that picks `count` rows out of an array ``(k, n)``: ``array, numbers -> (count, n)``."""
    shape = (count, int(array.shape[1]))
    return Kernel(_GATHER.format(type=type_of(array.dtype)), shape, _spread(shape))


def type_of(dtype: Any) -> str:
    """Return C's name of a dtype."""
    if dtype.name not in _TYPES:
        raise UnrecordableError
    return _TYPES[dtype.name]


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
