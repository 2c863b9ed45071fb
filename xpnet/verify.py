"""Whether the gradients are right: `gradient_check` for one's own network and data, `verify` for this machine.

Central differences of the cost in float64 on NumPy, which know nothing of equations (5)–(10), say what the gradient
should be; what a device computes is then held against the same equations in NumPy float64.

References
----------
.. [1] A. Ng, Deep Learning Specialization, course 2, week 1: gradient checking.
.. [2] M. Abramowitz, I. Stegun, Handbook of Mathematical Functions, 1964, table 25.2: differences from five points.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xpnet import activations, engine, equations, heads, parameters, targets
from xpnet import device as devices
from xpnet.activations import Activation
from xpnet.arguments import real, whole
from xpnet.data import Piece
from xpnet.device import HOST, Place
from xpnet.errors import ArgumentError, DivergedError
from xpnet.heads import Head
from xpnet.network import Network, prepared
from xpnet.training import fit
from xpnet.typing import Array, Layer

TOLERANCE = 1e-7
"""The largest ``‖g − ĝ‖ / (‖g‖ + ‖ĝ‖)`` that passes, from the course [1]_."""

STEPS = (1e-3, 1e-4, 1e-5, 1e-6)
"""How far a step may move the Z of its layer, in the order tried: the first leaves an error of h⁴ and ε/h, 10⁻¹³; the
others, which cross fewer corners, one of up to 10⁻¹⁰."""

POINTS, FACTORS = np.asarray([-2.0, -1.0, 0.0, 1.0, 2.0]), np.asarray([1.0, -8.0, 0.0, 8.0, -1.0]) / 12.0
"""The derivative is ``Σ FACTORS · J(θ + POINTS · h) / h + O(h⁴)`` [2]_."""

EPOCH_BOUNDS = {"float32": 1e-5, "float64": 1e-12}
"""Relative error of the parameters after an epoch; Adam divides by √v, which enlarges small gradients' rounding."""

_Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Case:
    """A network with some columns, in NumPy float64; `weight` is ``(1, m)``, `l2` the λ of the summed cost."""

    activation: Activation
    head: Head
    layers: list[Layer]
    X: _Vector
    Y: _Vector
    weight: _Vector | None
    l2: float

    def forward(self, layers: list[Layer]) -> tuple[list[Array], list[Array]]:
        return equations.forward(layers, self.X, activation=self.activation, head=self.head, xp=np)

    def gradient(self) -> tuple[Array, list[Layer]]:
        it, weight = self, self.weight
        return equations.gradient(
            it.layers, it.X, it.Y, activation=it.activation, head=it.head, sample_weight=weight, xp=np
        )


# One network ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class GradientCheck:
    """How far a gradient g is from central differences ĝ.

    Attributes
    ----------
    error : float
        ``‖g − ĝ‖ / (‖g‖ + ‖ĝ‖)`` over the parameters checked; nan when there are none.
    parameters_checked, skipped : int
        Those compared, and those that no step can move without a Z crossing a corner.
    worst : str
        The parameter that differs most, such as ``"W1[3, 7]"``.
    """

    error: float
    parameters_checked: int
    skipped: int
    worst: str

    @property
    def passed(self) -> bool:
        """Whether the error is at most `TOLERANCE`; nan is not."""
        return self.error <= TOLERANCE

    def __repr__(self) -> str:
        over = f"{self.parameters_checked} parameters" + f", {self.skipped} skipped at corners" * (self.skipped > 0)
        state = "passed" if self.passed else "FAILED"
        return f"<GradientCheck {state}: error {self.error:.1e} over {over}, worst {self.worst or 'none'}>"


@np.errstate(all="ignore")
def gradient_check(
    net: Network,
    X: Any,
    Y: Any,
    *,
    sample_weight: Any = None,
    l2: float = 0.0,
    examples: str = "columns",
    count: int = 200,
    random_state: int = 0,
) -> GradientCheck:
    """Compare a network's gradient with central differences of its cost, in float64 on NumPy [1]_.

    Across a corner at Z = 0 (a jump of g′ in relu and leaky_relu, of g″ in elu) a difference is no derivative. In such
    networks a step is shortened until no Z changes sign; a parameter for which the shortest still turns one is skipped
    and counted. Corners elsewhere, in an activation of one's own, are not looked for and show as errors. At a minimum
    g is 0 and the error a ratio of roundings; pass some of the examples alone, ``X[:, ::4]``, and it is none.

    Parameters
    ----------
    net : Network
        Wherever it lives; its parameters are cast to float64.
    X : (n_x, m) array
        Examples as columns, held whole in float64: a hundred show what a million would.
    Y : (m,), (1, m) or (n_y, m) array
        Labels of the kind trained on, or numbers.
    sample_weight : (m,) array, optional
        Weights of the examples.
    l2 : float
        λ of the penalty ``λ/(2m) Σ‖W‖²``; with weights, m is their sum, as in `fit`.
    examples : {"columns", "rows"}
        Which way the examples lie.
    count : int
        The most parameters to check; of more than these, so many are drawn at random.
    random_state : int
        The draw's seed.

    Returns
    -------
    GradientCheck

    Raises
    ------
    ArgumentError
        `net` is not a Network, or a number is out of its range.
    DataError
        X, Y or `sample_weight` cannot be used, as in `Network.cost`.

    Examples
    --------
    >>> import xpnet
    >>> X, Y = xpnet.datasets.flower()
    >>> net = xpnet.fit(X, Y, hidden=4, activation="tanh", epochs=5, random_state=0)
    >>> xpnet.gradient_check(net, X[:, ::4], Y[::4]).passed
    True
    """
    if not isinstance(net, Network):
        raise ArgumentError(f"gradient_check takes a Network, from xpnet.fit or load; it is a {type(net).__name__}.")
    l2, count = real("l2", l2, low=0.0), whole("count", count, low=1)
    random_state = whole("random_state", random_state, low=0)
    source, labels = net._labelled(X, Y, examples)
    m = source.n_examples
    weight = targets.weights(sample_weight, None, labels, net.kind, m)
    # Read on the host, for X's own device may have no float64.
    hosted = replace(source, place=HOST, read=lambda start, stop: devices.to_host(source.read(start, stop)))
    given = prepared(hosted, labels, net.kind, HOST, "float64", net.scaling, weight)
    case = _Case(
        net.activation,
        heads.HEADS[net.kind.head],
        [Layer(*(devices.to_host(array).astype(np.float64) for array in layer)) for layer in net.layers],
        given.converted(0, m).T,
        given.Y.T,
        None if given.weight is None else given.weight.T,
        l2 if weight is None else l2 * m / float(weight.sum()),
    )
    return _checked(case, count, random_state)


def _checked(case: _Case, count: int, random_state: int) -> GradientCheck:
    _, gradients = equations.penalized(*case.gradient(), case.layers, l2=case.l2, xp=np)
    vector = parameters.flatten(gradients, xp=np)
    drawn = np.arange(vector.size)
    if vector.size > count:
        drawn = np.sort(np.random.default_rng(random_state).choice(vector.size, count, replace=False))
    bent, (_, A) = _bent(case.activation), case.forward(case.layers)
    slopes = {int(k): slope for k in drawn if (slope := _slope(case, A, int(k), bent)) is not None}
    if not slopes:
        return GradientCheck(np.nan, 0, drawn.size, "")
    g, differences = vector[list(slopes)], np.asarray(list(slopes.values()))
    distance = float(np.linalg.norm(g - differences))
    l, field, i, j = _located(list(slopes)[int(np.argmax(np.abs(g - differences)))], case.layers)
    error = distance and distance / float(np.linalg.norm(g) + np.linalg.norm(differences))
    return GradientCheck(error, len(slopes), drawn.size - len(slopes), f"{field}{l + 1}[{i}, {j}]")


def _located(k: int, layers: list[Layer]) -> tuple[int, str, int, int]:
    """Return where the k-th of the flat parameters is: layer (from 0), ``"W"`` or ``"b"``, row and column."""
    for l, layer in enumerate(layers):
        for field, array in layer._asdict().items():
            if k < array.size:
                return l, field, k // array.shape[1], k % array.shape[1]
            k -= array.size
    raise IndexError(k)


def _bent(activation: Activation) -> bool:
    """Return whether g′ (relu) or g″ (elu) jumps at 0.

    Over ±t the second difference of g′ is the jump of g′, t times the jump of g″, or t² g‴ where there is neither. A
    very steep g counts as bent too, at no cost but shorter steps.
    """
    t = 1e-3
    Z = np.asarray([[-t, 0.0, t]])
    left, middle, right = activation.dg(Z, activation.g(Z, xp=np), xp=np)[0]
    return bool(abs(left - 2.0 * middle + right) > 10.0 * t * t)


def _slope(case: _Case, A: list[Array], k: int, bent: bool) -> float | None:
    """Return the difference of the summed cost along the k-th parameter, or None where every step meets a corner.

    The five points are five networks side by side. Costs are subtracted column by column, before they are summed, which
    loses fewer digits.
    """
    l, field, i, j = _located(k, case.layers)
    moves = max(1.0, float(np.max(np.abs(A[l][j, :])))) if field == "W" else 1.0  # Z per unit of the parameter
    columns = [None if array is None else array.T[:, :, None] for array in (case.Y, case.weight)]  # (m, ·, 1)
    for h in (step / moves for step in STEPS):
        moved = Layer(*(np.repeat(array[None], POINTS.size, axis=0) for array in case.layers[l]))
        getattr(moved, field)[:, i, j] += POINTS * h
        layers = [*case.layers[:l], moved, *case.layers[l + 1 :]]
        Z, _ = case.forward(layers)
        if bent and any(((Z_l > 0.0) != (Z_l[0] > 0.0)).any() for Z_l in Z[l:-1]):
            continue
        outputs = np.matrix_transpose(Z[-1])[..., None]  # (5, m, n_y, 1)
        costs = equations.cost(outputs, columns[0], head=case.head, sample_weight=columns[1], xp=np)  # (5, m)
        penalty, _ = equations.penalized(np.zeros(POINTS.size), layers, layers, l2=case.l2, xp=np)  # (5,)
        return float(np.sum(FACTORS @ costs) + FACTORS @ penalty) / h
    return None


# This machine ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """One row of a `Verification`.

    Attributes
    ----------
    kind : str
        ``"forward"``, ``"cost"``, ``"gradient"``, ``"one epoch"`` or ``"differences"``, those of `gradient_check`.
    dtype : str
        What was computed in.
    cases : int
        How many networks were tried.
    error, bound : float
        The largest relative error among them, and what it may be.
    worst : str
        Which it was: ``"gelu × softmax, 2 hidden"`` (layers), or the task of the epoch.
    """

    kind: str
    dtype: str
    cases: int
    error: float
    bound: float
    worst: str

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound; nan is not."""
        return self.error <= self.bound

    def __str__(self) -> str:
        numbers = f"{self.cases:5} {self.error:7.1e} {self.bound:7.1e}"
        return f"{self.kind:11} {self.dtype:7} {numbers} {'ok' if self.passed else 'FAILED':6} {self.worst}"


@dataclass(frozen=True, repr=False)
class Verification:
    """What `verify` found; ``print`` shows a table of at most 80 columns.

    Attributes
    ----------
    device : str
        ``"cpu"``, ``"cuda:0"``.
    checks : tuple of Check
        One for each kind and dtype.
    seconds : float
        How long it took.
    """

    device: str
    checks: tuple[Check, ...]
    seconds: float

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return not self.failures

    def __repr__(self) -> str:
        count = len(self.checks)
        state = f"all {count} checks passed" if self.passed else f"{len(self.failures)} of {count} checks FAILED"
        return f"<Verification of {self.device}: {state} in {self.seconds:.1f} s>"

    def __str__(self) -> str:
        header = f"{'check':11} {'dtype':7} {'cases':5} {'error':7} {'bound':14} worst case"
        return "\n".join([repr(self)[1:-1], header, *map(str, self.checks)])


def verify(device: str = "cpu", *, dtype: str | None = None) -> Verification:
    """Check on this machine that a device computes what the ten equations say.

    Every activation with every head and 0, 1 and 2 hidden layers gives an output, a cost and a gradient on the device,
    which are compared with NumPy's in float64 (100 ε of the dtype). One epoch of mini-batches is trained for each task,
    there and in NumPy float64 (1e-5 in float32). The gradients in NumPy float64 are compared with central differences
    (1e-7). What fails is in the result, not raised.

    Parameters
    ----------
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"auto"``.
    dtype : {"float32", "float64"}, optional
        What to compute in on the device; both by default, where it has both.

    Returns
    -------
    Verification

    Raises
    ------
    ArgumentError
        `device` or `dtype` is anything else.
    DeviceUnavailableError
        The device cannot be used here.

    Examples
    --------
    >>> import xpnet
    >>> xpnet.verify("cpu")  # doctest: +SKIP
    <Verification of cpu: all 9 checks passed in 4.2 s>
    """
    place = devices.resolve(device)
    if dtype is None:
        return _verify(place)
    devices.check_dtype(place, dtype)
    return _verify(place, (dtype,))


@np.errstate(all="ignore")
def _verify(place: Place, dtypes: tuple[str, ...] = ("float32", "float64")) -> Verification:
    begun, cases, rows = time.perf_counter(), dict(_cases()), []
    for dtype in (dtype for dtype in dtypes if _has(place, dtype)):
        errors = {name: _device_errors(case, place, dtype) for name, case in cases.items()}
        for kind in ("forward", "cost", "gradient"):
            bound = 100.0 * float(np.finfo(dtype).eps)
            rows.append(_row(kind, dtype, bound, {name: found[kind] for name, found in errors.items()}))
        epochs = {task: _epoch_error(task, place, dtype) for task in heads.TASK_HEADS}
        rows.append(_row("one epoch", dtype, EPOCH_BOUNDS[dtype], epochs))
    differences = {name: _checked(case, count=1_000, random_state=0).error for name, case in cases.items()}
    rows.append(_row("differences", "float64", TOLERANCE, differences))
    return Verification(place.name, tuple(rows), time.perf_counter() - begun)


def _has(place: Place, dtype: str) -> bool:
    try:
        devices.check_dtype(place, dtype)
    except ArgumentError:
        return False
    return True


def _row(kind: str, dtype: str, bound: float, errors: Mapping[str, float]) -> Check:
    worst = list(errors)[int(np.argmax(list(errors.values())))]  # argmax takes nan for the largest
    return Check(kind, dtype, len(errors), errors[worst], bound, worst)


def _cases() -> Iterator[tuple[str, _Case]]:
    """Yield named networks of sizes that all differ, so that nothing transposed fits, in numbers that float32 holds."""
    generator, m = np.random.default_rng(0), 7

    def draw(*shape: int) -> _Vector:
        return generator.standard_normal(shape).astype(np.float32).astype(np.float64)

    targets_of = {
        "sigmoid": lambda: generator.integers(0, 2, (3, m)).astype(np.float64),
        "softmax": lambda: np.eye(3)[:, generator.integers(0, 3, m)],
        "identity": lambda: draw(3, m),
        "exp": lambda: generator.poisson(2.0, (3, m)).astype(np.float64),
    }
    for hidden in ((), (5,), (5, 4)):
        sizes = (6, *hidden, 3)
        for name, activation in activations.ACTIVATIONS.items():
            for head in heads.HEADS.values():
                layers = parameters.unflatten(0.5 * draw(parameters.count(sizes)), sizes, xp=np)
                case = _Case(activation, head, layers, draw(6, m), targets_of[head.name](), np.abs(draw(1, m)), 0.5)
                yield f"{name} × {head.name}, {len(hidden)} hidden", case


def _device_errors(case: _Case, place: Place, dtype: str) -> dict[str, float]:
    """Return the relative errors of what the device's engine computes, as `fit` and `predict` do."""
    _, A = case.forward(case.layers)
    total, gradients = case.gradient()
    sizes, xp = parameters.sizes_of(case.layers), place.xp
    running = engine.running(place, sizes, case.activation, case.head, columns=case.X.shape[1], threads=None)
    with place.active(), running as run:
        arrays = (np.matrix_transpose(array) for array in (case.X, case.Y, case.weight) if array is not None)
        piece = Piece(*(place.asarray(array, dtype=dtype) for array in arrays))
        layers = [Layer(*(place.asarray(array, dtype=dtype) for array in layer)) for layer in case.layers]
        cost, found = run.gradient(parameters.flatten(layers, xp=xp), [piece])
        costs = xp.stack([cost, run.cost(layers, [piece])])
        return {
            "forward": _relative(run.output(layers, piece.taken(place)[0]), A[-1]),
            "cost": _relative(costs, np.stack([total, total])),
            "gradient": _relative(found, parameters.flatten(gradients, xp=np)),
        }


def _epoch_error(task: str, place: Place, dtype: str) -> float:
    """Return the relative error of the parameters after an epoch of three batches; inf when it diverges."""
    generator, m = np.random.default_rng(1), 40
    X = generator.standard_normal((6, m)).astype(np.float32)
    labels = generator.integers(0, 2, (3, m))
    Y = {"binary": labels[0], "multiclass": labels.sum(axis=0)}.get(task, labels)

    def trained(at: Place, dtype: str) -> Array:
        with at.active():
            given = at.asarray(X, dtype=dtype)
        # α is large, so that three steps move the weights by about their own size and a wrong one shows.
        how: dict[str, Any] = {"hidden": (5, 4), "activation": "tanh", "batch_size": 16, "epochs": 1, "dtype": dtype}
        how |= {"learning_rate": 0.1, "l2": 0.5, "standardize": True, "random_state": 0, "verbose": False}
        net = fit(given, Y, task=task, **how)
        return parameters.flatten([Layer(*map(devices.to_host, layer)) for layer in net.layers], xp=np)

    try:
        return _relative(trained(place, dtype), trained(HOST, "float64"))
    except DivergedError:
        return np.inf


def _relative(found: Array, true: Array) -> float:
    """Return ``‖found − true‖ / ‖true‖``."""
    difference = devices.to_host(found).astype(np.float64) - true
    return float(np.linalg.norm(difference.ravel()) / np.linalg.norm(true.ravel()))
