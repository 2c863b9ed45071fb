"""Estimators for scikit-learn over `xpnet.fit`: `MLPClassifier` and `MLPRegressor`, as its own of these names.

They take examples as rows, and go where scikit-learn's estimators go: into pipelines, searches and calibration, through
metadata routing and Array API dispatch. A parameter or an attribute that has a name of scikit-learn's means the same.
They need ``pip install "xpnet[sklearn]"``.

References
----------
.. [1] F. Pedregosa et al., Scikit-learn: machine learning in Python, 2011; ``sklearn.neural_network``, version 1.9.
"""

import math
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xpnet import data, optimizers, targets
from xpnet import device as devices
from xpnet.activations import Activation
from xpnet.arguments import choice, real, true_or_false, whole
from xpnet.checkpoint import Kept
from xpnet.device import Place
from xpnet.errors import ArgumentError, DeviceMismatchError, MissingPackageError, TargetError
from xpnet.network import Network
from xpnet.optimizers import Optimizer
from xpnet.schedules import Schedule
from xpnet.targets import Task
from xpnet.training import fit
from xpnet.typing import Array

try:
    from scipy.sparse import issparse
    from sklearn import get_config
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_random_state, column_or_1d
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.multiclass import check_classification_targets, type_of_target
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    problem = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
    raise MissingPackageError(
        f'xpnet.sklearn needs scikit-learn 1.6 or later, which {problem}. Run: pip install "xpnet[sklearn]"'
    ) from error

__all__ = ["MLPClassifier", "MLPRegressor"]

_LARGEST_BATCH = 200
"""Examples in a step of ``batch_size="auto"``, at most: scikit-learn's."""

_TASKS = {"binary": "binary", "multiclass": "multiclass", "multilabel-indicator": "multilabel"}
"""The task for each of scikit-learn's types of target that a classifier takes."""

_LOSSES = {"squared_error": "regression", "poisson": "count"}
"""The task for each of scikit-learn's losses that a regressor takes."""


@dataclass(eq=False, repr=False)
class _Perceptron(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What the classifier and the regressor share; the parameters are described in `MLPClassifier`."""

    hidden_layer_sizes: int | Sequence[int] = (100,)
    activation: str | Activation = "relu"
    _: KW_ONLY
    solver: str | Optimizer = "adam"
    alpha: float = 1e-4
    batch_size: int | str = "auto"
    learning_rate_init: Schedule = 1e-3
    max_iter: int = 200
    random_state: Any = None
    tol: float = 1e-4
    verbose: bool = False
    warm_start: bool = False
    momentum: float = 0.9
    nesterovs_momentum: bool = True
    early_stopping: bool = False
    validation_fraction: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    n_iter_no_change: float = 10
    standardize: bool = False
    device: str | None = None
    dtype: str | None = None
    threads: int | None = None
    tf32: bool = False

    # What is fitted: `network_`, and of it what scikit-learn has names for ------------------------------------------

    network_: Network = field(init=False)
    _kept: Kept = field(init=False)
    _home: Place = field(init=False)

    def __sklearn_is_fitted__(self) -> bool:
        """Return whether there is a network."""
        return hasattr(self, "network_")

    @property
    def coefs_(self) -> list[Array]:
        """The weights of each layer, ``(n[l-1], n[l])``."""
        return [layer.W.T for layer in self.network_.layers]

    @property
    def intercepts_(self) -> list[Array]:
        """The biases of each layer, ``(n[l],)``."""
        return [layer.b[:, 0] for layer in self.network_.layers]

    @property
    def loss_curve_(self) -> list[float]:
        """The mean cost of each epoch, with the penalty."""
        return list(self.network_.history["cost"])

    @property
    def loss_(self) -> float:
        """The last of `loss_curve_`."""
        return self.loss_curve_[-1]

    @property
    def best_loss_(self) -> float | None:
        """The lowest of `loss_curve_`; None with early stopping."""
        return None if self.network_.history["validation_cost"] else min(self.loss_curve_)

    @property
    def n_iter_(self) -> int:
        """The epochs run, those of earlier calls that were gone on from included."""
        return self.network_.epochs_run

    @property
    def n_layers_(self) -> int:
        """The layers, the input and the output counted."""
        return len(self.network_.sizes)

    @property
    def n_outputs_(self) -> int:
        """The units of the output."""
        return self.network_.sizes[-1]

    @property
    def out_activation_(self) -> str:
        """The function of the output: ``"logistic"``, ``"softmax"``, ``"identity"`` or ``"exp"``."""
        head = self.network_.kind.head
        return "logistic" if head == "sigmoid" else head

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = True
        tags.input_tags.sparse = True
        return tags

    # Training -------------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train the network; with `warm_start`, train it on.

        Parameters
        ----------
        X : (m, n_x) array, table or sparse matrix
            Examples as rows.
        y : (m,) or (m, n_y) array
            Labels, an indicator of 0 and 1, or numbers.
        sample_weight : (m,) array, optional
            Weights of the examples.

        Returns
        -------
        self

        Warns
        -----
        ConvergenceWarning
            The cost still fell when `max_iter` was reached, or Ctrl-C stopped training.
        ScaleWarning
            Features, or y, are of sizes on which training is slow.
        """
        n, goes_on = self.n_iter_no_change, self.warm_start and hasattr(self, "network_")
        patience = None if n == math.inf else whole("n_iter_no_change", n, low=1) + 1
        early_stopping = true_or_false("early_stopping", self.early_stopping)
        fraction = real("validation_fraction", self.validation_fraction, low=0.0, below=1.0) if early_stopping else 0.0
        epochs = whole("max_iter", self.max_iter, low=1)
        self._train(X, y, sample_weight, goes_on=goes_on, epochs=epochs, patience=patience, fraction=fraction)
        if self.network_.stop_reason != "patience" and patience is not None:
            reached = (
                "Training was interrupted" if self.network_.stop_reason == "interrupted" else "max_iter was reached"
            )
            warnings.warn(
                f"{reached} after {self.n_iter_} epochs, before the cost had stopped falling. Raise max_iter, or go on "
                "with warm_start=True.",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def _pass(self, X: Any, y: Any, sample_weight: Any, classes: Any = None) -> None:
        """Train for one more epoch."""
        if self.early_stopping:
            raise ArgumentError(
                "early_stopping must be False for partial_fit, which takes the examples one call at a time; it is "
                f"{self.early_stopping!r}. Hold examples out yourself, and stop calling."
            )
        goes_on = hasattr(self, "network_")
        self._train(X, y, sample_weight, goes_on=goes_on, epochs=1, patience=None, fraction=0.0, classes=classes)

    def _has_passes(self) -> bool:
        """Return whether the solver can learn from a part of the examples."""
        if self._optimizer().full_batch:
            raise AttributeError(
                f"partial_fit needs solver 'adam' or 'sgd'; it is {self.solver!r}, which is full batch."
            )
        return True

    def _train(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        *,
        goes_on: bool,
        epochs: int,
        patience: int | None,
        fraction: float,
        classes: Any = None,
    ) -> None:
        X, y = validate_data(
            self, X, y, reset=not goes_on, accept_sparse="csr", multi_output=True, y_numeric=self._y_numeric
        )
        home, at = devices.place_of(X), devices.place_of(y)
        if issparse(y):
            y = y.toarray()
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        Y = devices.to_host(y)
        kind = self._task(Y, goes_on, classes)
        how = self._optimizer()
        batch_size = "full" if how.full_batch else _LARGEST_BATCH if self.batch_size == "auto" else self.batch_size
        kept = Kept(self._kept.state) if goes_on else Kept()
        net = fit(
            _dense(X),
            Y,
            examples="rows",
            hidden=self._hidden(goes_on),
            activation="sigmoid" if self.activation == "logistic" else self.activation,
            task=kind,
            optimizer=how,
            l2=real("alpha", self.alpha, low=0.0) * self._steps(batch_size, X.shape[0], fraction),
            batch_size=batch_size,
            epochs=epochs + (self.n_iter_ if goes_on else 0),
            tol=self.tol,
            patience=patience,
            validation_fraction=fraction,
            sample_weight=None if sample_weight is None else devices.to_host(sample_weight),
            class_weight=getattr(self, "class_weight", None),
            standardize=self.standardize,
            initial=self.network_ if goes_on else None,  # which brings its scaling along
            device=self.device,
            dtype=self._dtype(X, goes_on) if self.dtype is None else self.dtype,
            random_state=None if goes_on else self._seed(),
            threads=self.threads,
            tf32=self.tf32,
            verbose=bool(self.verbose),
            checkpoint=kept,
        )
        names = getattr(self, "feature_names_in_", None)
        self.network_ = net if names is None else replace(net, feature_names=tuple(map(str, names)))
        self._kept, self._home = kept, home
        if kind.classes is not None and not goes_on:
            self.classes_ = at.asarray(kind.classes)

    def _steps(self, batch_size: int | str, m: int, fraction: float) -> float:
        """Return the steps of an epoch, as a fraction: λ is so many times alpha.

        A step adds ``alpha/2 Σ‖W‖²`` to its batch's summed cost in scikit-learn [1]_, and the batch's share of λ here.
        """
        training = m if not fraction else data.split(m, fraction, seed=0)[0].size
        return training / data.batch_columns(batch_size, training)

    def _dtype(self, X: Any, goes_on: bool) -> str:
        if goes_on:
            return self.network_.dtype
        return "float32" if devices.dtype_name(X) == "float32" else "float64"

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _hidden(self, goes_on: bool) -> tuple[int, ...]:
        sizes = self.hidden_layer_sizes
        units = tuple(sizes) if np.iterable(sizes) else (sizes,)
        hidden = tuple(whole("each of hidden_layer_sizes", unit, low=1) for unit in units)
        if goes_on and hidden != self.network_.sizes[1:-1]:
            raise ArgumentError(
                f"hidden_layer_sizes must be {self.network_.sizes[1:-1]} to go on from the network fitted; it is "
                f"{hidden}. Set warm_start=False and fit anew."
            )
        return hidden

    def _optimizer(self) -> Optimizer:
        if isinstance(self.solver, Optimizer):
            return self.solver
        solver = choice("solver", self.solver, ("adam", "sgd", "lbfgs"), or_else="made by xpnet.optimizers")
        if solver == "lbfgs":
            return optimizers.lbfgs()
        rate = self.learning_rate_init
        rate = rate if callable(rate) else real("learning_rate_init", rate, above=0.0)
        if solver == "adam":
            beta1, beta2 = (real(name, getattr(self, name), low=0.0, below=1.0) for name in ("beta_1", "beta_2"))
            return optimizers.adam(rate, beta1, beta2, real("epsilon", self.epsilon, above=0.0))
        beta = real("momentum", self.momentum, low=0.0, below=1.0)
        if beta == 0.0:
            return optimizers.gd(rate)
        # scikit-learn's velocity lacks the factor 1 − β; so its learning rate has it.
        scaled = (lambda epoch: rate(epoch) / (1.0 - beta)) if callable(rate) else rate / (1.0 - beta)
        return optimizers.momentum(scaled, beta, nesterov=true_or_false("nesterovs_momentum", self.nesterovs_momentum))

    # What a subclass says --------------------------------------------------------------------------------------------

    _y_numeric = False

    @abstractmethod
    def _task(self, Y: npt.NDArray[Any], goes_on: bool, classes: Any) -> Task:
        """Return what Y, rows on the host, is to be learned as."""

    # Prediction -----------------------------------------------------------------------------------------------------

    def _given(self, X: Any, method: str) -> Any:
        """Return X, checked, as the network takes it."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, accept_sparse="csr")
        place = devices.place_of(X)
        if get_config()["array_api_dispatch"] and place != self._home:
            raise DeviceMismatchError(
                f"Inputs passed to {type(self).__name__}.{method}() must use the same namespace and the same device as "
                f"those passed to fit(), {self._home}; they are in {place}. Move them there, or fit with such."
            )
        return _dense(X)


@dataclass(eq=False, repr=False)
class MLPClassifier(ClassifierMixin, _Perceptron):  # type: ignore[misc]  # scikit-learn has no types
    """A classifier: binary, multiclass, or multilabel when y is an indicator of 0 and 1.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int
        Units of the hidden layer, or of each; ``()`` is logistic regression.
    activation : str or Activation
        ``"relu" "tanh" "logistic" "identity"``, another that `xpnet.fit` knows, or one's own pair.
    solver : str or Optimizer
        ``"adam"``, ``"sgd"``, ``"lbfgs"``, or from `xpnet.optimizers`, with a learning rate of its own.
    alpha : float
        The penalty: each step adds ``alpha/2 Σ‖W‖²`` to the summed cost of its batch. `xpnet.fit`'s ``l2`` is this
        times the steps of an epoch.
    batch_size : int or str
        Examples per step. ``"auto"`` is 200 or all, ``"full"`` is all.
    learning_rate_init : float or callable
        α, or ``epoch -> α``, of ``"adam"`` and ``"sgd"``.
    max_iter : int
        Passes over the data in a call of `fit`.
    random_state : int, RandomState or None
        The seed; an int is what `xpnet.fit` would make of it.
    tol, n_iter_no_change : float, int
        `fit` stops when the cost has not fallen by `tol` for more than `n_iter_no_change` epochs; ``numpy.inf`` never
        does. A fall over several epochs counts, where scikit-learn asks it of one.
    verbose : bool
        Whether to show a progress bar.
    warm_start : bool
        Whether `fit` goes on from the last call: exactly, when X and y are the same, so that calls of 10 and of 20
        epochs give the same bits as one of 30.
    momentum, nesterovs_momentum : float, bool
        Of ``"sgd"``.
    early_stopping, validation_fraction : bool, float
        Whether to hold out this share of the examples; its cost (scikit-learn: its score) is what `tol` is about then,
        and the parameters where it was lowest are kept.
    beta_1, beta_2, epsilon : float
        Of ``"adam"``. Its ε stands where the paper has it; scikit-learn adds it before the bias is corrected.
    standardize : bool
        Whether to scale the features by their mean and deviation, of the first call.
    device : str, optional
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"auto"``; None is where X lives. Predictions come out where X lives.
    dtype : {"float32", "float64"}, optional
        Of parameters and arithmetic; None is float32 for X of float32 and float64 for any other. float32 takes half
        the time, and on most GPUs a small part of it.
    threads : int, optional
        CPU threads; None is every core that this process may use.
    tf32 : bool
        Whether float32 products on a GPU may be rounded to TF32.
    class_weight : dict or "balanced", optional
        Weights of the labels.

    Attributes
    ----------
    network_ : Network
        What `xpnet.fit` made, to save, plot or export.
    classes_ : (k,) array
        The labels, sorted; of an indicator, the numbers of its columns.
    coefs_, intercepts_ : lists of arrays
        Of each layer, ``(n[l-1], n[l])`` and ``(n[l],)``.
    loss_curve_, loss_, best_loss_ : list of float, float, float
        The mean cost of each epoch, the last of them, and the lowest. It is summed over outputs, where scikit-learn
        takes the mean, and Poisson's is without the terms of y alone.
    n_iter_ : int
        The epochs run, those of calls that were gone on from included.
    n_layers_, n_outputs_, out_activation_ : int, int, str
        As scikit-learn has them.
    n_features_in_, feature_names_in_ : int, (n_x,) array of str
        Of X; names when X was a table whose columns are all named by words.

    Notes
    -----
    Of scikit-learn's parameters, ``learning_rate`` and ``power_t`` are what a function as `learning_rate_init` does;
    ``shuffle=False`` and ``max_fun`` have no counterpart. The weights that training starts from are `xpnet.fit`'s.

    Examples
    --------
    >>> import xpnet
    >>> X, Y = xpnet.datasets.flower()
    >>> model = MLPClassifier(16, "tanh", solver="lbfgs", max_iter=1000, random_state=0).fit(X.T, Y)
    >>> model.score(X.T, Y) > 0.9
    True
    """

    class_weight: Mapping[Any, float] | str | None = field(default=None, kw_only=True)

    def _task(self, Y: npt.NDArray[Any], goes_on: bool, classes: Any) -> Task:
        check_classification_targets(Y)
        if goes_on:
            return self.network_.kind
        found = type_of_target(Y)
        if found not in _TASKS:
            raise TargetError(
                f"y must be one label an example, or an indicator of 0 and 1; it is {found}, {Y.shape}. Fit an "
                "estimator for each column, as sklearn.multioutput.MultiOutputClassifier does."
            )
        if classes is None or found == "multilabel-indicator":
            return targets.infer(targets.read(Y, examples="rows"), _TASKS[found])
        every = _sorted(classes)
        return targets.infer(every, "binary" if every.size <= 2 else "multiclass")

    @available_if(_Perceptron._has_passes)  # type: ignore[untyped-decorator]  # scikit-learn has no types
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> "MLPClassifier":
        """Train for one pass over these examples, going on exactly from the last call.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        classes : (k,) array
            All labels that will ever come, which the first call needs.

        Returns
        -------
        self
        """
        if isinstance(self.class_weight, str):
            raise ArgumentError(
                "class_weight must be a dict for partial_fit, which does not see all of y; it is "
                f"{self.class_weight!r}. Count all of y, and pass the weights as a dict."
            )
        known = self.network_.classes if hasattr(self, "network_") else None
        if known is None and classes is None:
            raise ArgumentError(
                "classes must be passed on the first call to partial_fit, for its y may lack some; it is None. Pass "
                "np.unique of all y."
            )
        if known is not None and classes is not None and not np.array_equal(_sorted(classes), known):
            raise ArgumentError(
                f"classes must be those of the first call to partial_fit, {known}; it is {classes}. Leave it out."
            )
        self._pass(X, y, sample_weight, classes)
        return self

    def predict(self, X: Any) -> Array:
        """Return the labels, ``(m,)``, or an indicator, ``(m, n_y)``, of the rows of X."""
        X = self._given(X, "predict")
        labels = self.network_.predict(X, examples="rows")
        return labels if labels.ndim == 1 else labels.T

    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities of `classes_`, ``(m, k)``."""
        return self._proba(X, "predict_proba")

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithms of the probabilities, ``(m, k)``."""
        proba = self._proba(X, "predict_log_proba")
        with np.errstate(divide="ignore"):
            return devices.place_of(proba).xp.log(proba)

    def _proba(self, X: Any, method: str) -> Array:
        X = self._given(X, method)
        A = self.network_.predict_proba(X, examples="rows").T
        if self.network_.task != "binary":
            return A
        return devices.place_of(A).xp.concat([1.0 - A, A], axis=1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


@dataclass(eq=False, repr=False)
class MLPRegressor(RegressorMixin, _Perceptron):  # type: ignore[misc]  # scikit-learn has no types
    """A regressor of one or several numbers.

    Parameters and attributes are those of `MLPClassifier`, but for `class_weight` and `classes_`.

    Parameters
    ----------
    loss : {"squared_error", "poisson"}
        Half the squares, or for counts of 0 or more Poisson's likelihood, with an output of exp.

    Examples
    --------
    >>> X = np.linspace(-2, 2, 200)[:, None]
    >>> model = MLPRegressor(16, "tanh", solver="lbfgs", max_iter=1000, random_state=0).fit(X, np.sin(X[:, 0]))
    >>> model.score(X, np.sin(X[:, 0])) > 0.99
    True
    """

    loss: str = field(default="squared_error", kw_only=True)

    _y_numeric = True

    def _task(self, Y: npt.NDArray[Any], goes_on: bool, classes: Any) -> Task:  # noqa: ARG002  # the classifier's
        task = _LOSSES[choice("loss", self.loss, tuple(_LOSSES))]
        return targets.infer(targets.read(Y, examples="rows"), task)

    @available_if(_Perceptron._has_passes)  # type: ignore[untyped-decorator]  # scikit-learn has no types
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> "MLPRegressor":
        """Train for one pass over these examples, going on exactly from the last call; arguments as for `fit`."""
        self._pass(X, y, sample_weight)
        return self

    def predict(self, X: Any) -> Array:
        """Return the numbers, ``(m,)`` or ``(m, n_y)``, for the rows of X."""
        X = self._given(X, "predict")
        A = self.network_.predict(X, examples="rows")
        return A[0, :] if A.shape[0] == 1 else A.T

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.positive_only = self.loss == "poisson"
        return tags


def _sorted(classes: Any) -> npt.NDArray[Any]:
    """Return all labels that will ever come, sorted."""
    return np.unique(targets.read(classes, name="classes"))


def _dense(X: Any) -> Any:
    """Return a sparse matrix as an array when that is small, or else as what `data` reads a few blocks at a time."""
    if not issparse(X):
        return X
    return X.toarray() if math.prod(X.shape) <= data.WINDOW else _Rows(X)


@dataclass(frozen=True)
class _Rows:
    """A sparse matrix whose slices are dense."""

    matrix: Any

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n_x)``."""
        return self.matrix.shape  # type: ignore[no-any-return]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return self.matrix.dtype  # type: ignore[no-any-return]

    def __getitem__(self, which: tuple[slice, slice]) -> npt.NDArray[Any]:
        """Return some rows."""
        return self.matrix[which].toarray()  # type: ignore[no-any-return]
