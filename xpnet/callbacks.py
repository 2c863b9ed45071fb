"""What `fit` calls on its way, and callbacks that are ready: early stopping on any score, logs, TensorBoard.

A callback is a function, which is called with an `EpochView` after every epoch, or an object with any of these methods:

==============  ==============  ===========================================================================
method          is shown        when
==============  ==============  ===========================================================================
`on_fit_begin`  a `FitView`     before the first epoch, also of a fit that is resumed
`on_epoch_end`  an `EpochView`  after every epoch
`on_fit_end`    a `FitView`     once, whatever ended the fit: an exception, also a callback's own, is no exception
==============  ==============  ===========================================================================

The first two stop the fit by returning True; every callback is called all the same. `on_fit_end` may return a
`Network`, whose parameters the network that `fit` returns then has. As in nested ``with`` statements, the callback that
begins first ends last, and one whose `on_fit_begin` has raised is not ended. What a callback raises comes out of `fit`.

>>> import xpnet
>>> class Told:
...     def on_fit_begin(self, view):
...         print("up to", view.epochs, "epochs")
...
...     def on_fit_end(self, view):
...         print("ended by", view.stop_reason)
>>> X, Y = xpnet.datasets.flower()
>>> net = xpnet.fit(X, Y, hidden=4, epochs=3, callbacks=Told())
up to 3 epochs
ended by epochs
"""

import importlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from xpnet.arguments import file_path, real, true_or_false, whole
from xpnet.errors import ArgumentError, MissingPackageError
from xpnet.network import Network

__all__ = ["CSVLog", "EarlyStopping", "EpochView", "FitView", "JSONLog", "TensorBoard"]


@dataclass(frozen=True)
class EpochView:
    """What a callback is shown after each epoch.

    Attributes
    ----------
    epoch : int
        The epoch just ended; the first is 0.
    cost : float
        Mean cost over the columns as this epoch met them, in nats.
    validation_cost : float or None
        Mean cost of the validation data after it.
    learning_rate : float
        α of this epoch.
    seconds : float
        How long it took.
    network : callable
        ``network()`` returns the `Network` so far.

    Examples
    --------
    >>> import xpnet
    >>> X, Y = xpnet.datasets.flower()
    >>> net = xpnet.fit(X, Y, epochs=2, callbacks=lambda view: print(view.epoch, view.learning_rate))
    0 0.001
    1 0.001
    """

    epoch: int
    cost: float
    validation_cost: float | None
    learning_rate: float
    seconds: float
    network: Callable[[], Network]


@dataclass(frozen=True)
class FitView:
    """What a callback is shown when a fit begins and when it has ended.

    Attributes
    ----------
    epochs : int
        The most epochs that there will be.
    epochs_run : int
        Those gone through; when a fit begins more than 0 only if it is resumed.
    stop_reason : str
        ``""`` when it begins, unless it is resumed where it had ended; then ``"epochs"``, ``"patience"``,
        ``"callback"``, ``"interrupted"`` or, with an exception on its way out of `fit`, ``"error"``.
    random_state : int
        The seed drawn or given.
    network : callable
        ``network()`` returns the `Network` so far.

    Examples
    --------
    >>> import xpnet
    >>> class Seed:
    ...     def on_fit_begin(self, view):
    ...         print(view.random_state, view.network().sizes)
    >>> X, Y = xpnet.datasets.flower()
    >>> net = xpnet.fit(X, Y, hidden=5, epochs=1, random_state=3, callbacks=Seed())
    3 (2, 5, 1)
    """

    epochs: int
    epochs_run: int
    stop_reason: str
    random_state: int
    network: Callable[[], Network]


Callback: TypeAlias = Callable[[EpochView], Any] | object
"""A function of an `EpochView`, or an object with any of the methods above."""


# What `fit` takes -----------------------------------------------------------------------------------------------------


class Hooks(NamedTuple):
    """A callback's three functions; those that it has not do nothing."""

    on_fit_begin: Callable[[FitView], Any]
    on_epoch_end: Callable[[EpochView], Any]
    on_fit_end: Callable[[FitView], Any]


def _nothing(view: Any) -> None:
    """Do nothing with what is shown."""


def hooks(callbacks: Any) -> tuple[Hooks, ...]:
    """Return what to call of a callback, or of each of several.

    Parameters
    ----------
    callbacks : function, object, or sequence of these
        As `fit` takes them.

    Returns
    -------
    tuple of Hooks

    Raises
    ------
    ArgumentError
        One is neither a function nor an object with a method of a callback's.

    Examples
    --------
    >>> len(hooks([print, EarlyStopping(lambda net: 0.0)]))
    2
    """
    if callable(callbacks) or _has_any(callbacks):
        return (_of(callbacks),)
    try:
        return tuple(map(_of, callbacks))
    except TypeError:
        return (_of(callbacks),)  # which says what is wrong with it


def _has_any(callback: Any) -> bool:
    return any(hasattr(callback, name) for name in Hooks._fields)


def _of(callback: Any) -> Hooks:
    if not _has_any(callback):
        if callable(callback):
            return Hooks(_nothing, callback, _nothing)
        raise ArgumentError(
            "callbacks must be functions of one argument, an EpochView, or objects with any of the methods "
            f"{', '.join(Hooks._fields)}; {callback!r} is neither."
        )
    if isinstance(callback, type):
        raise ArgumentError(
            f"callbacks must be objects; {callback.__name__} is a class. Pass {callback.__name__}(...)."
        )
    found = [getattr(callback, name, _nothing) for name in Hooks._fields]
    for name, function in zip(Hooks._fields, found, strict=True):
        if not callable(function):
            raise ArgumentError(f"A callback's {name} must be a method; that of {callback!r} is {function!r}.")
    return Hooks(*found)


# Early stopping -------------------------------------------------------------------------------------------------------


class EarlyStopping:
    """Stops a fit when a score of one's own has not risen for a while, and gives the best network back.

    Unlike `fit`'s own `patience`, which looks at the cost, it takes any function of the network so far: a score on data
    held out, a rate of errors with its sign turned, a cost in money. With validation data the network so far is the one
    of the lowest validation cost; leave that out, and let this score judge. What it remembers is in no checkpoint: a
    fit that is resumed counts, and looks for the best, anew.

    Parameters
    ----------
    score : callable
        ``score(net)``, a finite number; the higher, the better.
    patience : int
        Epochs without a new best after which to stop.
    gain : float
        By how much a score has to be above the best to be a new one, 0 or more.
    restore : bool
        Whether `fit` returns the network of the best score, its history being that of the whole fit and its
        `best_epoch` the best score's. False leaves what `fit` returns alone.

    Attributes
    ----------
    best_score : float
        Of the last fit; −inf before its first epoch.
    best_epoch : int or None
        The epoch after which it was reached.
    best_network : Network or None
        The network of that time.
    scores : list of float
        One an epoch.

    Raises
    ------
    ArgumentError
        `score` is no function, or returns no finite number; a number is out of its range.

    Examples
    --------
    >>> import xpnet
    >>> X, Y = xpnet.datasets.flower()
    >>> held_out, training = (slice(0, None, 4), slice(1, None, 4))
    >>> stopping = xpnet.callbacks.EarlyStopping(lambda net: net.score(X[:, held_out], Y[held_out]), patience=20)
    >>> net = xpnet.fit(X[:, training], Y[training], callbacks=stopping, patience=None, random_state=0)
    >>> net.score(X[:, held_out], Y[held_out]) == stopping.best_score == max(stopping.scores)
    True
    """

    def __init__(
        self, score: Callable[[Network], float], *, patience: int = 10, gain: float = 0.0, restore: bool = True
    ) -> None:
        if not callable(score):
            raise ArgumentError(
                f"score must be a function of the network, such as lambda net: net.score(X, Y); it is {score!r}."
            )
        self.score, self.patience = score, whole("patience", patience, low=1)
        self.gain, self.restore = real("gain", gain, low=0.0), true_or_false("restore", restore)
        self._forget()

    def _forget(self) -> None:
        self.best_score = -math.inf
        self.best_epoch: int | None = None
        self.best_network: Network | None = None
        self.scores: list[float] = []
        self._waited = 0

    def on_fit_begin(self, view: FitView) -> None:  # noqa: ARG002  # what every callback is shown
        """Forget the last fit."""
        self._forget()

    def on_epoch_end(self, view: EpochView) -> bool:
        """Return whether to stop, after one more score."""
        net = view.network()
        score = real("What score(net) returns", self.score(net), low=-math.inf)
        self.scores.append(score)
        self._waited += 1
        if score > self.best_score + self.gain:
            self.best_score, self.best_epoch, self.best_network, self._waited = score, view.epoch, net, 0
        return self._waited >= self.patience

    def on_fit_end(self, view: FitView) -> Network | None:  # noqa: ARG002  # what every callback is shown
        """Return the network of the best score, for `fit` to return it."""
        return self.best_network if self.restore else None


# Logs -----------------------------------------------------------------------------------------------------------------

COLUMNS = ("epoch", "cost", "validation_cost", "learning_rate", "seconds")
"""What a log has of each epoch."""


class _Log:
    """A text file with a line an epoch, each written at once and whole; made by those below."""

    HEADER = ""

    def __init__(self, path: str | os.PathLike[str], *, append: bool) -> None:
        self.path, self.append = file_path("path", path), true_or_false("append", append)
        self._file: int | None = None

    def _line(self, values: dict[str, Any]) -> str:
        raise NotImplementedError  # each kind of log has its own

    def on_fit_begin(self, view: FitView) -> None:  # noqa: ARG002  # what every callback is shown
        """Open the file, and begin it anew or see that it can be gone on with."""
        if self._file is not None:
            raise ArgumentError(f"The log {self.path} is being written by another fit. Give each fit a log of its own.")
        # O_BINARY, which Windows alone has: lines end alike everywhere.
        mode = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | (0 if self.append else os.O_TRUNC)
        self._file = os.open(self.path, mode, 0o666)
        try:
            self._check()
            if os.fstat(self._file).st_size == 0 and self.HEADER:
                self._write(self.HEADER)
        except BaseException:
            self._close()
            raise

    def on_epoch_end(self, view: EpochView) -> None:
        """Write the epoch's line."""
        self._write(self._line({name: getattr(view, name) for name in COLUMNS}))

    def on_fit_end(self, view: FitView) -> None:  # noqa: ARG002  # what every callback is shown
        """Close the file."""
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None

    def _check(self) -> None:
        """Raise unless the file is empty, or begins with the header and ends with a whole line."""
        assert self._file is not None, "open"
        size = os.fstat(self._file).st_size
        if size == 0:
            return
        header = self.HEADER.encode()
        os.lseek(self._file, 0, os.SEEK_SET)
        begins = os.read(self._file, len(header)) == header
        os.lseek(self._file, -1, os.SEEK_END)
        if not begins:
            raise ArgumentError(
                f"{self.path} must begin with {self.HEADER.strip()!r} to be appended to; it does not. Name another "
                "file, or begin it anew with append=False."
            )
        if os.read(self._file, 1) != b"\n":
            raise ArgumentError(
                f"{self.path} must end with a whole line to be appended to; its last line is broken off. Remove that "
                "line, or begin the file anew with append=False."
            )

    def _write(self, line: str) -> None:
        """Write a line in one go, so that a kill leaves it whole or not there; what a full disk cuts off is removed."""
        assert self._file is not None, "open"
        encoded = line.encode()
        size = os.fstat(self._file).st_size
        if os.write(self._file, encoded) != len(encoded):
            os.ftruncate(self._file, size)
            raise OSError(f"The log {self.path} could not be written whole: is the disk full? Its last line is whole.")


class CSVLog(_Log):
    """Writes the epochs' costs into a CSV file as they end: a header, and a line an epoch.

    A line is there as soon as its epoch has ended, and is whole, whatever happens to the process. When a fit is resumed
    from a checkpoint, epochs that are gone through again are written again: the later line holds.

    Parameters
    ----------
    path : str or path
        Of the file, in a folder that exists.
    append : bool
        Whether to go on with a file that is there, which must be such a log, or to begin it anew with each fit.

    Raises
    ------
    ArgumentError
        The file to append to is no such log, or its last line is broken off; raised when the fit begins.
    OSError
        The file cannot be written.

    Examples
    --------
    >>> import os, tempfile, xpnet
    >>> X, Y = xpnet.datasets.flower()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = xpnet.callbacks.CSVLog(os.path.join(folder, "log.csv"), append=False)
    ...     net = xpnet.fit(X, Y, epochs=2, random_state=0, callbacks=log)
    ...     with open(log.path) as file:
    ...         print(file.read())  # doctest: +ELLIPSIS
    epoch,cost,validation_cost,learning_rate,seconds
    0,1...,,0.001,...
    1,1...,,0.001,...
    <BLANKLINE>
    """

    HEADER = ",".join(COLUMNS) + "\n"

    def _line(self, values: dict[str, Any]) -> str:
        return ",".join("" if value is None else repr(value) for value in values.values()) + "\n"


class JSONLog(_Log):
    """Writes the epochs' costs as JSON Lines, an object an epoch, as they end; lines are as whole as `CSVLog`'s.

    Parameters
    ----------
    path : str or path
        Of the file, usually ``.jsonl``, in a folder that exists.
    append : bool
        Whether to go on with a file that is there, or to begin it anew with each fit.

    Raises
    ------
    ArgumentError
        The last line of the file to append to is broken off; raised when the fit begins.
    OSError
        The file cannot be written.

    Examples
    --------
    >>> import json, os, tempfile, xpnet
    >>> X, Y = xpnet.datasets.flower()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = xpnet.callbacks.JSONLog(os.path.join(folder, "log.jsonl"), append=False)
    ...     net = xpnet.fit(X, Y, epochs=2, callbacks=log)
    ...     with open(log.path) as file:
    ...         costs = [json.loads(line)["cost"] for line in file]
    >>> costs == net.history["cost"]
    True
    """

    def _line(self, values: dict[str, Any]) -> str:
        return json.dumps(values, allow_nan=False) + "\n"


_WRITERS = ("tensorboardX", "torch.utils.tensorboard")
"""Modules with a SummaryWriter; the first is light, the second takes seconds to import, as PyTorch does."""


class TensorBoard:
    """Writes the epochs' costs for TensorBoard, with the writer of tensorboardX or of PyTorch.

    The tags are ``cost``, ``validation_cost``, ``learning_rate`` and ``seconds``, and the step is the epoch.

    Parameters
    ----------
    folder : str or path
        Of this run; it is made when it is not there. ``tensorboard --logdir runs`` compares runs that are side by side.

    Raises
    ------
    MissingPackageError
        There is no writer; raised when the fit begins.

    Examples
    --------
    >>> import xpnet
    >>> X, Y = xpnet.datasets.flower()
    >>> net = xpnet.fit(X, Y, callbacks=xpnet.callbacks.TensorBoard("runs/first"))  # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = file_path("folder", folder)
        self._writer: Any = None

    def on_fit_begin(self, view: FitView) -> None:  # noqa: ARG002  # what every callback is shown
        """Open the writer."""
        if self._writer is not None:
            raise ArgumentError(
                f"The folder {self.folder} is being written by another fit. Give each fit a TensorBoard of its own."
            )
        self._writer = _summary_writer()(self.folder)

    def on_epoch_end(self, view: EpochView) -> None:
        """Write the epoch's numbers."""
        for name in COLUMNS[1:]:
            value = getattr(view, name)
            if value is not None:
                self._writer.add_scalar(name, value, view.epoch)

    def on_fit_end(self, view: FitView) -> None:  # noqa: ARG002  # what every callback is shown
        """Write what is left, and close."""
        writer, self._writer = self._writer, None
        writer.close()


def _summary_writer() -> Any:
    """Return a class that writes for TensorBoard; by name, so that xpnet imports no framework of its own accord."""
    for name in _WRITERS:
        try:
            return importlib.import_module(name).SummaryWriter
        except ImportError:
            continue
    raise MissingPackageError(
        "TensorBoard needs a package that writes for it, tensorboardX or PyTorch with tensorboard; neither can be "
        'imported. Run: pip install "xpnet[tensorboard]"'
    )
