"""Training on a Dask cluster: the examples stay with the workers, which hand each other sums and nothing else.

`fit` cuts the examples into as many parts of consecutive ones as there are workers, and has the workers train on them
together for segments of a few seconds, in each of which they take every step themselves (`xpnet.parts`) and add up
their gradients (`xpnet.allreduce`). Between segments training stands here: when a worker is lost, Dask makes its part
anew on another, and the segment is done again.

>>> import dask.distributed, xpnet.dask  # doctest: +SKIP
>>> client = dask.distributed.Client("tcp://scheduler:8786")  # doctest: +SKIP
>>> net = xpnet.dask.fit(X, Y, client=client)  # doctest: +SKIP
"""

import asyncio
import contextlib
import itertools
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, wait
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xpnet import (
    activations,
    data,
    diagnosis,
    heads,
    optimizers,
    parameters,
    parts,
    progress,
    tables,
    targets,
    training,
)
from xpnet import checkpoint as checkpoints
from xpnet import device as devices
from xpnet.allreduce import CutShortError, Means, Member
from xpnet.arguments import choice, file_path, real, refuse_unknown, true_or_false, whole
from xpnet.callbacks import hooks
from xpnet.checkpoint import Standing
from xpnet.data import Examples, Moments, Source
from xpnet.device import HOST
from xpnet.diagnosis import Diagnosis, Finding
from xpnet.engine import Engine
from xpnet.errors import ArgumentError, ClusterError, DataError, MissingPackageError, ShapeError, XpnetError
from xpnet.network import Network
from xpnet.parts import Look, Plan, Stored, Target, Total
from xpnet.targets import Task
from xpnet.training import FOREIGN
from xpnet.typing import Array, Layer

__all__ = ["fit", "predict", "predict_proba"]

SEGMENT = 2.0
"""Seconds of training between two times that it stands with the client, in epochs: what a lost worker costs."""

LOOK = 1.0
"""Seconds of waiting after which the client looks which workers are left."""

PATIENCE = 60.0
"""Seconds for which the client waits for a worker when all are gone."""

TRIES = 3
"""Times that a segment may fail in a row without a worker having been lost."""

LOSSES = 10
"""Times in a row that workers may be lost at the same work: then it is the work that they die of."""

SENT = 2**20
"""Bytes of parameters up to which training's state goes to every worker from the client."""

_GONE = (
    "The scheduler must be there until the end; it is gone ({}). Start the cluster again: a fit with checkpoint= goes "
    "on from its last."
)

_DEFAULTS = dict(training.fit.__kwdefaults__ or {})


def fit(X: Any, Y: Any, *, client: Any = None, **arguments: Any) -> Network:
    """Train a network on examples that lie with the workers of a Dask cluster, and return it.

    It is the network that `xpnet.fit` returns: bit for bit with one worker, and up to the rounding of sums with
    several. Workers may die, hang or join; what is lost of the data is made again from the graph or the files that it
    came from.

    Parameters
    ----------
    X : dask array, dask dataframe, or list of paths
        ``(n_x, m)`` in chunks along the columns; with ``examples="rows"``, ``(m, n_x)`` in chunks along the rows, a
        dataframe, or files. Files are ``.npy``, read slice by slice, or Parquet, decoded a few rows at a time, of more
        than 2²⁸ numbers a worker into a temporary file, without columns in which pandas keeps row numbers; workers open
        them, by the same paths. There should be as many chunks or files as workers, or more.
    Y : dask array or series, array, list of paths, str or int
        Targets, ``(m,)``, ``(1, m)`` or ``(n_y, m)``, in chunks of as many examples as X. Of files, the name of the
        column in each Parquet file, or the number of the column in each ``.npy`` file, that is the target.
    client : distributed.Client, optional
        Of the cluster; by default the current one.
    **arguments
        Those of `xpnet.fit`, with its defaults. `validation_data` and `sample_weight` are of X's and Y's kinds;
        `device` and `threads` are each worker's, threads by default as many as Dask gave it. With `callbacks`, every
        epoch ends with the client, which takes some 30 ms. `checkpoint` is a file of the client's.

    Returns
    -------
    Network
        With the client, in host memory; ``timing["workers"]`` is how many it ended with. Ctrl-C returns the network so
        far.

    Raises
    ------
    ClusterError
        The scheduler or all workers are gone, or data that cannot be made again; or workers die of their work.
    MissingPackageError
        Dask is not installed: ``pip install "xpnet[dask]"``.
    ArgumentError, DataError, DivergedError, CheckpointError
        As `xpnet.fit`.

    Notes
    -----
    A worker that hangs is given up when Dask gives it up, after ``distributed.scheduler.worker-ttl`` (5 minutes).
    ``net.diagnosis`` looks at a sample from every worker; it says nothing of rare classes and constant targets.

    Examples
    --------
    >>> import dask.array, distributed, xpnet.dask                      # doctest: +SKIP
    >>> client = distributed.Client("tcp://scheduler:8786")             # doctest: +SKIP
    >>> X = dask.array.from_zarr("x.zarr")                              # doctest: +SKIP
    >>> net = xpnet.dask.fit(X, dask.array.from_zarr("y.zarr"))         # doctest: +SKIP
    >>> net = xpnet.dask.fit(["a.parquet", "b.parquet"], "price", examples="rows", task="regression")  # doctest: +SKIP
    """
    started = time.perf_counter()
    client = _client(client)
    refuse_unknown("fit", {k: v for k, v in arguments.items() if k not in _DEFAULTS}, tuple(_DEFAULTS), FOREIGN)
    it = _DEFAULTS | arguments
    if it["features"] is not None:
        raise ArgumentError(
            "features must be left out on a cluster, where columns are plain numbers. Encode them first, with "
            "dask.dataframe.get_dummies."
        )
    examples = choice("examples", it["examples"], ("columns", "rows"))
    given = _given(X, Y, it["sample_weight"], examples), _validation(it["validation_data"], examples)
    with _cluster_errors(client), _Fit(client, it, *given) as run:
        loop = run.loop()
        with training._locked(loop.options.checkpoint):
            loop.go_on()
            loaded = time.perf_counter()
            loop.run()
        workers = len({part.worker for part in run.parts})
        net = loop.network(load_seconds=loaded - started, train_seconds=time.perf_counter() - loaded, workers=workers)
        return replace(net, diagnosis=run.diagnosis(net, loop))


def predict(net: Network, X: Any, *, examples: str = "columns", device: str = "cpu") -> Any:
    """Return what `Network.predict` does, as a dask array that is computed where the chunks of X lie.

    Parameters
    ----------
    net : Network
        A trained network.
    X : dask array, dask dataframe, or list of paths
        As `fit` takes it.
    examples : {"columns", "rows"}
        Which way the examples of X lie.
    device : str
        Each worker's: ``"cpu"``, ``"cuda"`` or ``"auto"``.

    Returns
    -------
    dask array
        Labels ``(m,)``; for regression, counts and multilabel ``(n_y, m)``. Lazy, in host memory; of dataframes and
        files the length of the chunks is not known before.

    Raises
    ------
    MissingPackageError
        Dask is not installed: ``pip install "xpnet[dask]"``.
    ArgumentError, ShapeError
        X is of no such kind, or a dataframe without ``examples="rows"``.

    Examples
    --------
    >>> labels = xpnet.dask.predict(net, X).compute()                   # doctest: +SKIP
    """
    return _predicted(net, X, examples, device, proba=False)


def predict_proba(net: Network, X: Any, *, examples: str = "columns", device: str = "cpu") -> Any:
    """Return what `Network.predict_proba` does, ``(n_y, m)``, as a dask array.

    Parameters
    ----------
    net, X, examples, device
        As `predict` has them.

    Returns
    -------
    dask array
        Lazy, in host memory.

    Raises
    ------
    MissingPackageError, ArgumentError, ShapeError
        As `predict`.

    Examples
    --------
    >>> chances = xpnet.dask.predict_proba(net, X).compute()            # doctest: +SKIP
    """
    return _predicted(net, X, examples, device, proba=True)


def _predicted(net: Network, X: Any, examples: str, device: str, *, proba: bool) -> Any:
    _distributed()
    import dask
    import dask.array

    chunks = _chunks_of(X, choice("examples", examples, ("columns", "rows")), "X")
    flat = not proba and net.kind.classes is not None and net.kind.name != "multilabel"
    dtype = net.kind.classes.dtype if flat and net.kind.classes is not None else np.dtype(net.dtype)
    dtype = np.dtype(np.int64) if net.kind.name == "multilabel" and not proba else dtype
    work = dask.delayed(partial(_output, examples=examples, device=device, proba=proba))
    shared = dask.delayed(net)
    outputs = []
    for chunk, length in zip(chunks.values, chunks.lengths, strict=True):
        m = np.nan if length is None else length
        shape = (m,) if flat else (net.kind.n_outputs, m)
        outputs.append(dask.array.from_delayed(work(shared, chunk), shape, dtype=dtype))
    return outputs[0] if len(outputs) == 1 else dask.array.concatenate(outputs, axis=-1, allow_unknown_chunksizes=True)


def _output(net: Network, X: Any, *, examples: str, device: str, proba: bool) -> npt.NDArray[Any]:
    """Return a chunk's predictions, computed by one thread: Dask has others for other chunks."""
    if parts.count(X, examples) == 0:  # a partition of which a filter has left nothing
        A: npt.NDArray[Any] = np.empty((net.kind.n_outputs, 0), net.dtype)
        return A if proba else targets.decode(A, net.kind)
    net = net if device == "cpu" else net.to(device)
    A = devices.to_host(net._output_of(net._source(parts.opened(X, examples), examples), threads=1))
    return A if proba else targets.decode(A, net.kind)


# The client and its cluster -------------------------------------------------------------------------------------------


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise MissingPackageError(
            'xpnet.dask needs Dask with its scheduler, which is not installed. Run: pip install "xpnet[dask]"'
        ) from error
    return distributed


def _client(client: Any) -> Any:
    distributed = _distributed()
    if client is None:
        try:
            client = distributed.get_client()
        except ValueError as error:
            raise ArgumentError(
                "fit needs a client and there is none. Pass client=distributed.Client(address)."
            ) from error
    if not isinstance(client, distributed.Client) or client.asynchronous:
        raise ArgumentError(f"client must be a distributed.Client that is not asynchronous; it is {client!r}.")
    return client


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Make a client of the scheduler at an address for the duration of a ``with``, in which no log is shown.

    What Dask logs there, tracebacks of a scheduler that is gone among it, is raised as one error besides.

    Raises
    ------
    ClusterError
        There is none.
    """
    try:
        client = _distributed().Client(address)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"There must be a Dask scheduler at {address}; none answers ({error}). Start one: dask scheduler"
        ) from error
    shown = logging.root.manager.disable
    logging.disable()
    try:
        with client:
            yield client
    finally:
        logging.disable(shown)


@contextlib.contextmanager
def _cluster_errors(client: Any) -> Iterator[None]:
    """Say by name what Dask raises when its scheduler is gone."""
    try:
        yield
    except XpnetError:
        raise
    except Exception as error:  # Dask's own are of many kinds then, an AssertionError of Tornado's among them
        if _answers(client):
            raise
        raise ClusterError(_GONE.format(f"{type(error).__name__}: {error}")) from error


def _answers(client: Any) -> bool:
    """Return whether the client's scheduler is there."""
    with contextlib.suppress(Exception):
        return "workers" in _identity(client, workers=1)
    return False


def _identity(client: Any, workers: int = -1) -> Any:
    """Return what a client's scheduler says of itself and of so many workers, of all by default.

    `Client.scheduler_info` returns what a scheduler that is gone had said last.
    """
    return client.sync(client.scheduler.identity, n_workers=workers)


class _Chunks(NamedTuple):
    """What a dask collection or a list of files consists of.

    Attributes
    ----------
    values : list
        Delayed objects, or Stored files.
    lengths : list of int or None
        The examples of each, where they are known before it is computed.
    """

    values: list[Any]
    lengths: list[int | None]


def _chunks_of(X: Any, examples: str, name: str, axis: int | None = None) -> _Chunks:
    """Return the chunks of X, or of what goes with it, along the examples."""
    if isinstance(X, list | tuple) and X and all(isinstance(path, str | os.PathLike | Stored) for path in X):
        return _Chunks(
            [path if isinstance(path, Stored) else Stored(_known(path, name)) for path in X], [None] * len(X)
        )
    if hasattr(X, "dask") and hasattr(X, "npartitions") and hasattr(X, "chunks"):
        axis = (0 if examples == "rows" else X.ndim - 1) if axis is None else axis
        if X.ndim == 2 and len(X.chunks[1 - axis]) > 1:
            X = X.rechunk({1 - axis: -1})
        lengths = [None if np.isnan(size) else int(size) for size in X.chunks[axis]]
        return _Chunks(list(X.to_delayed().ravel()), lengths)
    if hasattr(X, "dask") and hasattr(X, "npartitions"):  # a dataframe or a series
        if examples != "rows" and X.ndim == 2:
            raise ShapeError(f'{name} is a dataframe, whose examples are rows. Pass examples="rows".')
        return _Chunks(list(X.to_delayed()), [None] * X.npartitions)
    raise ArgumentError(
        f"{name} must be a dask array, a dask dataframe or a list of paths; it is of type {type(X).__name__}. "
        "For arrays in memory use xpnet.fit, or dask.array.from_array."
    )


def _known(given: Any, name: str) -> str:
    path = file_path(name, given)
    if not path.lower().endswith((".npy", ".parquet")):
        raise ArgumentError(f"{name} must be of .npy or .parquet files; {path!r} is another. Convert it.")
    return path


class _Given(NamedTuple):
    """Examples as they were given, chunk by chunk."""

    X: list[Any]
    Y: list[Any]
    weight: list[Any] | None
    lengths: list[int | None]


def _given(X: Any, Y: Any, weight: Any, examples: str, name: str = "") -> _Given:
    chunks = _chunks_of(X, examples, f"{name}X")
    if isinstance(Y, str | int):
        taken = [Y, *([weight] if isinstance(weight, str | int) else [])]
        if not all(isinstance(value, Stored) for value in chunks.values):
            raise ArgumentError(
                f"{name}Y can be the name of a column only when {name}X is a list of paths; it is {Y!r}."
            )
        values = [value._replace(without=(*value.without, *taken)) for value in chunks.values]
        ys = [Stored(value.path, column=Y) for value in chunks.values]
        ws = [Stored(value.path, column=weight) for value in chunks.values] if len(taken) > 1 else None
        if weight is not None and ws is None:
            ws = _beside(chunks, weight, "rows", "sample_weight")
        return _Given(values, ys, ws, chunks.lengths)
    ys = _beside(chunks, Y, examples, f"{name}Y")
    ws = None if weight is None else _beside(chunks, weight, "columns", "sample_weight")
    return _Given(chunks.values, ys, ws, chunks.lengths)


def _validation(given: Any, examples: str) -> _Given | None:
    """Return `fit`'s ``validation_data``, chunk by chunk."""
    if given is None:
        return None
    if not isinstance(given, tuple | list) or len(given) not in (2, 3):
        raise ArgumentError(f"validation_data must be (X, Y) or (X, Y, sample_weight); it is a {type(given).__name__}.")
    X, Y, *weight = given
    return _given(X, Y, weight[0] if weight else None, examples, "validation ")


def _beside(chunks: _Chunks, Y: Any, examples: str, name: str) -> list[Any]:
    """Return the chunks of what goes with X, cut as X is."""
    if not hasattr(Y, "dask") and not (isinstance(Y, list) and Y and isinstance(Y[0], str | os.PathLike | Stored)):
        Y = _cut(chunks, np.asarray(Y), examples, name)
    elif hasattr(Y, "chunks") and None not in chunks.lengths and not np.isnan(Y.shape).any():
        axis = 0 if examples == "rows" else Y.ndim - 1
        if Y.shape[axis] == sum(chunks.lengths):  # type: ignore[arg-type]  # there is no None in it
            Y = Y.rechunk({axis: tuple(chunks.lengths)})
    found = _chunks_of(Y, examples, name)
    known = [pair for pair in zip(chunks.lengths, found.lengths, strict=False) if None not in pair]
    if len(found.values) != len(chunks.values) or any(ours != theirs for ours, theirs in known):
        raise ShapeError(
            f"{name} must have the examples of X, in as many chunks; X has {_extent(chunks)} and {name} has "
            f"{_extent(found)}. Examples are {examples} here."
        )
    return found.values


def _extent(chunks: _Chunks) -> str:
    lengths = [length for length in chunks.lengths if length is not None]
    many = f"{len(chunks.values)} chunk{'s' * (len(chunks.values) > 1)}"
    return f"{sum(lengths)} examples in {many}" if len(lengths) == len(chunks.lengths) else many


def _cut(chunks: _Chunks, Y: npt.NDArray[Any], examples: str, name: str) -> Any:
    """Return an array in memory as a dask array in X's chunks; it goes to the workers with the graph."""
    import dask.array

    axis = 0 if examples == "rows" else Y.ndim - 1
    if None in chunks.lengths:
        raise ArgumentError(
            f"{name} must lie with X, whose chunks are of unknown length; it is of type {type(Y).__name__}. Pass a "
            "dask array, a series or paths."
        )
    if Y.ndim == 0 or Y.shape[axis] != sum(chunks.lengths):  # type: ignore[arg-type]  # there is no None in it
        raise ShapeError(
            f"{name} must have the examples of X, {sum(chunks.lengths)}; its shape is {Y.shape}. Examples are "  # type: ignore[arg-type]
            f"{examples} here."
        )
    whole = {axis: tuple(chunks.lengths)} | ({1 - axis: -1} if Y.ndim == 2 else {})
    return dask.array.from_array(Y, chunks=tuple(whole[i] for i in range(Y.ndim)))


# What the command asks ------------------------------------------------------------------------------------------------


class Files(NamedTuple):
    """Examples in files: of each, those to train on, or those held out.

    Attributes
    ----------
    X, Y : list of Stored
        Of files that have some.
    examples : int
        How many they are.
    """

    X: list[Stored]
    Y: list[Stored]
    examples: int


def stored(
    paths: Sequence[str], target: str, drop: Sequence[str], client: Any, fraction: float, seed: int
) -> tuple[Files, Files]:
    """Return files without some of their columns: the rows to train on, and a share that is held out.

    They are those of `tables.split`, which takes 6 bytes a row of the client's memory.
    """
    known = [Stored(_known(path, "DATA"), without=(target, *drop)) for path in paths]
    with _cluster_errors(client):
        counts = client.gather(client.map(parts.count, known, examples="rows", pure=False))
    if not any(counts):
        raise DataError(f"DATA must have rows; {', '.join(paths[:8])} have none.")
    bounds = np.cumsum(counts)[:-1]
    training, held_out = (np.split(side.mask, bounds) for side in tables.split(sum(counts), fraction, seed))
    return _files(known, training, target), _files(known, held_out, target)


def _files(known: Sequence[Stored], masks: Sequence[npt.NDArray[np.bool_]], target: str) -> Files:
    """Return the rows chosen of files, of those that have some."""
    pairs = zip(known, masks, strict=True)
    X = [it if mask.all() else it._replace(rows=np.packbits(mask).tobytes()) for it, mask in pairs if mask.any()]
    return Files(X, [it._replace(column=target, without=()) for it in X], sum(int(mask.sum()) for mask in masks))


def of_target(Y: Sequence[Stored], client: Any) -> list[Target]:
    """Return what the workers find in columns that are to be predicted."""
    with _cluster_errors(client):
        return list(client.gather(client.map(parts.target, Y, pure=False)))


def scaling(Y: Sequence[Target]) -> tuple[float, float]:
    """Return the mean and deviation of numbers; of constant ones a deviation of 1."""
    whole = reduce(Moments.merged, (it.moments for it in Y if it.moments is not None))
    return float(whole.mean[0]), float(np.sqrt(whole.squares[0] / whole.n)) or 1.0


def score(net: Network, files: Files, client: Any, device: str) -> float:
    """Return `Network.score` of files; of numbers and counts what is predicted comes to the client for it."""
    import dask

    work, shared = dask.delayed(parts.judged, pure=False), dask.delayed(net)
    with _cluster_errors(client):
        lazy = [work(shared, X, Y, device) for X, Y in zip(files.X, files.Y, strict=True)]
        found = list(zip(*client.gather(client.compute(lazy)), strict=True))
    if net.kind.classes is not None:
        return float(np.average(found[1], weights=found[0]))
    return targets.score(np.concatenate(found[0], axis=-1), found[1], net.kind)


# Parts and where they are ---------------------------------------------------------------------------------------------


@dataclass
class _Part:
    """A part of the examples, and what of it lies with a worker.

    Attributes
    ----------
    number : int
        Of the part.
    chunks : slice
        Those of the examples given.
    first : int
        The number of its first example.
    validation, first_given : slice and int
        The same of the validation data given.
    worker : str
        The address of the worker that has it.
    moved : bool
        Whether another had it before.
    held, given, ready : Future or None
        What the worker holds: `parts.Held`, the same of validation data, and `parts.Ready`.
    """

    number: int
    chunks: slice
    first: int
    validation: slice = field(default_factory=lambda: slice(0, 0))
    first_given: int = 0
    worker: str = ""
    moved: bool = False
    held: Any = None
    given: Any = None
    ready: Any = None


@dataclass
class _Fit:
    """A fit on a cluster: the parts, and the plan that they share.

    Attributes
    ----------
    client : Client
        Of the cluster.
    arguments : dict
        `fit`'s, all of them.
    train, valid : _Given
        The chunks of the examples, and of those to validate with.
    parts : list of _Part
        Which end with this.
    plan : Plan or None
        What is decided, once it is.
    means : dict of str to Means
        What each worker can sum by.
    name : str
        No other fit's.
    failures : int
        Segments that failed in a row without a worker having been lost.
    findings : list of Finding
        What is to be said of the sizes of X and Y.
    start : sequence of Layer
        Where training begins.
    """

    client: Any
    arguments: dict[str, Any]
    train: _Given
    valid: _Given | None
    parts: list[_Part] = field(default_factory=list)
    plan: Plan | None = None
    means: dict[str, Means] = field(default_factory=dict)
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    failures: int = 0
    findings: list[Finding] = field(default_factory=list)
    start: Sequence[Layer] = ()
    _counted: list[Any] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __enter__(self) -> "_Fit":
        return self

    def __exit__(self, *_: object) -> None:
        self.parts = []  # and with it all that workers hold for this fit

    # From arguments to a loop

    def loop(self) -> "_Loop":
        """Check the arguments, look at the examples, and return the loop that trains on them."""
        options, seed = self._options()
        plan = self._asked(options, seed)
        standardize = true_or_false("standardize", self.arguments["standardize"])
        self._place_chunks()
        looks = self._all(parts.look, "held", chunks=len(self.train.X))
        plan = self._weighed(self._seen(plan, looks))
        columns = training._columns(self.arguments["batch_size"], plan.training.examples, options.optimizer)
        names = looks[0].names
        self.start, scaling = training._start(self.arguments["initial"], plan.sizes, plan.activation, seed, names)
        source = _source_of(looks, plan.training.examples)
        if standardize and scaling is None:
            scaling = self._scaling(source, plan)
        size = np.sqrt(sum(look.labels_squared for look in looks) / (plan.given * plan.kind.n_outputs))
        self.findings = training._warned_of_scale(source, size[None], plan.kind, standardized=scaling is not None)
        self.plan = replace(plan, columns=columns, scaling=scaling)
        self._make_ready()
        theta = HOST.asarray(parameters.flatten(self.start, xp=np), dtype=plan.dtype)
        return self._loop(self.plan, options, source, looks, theta)

    def _asked(self, options: Any, seed: int) -> Plan:
        """Return the plan as far as the arguments have it."""
        it = self.arguments
        devices.check_dtype(HOST, it["dtype"])
        return Plan(
            kind=Task("", None, 1),
            activation=activations.resolve(it["activation"]),
            sizes=training._hidden(it["hidden"]),
            dtype=it["dtype"],
            options=replace(options, callbacks=(), show=False, checkpoint=None),
            columns=0,
            seed=seed,
            threads=None if it["threads"] is None else whole("threads", it["threads"], low=1),
            tf32=true_or_false("tf32", it["tf32"]),
            given=0,
            fraction=real("validation_fraction", it["validation_fraction"], low=0.0, below=1.0),
        )

    def _seen(self, plan: Plan, looks: list[Look]) -> Plan:
        """Return the plan with what the examples tell: how many there are, and what Y means."""
        m = sum(look.n_examples for look in looks)
        if plan.fraction:
            if self.valid is not None:
                raise ArgumentError("Pass validation_data or validation_fraction, not both.")
            data.split(m, plan.fraction, plan.seed)  # which refuses what leaves a side empty
        kind = targets.infer(labels(looks, m), self.arguments["task"])
        return replace(plan, kind=kind, sizes=(_agreed(looks).n_features, *plan.sizes, kind.n_outputs), given=m)

    def _options(self) -> Any:
        it = self.arguments
        options = training._Options(
            optimizer=optimizers.resolve(it["optimizer"], it["learning_rate"]),
            l2=real("l2", it["l2"], low=0.0),
            epochs=whole("epochs", it["epochs"], low=1),
            tol=real("tol", it["tol"], low=0.0),
            patience=None if it["patience"] is None else whole("patience", it["patience"], low=1),
            callbacks=hooks(it["callbacks"]),
            show=progress.wanted(it["verbose"]),
            checkpoint=training._checkpoint(it["checkpoint"]),
            checkpoint_every=checkpoints.every(it["checkpoint_every"]),
        )
        return options, training._seed(it["random_state"], options.checkpoint)

    def _weighed(self, plan: Plan) -> Plan:
        """Return the plan with the classes' weights, and what the examples weigh."""
        if (class_weight := self.arguments["class_weight"]) is not None:
            counts = sum(self._all(parts.counts, "held", kind=plan.kind))
            plan = replace(plan, of_class=targets.class_factors(class_weight, counts, plan.kind))
        found = self._all(parts.totals, "held", "given", plan=plan)
        ours = _summed([ours for ours, _ in found])
        theirs = [total for _, total in found if total is not None]
        _check_weight(ours, plan.fraction)
        if theirs:
            _check_weight(_summed(theirs), plan.fraction)
        return replace(plan, training=ours, validation=_summed(theirs) if theirs else None)

    def _scaling(self, source: Source, plan: Plan) -> Any:
        found = [moments for moments in self._all(parts.spread, "held", plan=plan) if moments is not None]
        merged = found[0]
        for moments in found[1:]:
            merged = merged.merged(moments)
        return data.scaling_from(source, merged)

    def _loop(self, plan: Plan, options: Any, source: Source, looks: list[Look], theta: Array) -> "_Loop":
        # In halves, which float32 holds exactly.
        checksums = np.asarray([half for look in looks for crc in look.checksums for half in divmod(crc, 2**16)])
        seen = Examples(source, HOST, plan.dtype, plan.scaling, checksums)
        valid = None
        if plan.validation is not None:
            total = plan.validation
            valid = replace(seen, Y=np.asarray([total.examples, total.shares]))
        loop = _Loop(
            options=options,
            engine=Engine(HOST, plan.sizes, plan.activation, heads.HEADS[plan.kind.head]),
            place=HOST,
            sizes=plan.sizes,
            examples=seen,
            validation=valid,
            columns=plan.columns,
            weight_sum=plan.training.weight,
            seed=plan.seed,
            theta=theta,
            make_network=partial(
                Network,
                activation=plan.activation,
                kind=plan.kind,
                place=HOST,
                feature_names=source.names,
                scaling=plan.scaling,
            ),
        )
        loop.fit = self
        return loop

    def diagnosis(self, net: Network, loop: "_Loop") -> Diagnosis:
        """Return what is wrong with the fit, of which some examples come here from each worker; as `training` does."""
        found, m = Diagnosis(self.findings), loop.examples.source.n_examples
        with contextlib.suppress(KeyboardInterrupt):
            try:
                share = min(1.0, diagnosis.looked_at(m, max(1, net.epochs_run)) / m)
                samples = [each for each in self._all(parts.shown, "ready", share=share) if each is not None]
                examples, means = diagnosis.joined(samples, loop.examples)
                found = diagnosis.diagnose(
                    net.layers,
                    self.start,
                    examples,
                    net.history,
                    activation=net.activation,
                    kind=net.kind,
                    l2=loop.options.l2,
                    stop_reason=net.stop_reason,
                    of_scale=self.findings,
                    means=means if examples.source.n_examples < m else None,
                )
            except Exception as error:  # the workers or the scheduler may be gone by now
                found = diagnosis.undone(self.findings, error)
        return found

    # Workers

    def workers(self) -> list[str]:
        """Return the addresses of the workers that are there, waiting for one when there is none.

        Raises
        ------
        ClusterError
            None came.
        """
        end = time.monotonic() + PATIENCE
        while not (found := sorted(self._present())):
            if time.monotonic() > end:
                raise ClusterError(
                    f"The cluster must have workers; for {PATIENCE:.0f} s it has had none. Start some: a fit with "
                    "checkpoint= goes on from its last."
                )
            time.sleep(0.1)
        return found

    def _present(self) -> set[str]:
        """Return the addresses of the workers that the scheduler knows now."""
        return set(_identity(self.client)["workers"])

    def _place_chunks(self) -> None:
        """Cut the chunks into parts of about as many examples, and have each part held by a worker."""
        for given in filter(None, (self.train, self.valid)):
            self._measure(given)
        workers = self.workers()
        bounds = _bounds([length or 0 for length in self.train.lengths], len(workers))
        ends = np.cumsum([0, *(length or 0 for length in self.train.lengths)])
        self.parts = [
            _Part(i, slice(start, stop), int(ends[start])) for i, (start, stop) in enumerate(itertools.pairwise(bounds))
        ]
        if self.valid is not None:
            spans = list(itertools.pairwise(_bounds([length or 0 for length in self.valid.lengths], len(self.parts))))
            begins = np.cumsum([0, *(length or 0 for length in self.valid.lengths)])
            for part, (start, stop) in zip(self.parts, spans, strict=False):
                part.validation, part.first_given = slice(start, stop), int(begins[start])
        self._settle(workers)

    def _measure(self, given: _Given) -> None:
        """Find the lengths that are not known, and leave out chunks that are empty."""
        unknown = [i for i, length in enumerate(given.lengths) if length is None]
        lazy = [given.X[i] for i in unknown if hasattr(given.X[i], "dask")]
        # They are computed to be counted, and stay where they are until the parts hold them.
        self._counted += (made := self.client.compute(lazy))
        futures = dict(zip(map(id, lazy), made, strict=True))
        values = [futures.get(id(given.X[i]), given.X[i]) for i in unknown]
        counts = [self.client.submit(parts.count, value, self.arguments["examples"], pure=False) for value in values]
        for i, length in zip(unknown, self.client.gather(counts), strict=True):
            given.lengths[i] = length
        full = [i for i, length in enumerate(given.lengths) if length != 0] or [0]
        for chunks in (given.X, given.Y, given.weight, given.lengths):
            if chunks is not None:
                chunks[:] = [chunks[i] for i in full]

    def _settle(self, workers: Sequence[str]) -> None:
        """Give each part that has no worker, or whose worker is gone or has too many, another."""
        most = -(-len(self.parts) // len(workers))
        loads = dict.fromkeys(workers, 0)
        homeless = []
        for part in self.parts:
            if part.worker in loads and loads[part.worker] < most:
                loads[part.worker] += 1
            else:
                homeless.append(part)
        for part in homeless:
            part.held = part.given = part.ready = None
            part.moved = bool(part.worker)
        if any(part.worker for part in homeless):
            self._counted = []
        for part in homeless:
            lightest = min(loads.values())
            free = [address for address, load in loads.items() if load == lightest]
            address = self._nearest(part, free)
            loads[address] += 1
            part.worker = address
            self._hold(part)

    def _nearest(self, part: _Part, free: Sequence[str]) -> str:
        """Return which of these workers has most of a part's chunks already."""
        futures = _distributed().futures_of([chunk for chunk in self.train.X[part.chunks] if hasattr(chunk, "dask")])
        having = [address for places in self.client.who_has(futures).values() for address in places] if futures else []
        return max(free, key=having.count)

    def _hold(self, part: _Part) -> None:
        """Have a part's worker hold it; what it needs is computed there, or where it can be."""
        part.held = self._held(part, self.train, part.chunks, part.first, "")
        if self.valid is not None and part.validation.start < part.validation.stop:
            part.given = self._held(part, self.valid, part.validation, part.first_given, "validation ")
        part.ready = None if self.plan is None else self._ready(part)
        if part.ready is not None:
            part.held = part.given = None

    def _held(self, part: _Part, given: _Given, chunks: slice, first: int, name: str) -> Any:
        values = [given.X[chunks], given.Y[chunks], None if given.weight is None else given.weight[chunks]]
        lazy = [i for kind in values if kind is not None for i in kind if hasattr(i, "dask")]
        made = self.client.compute(_anew(lazy) if part.moved else lazy, workers=[part.worker], allow_other_workers=True)
        futures = dict(zip(map(id, lazy), made, strict=True))
        values = [None if kind is None else [futures.get(id(value), value) for value in kind] for kind in values]
        return self._submit(
            part,
            parts.hold,
            *values,
            examples=self.arguments["examples"],
            device=self.arguments["device"],
            name=name,
            first=first,
        )

    def _ready(self, part: _Part) -> Any:
        return self._submit(
            part,
            parts.ready,
            part.held,
            part.given,
            number=part.number,
            plan=self.plan,
            first_given=part.first_given,
        )

    def _submit(self, part: _Part, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        key = f"xpnet-{function.__name__}-{self.name}-{part.number}-{next(self._numbers)}"
        return self.client.submit(
            function, *arguments, **options, key=key, workers=[part.worker], allow_other_workers=False, pure=False
        )

    def _all(self, function: Callable[..., Any], *attributes: str, **options: Any) -> list[Any]:
        """Return what a function makes of every part, wherever it is by then."""
        return self.attempt(
            lambda: [
                self._submit(part, function, *(getattr(part, name) for name in attributes), **options)
                for part in self.parts
            ]
        )

    def _make_ready(self) -> None:
        for part in self.parts:
            part.ready = self._ready(part)
        self.attempt(lambda: [part.ready for part in self.parts], keep=True)
        for part in self.parts:
            part.held = part.given = None
        self._counted = []

    # Segments

    def segment(self, at: Standing, until: int) -> Standing:
        """Return where training stands once the workers have gone on from there up to an epoch."""
        with self._alone():
            found = self.attempt(partial(self._segments, at, until))
        at, *_ = (at for at in found if at is not None)
        return at

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Have other fits wait for the duration of a ``with``: two could each wait for a worker that the other has."""
        with self.client.as_current():
            lock = _distributed().Lock("xpnet")
        # By the second, since a client that ends while it waits would be given the lock, and keep it for half a minute.
        while not lock.acquire(timeout=LOOK):
            pass
        try:
            yield
        finally:
            lock.release()

    def _segments(self, at: Standing, until: int) -> list[Any]:
        """Submit a segment to every worker that has parts."""
        addresses = list(dict.fromkeys(part.worker for part in self.parts))
        shares = [[part for part in self.parts if part.worker == address] for address in addresses]
        if not self.means.keys() >= set(addresses):
            asked = [self._submit(share[0], parts.means_of, share[0].ready) for share in shares]
            if (error := self._waited(asked, addresses)) is not None:
                raise error
            self.means |= dict(zip(addresses, self._gathered(asked, addresses), strict=True))
        number = next(self._numbers)
        how = {
            "plan": self.plan,
            "until": until,
            "members": [
                Member(address, tuple(part.number for part in share))
                for address, share in zip(addresses, shares, strict=True)
            ],
            "means": [self.means[address] for address in addresses],
            "name": f"{self.name}-{number}",
        }
        if at.theta.nbytes > SENT:  # to one worker, from which the others have it
            at = self.client.scatter(at, workers=addresses[:1], hash=False)
        return [self._submit(share[0], parts.segment, [part.ready for part in share], at=at, **how) for share in shares]

    # Attempts

    def attempt(self, submit: Callable[[], list[Any]], *, keep: bool = False) -> list[Any]:
        """Return the results of what `submit` submits to the parts' workers, as often as it takes.

        With `keep`, the results stay with the workers, and the futures are returned.

        Raises
        ------
        ClusterError
            It cannot succeed.
        """
        lost = 0
        while True:
            futures: list[Any] = []
            self._settle(self.workers())
            used = [part.worker for part in self.parts]
            try:
                futures = submit()
                error = self._waited(futures, used)
                if error is None:
                    found = futures if keep else self._gathered(futures, used)
                    self.failures = 0
                    return found
            except CutShortError as cut:
                error = cut
            except Exception as failed:  # of many kinds, where Dask is told to use a worker that is gone
                if not (gone := set(used) - self._present()):
                    raise
                error = _cut_short(gone)
                error.__cause__ = failed
            finally:
                if not keep and any(future.status != "finished" for future in futures):
                    self.client.cancel(futures, force=True)
            lost = self._forgive(error, used, lost)

    def _waited(self, futures: Sequence[Any], used: Sequence[str]) -> BaseException | None:
        """Wait for all futures; return None when they have succeeded, or the error that says most."""
        while True:
            with contextlib.suppress(TimeoutError, CancelledError):
                _distributed().wait(futures, timeout=LOOK)
            if all(future.status == "finished" for future in futures):
                return None
            errors = [_error_of(future) for future in futures if future.status not in ("finished", "pending")]
            own = [error for error in errors if not isinstance(error, CutShortError)]
            gone = set(used) - self._present()
            if own and not gone:
                return own[0]
            if gone:
                return _cut_short(gone)
            if errors:
                return errors[0]

    def _gathered(self, futures: Sequence[Any], used: Sequence[str]) -> list[Any]:
        """Return the results of futures that have succeeded.

        `Client.gather` waits for ever for one whose worker has gone since, which no other may compute anew.
        """
        gathering = self.client.gather(list(futures), asynchronous=True)
        coming = asyncio.run_coroutine_threadsafe(gathering, self.client.loop.asyncio_loop)
        while not wait([coming], timeout=LOOK).done:
            if gone := set(used) - self._present():
                coming.cancel()
                raise _cut_short(gone)
        return list(coming.result())

    def _forgive(self, error: BaseException, used: Sequence[str], lost: int) -> int:
        """Return how often workers were lost now, or raise an error that another attempt would meet too."""
        if not isinstance(error, CutShortError):
            raise error
        gone = set(used) - self._present()
        lost = lost + 1 if gone else 0
        if lost > LOSSES:
            raise ClusterError(
                f"The workers must live through their work; {lost} times in a row some were lost at it. They may lack "
                "memory: look at their logs, give them more, or take more of them."
            ) from error
        self.failures = 0 if gone else self.failures + 1
        if self.failures > TRIES:
            raise ClusterError(
                f"The workers must be able to sum; {self.failures} times in a row they could not, though none was lost "
                f"({error}). Look at their logs."
            ) from error
        return lost


def _cut_short(gone: set[str]) -> CutShortError:
    return CutShortError(f"Workers are gone: {', '.join(sorted(gone))}.")


def _anew(lazy: list[Any]) -> list[Any]:
    """Return what is to be computed under other names.

    Under their own, tasks that wait for a worker that is gone would not be taken by those that come: Dask overlooks
    that they may go to others when there were none.
    """
    from dask.graph_manipulation import clone

    return list(clone(*lazy)) if lazy else []


def _error_of(future: Any) -> BaseException:
    """Return what a future failed with, in xpnet's words where Dask's say less."""
    distributed = _distributed()
    if future.status == "error":
        error: BaseException = future.exception()
        if isinstance(error, distributed.scheduler.KilledWorker):
            return ClusterError(
                f"A worker must have room for its part; those that tried were lost ({error}). Give workers more "
                "memory, or take more of them."
            )
        return error
    return ClusterError(
        "Data that was lost with a worker must be made again; some cannot, such as what client.scatter made "
        f"({future.key} is {future.status}). Pass X from files or from a graph: dask.array.from_delayed, from_array."
    )


class _Loop(training._Training):
    """`training`'s loop with the client, which goes from segment to segment."""

    fit: _Fit

    def _one_epoch(self) -> None:
        """Have the workers go on for a segment."""
        shown = self.history  # by the progress bar
        self.resume(self.fit.segment(self.standing(), self.epoch + self._next()))
        for key, values in self.history.items():
            shown[key][:] = values
        self.history = shown
        self._show_epoch()
        watched = isinstance(self.options.checkpoint, str)
        if watched and (self.options.checkpoint_every.epoch or self._is_due()):
            self._write_checkpoint()

    def _next(self) -> int:
        """Return the epochs of the next segment."""
        every = self.options.checkpoint_every
        watched = isinstance(self.options.checkpoint, str)
        if self.options.callbacks or not self.history["seconds"] or (watched and every.epoch):
            return 1
        seconds = min(SEGMENT, every.seconds) if watched else SEGMENT
        return min(max(1, int(seconds / max(self.history["seconds"][-1], 1e-6))), self.options.epochs - self.epoch)


# What parts say, taken together ---------------------------------------------------------------------------------------


def _bounds(lengths: Sequence[int], count: int) -> list[int]:
    """Return where to cut chunks of such lengths into so many parts of about as many examples, none empty."""
    count = min(count, len(lengths))
    ends = np.cumsum(lengths)
    bounds = [0]
    for i in range(1, count):
        nearest = int(np.argmin(np.abs(ends - ends[-1] * i / count))) + 1
        bounds.append(min(max(nearest, bounds[-1] + 1), len(lengths) - (count - i)))
    return [*bounds, len(lengths)]


def _agreed(looks: Sequence[Look]) -> Look:
    """Return the first part's look, when the others have the same features."""
    first = looks[0]
    for look in looks[1:]:
        if look.n_features != first.n_features:
            raise ShapeError(
                f"The chunks of X must have the same features; the first have {first.n_features}, others "
                f"{look.n_features}. Chunks are joined along the examples."
            )
        if look.names != first.names:
            raise ShapeError(
                f"The chunks of X must have the same columns in the same order; the first have "
                f"{', '.join(first.names or ())}, others {', '.join(look.names or ())}. Select them alike."
            )
    return first


def labels(looks: Sequence[Look | Target], m: int) -> npt.NDArray[Any]:
    """Return labels that tell what Y means as all of them would."""
    each = [look.labels for look in looks]
    if len({(labels.dtype.kind == "U", labels.shape[:-1]) for labels in each}) > 1:
        raise ShapeError(
            f"The chunks of Y must hold labels of one kind and shape; the first hold {each[0].dtype.name}, and others "
            "something else. Cast them with astype."
        )
    joined = np.concatenate(each, axis=-1)
    if joined.ndim == 2:
        return joined
    found = np.unique(joined)
    return np.broadcast_to(found, m) if found.size == 1 else found


def _summed(totals: Sequence[Total]) -> Total:
    return reduce(Total.plus, totals)


def _check_weight(total: Total, fraction: float) -> None:
    if total.largest is None or total.shares > 0.0:
        return
    where = f" on each side of validation_fraction={fraction:g}" if fraction else ""
    raise DataError(
        f"sample_weight must leave some example a weight above 0{where}; all are zero. Leave it out to weigh all alike."
    )


def _source_of(looks: Sequence[Look], m: int) -> Source:
    """Return a source that stands for X with the client: its size, its names, and features of X's mean squares."""
    sampled = sum(look.sampled for look in looks)
    sizes = np.sqrt(sum(look.squares for look in looks) / max(1, sampled))[None, :]

    def read(start: int, stop: int) -> Array:  # noqa: ARG001  # all of X's examples look alike from here
        return sizes

    return Source(looks[0].n_features, m, HOST, False, looks[0].names, read)
