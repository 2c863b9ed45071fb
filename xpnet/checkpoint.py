"""Where training stands, and the file that keeps it: one process's at a time, and whole whatever ends that process.

A step needs the parameters, the optimizer's state, and its number: which columns it meets is a function of the seed,
the epoch and the shape alone (`xpnet.data`). So this is all that a `Standing` has, with what is known of the epochs so
far, and a run that goes on from one takes the very steps that it would have taken.
"""

import contextlib
import errno
import math
import os
import platform
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from xpnet import device as devices
from xpnet import files
from xpnet.arguments import real, whole
from xpnet.device import Place
from xpnet.errors import ArgumentError, CheckpointError, CheckpointWarning, FileFormatError
from xpnet.network import history_arrays, take_history
from xpnet.typing import Array

ECHO = 1.0
"""Seconds within which a second Ctrl-C is the first one's echo: some launchers pass on what the terminal sent too."""


class Standing(NamedTuple):
    """Where training stands between two steps. Nothing in it changes when training goes on.

    Attributes
    ----------
    theta : (count,) float array
        The parameters.
    memory : named tuple
        The optimizer's state.
    steps : int
        Taken in all, those of the epoch under way included.
    history : mapping of str to list of float
        Of the epochs that have ended, as `Network.history`.
    costs : (steps of the epoch under way,) float64 array
        The mean costs that they met.
    columns : (steps of the epoch under way,) int64 array
        Their columns.
    seconds : float
        Spent on the epoch under way.
    best_theta, best_cost, best_epoch : array, float, int
        Where the monitored cost was lowest; the epoch is -1 when none has ended.
    reference, waited : float, int
        The cost that has to be undercut, and the epochs that have not: what patience goes by.
    """

    theta: Array
    memory: Any
    steps: int
    history: Mapping[str, list[float]]
    costs: npt.NDArray[np.float64]
    columns: npt.NDArray[np.int64]
    seconds: float
    best_theta: Array
    best_cost: float
    best_epoch: int
    reference: float
    waited: int

    @property
    def epochs(self) -> int:
        """The epochs that have ended."""
        return len(self.history["cost"])

    def on_host(self) -> "Standing":
        """Return the same with all arrays NumPy's."""
        memory = type(self.memory)(*map(_on_host, self.memory))
        return self._replace(theta=_on_host(self.theta), best_theta=_on_host(self.best_theta), memory=memory)

    def placed(self, like: "Standing", place: Place) -> "Standing":
        """Return the same at `place`, in the dtypes of another; ValueError when it is not of that one's sizes."""
        memory = type(like.memory)(
            *(_as(ours, saved, place) for ours, saved in zip(like.memory, self.memory, strict=True))
        )
        tables = {np.shape(part) for part in memory if np.ndim(part) == 2}
        if len(tables) > 1:  # L-BFGS's steps and the changes that they made
            raise ValueError(f"arrays of shapes {sorted(tables)} that belong together")
        theta, best_theta = (_as(like.theta, saved, place) for saved in (self.theta, self.best_theta))
        return self._replace(theta=theta, best_theta=best_theta, memory=memory)


class Beginning(NamedTuple):
    """Where a fit begins that may go on from where another stood.

    Attributes
    ----------
    fingerprint : dict
        Its data and arguments, as strict JSON: ``"random_state"`` is the seed, ``"checksums"`` stand for arrays.
    standing : Standing
        Where it stands before its first step.
    place : Place
        Where its arrays are.
    validated : bool
        Whether it has validation data.
    full_batch : bool
        Whether its optimizer is full batch, which remembers the cost where it stands.
    """

    fingerprint: dict[str, Any]
    standing: Standing
    place: Place
    validated: bool
    full_batch: bool


def _on_host(part: Any) -> Any:
    return devices.to_host(part) if hasattr(part, "shape") else part


def _as(ours: Any, saved: Any, place: Place) -> Any:
    """Return what was saved as `ours` is: a number, or an array of finite numbers, of that dtype and size."""
    if not hasattr(ours, "shape"):
        number = saved.item() if isinstance(saved, np.ndarray) and saved.ndim == 0 else saved  # as a file has floats
        if type(number) is not type(ours) or not math.isfinite(number):
            raise ValueError(f"{saved!r:.40}, where {ours!r} is expected")
        return number
    expected, shape = tuple(ours.shape), np.shape(saved)
    # Of a table the rows may be others: L-BFGS remembers more and more.
    fits = shape == expected or (len(shape) == len(expected) == 2 and shape[1] == expected[1])
    if not isinstance(saved, np.ndarray) or not fits:
        raise ValueError(f"an array of shape {shape}, where {expected} is expected")
    if not np.isfinite(saved).all():
        raise ValueError("state that is not finite")
    return place.asarray(saved, dtype=devices.dtype_name(ours))


# When it is written ---------------------------------------------------------------------------------------------------


class Every(NamedTuple):
    """How far checkpoints are apart: in seconds or in steps, whichever is finite, or by the epoch."""

    seconds: float = math.inf
    steps: float = math.inf
    epoch: bool = False


def every(value: Any) -> Every:
    """Return what ``checkpoint_every`` says: seconds, ``"epoch"`` or ``"500 steps"``.

    Raises
    ------
    ArgumentError
        It says none of these.
    """
    if not isinstance(value, str):
        return Every(seconds=real("checkpoint_every", value, low=0.0))
    if value == "epoch":
        return Every(epoch=True)
    if found := re.fullmatch(r"([1-9][0-9]*) steps?", value):
        return Every(steps=int(found[1]))
    raise ArgumentError(
        f'checkpoint_every must be seconds, such as 60, "epoch" or a number of steps, such as "500 steps"; it is '
        f"{value!r}."
    )


# The file -------------------------------------------------------------------------------------------------------------


def is_there(checkpoint: "str | Kept") -> bool:
    """Return whether there is something to go on from."""
    return checkpoint.state is not None if isinstance(checkpoint, Kept) else os.path.exists(checkpoint)


def write(checkpoint: "str | Kept", standing: Standing, fingerprint: dict[str, Any]) -> None:
    """Write where training stands.

    Parameters
    ----------
    checkpoint : str or Kept
        The path of a file that is `locked`, or memory.
    standing : Standing
        Of finite numbers.
    fingerprint : dict
        As in `Beginning`.

    Raises
    ------
    OSError
        The file cannot be written; what was there is unchanged.
    """
    at = standing.on_host()
    if isinstance(checkpoint, Kept):
        checkpoint.state = at, fingerprint
        return
    memory = {f"optimizer.{key}": value for key, value in at.memory._asdict().items()}
    numbers = {key: value for key, value in memory.items() if isinstance(value, int)}
    files.write(
        checkpoint,
        {key: np.asarray(value) for key, value in memory.items() if key not in numbers}
        | {"theta": at.theta, "best_theta": at.best_theta, "epoch.costs": at.costs, "epoch.columns": at.columns}
        | history_arrays(at.history),
        {
            "fingerprint": fingerprint,
            "random_state": fingerprint["random_state"],
            "numbers": numbers,
            "best_epoch": at.best_epoch,
            "best_cost": at.best_cost if math.isfinite(at.best_cost) else None,
            "reference": at.reference if math.isfinite(at.reference) else None,
            "waited": at.waited,
            "steps": at.steps,
            "seconds": at.seconds,
        },
        kind="checkpoint",
        alone=True,
    )


def read(checkpoint: "str | Kept", begin: Beginning) -> Standing:
    """Return where the fit that wrote the checkpoint stood.

    Raises
    ------
    CheckpointError
        A file was written for other data or with other arguments, or what was kept is of another network or optimizer,
        or without validation data; the message names what differs.
    FileFormatError
        The file is damaged, or was written by a later xpnet.
    """
    if isinstance(checkpoint, Kept):
        return checkpoint.read(begin)
    tensors, found = files.read(checkpoint, kind="checkpoint")
    try:
        differing = _differing(found["fingerprint"], begin.fingerprint)
        standing = None if differing else _standing(tensors, found, begin)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise _broken(checkpoint, error) from error
    if standing is None:
        raise CheckpointError(
            f"The checkpoint {checkpoint} belongs to another fit: {'; '.join(differing.values())}. Repeat that call, "
            "or name another file."
        )
    return standing


def seed_of(checkpoint: "str | Kept") -> int | None:
    """Return the seed of the fit that wrote a file, or was kept; None when there is none yet.

    Raises
    ------
    FileFormatError
        It is damaged, is no checkpoint, or was written by a later xpnet.
    """
    if isinstance(checkpoint, Kept):
        return None if checkpoint.state is None else int(checkpoint.state[1]["random_state"])
    if not os.path.exists(checkpoint):
        return None
    _, found = files.read(checkpoint, kind="checkpoint")
    try:
        return whole("random_state", found.get("random_state"), low=0)
    except ArgumentError as error:
        raise _broken(checkpoint, error) from error


def _broken(checkpoint: str, error: Exception) -> FileFormatError:
    return FileFormatError(
        f"{checkpoint} is not a whole checkpoint ({type(error).__name__}: {error!s:.200}). Delete it to start anew."
    )


def _standing(tensors: dict[str, Any], found: Mapping[str, Any], begin: Beginning) -> Standing:
    """Return what a file holds; all that is wrong with it is one of the exceptions that `read` catches."""
    history, saved = take_history(tensors), {**tensors, **found["numbers"]}
    costs, columns = tensors["epoch.costs"], tensors["epoch.columns"]
    if costs.shape != columns.shape or costs.ndim != 1 or not np.isfinite(costs).all() or (columns < 1).any():
        raise ValueError(f"costs of shape {costs.shape} of columns of shape {columns.shape}, or no such numbers")
    like = begin.standing
    standing = Standing(
        theta=tensors["theta"],
        memory=type(like.memory)(*(saved[f"optimizer.{key}"] for key in like.memory._fields)),
        steps=whole("steps", found["steps"], low=costs.size),
        history={key: history[key] for key in like.history},
        costs=costs.astype(np.float64),
        columns=columns.astype(np.int64),
        seconds=real("seconds", found["seconds"], low=0.0),
        best_theta=tensors["best_theta"],
        best_cost=math.inf if found["best_cost"] is None else real("best_cost", found["best_cost"]),
        best_epoch=whole("best_epoch", found["best_epoch"], low=-1),
        reference=math.inf if found["reference"] is None else real("reference", found["reference"]),
        waited=whole("waited", found["waited"], low=0),
    )
    validations = len(standing.history["validation_cost"])
    if validations != (standing.epochs if begin.validated else 0):
        raise ValueError(f"a validation cost for {validations} of {standing.epochs} epochs")
    return standing.placed(like, begin.place)


def _differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, str]:
    """Return what of two fingerprints differs, as a message puts it."""
    numbers = {
        key: f"{key} was {theirs.get(key)!s:.80}, is {ours[key]}" for key in ours if ours[key] != theirs.get(key)
    }
    numbers.pop("checksums", None)
    arrays = ours["checksums"]
    return numbers | {key: f"{key} differs" for key in arrays if arrays[key] != theirs["checksums"].get(key)}


# Memory ---------------------------------------------------------------------------------------------------------------


_STRUCTURE = ("sizes", "activation", "task", "optimizer", "optimizer settings")
"""What the state of training is made of: of the fingerprint, all that a `Kept` one shares with the fit that goes on."""

_STEERING = {"learning_rate", "patience", "tol", "initial", "random_state"}
"""What of the fingerprint leaves the cost the same function of the parameters."""


@dataclass
class Kept:
    """A checkpoint that is no file: where training stood at the end of one `fit`, for another to go on from.

    Given as ``checkpoint=``, it is gone on from, if it holds a state, and then holds the state that training ended in.
    A file belongs to one fit that was cut short; this is for fits that follow each other, whose data and arguments may
    differ, but for what the state is made of: the network's sizes, activation and task, and the optimizer. With the
    same X and Y, fits of 10 and of 20 epochs give the same bits as one of 20.

    Attributes
    ----------
    state : tuple of Standing and dict, or None
        Where it stood, on the host, and the fingerprint of its fit; None before the first fit has ended.
    """

    state: tuple[Standing, dict[str, Any]] | None = None

    def read(self, begin: Beginning) -> Standing:
        """Return where the fit stood; what was measured of another cost is to be measured anew. See `read`."""
        assert self.state is not None, "a fit has ended"
        at, theirs = self.state
        differing = _differing(theirs, begin.fingerprint)
        if structure := [differing[key] for key in _STRUCTURE if key in differing]:
            raise CheckpointError(
                f"The checkpoint in memory belongs to another fit: {'; '.join(structure)}. Repeat that call, or start "
                "anew."
            )
        if begin.validated and theirs["validation examples"] is None:
            raise CheckpointError(
                "Validation must be there from the first epoch on; the training to go on from had none. Leave it out, "
                "or start anew."
            )
        at = at.placed(begin.standing, begin.place)
        if not begin.validated:
            at = at._replace(history={**at.history, "validation_cost": []})
        if differing.keys() - _STEERING:
            memory = begin.standing.memory if begin.full_batch else at.memory
            at = at._replace(memory=memory, best_theta=at.theta, best_cost=math.inf, best_epoch=-1)
            at = at._replace(reference=math.inf, waited=0)
        if differing.keys() - _STEERING or "random_state" in differing:  # an epoch under way is of other columns
            at = at._replace(costs=at.costs[:0], columns=at.columns[:0], seconds=0.0)
        patience = begin.fingerprint["patience"]
        # When patience ran out it is the caller who asks for more.
        return at._replace(waited=0) if patience is not None and at.waited >= patience else at


# Whose it is ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Keep every other fit from a checkpoint for the duration of a ``with``.

    The lock is the operating system's, on a file ``….lock`` beside the checkpoint: it goes with the process that holds
    it, also by kill -9, and a file that is left behind means nothing. Linux passes it on to an NFS server, so that
    machines see one another's; where a disk knows no locks, one warning says so and there is none.

    Raises
    ------
    ArgumentError
        The folder is not there, or cannot be written to.
    CheckpointError
        Another fit has it; the message names its process.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise ArgumentError(f"checkpoint must be a file in a folder that exists; there is no {folder}. Make it first.")
    name = os.path.realpath(path) + ".lock"
    while not _is(name, descriptor := _opened(name, path)):
        os.close(descriptor)  # whoever had the lock has removed the file meanwhile: this one keeps nobody out
    try:
        with contextlib.suppress(OSError):  # on a full disk nobody learns which process this is
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        if sys.platform != "win32":
            _remove(name)
        os.close(descriptor)
        if sys.platform == "win32":
            _remove(name)  # which has no open files removed, and takes no file from others that have it open


def _opened(name: str, path: str) -> int:
    """Return an open file that is locked."""
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ArgumentError(
            f"checkpoint must be a file in a folder that can be written to; {os.path.dirname(name)} is not "
            f"({error.strerror}). Name a file elsewhere."
        ) from error
    try:
        _lock(descriptor)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            _warn_of_no_locks(path, error)
            return descriptor
        holder = os.read(descriptor, 400).decode(errors="replace") or "another process"
        os.close(descriptor)
        ours = holder == f"process {os.getpid()} on {platform.node()}"
        raise CheckpointError(
            f"The checkpoint {path} must be one fit's alone; {'another fit of this process' if ours else holder} has "
            "it. Wait for that one, end it, or name another file."
        ) from error
    return descriptor


if sys.platform == "win32":

    def _lock(descriptor: int) -> None:
        import msvcrt

        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # beyond the text, for others cannot read what is locked
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:

    def _lock(descriptor: int) -> None:
        import fcntl

        # Not lockf, whose locks are the process's: they would not keep out its own other threads.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is(name: str, descriptor: int) -> bool:
    """Return whether the open file still has that name."""
    try:
        return os.path.samestat(os.stat(name), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove(name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name)


def _warn_of_no_locks(path: str, error: OSError) -> None:
    warnings.warn(
        f"The checkpoint {path} is on a disk without locks ({error.strerror}), so nothing keeps another fit from "
        "writing over it. See to it that there is none.",
        CheckpointWarning,
        stacklevel=2,
    )


# What ends a run ------------------------------------------------------------------------------------------------------


class Terminated(SystemExit):
    """SIGTERM has come, and the checkpoint is written: the process ends, with exit code 143."""


class Stops:
    """Ctrl-C and SIGTERM, which wait until what belongs together has changed together: the body of a ``with``.

    Python raises KeyboardInterrupt between any two of its instructions, which may be in the middle of a step that is
    taken in place. Within the ``with`` it is raised at the end instead. A second Ctrl-C does not wait.

    Attributes
    ----------
    whole : bool
        False within the ``with``, and for good once its body was left by an exception.
    """

    __slots__ = ("_came", "_last", "whole")

    def __init__(self) -> None:
        self.whole = True
        self._came: int | None = None
        self._last = -math.inf

    def __enter__(self) -> None:
        self.whole = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.whole = True
            if self._came is not None:
                self._stop(self._came)

    @contextlib.contextmanager
    def heard(self, *, sigterm: bool) -> Iterator[None]:
        """Listen for the duration of a ``with``, in the main thread and to what nobody else listens to.

        A process that is number 1 of its container, which nothing but a handler of its own ends on SIGTERM, ends too.
        """
        theirs: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        if not sigterm:
            del theirs[signal.SIGTERM]
        main = threading.current_thread() is threading.main_thread()
        ours = [number for number, handler in theirs.items() if main and signal.getsignal(number) is handler]
        for number in ours:
            signal.signal(number, self._come)
        try:
            yield
        finally:
            for number in ours:
                signal.signal(number, theirs[number])

    def _come(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  # what Python calls it with
        if number == signal.SIGINT:
            now = time.monotonic()
            if now - self._last < ECHO:
                return
            self._last = now
        if self.whole or (number == self._came == signal.SIGINT):
            self._stop(number)
        self._came = number

    def _stop(self, number: int) -> NoReturn:
        self._came = None
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(128 + number)
