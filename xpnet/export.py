"""A trained network as one Python file that predicts with NumPy alone.

The file's equations, activation, head and decoding are the source of the functions that xpnet itself calls, looked up
by `inspect` together with what they need: there is no second copy of the mathematics to keep. Only annotations are
left out, for the types that they name stay here. Around the functions stands what a file needs to be used: the checks
of X, a small command, and the parameters as text.
"""

import ast
import base64
import dis
import inspect
import math
import pprint
import string
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from xpnet import activations, engine, equations, heads, parameters, targets
from xpnet.errors import ActivationError, ArgumentError
from xpnet.network import Network

LARGEST = 2**26
"""Bytes of parameters that a file holds: Python takes 2 s and 1 GiB to read as many, and more in proportion."""

WIDTH = 118
"""Characters of a line of numbers."""

_CHECKED = 3
"""Examples on which a file is tried before it is handed out."""


def source(net: Network) -> str:
    """Return a network as the text of a Python file.

    The file has ``predict_proba(X)`` and ``predict(X)`` like the network's, and a command that reads CSV or .npy. The
    parameters stand at its end, as base64 of their little-endian bytes, whatever their size: one file is copied, mailed
    and versioned whole, and cannot meet another's numbers, as a file with an .npz beside it can.

    Of 1,000 examples at a time or fewer, it predicts the same bits as the network on the same machine and NumPy. Of
    more, xpnet cuts the columns into blocks by the number of cores, and a BLAS may round a last bit otherwise.

    Parameters
    ----------
    net : Network
        On any device.

    Returns
    -------
    str
        Python, for NumPy 1.23 or later; it does not need xpnet.

    Raises
    ------
    ActivationError
        The activation is a user's own, and its source cannot be read or needs more than NumPy and Python.
    ArgumentError
        The parameters are more than 64 MiB.

    Examples
    --------
    >>> import numpy as np
    >>> import xpnet.export
    >>> X, Y = xpnet.datasets.flower(40)
    >>> net = xpnet.fit(X, Y, hidden=3, epochs=1, random_state=0)
    >>> file = {"__name__": "predict"}
    >>> exec(xpnet.export.source(net), file)
    >>> np.array_equal(file["predict_proba"](X), net.predict_proba(X))
    True
    """
    net = net.to("cpu")
    vector = parameters.flatten(net.layers, xp=np)
    if vector.nbytes > LARGEST:
        raise ArgumentError(
            f"A Python file holds {LARGEST >> 20} MiB of parameters at most; this network has "
            f"{vector.nbytes / 2**20:.0f} MiB. Use net.save(...) or net.to_onnx(...)."
        )
    text = _written(net, vector)
    _check(net, text)
    return text


def _written(net: Network, vector: npt.NDArray[Any]) -> str:
    definitions = _Definitions()
    definitions.add(equations.forward)
    # The head's own cannot fail, but for a name that the activation has taken: hence whose name it is given.
    g, g_output = (
        definitions.callable(net.activation.name, each) for each in (net.activation.g, heads.HEADS[net.kind.head].g)
    )
    definitions.add(targets.decode)
    classes = net.kind.classes
    values = {
        "TASK": f'SimpleNamespace(name="{net.task}", classes={"None" if classes is None else _array_of(classes)})',
        "FEATURES": "None" if net.feature_names is None else _wrapped(list(net.feature_names)),
        "SIZES": repr(net.sizes),
        "DTYPE": f'np.dtype("{net.dtype}")',
        "ACTIVATION": f"SimpleNamespace(name={net.activation.name!r}, g={g})",
        "HEAD": f'SimpleNamespace(name="{net.kind.head}", g={g_output})',
        "BLOCK": f"{_block(net.sizes)}  # columns at a time",
    }
    return string.Template(_FRAME).substitute(
        title=_in_docstring(repr(net)[1:-1].removeprefix("Network ")),
        version=_version(),
        encoded="" if net.features is None else _ENCODED,
        imports="".join(f"{line}\n" for line in sorted(definitions.imports)),
        constants="".join(f"{line}\n" for line in definitions.constants.values()) + "\n" * bool(definitions.constants),
        functions="\n\n".join(definitions.functions.values()),
        values="\n".join(f"{name} = {value}" for name, value in values.items()),
        scaling="None" if net.scaling is None else f"_numbers({_encoded(np.stack(net.scaling))}).reshape(2, -1, 1)",
        parameters=_encoded(vector),
    )


def _check(net: Network, text: str) -> None:
    """Run a file and see that it predicts as the network does: what its functions need may mean something else there.

    Only roughly, for such a fault gives other numbers altogether; that the bits are the same is for the tests to show.
    """
    mean, deviation = net.scaling or (np.zeros(net.sizes[0]), np.ones(net.sizes[0]))
    X = (mean + deviation * np.random.default_rng(0).standard_normal((_CHECKED, net.sizes[0]))).T
    file: dict[str, Any] = {"__name__": "predict"}
    try:
        exec(compile(text, "predict.py", "exec"), file)
        found = file["predict_proba"](X)
    except Exception as error:  # a user's own activation may need anything
        raise _not_alone(net.activation.name, f"alone it raises {type(error).__name__}: {error}") from error
    if not np.allclose(found, net.predict_proba(X), rtol=1e-3, equal_nan=True):
        raise _not_alone(net.activation.name, "alone it gives other numbers")


def _block(sizes: tuple[int, ...]) -> int:
    """Return how many columns xpnet takes at a time on one thread."""
    return max(4_096, engine.NARROW, engine.CACHE // max(sizes) // 64 * 64)


# Functions as text ----------------------------------------------------------------------------------------------------


class _UnwritableError(Exception):
    """A function needs something that cannot be written into a file."""


def _not_alone(name: str, why: str) -> ActivationError:
    return ActivationError(
        f"The activation {name!r} must be a function whose source runs with NumPy alone, but {why}. Write it in a "
        "file, from NumPy's functions, numbers and other such functions, or use net.save(...)."
    )


class _Definitions:
    """Functions as text, with all that they need: other functions, constants and imports."""

    def __init__(self) -> None:
        self.functions: dict[str, str] = {}
        self.constants: dict[str, str] = {}
        self.imports: set[str] = set()
        self._added: list[Any] = []

    def callable(self, name: str, g: Callable[..., Any]) -> str:
        """Add an activation's or a head's g, and return an expression for it, callable with ``xp=``.

        Parameters
        ----------
        name : str
            The activation's, for messages.
        g : callable
            ``g(Z, xp=)``.

        Raises
        ------
        ActivationError
            It cannot be written.
        """
        takes_xp = getattr(g, "func", None) is not activations._without_xp
        function = g if takes_xp else g.args[0]  # type: ignore[attr-defined]  # a partial that `xpnet.Activation` made
        try:
            called = f"np.{_of_numpy(function)}" if isinstance(function, np.ufunc) else self.add(function)
        except (_UnwritableError, OSError, SyntaxError) as error:
            why = str(error) if isinstance(error, _UnwritableError) else f"its source cannot be read ({error})"
            raise _not_alone(name, why) from error
        return called if takes_xp else f"lambda Z, xp: {called}(Z)"

    def add(self, function: Any) -> str:
        """Add a function after all that it needs, and return its name there."""
        if not inspect.isfunction(function):
            raise _UnwritableError(f"{function!r} is no function written in Python")
        is_lambda = function.__code__.co_name == "<lambda>"
        name = "activation" if is_lambda else function.__code__.co_name
        text = f"{name} = {_lambda(function)}" if is_lambda else _bare(textwrap.dedent(inspect.getsource(function)))
        self._define(self.functions, name, text.rstrip() + "\n")
        self._added.append(function)
        closure = inspect.getclosurevars(function).nonlocals
        for needed in _needed(function.__code__):
            if needed in closure or needed in function.__globals__:
                self._add_value(needed, closure.get(needed, function.__globals__.get(needed)))
        return name

    def _add_value(self, name: str, value: Any) -> None:
        """Add what a function knows by this name."""
        if isinstance(value, types.ModuleType):
            self._import(name, value.__name__, f"import {value.__name__}")
        elif isinstance(value, np.ufunc):
            self._import(name, "numpy", f"from numpy import {_of_numpy(value)}")
        elif isinstance(value, types.BuiltinFunctionType):
            self._import(name, value.__module__, f"from {value.__module__} import {value.__name__}")
        elif isinstance(value, bool | int | float | np.floating | np.integer) and math.isfinite(value):
            # A NumPy number makes float64 of float32 arrays, so it stays one.
            number = f"np.{value.dtype.name}({value.item()!r})" if isinstance(value, np.generic) else repr(value)
            self._define(self.constants, name, f"{name} = {number}")
        elif not inspect.isfunction(value) or value.__code__.co_name != name:
            raise _UnwritableError(f"it needs {name}, a {type(value).__name__}")
        elif value not in self._added:
            self.add(value)

    def _import(self, name: str, module: str, line: str) -> None:
        package = module.partition(".")[0]
        if package != "numpy" and package not in sys.stdlib_module_names:
            raise _UnwritableError(f"it needs {package}")
        if (name, line) != ("np", "import numpy"):  # which every file has
            self.imports.add(line if line.endswith(f" {name}") else f"{line} as {name}")

    def _define(self, among: dict[str, str], name: str, text: str) -> None:
        """Add a definition; twice the same is once, as for the identity, which is an activation and a head."""
        known = self.functions.get(name, self.constants.get(name, text))
        if known != text or name in _NAMES:
            raise _UnwritableError(f"its {name} would meet another {name}; rename it")
        among[name] = text


def _of_numpy(function: np.ufunc) -> str:
    """Return the name of a function of NumPy's; other packages have functions of its type too."""
    name: str = function.__name__
    if getattr(np, name, None) is not function:
        raise _UnwritableError(f"{name} is not NumPy's")
    return name


def _lambda(function: types.FunctionType) -> str:
    """Return the text of a lambda, which may be one of several on a line."""
    lines, _ = inspect.findsource(function)
    text, positions = "".join(lines), set(function.__code__.co_positions())
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Lambda):
            body = node.body  # the last thing that a lambda does spans its body
            if (body.lineno, body.end_lineno, body.col_offset, body.end_col_offset) in positions:
                return f"({ast.get_source_segment(text, node)})"
    raise _UnwritableError("its source is not where Python looks for it")


def _bare(text: str) -> str:
    """Return a function's text without annotations."""
    lines = text.encode().splitlines(keepends=True)  # a syntax tree counts bytes
    starts = [0, *accumulate(map(len, lines))]

    def begin(node: Any) -> int:
        return int(starts[node.lineno - 1] + node.col_offset)

    def end(node: Any) -> int:
        return int(starts[node.end_lineno - 1] + node.end_col_offset)

    bare, cuts = b"".join(lines), []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.arg) and node.annotation is not None:
            cuts.append((begin(node) + len(node.arg.encode()), end(node.annotation)))
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            cuts.append((end(node.target), end(node.annotation)))
        elif isinstance(node, ast.FunctionDef) and node.returns is not None:
            arrow = bare.rindex(b"->", 0, begin(node.returns))
            cuts.append((bare.rindex(b")", 0, arrow) + 1, end(node.returns)))
    for start, stop in sorted(cuts, reverse=True):
        bare = bare[:start] + bare[stop:]
    return bare.decode()


def _needed(code: types.CodeType) -> Iterator[str]:
    """Yield the names that a function takes from around it; `inspect.getclosurevars` mixes attributes in."""
    yield from code.co_freevars
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            yield str(instruction.argval)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _needed(inner)


# Values as text -------------------------------------------------------------------------------------------------------


def _wrapped(values: list[Any]) -> str:
    """Return a list as Python, over lines."""
    return pprint.pformat(values, width=WIDTH - 20, compact=True).replace("\n", "\n    ")


def _array_of(classes: npt.NDArray[Any]) -> str:
    dtype = f"U{classes.dtype.itemsize // 4}" if classes.dtype.kind == "U" else classes.dtype.name
    return f'np.array({_wrapped(classes.tolist())}, dtype="{dtype}")'


def _encoded(array: npt.NDArray[Any]) -> str:
    """Return an array's bytes as the arguments of the file's ``_numbers``."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    text = base64.b64encode(little.tobytes()).decode("ascii")
    lines = "\n".join(text[start : start + WIDTH] for start in range(0, len(text), WIDTH))
    return f'"<f{little.itemsize}", """\n{lines}\n"""'


def _in_docstring(text: str) -> str:
    """Return text, which may have a user's words in it, so that it ends no docstring."""
    return text.encode("unicode_escape").decode("ascii").replace('"', "'")


def _version() -> str:
    from xpnet import __version__

    return __version__


_NAMES = frozenset(
    {"ACTIVATION", "BLOCK", "DTYPE", "FEATURES", "HEAD", "LAYERS", "SCALING", "SIZES", "SimpleNamespace", "TASK"}
    | {"argparse", "base64", "csv", "main", "np", "predict", "predict_proba", "sys"}
    | {"_columns", "_layers", "_numbers", "_output", "_read", "_write"}
)
"""Names that the file has for itself."""

_ENCODED = """
Features were made of a table's columns: X is the numbers that net.encode(table, examples="rows") returns.
"""

_FRAME = '''\
"""Predictions of a trained network with NumPy alone: $title.

Written by xpnet $version, which it does not need. In Python, X is (n_x, m): examples are columns.

    import predict
    predict.predict(X)                # labels (m,), or numbers (n_y, m)
    predict.predict_proba(X)          # the output A, (n_y, m)

In a terminal, rows are examples, and the first line of a .csv file names its columns:

    python predict.py new.csv predictions.csv
    python predict.py new.npy --proba
$encoded"""

import argparse
import base64
import csv
import sys
from types import SimpleNamespace

import numpy as np
$imports
# The equations, the activation, the head and the labels: xpnet's own functions --------------------------------------

$constants
$functions
# The network -------------------------------------------------------------------------------------------------------

$values


def predict_proba(X):
    """Return the output A of the last layer, (n_y, m), for examples X, (n_x, m).

    Rows are the probabilities of TASK.classes (binary: of the second alone), or the predicted numbers.
    """
    X = np.asarray(X)
    if X.ndim != 2 or X.shape[0] != SIZES[0] or X.shape[1] == 0:
        raise ValueError(f"X must be ({SIZES[0]}, m), one column an example; its shape is {X.shape}. Did you mean X.T?")
    if X.dtype.kind not in "biuf":
        raise ValueError(f"X must be real numbers; its dtype is {X.dtype}. Cast it with astype.")
    with np.errstate(all="ignore"):
        outputs = [_output(X[:, start : start + BLOCK]) for start in range(0, X.shape[1], BLOCK)]
    return outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=-1)


def predict(X):
    """Return labels, (m,), for examples X, (n_x, m); for regression, counts and multilabel (n_y, m)."""
    return decode(predict_proba(X), TASK)


def _output(X):
    if SCALING is not None:
        mean, deviation = SCALING
        X = (X.astype(np.float64, copy=False) - mean) / deviation
    X = X.astype(DTYPE, copy=False)
    if not np.isfinite(X).all():
        raise ValueError(f"X must be finite and fit in {DTYPE}; some numbers do not. Remove or fill in such examples.")
    _, A = forward(LAYERS, X, activation=ACTIVATION, head=HEAD, xp=np)
    return A[-1]


# The command -------------------------------------------------------------------------------------------------------


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Predict the rows of a table with a trained network.")
    parser.add_argument("data", metavar="DATA", help="a .csv file whose first line names the columns, or a .npy file")
    parser.add_argument("out", metavar="OUT", nargs="?", help="a .csv or .npy file (default: CSV on standard output)")
    parser.add_argument("--proba", action="store_true", help="the probability of each class too; in .npy, alone")
    options = parser.parse_args(arguments)
    try:
        _write(options.out, predict_proba(_read(options.data).T), proba=options.proba)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


def _read(path):
    """Return the examples of a file, (m, n_x)."""
    if path.endswith(".npy"):
        return np.atleast_2d(np.load(path, allow_pickle=False))
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file) if line]
    if len(lines) < 2:
        raise ValueError(f"{path} must have a line of names and a line for each example; it has {len(lines)} lines.")
    names, *rows = lines
    lacking = [name for name in FEATURES or () if name not in names]
    if lacking or (FEATURES is None and len(names) != SIZES[0]):
        wanted = f"the columns {lacking}" if lacking else f"{SIZES[0]} columns, the features in their order"
        raise ValueError(f"{path} must have {wanted}; it has {len(names)}: {names[:8]}.")
    columns = range(len(names)) if FEATURES is None else [names.index(name) for name in FEATURES]
    if any(len(row) != len(names) for row in rows):
        raise ValueError(f"{path} must have {len(names)} values on every line; some lines have more or fewer.")
    return np.array([[row[i] for i in columns] for row in rows], dtype=np.float64)


def _columns(A, *, proba):
    """Return what to write, by name."""
    labels = np.atleast_2d(decode(A, TASK))
    columns = {f"prediction_{i}" if len(labels) > 1 else "prediction": row for i, row in enumerate(labels)}
    if proba and TASK.classes is not None:
        rows = [1.0 - A[0], A[0]] if TASK.name == "binary" else A
        columns.update((f"probability_{label}", row) for label, row in zip(TASK.classes, rows))
    return columns


def _write(path, A, *, proba):
    if path is not None and path.endswith(".npy"):
        np.save(path, A.T if proba else decode(A, TASK).T)
        return
    columns = _columns(A, proba=proba)
    rows = [columns, *zip(*(column.astype(str).tolist() for column in columns.values()))]
    if path is None:
        csv.writer(sys.stdout, lineterminator="\\n").writerows(rows)
        return
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\\n").writerows(rows)


# The numbers: W1, b1, W2, b2 …, row after row, and the features' means and deviations, as base64 --------------------


def _numbers(dtype, text):
    """Return the numbers, little-endian in the text, as this machine has them."""
    array = np.frombuffer(base64.b64decode(text), dtype)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _layers(vector):
    """Return W and b of every layer."""
    layers, start = [], 0
    for n_in, n_out in zip(SIZES, SIZES[1:]):
        middle, stop = start + n_out * n_in, start + n_out * (n_in + 1)
        layers.append((vector[start:middle].reshape(n_out, n_in), vector[middle:stop].reshape(n_out, 1)))
        start = stop
    return layers


SCALING = $scaling
LAYERS = _layers(_numbers($parameters))

if __name__ == "__main__":
    sys.exit(main())
'''
