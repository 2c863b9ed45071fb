"""A trained network as an ONNX model, for any of the runtimes that read one.

The graph is not written a second time: `xpnet.equations.forward` is called with an array that has no numbers and writes
down what is done with it, through NumPy's own protocols (``__array_ufunc__``, ``__array_function__``). A user's own
activation, written with operators and NumPy's elementwise functions, is exported the same way.

ONNX has examples as rows. Every array of the graph is the transpose of the equations': elementwise functions do not
see the difference, ``W A`` becomes ``Aᵀ Wᵀ``, and a sum over outputs goes along the other axis. So no transpose is in
the graph, and runtimes fuse its products with its biases.

References
----------
.. [1] https://onnx.ai/onnx/operators/, opset 18.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.mixins import NDArrayOperatorsMixin

from xpnet import device as devices
from xpnet import equations, heads
from xpnet.errors import ActivationError, ArgumentError, MissingPackageError
from xpnet.network import Network
from xpnet.typing import Layer

OPSET = 18
"""Of December 2022: late enough for every operation here in both precisions, early enough for every runtime in use."""

IR_VERSION = 8
"""Of the same onnx release, 1.13: what the package would write by itself, its newest, older runtimes refuse."""

LARGEST = 2**31 - 2**20
"""Bytes of parameters; a model is one protocol buffer, which holds 2 GiB."""


def model(net: Network) -> bytes:
    """Return a network as an ONNX model.

    The input is ``X (batch, n_x)``, examples as rows; the output, ``(batch, n_y)``, is ``probabilities`` (binary: the
    one of ``classes[1]`` alone) or, for regression and counts, ``prediction``. Both are of the network's dtype, but X
    is float64 where the network standardizes its features: a time stamp of 1.7·10⁹ s is known to 128 s in float32,
    so it has to be standardized before it is rounded. Metadata holds ``task``, ``activation``, and as JSON ``classes``
    and ``feature_names`` where the network has them.

    Parameters
    ----------
    net : Network
        On any device.

    Returns
    -------
    bytes
        What an ``.onnx`` file holds; `onnx.checker` has passed it.

    Raises
    ------
    MissingPackageError
        The package onnx is not installed.
    ActivationError
        The activation is a user's own and does what ONNX cannot.
    ArgumentError
        The parameters are more than 2 GiB.

    Examples
    --------
    >>> import onnx
    >>> import xpnet
    >>> X, Y = xpnet.datasets.flower(40)
    >>> net = xpnet.fit(X, Y, hidden=3, epochs=1, random_state=0)
    >>> graph = onnx.load_from_string(xpnet.onnx.model(net)).graph
    >>> [node.op_type for node in graph.node][:3]
    ['MatMul', 'Add', 'Max']
    """
    onnx = _package()
    size = sum(array.size * array.dtype.itemsize for layer in net.layers for array in map(devices.to_host, layer))
    if size > LARGEST:
        raise ArgumentError(
            f"An ONNX model holds 2 GiB at most; this network's parameters are {size / 2**30:.1f} GiB. Use "
            "net.save(...), which has no such limit."
        )
    graph = _Graph(onnx)
    written = graph.written(net)
    onnx.checker.check_model(written, full_check=True)
    data: bytes = written.SerializeToString()
    return data


def _package() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        problem = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        raise MissingPackageError(f'to_onnx needs onnx, which {problem}. Run: pip install "xpnet[onnx]"') from error
    return onnx


class _UnknownError(Exception):
    """Something is done with a `_Traced` array that the graph cannot hold."""


class _Traced(NDArrayOperatorsMixin):
    """An array without numbers, of which the graph knows the name and the dtype."""

    def __init__(self, graph: "_Graph", name: str, dtype: npt.DTypeLike) -> None:
        self._graph, self.name, self.dtype = graph, name, np.dtype(dtype)

    def astype(self, dtype: npt.DTypeLike) -> "_Traced":
        """As an array's."""
        return self._graph.cast(self, dtype)

    def __bool__(self) -> bool:
        raise _UnknownError("it looks at a value")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> "_Traced":
        """Add an elementwise function or a product to the graph; ``Z += b`` comes here too, and gives a new array."""
        if method != "__call__" or options or ufunc.nout != 1:
            raise _UnknownError(f"it calls {ufunc.__name__} with options")
        return self._graph.elementwise(ufunc, inputs)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> "_Traced":
        """Add one of the few other functions that the equations use."""
        if function not in _FUNCTIONS:
            raise _UnknownError(f"it calls {function.__name__}")
        return _FUNCTIONS[function](self._graph, *args, **options)


class _Graph:
    """An ONNX graph that is being written."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[tuple[str, list[str], str, dict[str, Any]]] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}
        self._known: dict[Any, _Traced] = {}

    def written(self, net: Network) -> Any:
        """Return the network as the package's ``ModelProto``."""
        output = self._traced(net)
        floats = np.dtype(net.dtype)
        name = "prediction" if net.kind.classes is None else "probabilities"
        self.nodes.append(("Identity", [output.name], name, {}))
        helper, numpy_helper, n_x, n_y = self.onnx.helper, self.onnx.numpy_helper, net.sizes[0], net.sizes[-1]
        given = np.dtype(np.float64) if net.scaling is not None else floats
        graph = helper.make_graph(
            [helper.make_node(kind, inputs, [made], **options) for kind, inputs, made, options in self.nodes],
            "xpnet",
            [helper.make_tensor_value_info("X", self._type(given), ["batch", n_x])],
            [helper.make_tensor_value_info(name, self._type(floats), ["batch", n_y])],
            [numpy_helper.from_array(value, key) for key, value in self.constants.items()],
        )
        made = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="xpnet",
            producer_version=_version(),
            doc_string=repr(net),
        )
        helper.set_model_props(made, _metadata(net))
        return made

    def _traced(self, net: Network) -> _Traced:
        """Call the equations, and return their output."""
        head, floats = heads.HEADS[net.kind.head], np.dtype(net.dtype)
        X = _Traced(self, "X", np.float64 if net.scaling is not None else floats)
        layers = [
            Layer(*(self.constant(f"{key}{l}", devices.to_host(array)) for key, array in layer._asdict().items()))
            for l, layer in enumerate(net.layers, 1)
        ]
        try:
            if net.scaling is not None:
                mean, deviation = (
                    self.constant(f"feature_{name}", part[:, None])
                    for name, part in zip(("mean", "deviation"), net.scaling, strict=True)
                )
                X = ((X - mean) / deviation).astype(floats)
            Z, A = equations.forward(layers, X, activation=net.activation, head=head, xp=np)
            for l, pair in enumerate(zip(Z, A[1:], strict=True), 1):
                for letter, array in zip("ZA", pair, strict=True):
                    self._rename(array, f"{letter}{l}")
            return self.cast(A[-1], floats)
        except Exception as error:  # a user's own activation may do anything with what is not quite an array
            why = str(error) if isinstance(error, _UnknownError) else f"it raised {type(error).__name__}: {error}"
            raise ActivationError(
                f"The activation {net.activation.name!r} must be one that ONNX can compute, but {why}. Write it with "
                "operators and NumPy's elementwise functions, such as np.exp, np.tanh and np.where, or use "
                "net.export(...)."
            ) from error

    def _rename(self, array: _Traced, name: str) -> None:
        """Give an array the equations' name for it, unless it has one: A1 of the identity is Z1."""
        if array.name.startswith("_"):
            old = array.name
            self.nodes = [
                (kind, [name if given == old else given for given in inputs], name if made == old else made, options)
                for kind, inputs, made, options in self.nodes
            ]
            array.name = name

    def _type(self, dtype: np.dtype[Any]) -> int:
        number: int = self.onnx.helper.np_dtype_to_tensor_dtype(dtype)
        return number

    def constant(self, name: str, value: npt.NDArray[Any]) -> _Traced:
        """Return numbers, ``(n, k)`` or a scalar, as an array of the graph, which holds their transpose."""
        self.constants[name] = np.ascontiguousarray(value.T) if value.ndim else value
        return _Traced(self, name, value.dtype)

    def add(self, kind: str, inputs: Sequence[_Traced], dtype: npt.DTypeLike, **options: Any) -> _Traced:
        """Return the result of an operation, an earlier one when it is the same."""
        names = [value.name for value in inputs]
        key = (kind, tuple(names), tuple(options.items()))
        if key not in self._known:
            made = _Traced(self, f"_{len(self.nodes)}", dtype)
            self.nodes.append((kind, names, made.name, options))
            self._known[key] = made
        return self._known[key]

    def cast(self, value: Any, dtype: npt.DTypeLike) -> _Traced:
        """Return an array or a number as an array of this dtype."""
        dtype = np.dtype(dtype)
        if not isinstance(value, _Traced):
            if np.ndim(value):
                raise _UnknownError(f"it takes an array of shape {np.shape(value)} to be the same for every layer")
            return self.constant(f"{float(value):.17g}_{dtype.name}", np.asarray(value, dtype=dtype))
        return value if value.dtype == dtype else self.add("Cast", [value], dtype, to=self._type(dtype))

    def elementwise(self, ufunc: Any, inputs: Sequence[Any]) -> _Traced:
        """Return what a ufunc makes of arrays and numbers, in the dtypes that NumPy would take."""
        if ufunc in _COMPOSED:
            made: _Traced = _COMPOSED[ufunc](*inputs)
            return made
        kind = _OPERATIONS.get(ufunc) or _BY_NAME.get(ufunc.__name__)
        if kind is None:
            raise _UnknownError(f"it calls {ufunc.__name__}")
        *takes, gives = ufunc.resolve_dtypes((*map(_dtype_of, inputs), None))
        arrays = [self.cast(value, dtype) for value, dtype in zip(inputs, takes, strict=True)]
        if ufunc is np.matmul:
            arrays.reverse()  # (W A)ᵀ = Aᵀ Wᵀ
        return self.add(kind, arrays, gives)

    def summed(self, values: _Traced, *, axis: int | None = None, keepdims: bool = False) -> _Traced:
        """Return the sum over the outputs."""
        return self._over_outputs("ReduceSum", values, axis, keepdims=keepdims)

    def largest(self, values: _Traced, *, axis: int | None = None, keepdims: bool = False) -> _Traced:
        """Return the maximum over the outputs."""
        return self._over_outputs("ReduceMax", values, axis, keepdims=keepdims)

    def _over_outputs(self, kind: str, values: _Traced, axis: int | None, *, keepdims: bool) -> _Traced:
        if axis not in (-2, 0) or not keepdims:
            raise _UnknownError("it mixes examples or drops an axis")
        axes = self.constant("_outputs", np.asarray([1], dtype=np.int64))
        return self.add(kind, [values, axes], values.dtype, keepdims=1)

    def clipped(self, values: _Traced, low: Any, high: Any) -> _Traced:
        """Return the values between two bounds."""
        made: _Traced = np.minimum(np.maximum(values, low), high)  # type: ignore[call-overload]  # is traced
        return made

    def chosen(self, condition: Any, yes: Any, no: Any) -> _Traced:
        """Return ``where(condition, yes, no)``."""
        weak = [value if isinstance(value, int | float) else np.empty((), _dtype_of(value)) for value in (yes, no)]
        dtype = np.result_type(*weak)
        arrays = [self.cast(condition, bool), self.cast(yes, dtype), self.cast(no, dtype)]
        return self.add("Where", arrays, dtype)


def _dtype_of(value: Any) -> Any:
    """Return an array's or a NumPy number's dtype; Python's numbers have none, and take the others'."""
    return value.dtype if hasattr(value, "dtype") else type(value)


def _log1p(x: Any) -> Any:
    """Return ``log(1 + x)`` to full precision: the logarithm is multiplied by how far 1 + x was rounded [1]_.

    References
    ----------
    .. [1] W. Kahan, as in D. Goldberg, What every computer scientist should know about floating-point arithmetic,
       1991, theorem 4.
    """
    u = 1.0 + x
    exact = (u == 1.0) | (u > 1e7)  # above, u − 1 is x but for rounding, and may be infinite
    d = np.where(exact, 1.0, u - 1.0)
    return np.where(u == 1.0, x, np.log(u) * np.where(exact, 1.0, x / d))


_OPERATIONS: dict[Any, str] = {
    np.absolute: "Abs",
    np.add: "Add",
    np.arccos: "Acos",
    np.arcsin: "Asin",
    np.arctan: "Atan",
    np.ceil: "Ceil",
    np.cos: "Cos",
    np.divide: "Div",
    np.equal: "Equal",
    np.exp: "Exp",
    np.floor: "Floor",
    np.greater: "Greater",
    np.greater_equal: "GreaterOrEqual",
    np.less: "Less",
    np.less_equal: "LessOrEqual",
    np.log: "Log",
    np.logical_and: "And",
    np.logical_not: "Not",
    np.logical_or: "Or",
    np.matmul: "MatMul",
    np.maximum: "Max",
    np.minimum: "Min",
    np.multiply: "Mul",
    np.negative: "Neg",
    np.positive: "Identity",
    np.power: "Pow",
    np.reciprocal: "Reciprocal",
    np.sign: "Sign",
    np.sin: "Sin",
    np.sqrt: "Sqrt",
    np.subtract: "Sub",
    np.tan: "Tan",
    np.tanh: "Tanh",
}

_BY_NAME = {"erf": "Erf", "expit": "Sigmoid"}
"""SciPy's, which is not imported to look for them."""

# What ONNX has no operation for, from those that it has, without losing digits near 0.
_COMPOSED: dict[Any, Callable[..., Any]] = {
    np.bitwise_and: np.logical_and,  # & and |, of comparisons
    np.bitwise_or: np.logical_or,
    np.invert: np.logical_not,
    np.not_equal: lambda x, y: np.logical_not(np.equal(x, y)),
    np.square: lambda x: x * x,
    np.cosh: lambda x: 0.5 * (np.exp(x) + np.exp(-x)),
    np.expm1: lambda x: np.tanh(0.5 * x) * (np.exp(x) + 1.0),
    np.sinh: lambda x: 0.5 * (np.expm1(x) - np.expm1(-x)),
    np.log1p: _log1p,
    np.logaddexp: lambda x, y: np.maximum(x, y) + np.log1p(np.exp(-np.abs(x - y))),
}

_FUNCTIONS: dict[Any, Callable[..., _Traced]] = {
    np.astype: _Graph.cast,
    np.clip: _Graph.clipped,
    np.max: _Graph.largest,
    np.sum: _Graph.summed,
    np.where: _Graph.chosen,
}


def _version() -> str:
    from xpnet import __version__

    return __version__


def _metadata(net: Network) -> dict[str, str]:
    found = {"task": net.task, "activation": net.activation.name}
    if net.kind.classes is not None:
        found["classes"] = json.dumps(net.kind.classes.tolist())
    if net.feature_names is not None:
        found["feature_names"] = json.dumps(net.feature_names)
    return found
