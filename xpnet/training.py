"""The loop: `fit` checks what it is given, and goes through the batches until there is a reason to stop."""

import math
import os
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Never

import numpy as np

from xpnet import (
    activations,
    data,
    diagnosis,
    engine,
    frames,
    heads,
    initializers,
    optimizers,
    parameters,
    progress,
    targets,
)
from xpnet import checkpoint as checkpoints
from xpnet import device as devices
from xpnet.activations import Activation
from xpnet.arguments import file_path, real, refuse_unknown, true_or_false, whole
from xpnet.callbacks import Callback, EpochView, FitView, Hooks, hooks
from xpnet.checkpoint import Beginning, Every, Kept, Standing, Stops, Terminated
from xpnet.data import Examples, Loader
from xpnet.device import Place
from xpnet.diagnosis import Diagnosis, Finding
from xpnet.engine import Engine
from xpnet.errors import (
    ArgumentError,
    CheckpointWarning,
    DataError,
    DivergedError,
    ScaleWarning,
    ShapeError,
)
from xpnet.features import Features, Plan, planned
from xpnet.network import Network, prepared
from xpnet.optimizers import Optimizer
from xpnet.schedules import Schedule, Waiting, described
from xpnet.selection import Picked, Selection
from xpnet.targets import Task
from xpnet.typing import Array, Layer

ADDRESSABLE = 2**59
"""Parameters, of 8 bytes with some to spare, that a 64-bit computer has addresses for."""

_IS = {
    "epochs": "max_iter n_epochs num_epochs n_iter max_epochs num_iterations nb_epoch iterations n_iterations",
    "hidden": "hidden_layer_sizes hidden_size hidden_sizes hidden_layers hidden_units n_hidden n_h layers units",
    "learning_rate": "lr learning_rate_init eta eta0 step_size",
    "l2": "weight_decay lambd lambda_ reg reg_lambda l2_regularization regularization",
    "optimizer": "solver optim algorithm",
    "random_state": "seed random_seed rng",
    "patience": "early_stopping_rounds n_iter_no_change",
    "validation_fraction": "validation_split val_split",
    "validation_data": "eval_set validation valid val_data X_val",
    "task": "loss criterion objective cost_function",
    "batch_size": "minibatch_size mini_batch_size batch",
    "threads": "n_jobs num_threads n_threads nthread",
    "sample_weight": "sample_weights weights weight",
    "class_weight": "class_weights",
    "standardize": "normalize scale scaler standardise",
    "features": "categorical_features cat_features encoder imputer transformer preprocessor",
    "activation": "activation_function nonlinearity act",
    "initial": "warm_start init initial_weights coefs_init parameters",
    "verbose": "verbosity print_cost progress disp",
    "callbacks": "callback",
    "tol": "tolerance min_delta",
    "checkpoint": "checkpoint_path ckpt",
}
FOREIGN: dict[str, str] = {theirs: f"it is {ours!r}" for ours, names in _IS.items() for theirs in names.split()} | {
    "alpha": "scikit-learn's alpha is 'l2', the course's α is 'learning_rate'",
    "early_stopping": "pass validation_fraction=0.1, with 'patience' for how long to wait",
    **dict.fromkeys(
        ("scheduler", "lr_scheduler", "learning_rate_schedule"), "pass learning_rate=xpnet.schedules.cosine(...), say"
    ),
    "momentum": "pass optimizer=xpnet.optimizers.momentum(beta=...)",
    "beta_1": "pass optimizer=xpnet.optimizers.adam(beta1=...)",
    "beta_2": "pass optimizer=xpnet.optimizers.adam(beta2=...)",
    "betas": "pass optimizer=xpnet.optimizers.adam(beta1=..., beta2=...)",
    "use_gpu": 'pass device="cuda"',
    "gpu": 'pass device="cuda"',
    "allow_tf32": "it is 'tf32'",
    "x": "it is 'X', the first argument",
    "y": "it is 'Y', the second argument",
    "shuffle": 'every epoch is shuffled; batch_size="full" has no order',
}
"""Names that people bring from elsewhere, with the right one."""


def fit(
    X: Any,
    Y: Any = None,
    *,
    hidden: int | Sequence[int] = 100,
    activation: str | Activation = "relu",
    task: str | Task = "auto",
    optimizer: str | Optimizer = "adam",
    learning_rate: Schedule | None = None,
    l2: float = 0.0,
    batch_size: int | str = "auto",
    epochs: int = 200,
    tol: float = 1e-4,
    patience: int | None = 10,
    validation_data: tuple[Any, ...] | None = None,
    validation_fraction: float = 0.0,
    sample_weight: Any = None,
    class_weight: Any = None,
    standardize: bool = False,
    features: Mapping[str, Any] | str | Plan | Features | None = None,
    initial: Network | Sequence[tuple[Any, Any]] | None = None,
    device: str | None = None,
    dtype: str = "float32",
    random_state: int | None = None,
    examples: str = "columns",
    threads: int | None = None,
    tf32: bool = False,
    callbacks: Callback | Sequence[Callback] = (),
    verbose: bool | Literal["auto"] = "auto",
    checkpoint: str | os.PathLike[str] | Kept | None = None,
    checkpoint_every: float | str = 60,
    **unknown: Never,
) -> Network:
    """Train a network by gradient descent from the ten equations, and return it.

    Parameters
    ----------
    X : (n_x, m) array
        Examples as columns: any Array API array, memmap, h5py or zarr array, nested list, a list of these (joined
        along m), a table or `Parquet` with ``examples="rows"``, or a `Loader`, which brings its own Y.
    Y : (m,), (1, m) or (n_y, m) array
        Labels (words, whole numbers, bools) or numbers; 0/1 rows for multilabel or one-hot.
    hidden : int or sequence of int
        Units of the hidden layer, or of each; ``()`` is logistic (linear, Poisson) regression.
    activation : str or Activation
        ``"tanh" "sigmoid" "relu" "leaky_relu" "elu" "softplus" "silu" "gelu" "identity"``, or one's own pair.
    task : str
        ``"binary" "multiclass" "multilabel" "regression" "count"``; ``"auto"`` infers it from Y.
    optimizer : str or Optimizer
        ``"gd"`` (the lecture's), ``"momentum"``, ``"adam"``, ``"lbfgs"`` (full batch), or from `xpnet.optimizers`.
    learning_rate : float or callable, optional
        α or ``epoch -> α``, see `xpnet.schedules`; by default the optimizer's own: gd and momentum 0.1, adam 0.001,
        lbfgs 1.
    l2 : float
        λ of the penalty ``λ/(2m) Σ‖W‖²``; with weights, m is their sum.
    batch_size : int or str
        Columns per step. ``"full"`` is all, the lecture's; ``"auto"`` is m/32 rounded down to a power of two, at
        least 32 and at most 4,096, whatever the device.
    epochs : int
        Passes over the data.
    tol, patience : float, int or None
        Stop when the monitored cost has not fallen by `tol` within `patience` epochs; ``patience=None`` never does.
    validation_data : (X, Y) or (X, Y, sample_weight), optional
        When given, its cost is what is monitored, and the parameters where it was lowest are returned.
    validation_fraction : float
        Share of the examples, 0 to 1, held out to serve as `validation_data`.
    sample_weight : (m,) array, optional
        Weights of the examples; a weight of 2 counts an example twice.
    class_weight : dict or "balanced", optional
        Weights of the labels.
    standardize : bool
        Scale features by their mean and deviation over the training examples; the network keeps these.
    features : dict, "auto", or from `xpnet.features`, optional
        What to do with columns of a table that are not plain numbers, such as ``{"city": "onehot", "age": "median"}``.
        It is learned from the training examples, and the network keeps it.
    initial : Network or list of (W, b), optional
        Parameters to start from, in a network of the same sizes.
    device : str, optional
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"auto"``; None is where X lives.
    dtype : {"float32", "float64"}
        Of parameters and arithmetic; X is cast once.
    random_state : int, optional
        The seed; None draws one, which is kept in ``net.random_state``.
    examples : {"columns", "rows"}
        Which way the examples of X, and of a 2-D Y, lie.
    threads : int, optional
        CPU threads for NumPy; None is every core that this process may use.
    tf32 : bool
        Whether a GPU may round the factors of float32 products to 11 bits, which is faster and errs by 1e-3.
    callbacks : callable, object, or sequence of these
        Functions, each called with an `EpochView` after every epoch; returning True stops. Or objects with any of the
        methods that `xpnet.callbacks` describes, where some are ready: early stopping on any score, logs.
    verbose : bool or "auto"
        Whether to show a progress bar; auto does on a terminal and in a notebook.
    checkpoint : path or Kept, optional
        Where to write the state of training. The same call again goes on from it, bit for bit, whatever ended the
        process; only one process at a time may. While it cannot be written, as on a full disk, training goes on with a
        `CheckpointWarning`, and what is there stays.
    checkpoint_every : float or str
        How far checkpoints are apart: seconds, also within an epoch; ``"epoch"``; or steps, such as ``"500 steps"``.
        The last is written when training ends.

    Returns
    -------
    Network
        Ctrl-C returns the network so far, with ``net.stop_reason == "interrupted"``. With `checkpoint` the step under
        way is ended and the state written first; another Ctrl-C, a second later, does not wait for the step.

    Raises
    ------
    ArgumentError
        An argument has a value, or a name, that `fit` does not take.
    DataError
        X, Y or a weight cannot be learned from; `ShapeError` and `TargetError` are kinds of it.
    DeviceUnavailableError, DeviceMismatchError
        The device cannot be used here; X and Y live in different places.
    DivergedError
        The cost or the parameters left the finite numbers.
    CheckpointError
        The checkpoint belongs to other data or other arguments, or is in use by another process.
    SystemExit
        SIGTERM came, in the main thread and where nobody else listens to it: the checkpoint is written first, and the
        exit code is 143. Without `checkpoint`, SIGTERM does what it always does.

    References
    ----------
    .. [1] A. Ng, Deep Learning Specialization, course 1, weeks 3 and 4.

    Examples
    --------
    >>> import xpnet
    >>> X, Y = xpnet.datasets.flower()
    >>> net = xpnet.fit(X, Y, hidden=16, activation="tanh", optimizer="lbfgs", random_state=0)
    >>> net.score(X, Y) > 0.9
    True
    """
    started = time.perf_counter()
    refuse_unknown("fit", unknown, tuple(fit.__kwdefaults__ or ()), FOREIGN)
    if isinstance(X, Loader):
        loader, (X, Y) = X, _loaded(X, Y)
        examples, device = loader.examples, loader.device if device is None else device
        batch_size = loader.batch_size if batch_size == "auto" else batch_size
        random_state = loader.random_state if random_state is None else random_state

    # Arguments
    chosen = activations.resolve(activation)
    how = optimizers.resolve(optimizer, learning_rate)
    options = _Options(
        optimizer=how,
        l2=real("l2", l2, low=0.0),
        epochs=whole("epochs", epochs, low=1),
        tol=real("tol", tol, low=0.0),
        patience=None if patience is None else whole("patience", patience, low=1),
        callbacks=hooks(callbacks),
        show=progress.wanted(verbose),
        checkpoint=_checkpoint(checkpoint),
        checkpoint_every=checkpoints.every(checkpoint_every),
    )
    threads = None if threads is None else whole("threads", threads, low=1)
    fraction = real("validation_fraction", validation_fraction, low=0.0, below=1.0)
    seed = _seed(random_state, options.checkpoint)
    units = _hidden(hidden)
    standardize, tf32 = true_or_false("standardize", standardize), true_or_false("tf32", tf32)

    # Data
    devices.same_place(("X", X), ("Y", Y), ("sample_weight", sample_weight))
    place = devices.resolve(device, X[0] if isinstance(X, list | tuple) and X else X)
    devices.check_dtype(place, dtype)
    source, treatment = _source(planned(features), X, examples, initial, fraction, seed)
    labels: Any = targets.read(Y, examples=examples)
    data.check_orientation(source, labels.shape[-1], examples=examples)
    source = data.spooled(source, data.WINDOW if fraction else data.PERMUTED)  # what is held out is read every epoch
    kind = targets.infer(labels, task)
    weight = targets.weights(sample_weight, class_weight, labels, kind, source.n_examples)
    sides = data.split(source.n_examples, fraction, seed) if fraction and validation_data is None else None
    held_out = _held_out(validation_data, fraction, source, labels, weight, kind, sides, examples, treatment)
    if sides is not None:
        source, labels, weight = _side(source, labels, weight, sides[0])
    m = source.n_examples
    columns = _columns(batch_size, m, how)
    sizes = (source.n_features, *units, kind.n_outputs)
    start, scaling = _start(initial, sizes, chosen, seed, source.names)
    if standardize and scaling is None:
        with source.place.active():
            scaling = data.scaling_of(source, dtype)
    of_scale = _warned_of_scale(source, labels, kind, standardized=scaling is not None)

    with (
        _locked(options.checkpoint),
        place.active(),
        engine.running(
            place,
            sizes,
            chosen,
            heads.HEADS[kind.head],
            columns=max(columns, m if held_out else 0),
            threads=threads,
            tf32=tf32,
        ) as run,
    ):
        given = prepared(source, labels, kind, place, dtype, scaling, weight, most=data.PERMUTED)
        given = given.kept(gathered=columns < m, spare=engine.peak(sizes, columns))
        valid = None
        if held_out is not None:
            valid = prepared(
                *held_out[:2], kind, place, dtype, scaling, held_out[2], most=data.WINDOW, name="validation Y"
            )
            valid = valid.kept(gathered=False)
        training_run = _Training(
            options=options,
            engine=run,
            place=place,
            sizes=sizes,
            examples=given,
            validation=valid,
            columns=columns,
            weight_sum=float(m if weight is None else weight.sum()),
            seed=seed,
            theta=place.asarray(parameters.flatten(start, xp=np), dtype=dtype),
            make_network=partial(
                Network,
                activation=chosen,
                kind=kind,
                place=place,
                feature_names=source.names,
                features=treatment,
                scaling=scaling,
            ),
        )
        training_run.go_on()
        loaded = time.perf_counter()
        training_run.run()
        return training_run.diagnosed(
            training_run.network(load_seconds=loaded - started, train_seconds=time.perf_counter() - loaded),
            start,
            of_scale,
        )


# The parts of `fit` ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Options:
    """`fit`'s arguments about the loop, checked."""

    optimizer: Optimizer
    l2: float
    epochs: int
    tol: float
    patience: int | None
    callbacks: tuple[Hooks, ...]
    show: bool
    checkpoint: str | Kept | None
    checkpoint_every: Every


def _loaded(loader: Loader, Y: Any) -> tuple[Any, Any]:
    if Y is not None:
        raise ArgumentError("fit takes Y from the Loader; pass fit(loader) alone, or arrays X and Y.")
    if loader.Y is None:
        raise DataError("fit needs targets and this Loader has no Y. Make it with Loader(X, Y).")
    return loader.X, loader.Y


def _columns(batch_size: Any, m: int, optimizer: Optimizer) -> int:
    if not optimizer.full_batch:
        return data.batch_columns(batch_size, m)
    if data.batch_columns(batch_size, m) < m and batch_size != "auto":
        raise ArgumentError(
            f'optimizer="{optimizer.name}" is full batch: batch_size must be left out or "full"; it is {batch_size!r}.'
        )
    return m


def _hidden(hidden: Any) -> tuple[int, ...]:
    if isinstance(hidden, str | bytes | set | dict) or not (np.iterable(hidden) or hasattr(hidden, "__index__")):
        raise ArgumentError(
            f"hidden must be a whole number or a sequence of them, such as (256, 64); it is {hidden!r}."
        )
    units = tuple(hidden) if np.iterable(hidden) else (hidden,)
    return tuple(whole("hidden" if len(units) == 1 else "each of hidden", unit, low=1) for unit in units)


def _check_count(sizes: tuple[int, ...]) -> None:
    """Check that the network's parameters could be numbered in a computer; whether there is memory, it will tell."""
    if (count := parameters.count(sizes)) >= ADDRESSABLE:
        raise ArgumentError(
            f"hidden must make a network of fewer than {ADDRESSABLE:.0e} parameters; this one has about "
            f"1e{math.log10(count):.0f}. Pass fewer units."
        )


def _checkpoint(checkpoint: Any) -> str | Kept | None:
    if checkpoint is None or isinstance(checkpoint, Kept):
        return checkpoint
    return os.path.abspath(file_path("checkpoint", checkpoint))


def _locked(checkpoint: str | Kept | None) -> AbstractContextManager[None]:
    return checkpoints.locked(checkpoint) if isinstance(checkpoint, str) else nullcontext()


def _seed(random_state: Any, checkpoint: str | Kept | None) -> int:
    """Return the seed given, or that of the checkpoint to go on from, or a new one."""
    # What is wrong with the checkpoint is said before the data is looked at, which may take its time.
    with _locked(checkpoint):
        theirs = None if checkpoint is None else checkpoints.seed_of(checkpoint)
    if random_state is not None:
        return whole("random_state", random_state, low=0)
    return int(np.random.SeedSequence().generate_state(1)[0]) if theirs is None else theirs


def _source(
    plan: Plan | Features | None, X: Any, examples: str, initial: Any, fraction: float, seed: int
) -> tuple[data.Source, Features | None]:
    """Return X, and how its columns are encoded: as the examples to train on say, or as the initial network has it."""
    if isinstance(plan, Plan):
        tables = frames.tables(X, examples=examples, name="X")
        if not tables:
            raise ArgumentError(
                f"features needs columns with names; X is of type {type(X).__name__}. Pass a pandas, polars or pyarrow "
                'table with examples="rows", or leave features out.'
            )
        training = data.split(sum(map(len, tables)), fraction, seed)[0] if fraction else None
        plan = plan.learn(tables, None if training is None else np.asarray(training))
    elif plan is None and isinstance(initial, Network):
        plan = initial.features
    return data.source(X, examples=examples, features=plan), plan


def _held_out(
    validation_data: Any,
    fraction: float,
    source: data.Source,
    labels: Any,
    weight: Any,
    kind: Task,
    sides: tuple[Selection, Selection] | None,
    examples: str,
    treatment: Features | None,
) -> tuple[data.Source, Any, Any] | None:
    """Return the validation examples' source, labels and weights."""
    if validation_data is None:
        if sides is None:
            return None
        if weight is not None and not all(weight[side.mask].any() for side in sides):
            raise DataError(
                f"sample_weight must leave a weight above 0 on each side of validation_fraction={fraction:g}; one side "
                "has none. Pass validation_data, or another random_state."
            )
        return _side(source, labels, weight, sides[1])
    if fraction:
        raise ArgumentError("Pass validation_data or validation_fraction, not both.")
    if not isinstance(validation_data, tuple | list) or len(validation_data) not in (2, 3):
        raise ArgumentError(
            f"validation_data must be (X, Y) or (X, Y, sample_weight); it is a {type(validation_data).__name__}."
        )
    theirs = data.source(
        validation_data[0], examples=examples, name="validation X", features=treatment, names=source.names
    )
    theirs = data.spooled(theirs, data.WINDOW)
    if theirs.n_features != source.n_features:
        raise ShapeError(
            f"validation X must have X's {source.n_features} features; it has {theirs.n_features}. "
            "Columns are examples: did you mean its transpose?"
        )
    their_labels = targets.read(validation_data[1], examples=examples, name="validation Y")
    data.check_orientation(theirs, their_labels.shape[-1], examples=examples, name="validation X")
    targets.encode(their_labels, kind, name="validation Y")
    their_weight = validation_data[2] if len(validation_data) > 2 else None
    return theirs, their_labels, targets.weights(their_weight, None, their_labels, kind, theirs.n_examples)


def _side(source: data.Source, labels: Any, weight: Any, side: Selection) -> tuple[data.Source, Picked, Any]:
    """Return one side's source, labels and weights."""
    return source.subset(side), Picked(labels, side), None if weight is None else weight[side.mask]


def _start(
    initial: Any, sizes: tuple[int, ...], activation: Activation, seed: int, names: Sequence[str] | None
) -> tuple[list[Layer], Any]:
    """Return the parameters to start from, on the host, and the scaling that comes with them."""
    _check_count(sizes)
    if initial is None:
        generator = np.random.default_rng([seed, 0])
        return initializers.GAINS[activation.gain](sizes, random_state=generator), None
    scaling, known = (initial.scaling, initial.feature_names) if isinstance(initial, Network) else (None, None)
    if known and names and known != names:
        raise ShapeError(
            f"initial must have been trained on X's columns, in their order; X is not so: "
            f"{frames.difference(known, names)[0]}. Pass such columns, or initial=net.layers, which have no names."
        )
    try:
        pairs = [
            (np.atleast_2d(devices.to_host(W)), devices.to_host(b)) for W, b in getattr(initial, "layers", initial)
        ]
        if any(np.iscomplexobj(array) for pair in pairs for array in pair):
            raise TypeError("complex numbers")
        layers = [Layer(W.astype(np.float64), np.reshape(b, (-1, 1)).astype(np.float64)) for W, b in pairs]
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            "initial must be a Network or a list of (W, b) arrays, W (n[l], n[l-1]) and b (n[l], 1); it is a "
            f"{type(initial).__name__} that cannot be read as one."
        ) from error
    shapes = [(W.shape, b.shape) for W, b in layers]
    wanted = [((n_out, n_in), (n_out, 1)) for n_in, n_out in pairwise(sizes)]
    if shapes != wanted:
        raise ShapeError(
            f"initial must fit a {'-'.join(map(str, sizes))} network, (W, b) of {wanted}; it has {shapes}. "
            "Pass the `hidden` that it was made for."
        )
    if not all(np.isfinite(array).all() for layer in layers for array in layer):
        raise DataError("initial must be finite; it holds nan or inf.")
    return layers, scaling


def _warned_of_scale(source: data.Source, labels: Any, kind: Task, *, standardized: bool) -> list[Finding]:
    found = diagnosis.of_scale(source, labels, kind, standardized=standardized)
    for finding in found:
        warnings.warn(finding.message, ScaleWarning, stacklevel=3)
    return found


def _checksum(arrays: Iterable[Array], *, dtype: str) -> str:
    """Return eight characters that arrays of other numbers will hardly have, wherever they are."""
    checksum = 0
    for array in arrays:
        host = devices.to_host(array).astype(dtype)
        checksum = zlib.crc32(np.ascontiguousarray(host).tobytes(), checksum)
    return f"{checksum:08x}"


def _checksums(examples: Examples | None, name: str = "") -> dict[str, str | None]:
    """Return the checksums of some of X, of all of Y and of the weights."""
    if examples is None:
        return dict.fromkeys(f"{name}{part}" for part in ("X", "Y", "weighting"))
    weights = [] if examples.weight is None else [examples.weight]
    Y = examples.Y.parts() if isinstance(examples.Y, data.Encoded) else [examples.Y]
    with np.errstate(all="ignore"):
        return {
            f"{name}X": _checksum(data.sample(examples.source), dtype=examples.dtype),
            f"{name}Y": _checksum(Y, dtype=examples.dtype),
            f"{name}weighting": _checksum(weights, dtype=examples.dtype) if weights else None,
        }


_NO_COSTS = np.zeros(0)


def _silent() -> None:
    """Show nothing of an epoch."""


class _Ended(NamedTuple):
    """What was known when an epoch ended, which a Ctrl-C while the next is noted goes back to."""

    best_theta: Array
    best_cost: float
    best_epoch: int
    reference: float
    waited: int
    steps: int
    epochs: int


class _Training:
    """One run of the loop; what changes from step to step is here and nowhere else."""

    def __init__(
        self,
        *,
        options: _Options,
        engine: Engine,
        place: Place,
        sizes: tuple[int, ...],
        examples: Examples,
        validation: Examples | None,
        columns: int,
        weight_sum: float,
        seed: int,
        theta: Array,
        make_network: Callable[..., Network],
    ) -> None:
        self.options, self.engine, self.xp, self.sizes = options, engine, place.xp, sizes
        self.place, self.examples, self.validation = place, examples, validation
        self.columns, self.weight_sum, self.seed, self.theta = columns, weight_sum, seed, theta
        self.make_network = make_network
        self.memory = options.optimizer.init(theta, xp=self.xp)
        self.history: dict[str, list[float]] = {"cost": [], "validation_cost": [], "learning_rate": [], "seconds": []}
        self.best_theta, self.best_cost, self.best_epoch = theta, math.inf, -1
        self.reference, self.waited, self.waiting = math.inf, 0, Waiting()
        self.given_back: Network | None = None  # by a callback, to be returned
        self.stop_reason, self.steps, self.stops = "", 0, Stops()
        self.ended = self._ended()
        # Of the epoch under way: its steps' costs that were taken from the engine, their columns, and when it began.
        self.costs, self.begun = _NO_COSTS, time.perf_counter()
        self.met: list[int] = []
        # When the last checkpoint was due, whether it could not be written, and what the file holds.
        self.due, self.due_steps, self.unwritten = time.monotonic(), 0, False
        self.filed: tuple[int, int] | None = None
        self.fingerprint = self._fingerprint() if options.checkpoint is not None else {}

    @property
    def epoch(self) -> int:
        """The epochs ended so far."""
        return len(self.history["cost"])

    @property
    def done(self) -> int:
        """The steps of the epoch under way."""
        return self.steps - self.ended.steps

    def run(self) -> None:
        """Go through epochs until there is a reason to stop; Ctrl-C is one."""
        kept = isinstance(self.options.checkpoint, Kept)  # which SIGTERM does not spare
        heard = nullcontext() if self.options.checkpoint is None else self.stops.heard(sigterm=not kept)
        with heard, ExitStack() as ends:
            try:
                self._begin(ends)
                self._epochs()
            except KeyboardInterrupt:
                self._go_back()
            except Terminated:
                self._go_back()
                self._write_checkpoint(or_else="What was trained since the one before is lost.")
                raise
            self._write_checkpoint(or_else="What was trained since the one before is in the network alone: save that.")

    def _epochs(self) -> None:
        bar = progress.bar(self.options.epochs, self.history) if self.options.show else nullcontext(_silent)
        with bar as tell:
            while not self.stop_reason and self.epoch < self.options.epochs:
                self._one_epoch()
                tell()
        self.stop_reason = self.stop_reason or "epochs"

    def _ended(self) -> _Ended:
        return _Ended(
            self.best_theta, self.best_cost, self.best_epoch, self.reference, self.waited, self.steps, self.epoch
        )

    def _go_back(self) -> None:
        """Forget what was noted of an epoch that was cut short; its steps are kept."""
        self.stop_reason = "interrupted"
        self.best_theta, self.best_cost, self.best_epoch, self.reference, self.waited, *_ = self.ended
        for values in self.history.values():
            del values[self.ended.epochs :]

    def _one_epoch(self) -> None:
        rate = self.options.optimizer.rate(self.epoch, self.waiting)
        if not self.done:
            self.begun = time.perf_counter()
        watched = isinstance(self.options.checkpoint, str)
        batches = self.examples.batches(self.columns, seed=self.seed, epoch=self.epoch, done=self.done)
        with closing(batches):
            for batch in batches:
                share = self.options.l2 * batch.columns / self.weight_sum
                with self.stops:
                    self.theta, self.memory = self.engine.step(
                        self.options.optimizer, self.theta, self.memory, batch, rate=rate, l2=share
                    )
                    self.steps += 1
                if watched and self._is_due():
                    self._write_checkpoint()
        self._take_costs()  # the one wait for the device in an epoch
        cost = float(self.costs[0] if len(self.costs) == 1 else np.average(self.costs, weights=self.met))
        self._check_finite("cost", cost, rate)
        validation_cost = self._validation_cost()
        self._check_finite("validation cost", validation_cost, rate)
        self._note(cost, validation_cost, rate, time.perf_counter() - self.begun)
        self.ended = self._ended()
        self.costs, self.met = _NO_COSTS, []
        self._show_epoch()
        if watched and (self.options.checkpoint_every.epoch or self._is_due()):
            self._write_checkpoint()

    def _show_epoch(self) -> None:
        """Show the callbacks the epoch that has just ended."""
        if not self.options.callbacks:
            return
        cost, rate, seconds = (self.history[key][-1] for key in ("cost", "learning_rate", "seconds"))
        validation_cost = None if self.validation is None else self.history["validation_cost"][-1]
        view = EpochView(self.epoch - 1, cost, validation_cost, rate, seconds, self.network)
        # Every callback is called, also after one has asked to stop.
        if any([each.on_epoch_end(view) is True for each in self.options.callbacks]):  # noqa: C419
            self.stop_reason = "callback"

    def _take_costs(self) -> None:
        """Bring the costs of the epoch's steps up to date, which waits for the device."""
        with self.stops:
            costs, columns = self.engine.take_costs()
            self.costs = np.concatenate([self.costs, costs]) if self.met else costs
            self.met += columns

    def _begin(self, ends: ExitStack) -> None:
        """Tell the callbacks that the fit begins, and see that those that heard it will be told how it ended."""
        for each in self.options.callbacks:
            if each.on_fit_begin(self._view(self.stop_reason)) is True:
                self.stop_reason = "callback"
            ends.push(partial(self._end, each))

    def _end(self, each: Hooks, _: Any, error: BaseException | None, __: Any) -> None:
        """Tell a callback that the fit has ended, and take the network that it gives back."""
        given = each.on_fit_end(self._view(self.stop_reason if error is None else "error"))
        if isinstance(given, Network):
            if (given.sizes, given.place, given.dtype) != (self.sizes, self.place, self.examples.dtype):
                raise ArgumentError(
                    "on_fit_end must return nothing, or a network of this fit, as view.network() makes it; it returned "
                    f"{given!r}."
                )
            self.given_back = given

    def _view(self, stop_reason: str) -> FitView:
        return FitView(self.options.epochs, self.epoch, stop_reason, self.seed, self.network)

    def _validation_cost(self) -> float | None:
        if self.validation is None:
            return None
        batch = self.validation.whole()
        return float(self.engine.cost(self.engine.layers(self.theta), batch.pieces)) / batch.columns

    def diagnosed(self, net: Network, start: Sequence[Layer], of_scale: Sequence[Finding]) -> Network:
        """Return the network that the fit ended in, with what is wrong with it; it cannot be lost on the way."""
        found = Diagnosis(of_scale)
        with suppress(KeyboardInterrupt):
            try:
                found = diagnosis.diagnose(
                    net.layers,
                    start,
                    self.examples,
                    net.history,
                    activation=net.activation,
                    kind=net.kind,
                    l2=self.options.l2,
                    stop_reason=net.stop_reason,
                    of_scale=of_scale,
                )
            except Exception as error:  # of a file that is gone by now, memory, an activation of one's own
                found = diagnosis.undone(of_scale, error)
        return replace(net, diagnosis=found)

    def _check_finite(self, name: str, cost: float | None, rate: float) -> None:
        # The sum of squares is finite only if all parameters are; the costlier look at each follows when it is not.
        if cost is None or (math.isfinite(cost) and math.isfinite(float(self.theta @ self.theta))):
            return
        if math.isfinite(cost) and bool(self.xp.all(self.xp.isfinite(self.theta))):
            return
        sizes = diagnosis.sizes_of_features(self.examples.source)
        largest = int(np.argmax(sizes))
        scale = f"the largest feature is {self.examples.source.feature(largest)}, of size {sizes[largest]:.3g}"
        if self.examples.scaling is not None:
            scale = "features are standardized"
        what = f"the {name} is {cost}" if not math.isfinite(cost) else "the parameters are not finite"
        mend = "" if self.examples.scaling is not None else ", or pass standardize=True"
        raise DivergedError(
            f"Training diverged: {what} in epoch {self.epoch}, at learning rate {rate:g}; {scale}. "
            f"Lower learning_rate{mend}."
        )

    def _note(self, cost: float, validation_cost: float | None, rate: float, seconds: float) -> None:
        """Write the epoch into the history, and see whether the monitored cost still falls."""
        for key, value in (("cost", cost), ("learning_rate", rate), ("seconds", seconds)):
            self.history[key].append(value)
        if validation_cost is not None:
            self.history["validation_cost"].append(validation_cost)
        monitored = cost if validation_cost is None else validation_cost
        self.waiting = self.options.optimizer.after(self.waiting, monitored)
        if monitored < self.best_cost:
            self.best_cost, self.best_epoch = monitored, self.epoch - 1
            if validation_cost is not None:
                self.best_theta = self.engine.kept(self.theta)
        if monitored < self.reference - self.options.tol:
            self.reference, self.waited = monitored, 0
        else:
            self.waited += 1
        if self.options.patience is not None and self.waited >= self.options.patience:
            self.stop_reason = "patience"

    def network(self, **timing: float) -> Network:
        """Return the network so far: where the validation cost was lowest, or else as it stands.

        When the fit has ended it is the one that a callback has given back, if one has.
        """
        best, theta = self.validation is not None and self.best_epoch >= 0, self.engine.kept(self.theta)
        layers = tuple(parameters.unflatten(self.best_theta if best else theta, self.sizes, xp=self.xp))
        best_epoch = self.best_epoch if self.best_epoch >= 0 else None
        if self.given_back is not None:
            layers, best_epoch = self.given_back.layers, self.given_back.epochs_run - 1
        if timing:
            seconds = max(sum(self.history["seconds"]), 1e-9)
            timing |= {
                "steps": self.steps,
                "examples_per_second": self.epoch * self.examples.source.n_examples / seconds,
            }
            timing |= data.moved(self.examples, self.validation)
        return self.make_network(
            layers=layers,
            history={key: list(values) for key, values in self.history.items()},
            epochs_run=self.epoch,
            best_epoch=best_epoch,
            stop_reason=self.stop_reason,
            random_state=self.seed,
            timing=timing,
        )

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """Return where training stands, to be written to a file or kept: nothing in it changes afterwards."""
        self._take_costs()
        return Standing(
            theta=self.engine.kept(self.theta),
            memory=self.engine.kept(self.memory),
            steps=self.steps,
            history={key: values[: self.ended.epochs] for key, values in self.history.items()},
            costs=self.costs[: self.done],  # none once the epoch has ended, also before they are forgotten
            columns=np.asarray(self.met[: self.done], dtype=np.int64),
            seconds=time.perf_counter() - self.begun if self.done else 0.0,
            best_theta=self.best_theta,
            best_cost=self.best_cost,
            best_epoch=self.best_epoch,
            reference=self.reference,
            waited=self.waited,
        )

    def resume(self, at: Standing) -> None:
        """Go on from where training stood."""
        self.theta, self.memory, self.steps = at.theta, at.memory, at.steps
        self.best_theta, self.best_cost, self.best_epoch = at.best_theta, at.best_cost, at.best_epoch
        self.reference, self.waited = at.reference, at.waited
        self.history = {key: list(values) for key, values in at.history.items()}
        monitored = self.history["validation_cost"] or self.history["cost"]
        self.waiting = reduce(self.options.optimizer.after, monitored, Waiting())
        if at.reference == math.inf:  # what was measured is forgotten
            self.waiting = Waiting(reductions=self.waiting.reductions)
        self.ended = self._ended()._replace(steps=at.steps - len(at.costs))
        self.costs, self.met, self.begun = at.costs, at.columns.tolist(), time.perf_counter() - at.seconds
        # Only what ended by itself stays ended: more epochs, or another Ctrl-C, are up to the caller.
        if self.options.patience is not None and self.waited >= self.options.patience:
            self.stop_reason = "patience"

    def go_on(self) -> None:
        """Go on from the checkpoint, when it holds anything; exceptions are those of `xpnet.checkpoint.read`."""
        it, how = self.options.checkpoint, self.options.optimizer
        if it is not None and checkpoints.is_there(it):
            validated = self.validation is not None
            begin = Beginning(self.fingerprint, self.standing(), self.place, validated, how.full_batch)
            self.resume(checkpoints.read(it, begin))
            self.due_steps, self.filed = self.steps, (self.steps, self.epoch)

    def _is_due(self) -> bool:
        every = self.options.checkpoint_every
        return self.steps - self.due_steps >= every.steps or time.monotonic() - self.due >= every.seconds

    def _write_checkpoint(self, *, or_else: str = "") -> None:
        """Write where training stands; when that fails, as on a full disk, warn of it and of what follows."""
        it = self.options.checkpoint
        if it is None or not self.stops.whole or self.filed == (self.steps, self.epoch):
            return
        self.due, self.due_steps = time.monotonic(), self.steps
        at = self.standing()
        # Who diverges within an epoch is told at its end, and has the checkpoint before until then.
        if not (np.isfinite(at.costs).all() and np.isfinite(devices.to_host(at.theta)).all()):
            return
        with self.stops:
            try:
                checkpoints.write(it, at, self.fingerprint)
                self.filed, self.unwritten = (self.steps, self.epoch), False
            except OSError as error:
                self._warn_of_unwritten(error, or_else)

    def _warn_of_unwritten(self, error: OSError, or_else: str) -> None:
        if self.unwritten and not or_else:
            return  # once is enough while training goes on
        self.unwritten = True
        warnings.warn(
            f"The checkpoint {self.options.checkpoint} could not be written: {error.strerror}. "
            + (or_else or "Training goes on and will try again: make room, or mend what is wrong with the disk."),
            CheckpointWarning,
            stacklevel=5 if or_else else 7,  # whoever called fit: it is in its run, or in an epoch of that
        )

    def _fingerprint(self) -> dict[str, Any]:
        """Return what a checkpoint must share with the fit that resumes it, as JSON has it."""
        it, how = self.options, self.options.optimizer
        blank = self.network()
        rate = described(how.learning_rate)
        if rate == "a function":
            rate = f"a function, {how.rate(0)} at first"
        return {
            "sizes": list(self.sizes),
            "activation": blank.activation.name,
            "task": blank.task,
            "optimizer": how.name,
            "optimizer settings": list(how.settings),
            "learning_rate": rate,
            "l2": it.l2,
            "batch_size": self.columns,
            "tol": it.tol,
            "patience": it.patience,
            "standardize": self.examples.scaling is not None,
            "dtype": self.examples.dtype,
            "examples": self.examples.source.n_examples,
            "validation examples": None if self.validation is None else self.validation.source.n_examples,
            "random_state": self.seed,
            "checksums": {
                **_checksums(self.examples),
                **_checksums(self.validation, "validation "),
                "initial": _checksum([self.theta], dtype=self.examples.dtype),
            },
        }
