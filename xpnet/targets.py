"""What Y means: the task, the classes, and the numbers that the equations are given for them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xpnet import frames
from xpnet.arguments import choice, real
from xpnet.device import to_host
from xpnet.errors import ArgumentError, DataError, ShapeError, TargetError
from xpnet.heads import TASK_HEADS
from xpnet.selection import Picked

MOST_CLASSES = 20
"""Y of more distinct whole numbers than this may be classes, counts or measurements: the user must say."""

COLUMNS = 2**18
"""Examples whose Y is encoded at a time, where that need not be kept."""

Labels = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Task:
    """A kind of Y.

    Attributes
    ----------
    name : str
        ``"binary"``, ``"multiclass"``, ``"multilabel"``, ``"regression"`` or ``"count"``.
    classes : (k,) array or None
        The labels in sorted order; None where Y is numbers.
    n_outputs : int
        n_y, the rows of the equations' Y.
    """

    name: str
    classes: Labels | None
    n_outputs: int

    @property
    def head(self) -> str:
        """The output head's name."""
        return TASK_HEADS[self.name]


def read(Y: Any, *, examples: str = "columns", name: str = "Y") -> Labels:
    """Return Y on the host as ``(m,)``, or ``(n_y, m)`` when it has several outputs.

    Raises
    ------
    DataError
        It is missing, empty, complex, or has missing or infinite values.
    ShapeError
        It has more than two axes, or rows of different lengths.
    """
    if Y is None:
        raise DataError(f"{name} is missing: pass the targets, (m,) or (n_y, m).")
    values = _values(Y, name)
    if values.ndim == 0:
        raise DataError(
            f"{name} must be an array or a list, (m,) or (n_y, m); it is of type {type(Y).__name__}. Pass one."
        )
    if values.ndim > 2:
        flat = f"{name}.reshape(-1, {values.shape[-1]})"
        raise ShapeError(f"{name} must be (m,), (1, m) or (n_y, m); its shape is {values.shape}. Pass {flat}.")
    if values.size == 0:
        raise DataError(
            f"{name} must hold at least one example; its shape is {values.shape}. Check the filter or the file that it "
            "comes from."
        )
    if values.ndim == 2:
        values = values.T if examples == "rows" else values
        values = values[0] if values.shape[0] == 1 else values
    return _plain(values, name)


def unmasked(array: Any, name: str) -> Any:
    """Return `array` without the mask of a NumPy masked array, which must mask nothing: arithmetic would not see it."""
    if not hasattr(array, "filled"):
        return array
    masked = array.size - array.count()
    if masked:
        raise DataError(
            f"{name} must have no masked values; {masked} are masked. Remove such examples, or pass "
            f"{name}.filled(value)."
        )
    return array.data


def _values(Y: Any, name: str) -> npt.NDArray[Any]:
    """Return what Y holds as an array on the host; a list of words and numbers as objects, not all of it as words."""
    Y = unmasked(Y, name)
    if hasattr(Y, "shape") and hasattr(Y, "dtype") and not hasattr(Y, "to_numpy"):
        return to_host(Y)
    try:
        values = frames.plain(Y)
        return np.asarray(Y, dtype=object) if isinstance(Y, list | tuple) and values.dtype.kind in "US" else values
    except ValueError as error:
        raise ShapeError(
            f"{name} must be (m,) or (n_y, m); its rows differ in length. Give each the same number of values."
        ) from error


def _plain(values: Labels, name: str) -> Labels:
    """Return labels of one of the kinds bool, int, float and str, refusing the missing and the infinite."""
    if values.dtype.kind in "OT":
        values = values.astype(object)
        kinds = {type(value) for value in values.flat}
        if all(issubclass(kind, str) for kind in kinds):
            return values.astype(str)
        if all(issubclass(kind, bool | np.bool_ | int | np.integer | float | np.floating) for kind in kinds):
            numbers = np.asarray(values.tolist())
            if numbers.dtype.kind == "O":
                raise DataError(
                    f"{name} must hold whole numbers of 64 bits or less; the largest is {max(values.flat)}. Pass such "
                    "labels as words."
                )
            return _plain(numbers, name)
        listed = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(
            f"{name} must hold labels of one kind (words, whole numbers or bools) or numbers; it holds {listed}. "
            "Fill in what is missing and cast with astype."
        )
    with np.errstate(over="ignore"):  # what float64 cannot hold becomes infinite, and is refused below
        values = values.astype(np.float64 if values.dtype.char == "g" else values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind == "U":
        return values
    if values.dtype.kind not in "biuf":
        raise DataError(
            f"{name} must be real numbers or labels (words, whole numbers or bools); its dtype is {values.dtype.name}. "
            f"{'Pass its real and imaginary parts as rows.' if values.dtype.kind == 'c' else 'Cast it with astype.'}"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise DataError(
            f"{name} must be finite; {name}[{', '.join(map(str, where))}] is {values[where]}. Remove such examples or "
            "fill in the values."
        )
    return values


def infer(Y: Labels, task: str | Task = "auto") -> Task:
    """Return the task that `Y` is an example of, or check that it is one of `task`.

    Parameters
    ----------
    Y : (m,) or (n_y, m) array
        From `read`.
    task : str or Task
        ``"auto"``, a task's name, or a task, whose classes may be more than Y has. Auto takes bools, words and at most
        20 distinct whole numbers as classes (0/1 columns that each sum to 1 as one-hot classes, other 0/1 columns as
        multilabel) and numbers with fractions as regression.

    Raises
    ------
    ArgumentError
        There is no such task.
    TargetError
        Auto cannot tell, or Y is not of that task.
    """
    if isinstance(task, Task):
        return task
    choice("task", task, ("auto", *TASK_HEADS))
    return _named(Y, _guess(Y) if task == "auto" else task)


def _parts(Y: Labels | Picked) -> Iterator[Labels]:
    """Yield Y in parts of some columns: what is compared with it takes as much memory."""
    for start in range(0, Y.shape[-1], COLUMNS):
        yield Y[..., start : start + COLUMNS]


def _distinct(Y: Labels) -> Labels:
    """Return the labels that there are, sorted."""
    return np.unique(np.concatenate([np.unique(part) for part in _parts(Y)]))


def _whole_numbers(Y: Labels) -> bool:
    return Y.dtype.kind in "biu" or (
        Y.dtype.kind == "f" and all(bool((np.floor(part) == part).all()) for part in _parts(Y))
    )


def _zeros_and_ones(Y: Labels) -> bool:
    return Y.dtype.kind in "biuf" and all(bool(((part == 0) | (part == 1)).all()) for part in _parts(Y))


def _one_hot(Y: Labels) -> bool:
    return Y.ndim == 2 and _zeros_and_ones(Y) and all(bool((part.sum(axis=0) == 1).all()) for part in _parts(Y))


def _guess(Y: Labels) -> str:
    if Y.ndim == 2:
        if Y.dtype.kind == "U":
            raise TargetError(
                f"Y of words must be (m,), one an example; it is {Y.shape}. For several labels an example pass rows of "
                "0 and 1."
            )
        if _zeros_and_ones(Y):
            return "multiclass" if _one_hot(Y) else "multilabel"
        if not _whole_numbers(Y):
            return "regression"
        raise TargetError(
            f"Y has {Y.shape[0]} rows of whole numbers other than 0 and 1, which may be counts or measurements. Pass "
            'task="count" or task="regression".'
        )
    if Y.dtype.kind == "U":
        return "binary" if _distinct(Y).size <= 2 else "multiclass"
    if not _whole_numbers(Y):
        return "regression"
    distinct = _distinct(Y).size
    if distinct > MOST_CLASSES:
        raise TargetError(
            f"Y has {distinct} distinct whole numbers, which may be classes, counts or measurements. Pass "
            'task="multiclass", task="count" or task="regression".'
        )
    return "binary" if distinct <= 2 else "multiclass"


def _named(Y: Labels, task: str) -> Task:
    if task in ("regression", "count"):
        return _of_numbers(Y, task)
    if Y.dtype.kind == "f" and not _whole_numbers(Y):
        raise TargetError(
            f'task="{task}" needs labels; Y has numbers with fractions, such as {Y[np.floor(Y) != Y].flat[0]:g}. Pass '
            'task="regression", or labels.'
        )
    if task == "multilabel":
        if Y.ndim != 2 or not _zeros_and_ones(Y):
            raise TargetError(
                f'task="multilabel" needs Y of 0 and 1, (n_y, m), one row a label; Y is {Y.shape}'
                f"{'' if _zeros_and_ones(Y) else ' and holds other values'}."
            )
        return Task(task, np.arange(Y.shape[0]), int(Y.shape[0]))
    if Y.ndim == 2:
        if task == "multiclass" and _one_hot(Y):
            _refuse_single(np.flatnonzero(Y.any(axis=1)), Y.shape[1])
            return Task(task, np.arange(Y.shape[0]), int(Y.shape[0]))
        raise TargetError(
            f'task="{task}" needs Y of m labels, or one-hot columns for "multiclass"; Y is {Y.shape}.'
            ' For several labels an example pass task="multilabel".'
        )
    classes = _distinct(Y)
    _refuse_single(classes, Y.size)
    if task == "binary":
        if classes.size > 2:
            raise TargetError(f'task="binary" needs two classes; Y has {classes.size}. Pass task="multiclass".')
        return Task(task, classes, 1)
    return Task(task, classes, int(classes.size))


def _refuse_single(classes: Labels, m: int) -> None:
    if classes.size == 1:
        raise TargetError(
            f"Y has one class, {classes[0].item()!r}, in all {m} examples; there is nothing to tell apart. Pass "
            "examples of at least two classes."
        )


def _of_numbers(Y: Labels, task: str) -> Task:
    if Y.dtype.kind not in "biuf":
        raise TargetError(
            f'task="{task}" needs numbers; Y holds words, such as {Y.flat[0].item()!r}. Pass numbers, or '
            'task="multiclass".'
        )
    if task == "count":
        _refuse_negative(Y, "Y")
        if not Y.any():
            raise TargetError('task="count" needs at least one count above 0; every Y is 0. Check how Y was counted.')
    return Task(task, None, 1 if Y.ndim == 1 else int(Y.shape[0]))


def _refuse_negative(Y: Labels, name: str) -> None:
    if (Y < 0).any():
        raise TargetError(
            f'task="count" needs counts of 0 or more; the smallest {name} is {Y.min():g}. Pass task="regression".'
        )


def encode(Y: Labels, task: Task, *, name: str = "Y") -> npt.NDArray[Any]:
    """Return the equations' Y, ``(n_y, m)`` float64: 0/1 for labels, the numbers themselves otherwise.

    Raises
    ------
    TargetError
        Y has a label that is not among the task's classes, another number of outputs, or a negative count.
    """
    if task.classes is None or task.name == "multilabel" or Y.ndim == 2:
        rows: npt.NDArray[Any] = Y if Y.ndim == 2 else Y[None, :]
        if rows.dtype.kind not in "biuf" or rows.shape[0] != task.n_outputs:
            raise TargetError(
                f"{name} must hold {task.n_outputs} number{'s' * (task.n_outputs > 1)} an example for this {task.name} "
                f"network; it is {Y.shape}, {Y.dtype.name}. Pass Y like the one trained on."
            )
        if task.classes is not None and not (_one_hot(rows) if task.name == "multiclass" else _zeros_and_ones(rows)):
            form = "one-hot columns" if task.name == "multiclass" else "0 and 1"
            raise TargetError(f"{name} must be {form} for this {task.name} network; it holds others. Pass 0/1 rows.")
        if task.name == "count":
            _refuse_negative(rows, name)
        return rows.astype(np.float64)
    numbers = indices(Y, task.classes, name=name)
    if task.name == "binary":
        return numbers[None, :].astype(np.float64)
    return np.eye(task.n_outputs)[:, numbers]


def indices(Y: Labels, classes: Labels, *, name: str = "Y") -> npt.NDArray[np.int64]:
    """Return each label's place in `classes`, ``(m,)``.

    Raises
    ------
    TargetError
        A label is not there.
    """
    if (Y.dtype.kind == "U") != (classes.dtype.kind == "U"):
        raise TargetError(
            f"{name} must hold labels like those trained on, such as {classes[0].item()!r}; it holds "
            f"{Y.flat[0].item()!r}."
        )
    with np.errstate(all="ignore"):  # in float64, to which int64 and uint64 would be cast, 2⁶² + 1 is 2⁶²
        found = np.searchsorted(classes, Y if Y.dtype.kind == "U" else Y.astype(classes.dtype))
    found = np.minimum(found, classes.size - 1)
    unseen = classes[found] != Y
    if unseen.any():
        some = ", ".join(repr(label.item()) for label in np.unique(Y[unseen])[:5])
        known = ", ".join(repr(label.item()) for label in classes[:8]) + (" …" if classes.size > 8 else "")
        raise TargetError(f"{name} has labels that were not trained on: {some}. The classes are {known}.")
    return found.astype(np.int64)


def _members(Y: Labels, task: Task) -> npt.NDArray[np.int64]:
    """Return each example's class by number, ``(m,)``, from labels or one-hot columns."""
    if Y.ndim == 2 or task.classes is None:
        return np.asarray(np.argmax(encode(Y, task), axis=0))
    return indices(Y, task.classes)


def weights(sample_weight: Any, class_weight: Any, Y: Labels, task: Task, m: int) -> npt.NDArray[np.float64] | None:
    """Return each column's weight, ``(m,)``, or None when all are 1.

    Parameters
    ----------
    sample_weight : (m,) array or None
        Weights of 0 or more.
    class_weight : dict, "balanced" or None
        A weight for each label (1 for those not named); balanced is ``m / (k · members)``.

    Raises
    ------
    ArgumentError
        `class_weight` is not of that form, names an unknown class, or the task has no classes.
    DataError
        `sample_weight` is not m finite numbers of 0 or more with at least one above 0.
    """
    of_class = _class_weights(class_weight, Y, task)
    if sample_weight is None:
        return of_class
    wanted = f"sample_weight must have one weight for each of {m} examples"
    sample_weight = unmasked(sample_weight, "sample_weight")
    try:
        given = to_host(sample_weight) if hasattr(sample_weight, "shape") else np.asarray(sample_weight)
    except ValueError as error:
        raise ShapeError(f"{wanted}; its rows differ in length. Pass an array of shape ({m},).") from error
    if given.shape != (m,):
        raise ShapeError(f"{wanted}; its shape is {given.shape}. Pass an array of shape ({m},).")
    if given.dtype.kind not in "biuf":
        raise DataError(f"sample_weight must be real numbers; its dtype is {given.dtype.name}. Cast it with astype.")
    with np.errstate(over="ignore"):
        given = given.astype(np.float64)
        weight = given if of_class is None else given * of_class
    wrong = ~(np.isfinite(weight) & (given >= 0))
    if wrong.any():
        i = int(np.argmax(wrong))
        product = (
            "" if np.isfinite(weight[i]) or not np.isfinite(given[i]) else f", {weight[i]} with class_weight in it"
        )
        raise DataError(
            f"sample_weight must be finite numbers of 0 or more; sample_weight[{i}] is {given[i]}{product}. Give "
            "examples that should not count the weight 0."
        )
    if not weight.any():
        product = "" if of_class is None else " once class_weight is in them"
        raise DataError(
            f"sample_weight must leave some example a weight above 0; all are zero{product}. Leave it out to weigh all "
            "alike."
        )
    return weight


def relative(weight: npt.NDArray[np.float64], whole: tuple[float, float] | None = None) -> npt.NDArray[np.float64]:
    """Return the weights with a mean of 1, ``(m,)``; the sum of those given may be beyond float64, or its inverse.

    When they are some of more weights, `whole` is the largest of all, and by what the shares of it have a mean of 1.
    """
    if whole is None:
        share = weight / weight.max()
        return np.asarray(share * (share.size / share.sum()))
    largest, scale = whole
    return np.asarray(weight / largest * scale)


def _class_weights(class_weight: Any, Y: Labels, task: Task) -> npt.NDArray[np.float64] | None:
    if class_weight is None:
        return None
    return class_factors(class_weight, class_counts(Y, task), task)[_members(Y, task)]


def class_counts(Y: Labels, task: Task) -> npt.NDArray[np.int64]:
    """Return how many examples each class has, ``(k,)``, for `class_factors`.

    Raises
    ------
    ArgumentError
        The task has no classes to weigh.
    """
    if task.classes is None or task.name == "multilabel":
        raise ArgumentError(
            f"class_weight needs a binary or multiclass task; this one is {task.name}. Use sample_weight."
        )
    return np.bincount(_members(Y, task), minlength=task.classes.size)


def class_factors(class_weight: Any, counts: npt.NDArray[np.int64], task: Task) -> npt.NDArray[np.float64]:
    """Return each class's weight, ``(k,)``, when the classes have so many examples."""
    assert task.classes is not None, "the task has no classes"
    if isinstance(class_weight, str) and class_weight == "balanced":
        of_class = counts.sum() / (task.classes.size * np.maximum(counts, 1))
    elif isinstance(class_weight, Mapping):
        labels = [label.item() for label in task.classes]
        for label in class_weight:
            if label not in labels:
                raise ArgumentError(
                    f"class_weight names the class {label!r}, which Y does not have; it has {labels[:8]}."
                )
        of_class = np.asarray(
            [real(f"class_weight[{label!r}]", class_weight.get(label, 1.0), low=0.0) for label in labels]
        )
    else:
        raise ArgumentError(f'class_weight must be "balanced" or a dict of label to weight; it is {class_weight!r}.')
    if not of_class[counts > 0].any():
        raise ArgumentError("class_weight must leave some example a weight above 0; all are 0.")
    return np.asarray(of_class, dtype=np.float64)


def decode(A: npt.NDArray[Any], task: Task) -> Labels:
    """Return labels ``(m,)`` from the output ``A (n_y, m)``; numbers and multilabel stay ``(n_y, m)``."""
    if task.name == "multilabel":
        return (A > 0.5).astype(np.int64)
    if task.classes is None:
        return A
    numbers = (A[0] > 0.5).astype(np.int64) if task.name == "binary" else np.argmax(A, axis=0)
    return np.asarray(task.classes[numbers])


def score(
    Y: Labels, outputs: Iterable[npt.NDArray[Any]], task: Task, weight: npt.NDArray[np.float64] | None = None
) -> float:
    """Return the accuracy of labels, R² of numbers (averaged over outputs) or D² of counts.

    Parameters
    ----------
    Y : (m,) or (n_y, m) array
        From `read`.
    outputs : iterable of (n_y, b) arrays
        The network's output, some columns after others.
    weight : (m,) array or None
        The columns' weights.

    Returns
    -------
    float
        1 is perfect. R² and D² are 0 for the mean of Y; multilabel accuracy asks for every label of an example.

    References
    ----------
    .. [1] T. Hastie, R. Tibshirani, M. Wainwright, Statistical Learning with Sparsity, 2015, eq. (3.11): D².
    """
    weight = None if weight is None else relative(weight)
    parts = _beside(Y, outputs, weight)
    if task.classes is not None:
        right = sum(float(_sums(_right(some, A, task), factors)) for some, A, factors in parts)
        return right / float(Y.shape[-1] if weight is None else weight.sum())
    deviance = _poisson_deviance if task.name == "count" else _squares
    left, total = np.zeros(task.n_outputs), np.zeros(task.n_outputs)
    exponents = _exponents(Y, task, weight)
    mean = _mean(Y, task, weight, exponents)[:, None]
    for some, A, factors in parts:
        # A Y that does not count may be of any size.
        numbers = _in_units(encode(some, task), exponents, 1.0)
        left += _sums(deviance(numbers, _in_units(A.astype(np.float64), exponents, FAR)), factors)
        total += _sums(deviance(numbers, np.broadcast_to(mean, numbers.shape)), factors)
    # A constant Y leaves nothing to explain: 1 when it is met exactly, else 0, as scikit-learn has it.
    with np.errstate(over="ignore"):  # where all but one example weigh next to nothing
        share = np.minimum(left / np.where(total > 0, total, 1.0), np.finfo(np.float64).max)
    explained = np.where(total > 0, 1.0 - share, np.where(left > 0, 0.0, 1.0))
    return float(np.mean(explained))


def _beside(
    Y: Labels, outputs: Iterable[npt.NDArray[Any]], weight: npt.NDArray[np.float64] | None
) -> Iterator[tuple[Labels, npt.NDArray[Any], npt.NDArray[np.float64] | None]]:
    """Yield some columns of Y, the output for them, and their weights."""
    done = 0
    for A in outputs:
        span = slice(done, done + A.shape[1])
        yield Y[..., span], A, None if weight is None else weight[span]
        done = span.stop


def _right(Y: Labels, A: npt.NDArray[Any], task: Task) -> npt.NDArray[np.bool_]:
    """Return which examples are told rightly, ``(m,)``."""
    if task.name == "multilabel":
        return np.asarray((decode(A, task) == encode(Y, task)).all(axis=0))
    assert task.classes is not None, "numbers are not right or wrong"
    return np.asarray(indices(decode(A, task), task.classes) == _members(Y, task))


def _sums(values: npt.NDArray[Any], weight: npt.NDArray[np.float64] | None) -> npt.NDArray[Any]:
    """Return the sums over the columns, weighted."""
    return np.asarray(values.sum(axis=-1) if weight is None else (values * weight).sum(axis=-1))


FAR = 1e100
"""Times the largest Y: outputs beyond this count as this in R² and D², which would be no numbers otherwise."""


def _exponents(Y: Labels, task: Task, weight: npt.NDArray[np.float64] | None) -> npt.NDArray[Any]:
    """Return the exponent of the power of 2 above each output's largest Y that counts, ``(n_y, 1)``.

    R² and D² are the same of Y and the output over it. No digit is lost so, and the squares of 1e200 are numbers, as
    are those of 1e-200.
    """
    largest = np.zeros((task.n_outputs, 1))
    for part, _, factors in _beside(Y, map(np.atleast_2d, _parts(Y)), weight):
        counted = np.abs(encode(part, task)) * (True if factors is None else factors > 0.0)
        largest = np.maximum(largest, counted.max(axis=1, keepdims=True))
    return np.asarray(np.frexp(largest)[1])


@np.errstate(over="ignore")
def _in_units(values: npt.NDArray[Any], exponents: npt.NDArray[Any], most: float) -> npt.NDArray[Any]:
    return np.asarray(np.clip(np.ldexp(values, -exponents), -most, most))


def _mean(
    Y: Labels, task: Task, weight: npt.NDArray[np.float64] | None, exponents: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Return the means of numbers in their units, ``(n_y,)``."""
    total = np.zeros(task.n_outputs)
    for part, _, factors in _beside(Y, map(np.atleast_2d, _parts(Y)), weight):
        total += _sums(_in_units(encode(part, task), exponents, 1.0), factors)
    return np.asarray(total / (Y.shape[-1] if weight is None else weight.sum()))


def _squares(Y: npt.NDArray[Any], A: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray((Y - A) ** 2)


def _poisson_deviance(Y: npt.NDArray[Any], A: npt.NDArray[Any]) -> npt.NDArray[Any]:
    A = np.maximum(A, np.finfo(np.float64).tiny)
    return np.asarray(2.0 * (np.where(Y > 0, Y * np.log(np.where(Y > 0, Y, 1.0) / A), 0.0) - Y + A))


def size(Y: Labels | Picked) -> float:
    """Return the root mean square of numbers."""
    return float(np.sqrt(sum(float(np.sum(part.astype(np.float64) ** 2)) for part in _parts(Y)) / Y.size))
