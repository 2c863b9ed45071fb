"""The loop: `fit` checks what it is given, and goes through the batches until there is a reason to stop."""

import math
import os
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext, suppress
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
    files,
    frames,
    heads,
    initializers,
    optimizers,
    parameters,
    progress,
    targets,
)
from xpnet import device as devices
from xpnet.activations import Activation
from xpnet.arguments import file_path, real, refuse_unknown, true_or_false, whole
from xpnet.callbacks import Callback, EpochView, FitView, Hooks, hooks
from xpnet.data import Examples, Loader
from xpnet.device import Place
from xpnet.diagnosis import Diagnosis, Finding
from xpnet.engine import Engine
from xpnet.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    DivergedError,
    FileFormatError,
    ScaleWarning,
    ShapeError,
)
from xpnet.features import Features, Plan, planned
from xpnet.network import Network, history_arrays, prepared, take_history
from xpnet.optimizers import Optimizer
from xpnet.schedules import Schedule, Waiting, described
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
    checkpoint: "str | os.PathLike[str] | Kept | None" = None,
    checkpoint_every: float = 60,
    **unknown: Never,
) -> Network:
    """Train a network by gradient descent from the ten equations, and return it.

    Parameters
    ----------
    X : (n_x, m) array
        Examples as columns: any Array API array, memmap, h5py or zarr array, nested list, a list of these (joined
        along m), a table with ``examples="rows"``, or a `Loader`, which brings its own Y.
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
        Where to write the state of training; an existing one is resumed.
    checkpoint_every : float
        Seconds between checkpoints; they are written at the ends of epochs.

    Returns
    -------
    Network
        Ctrl-C returns the network so far, with ``net.stop_reason == "interrupted"``.

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
        The checkpoint belongs to other data or other arguments.

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
        checkpoint=checkpoint
        if checkpoint is None or isinstance(checkpoint, Kept)
        else file_path("checkpoint", checkpoint),
        checkpoint_every=real("checkpoint_every", checkpoint_every, low=0.0),
    )
    threads = None if threads is None else whole("threads", threads, low=1)
    fraction = real("validation_fraction", validation_fraction, low=0.0, below=1.0)
    saved = _saved(options.checkpoint)
    seed = _seed(random_state, saved)
    units = _hidden(hidden)
    standardize, tf32 = true_or_false("standardize", standardize), true_or_false("tf32", tf32)

    # Data
    devices.same_place(("X", X), ("Y", Y), ("sample_weight", sample_weight))
    place = devices.resolve(device, X[0] if isinstance(X, list | tuple) and X else X)
    devices.check_dtype(place, dtype)
    source, treatment = _source(planned(features), X, examples, initial, fraction, seed)
    labels = targets.read(Y, examples=examples)
    data.check_orientation(source, labels.shape[-1], examples=examples)
    kind = targets.infer(labels, task)
    weight = targets.weights(sample_weight, class_weight, labels, kind, source.n_examples)
    held_out = _held_out(validation_data, fraction, source, labels, weight, kind, seed, examples, treatment)
    if held_out is not None and fraction:
        training, _ = data.split(source.n_examples, fraction, seed)
        source, labels = source.subset(training), labels[..., training]
        weight = None if weight is None else weight[training]
    m = source.n_examples
    columns = _columns(batch_size, m, how)
    sizes = (source.n_features, *units, kind.n_outputs)
    start, scaling = _start(initial, sizes, chosen, seed, source.names)
    if standardize and scaling is None:
        with source.place.active():
            scaling = data.scaling_of(source, dtype)
    of_scale = _warned_of_scale(source, labels, kind, standardized=scaling is not None)

    with (
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
        given = prepared(source, labels, kind, place, dtype, scaling, weight)
        given = given.kept(gathered=columns < m, spare=engine.peak(sizes, columns))
        valid = None
        if held_out is not None:
            valid = prepared(*held_out[:2], kind, place, dtype, scaling, held_out[2], name="validation Y")
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
        if saved is not None:
            (training_run.go_on if isinstance(checkpoint, Kept) else training_run.resume)(*saved)
        loaded = time.perf_counter()
        training_run.run()
        return training_run.diagnosed(
            training_run.network(load_seconds=loaded - started, train_seconds=time.perf_counter() - loaded),
            start,
            of_scale,
        )


@dataclass
class Kept:
    """A checkpoint that is no file: where training stood at the end of one `fit`, for another to go on from.

    Given as ``checkpoint=``, it is gone on from, if it holds a state, and then holds the state that training ended in.
    A file belongs to one fit that was cut short; this is for fits that follow each other, whose data and arguments may
    differ, but for what the state is made of: the network's sizes, activation and task, and the optimizer. With the
    same X and Y, fits of 10 and of 20 epochs give the same bits as one of 20.

    Attributes
    ----------
    state : tuple of two dicts, or None
        The arrays and the metadata of a checkpoint, on the host; None before the first fit has ended.
    """

    state: tuple[dict[str, Any], dict[str, Any]] | None = None

    def __str__(self) -> str:
        """Return how messages call this."""
        return "in memory"


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
    checkpoint_every: float


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


def _saved(path: str | Kept | None) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the arrays and the metadata of the checkpoint, when there is one; its folder must be there to write to."""
    if path is None:
        return None
    if isinstance(path, Kept):
        return None if path.state is None else (dict(path.state[0]), path.state[1])
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise ArgumentError(f"checkpoint must be a file in a folder that exists; there is no {folder}. Make it first.")
    return files.read(path, kind="checkpoint") if os.path.exists(path) else None


def _seed(random_state: Any, saved: tuple[dict[str, Any], dict[str, Any]] | None) -> int:
    if random_state is None:
        if saved is not None and isinstance(theirs := saved[1].get("random_state"), int):
            return max(theirs, 0)
        return int(np.random.SeedSequence().generate_state(1)[0])
    return whole("random_state", random_state, low=0)


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
        plan = plan.learn(tables, training)
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
    seed: int,
    examples: str,
    treatment: Features | None,
) -> tuple[data.Source, Any, Any] | None:
    """Return the validation examples' source, labels and weights."""
    if validation_data is None:
        if not fraction:
            return None
        training, held = data.split(source.n_examples, fraction, seed)
        if weight is not None and not (weight[training].any() and weight[held].any()):
            raise DataError(
                f"sample_weight must leave a weight above 0 on each side of validation_fraction={fraction:g}; one side "
                "has none. Pass validation_data, or another random_state."
            )
        return source.subset(held), labels[..., held], None if weight is None else weight[held]
    if fraction:
        raise ArgumentError("Pass validation_data or validation_fraction, not both.")
    if not isinstance(validation_data, tuple | list) or len(validation_data) not in (2, 3):
        raise ArgumentError(
            f"validation_data must be (X, Y) or (X, Y, sample_weight); it is a {type(validation_data).__name__}."
        )
    theirs = data.source(
        validation_data[0], examples=examples, name="validation X", features=treatment, names=source.names
    )
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


_THETAS = ("theta", "best_theta")


def _crc(array: Array, checksum: int = 0) -> int:
    return zlib.crc32(np.ascontiguousarray(devices.to_host(array)).tobytes(), checksum)


def _checksum(examples: Examples) -> int:
    """Return a number that other examples will hardly have: of some of X, of all of Y and of the weights."""
    checksum = examples.source.n_examples
    arrays = [*data.sample(examples.source), examples.Y, *([] if examples.weight is None else [examples.weight])]
    for array in arrays:
        checksum = _crc(array, checksum)
    return checksum


_STRUCTURE = ("sizes", "activation", "task", "optimizer", "optimizer settings")
"""What the state of training is made of: of the fingerprint, all that a `Kept` one shares with the fit that goes on."""

_STEERING = {"learning_rate", "patience", "tol", "initial", "random_state"}
"""What of the fingerprint leaves the cost the same function of the parameters."""


def _nothing(value: Any) -> None:
    """Keep nothing of `value`."""


def _silent() -> None:
    """Show nothing of an epoch."""


class _Boundary(NamedTuple):
    """Where training stood when an epoch ended: what a checkpoint holds, with as much of the history."""

    theta: Array
    memory: Any
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
        self.stop_reason, self.steps, self.written = "", 0, time.monotonic()
        self.fingerprint = self._fingerprint() if options.checkpoint is not None else {}
        self.ended = self._boundary()

    @property
    def epoch(self) -> int:
        """The epochs ended so far."""
        return len(self.history["cost"])

    def run(self) -> None:
        """Go through epochs until there is a reason to stop; Ctrl-C is one."""
        with ExitStack() as ends:
            self._run(ends)

    def _run(self, ends: ExitStack) -> None:
        try:
            self._begin(ends)
            bar = progress.bar(self.options.epochs, self.history) if self.options.show else nullcontext(_silent)
            with bar as tell:
                while not self.stop_reason and self.epoch < self.options.epochs:
                    self._one_epoch()
                    tell()
                    if time.monotonic() - self.written >= self.options.checkpoint_every:
                        self._write_checkpoint()
            self.stop_reason = self.stop_reason or "epochs"
        except KeyboardInterrupt:
            # Steps of the epoch that was cut short are kept in the network, and done again from a checkpoint.
            self.stop_reason = "interrupted"
            _, _, self.best_theta, self.best_cost, self.best_epoch, *_ = self.ended
            for values in self.history.values():
                del values[self.ended.epochs :]
        self._write_checkpoint()

    def _boundary(self) -> _Boundary:
        kept = self.engine.kept if self.options.checkpoint is not None else _nothing
        return _Boundary(
            kept(self.theta),
            kept(self.memory),
            self.best_theta,
            self.best_cost,
            self.best_epoch,
            self.reference,
            self.waited,
            self.steps,
            self.epoch,
        )

    def _one_epoch(self) -> None:
        begun = time.perf_counter()
        rate = self.options.optimizer.rate(self.epoch, self.waiting)
        with closing(self.examples.batches(self.columns, seed=self.seed, epoch=self.epoch)) as batches:
            for batch in batches:
                share = self.options.l2 * batch.columns / self.weight_sum
                self.theta, self.memory = self.engine.step(
                    self.options.optimizer, self.theta, self.memory, batch, rate=rate, l2=share
                )
                self.steps += 1
        costs, columns = self.engine.take_costs()  # the one wait for the device in an epoch
        cost = float(costs[0] if len(costs) == 1 else np.average(costs, weights=columns))
        self._check_finite("cost", cost, rate)
        validation_cost = self._validation_cost()
        self._check_finite("validation cost", validation_cost, rate)
        self._note(cost, validation_cost, rate, time.perf_counter() - begun)
        self.ended = self._boundary()
        if self.options.callbacks:
            view = EpochView(self.epoch - 1, cost, validation_cost, rate, self.history["seconds"][-1], self.network)
            # Every callback is called, also after one has asked to stop.
            if any([each.on_epoch_end(view) is True for each in self.options.callbacks]):  # noqa: C419
                self.stop_reason = "callback"

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

    def _fingerprint(self) -> dict[str, Any]:
        """Return what a checkpoint must share with the fit that resumes it, as JSON has it."""
        it, how = self.options, self.options.optimizer
        blank = self.network()
        return {
            "sizes": list(self.sizes),
            "activation": blank.activation.name,
            "task": blank.task,
            "optimizer": how.name,
            "optimizer settings": list(how.settings),
            "learning_rate": described(how.learning_rate),
            "l2": it.l2,
            "batch_size": self.columns,
            "tol": it.tol,
            "patience": it.patience,
            "validation": None if self.validation is None else _checksum(self.validation),
            "standardize": self.examples.scaling is not None,
            "dtype": self.examples.dtype,
            "examples": self.examples.source.n_examples,
            "data": _checksum(self.examples),
            "initial": _crc(self.theta),
            "random_state": self.seed,
        }

    def _write_checkpoint(self) -> None:
        """Write where the last whole epoch ended."""
        if self.options.checkpoint is None:
            return
        at = self.ended
        state = {f"optimizer.{key}": value for key, value in at.memory._asdict().items()}
        tensors = {"theta": at.theta, "best_theta": at.best_theta} | {
            key: value for key, value in state.items() if not isinstance(value, int)
        }
        finite = {"best_cost": at.best_cost, "reference": at.reference}
        arrays = {key: devices.to_host(value) for key, value in tensors.items()} | history_arrays(
            {key: values[: at.epochs] for key, values in self.history.items()}
        )
        metadata = {
            "fingerprint": self.fingerprint,
            "random_state": self.seed,
            "numbers": {key: value for key, value in state.items() if isinstance(value, int)},
            "best_epoch": at.best_epoch,
            "waited": at.waited,
            "steps": at.steps,
        } | {key: value if math.isfinite(value) else None for key, value in finite.items()}
        if isinstance(self.options.checkpoint, Kept):
            self.options.checkpoint.state = arrays, metadata
        else:
            files.write(self.options.checkpoint, arrays, metadata, kind="checkpoint")
        self.written = time.monotonic()

    def go_on(self, tensors: dict[str, Any], found: dict[str, Any]) -> None:
        """Go on from what `Kept` holds; what was measured of another cost is measured anew.

        Raises
        ------
        CheckpointError
            It is the state of another network or another optimizer, or has no validation costs where some are wanted.
        """
        theirs = found["fingerprint"]
        self._check_fingerprint(theirs, _STRUCTURE)
        if self.validation is None:
            tensors |= history_arrays({"validation_cost": []})
        elif theirs["validation"] is None:
            raise CheckpointError(
                "Validation must be there from the first epoch on; the training to go on from had none. Leave it out, "
                "or start anew."
            )
        self._take(tensors, found)
        if any(self.fingerprint[key] != theirs[key] for key in self.fingerprint.keys() - _STEERING):
            self.best_theta, self.best_cost, self.best_epoch, self.reference = self.theta, math.inf, -1, math.inf
            self.waited, self.waiting = 0, Waiting(reductions=self.waiting.reductions)
            if self.options.optimizer.full_batch:  # which remembers the cost and the gradient where it stands
                self.memory = self.options.optimizer.init(self.theta, xp=self.xp)
        if self.options.patience is not None and self.waited >= self.options.patience:
            self.waited = 0  # it is the caller who asks for more
        self.ended = self._boundary()

    def resume(self, tensors: dict[str, Any], found: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises
        ------
        CheckpointError
            It was written for other data or with other arguments; they are named.
        FileFormatError
            It is damaged.
        """
        try:
            self._check_fingerprint(found["fingerprint"])
            self._take(tensors, found)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise FileFormatError(
                f"{self.options.checkpoint} is not a whole checkpoint ({type(error).__name__}: {error}). "
                "Delete it to start anew."
            ) from error
        self.ended = self._boundary()
        # Only what ended by itself stays ended: more epochs, or another Ctrl-C, are up to the caller.
        if self.options.patience is not None and self.waited >= self.options.patience:
            self.stop_reason = "patience"

    def _take(self, tensors: dict[str, Any], found: dict[str, Any]) -> None:
        """Put the checkpoint's state in place of this one, when it is as large as this one."""
        history = take_history(tensors)
        at = {key: self.place.asarray(value, dtype=self.examples.dtype) for key, value in tensors.items()}
        kept = found["numbers"] | at
        memory = type(self.memory)(*(kept[f"optimizer.{key}"] for key in self.memory._fields))
        for ours, theirs in [*zip(self.memory, memory, strict=True), *((self.theta, at[key]) for key in _THETAS)]:
            # Of an array the last axis: L-BFGS remembers more and more rows.
            if isinstance(ours, int) != isinstance(theirs, int) or np.shape(ours)[-1:] != np.shape(theirs)[-1:]:
                raise ValueError(f"state of shape {np.shape(theirs)}")
            if not bool(np.isfinite(devices.to_host(theirs)).all()):
                raise ValueError("state that is not finite")
        self.theta, self.best_theta = (at[key] for key in _THETAS)
        self.memory = memory
        self.history = {key: history[key] for key in self.history}
        self.best_epoch = whole("best_epoch", found["best_epoch"], low=-1)
        self.waited, self.steps = whole("waited", found["waited"], low=0), whole("steps", found["steps"], low=0)
        self.best_cost = math.inf if found["best_cost"] is None else real("best_cost", found["best_cost"])
        self.reference = math.inf if found["reference"] is None else real("reference", found["reference"])
        self.waiting = reduce(self.options.optimizer.after, history["validation_cost"] or history["cost"], Waiting())
        if len(history["validation_cost"]) != (0 if self.validation is None else self.epoch):
            raise ValueError(f"a validation cost for {len(history['validation_cost'])} of {self.epoch} epochs")

    def _check_fingerprint(self, theirs: dict[str, Any], keys: Iterable[str] | None = None) -> None:
        ours = self.fingerprint
        differing = [
            f"{key} was {theirs.get(key)}, is {ours[key]}" for key in keys or ours if ours[key] != theirs.get(key)
        ]
        if differing:
            mend = "start anew" if isinstance(self.options.checkpoint, Kept) else "name another file"
            raise CheckpointError(
                f"The checkpoint {self.options.checkpoint} belongs to another fit: {'; '.join(differing)}. Repeat that "
                f"call, or {mend}."
            )
