"""The trained network: what `xpnet.fit` returns and `xpnet.load` reads."""

import math
import re
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, field, fields, replace
from functools import cached_property
from itertools import chain, cycle, pairwise, starmap
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from xpnet import activations, data, engine, equations, files, frames, heads, targets
from xpnet import device as devices
from xpnet.activations import Activation
from xpnet.arguments import choice, file_path, nearest, real, whole
from xpnet.device import HOST, Place
from xpnet.diagnosis import Diagnosis, Finding
from xpnet.errors import ArgumentError, DataError, FileFormatError, ShapeError
from xpnet.features import Features, packed, unpacked
from xpnet.selection import Picked
from xpnet.targets import Task
from xpnet.typing import Array, Layer

_PARAMETER = re.compile(r"([Wb])([1-9][0-9]*)")

PREDICTED = 2**23
"""Numbers of the widest layer that `predict` holds at a time."""

FEW = 256
"""Columns up to which `predict` goes straight to the equations."""

EXPLAINED = 100
"""The most examples that `Network.explain` prints."""


@dataclass(frozen=True, eq=False, repr=False)
class Network:
    """A trained network. Nothing in it changes; a new one is made by `xpnet.fit`.

    Networks come from `xpnet.fit` and `xpnet.load`; the constructor is theirs.

    Attributes
    ----------
    layers : tuple of Layer
        ``W (n[l], n[l-1])`` and ``b (n[l], 1)`` of each layer, also as ``W1``, ``b1``, ``W2`` …
    task : str
        ``"binary"``, ``"multiclass"``, ``"multilabel"``, ``"regression"`` or ``"count"``.
    classes : (k,) NumPy array or None
        The labels, sorted: row i of `predict_proba` is ``classes[i]``; a binary network's one row is ``classes[1]``.
    activation : Activation
        Of the hidden layers.
    feature_names : tuple of str or None
        The columns of the table trained on; where they were encoded, the features made of them, such as
        ``"city=Paris"``.
    features : Features or None
        What `fit` was told to do with the table's columns, as learned; see `xpnet.features`.
    scaling : (mean, deviation) or None
        Of ``standardize=True``, ``(n_x,)`` each, NumPy float64.
    history : mapping of str to list of float
        ``cost``, ``validation_cost`` (empty without validation data), ``learning_rate`` and ``seconds``, one number an
        epoch. ``cost[e]`` is the mean cost over the columns as epoch e met them, each batch before its update.
    epochs_run : int
        Epochs gone through.
    best_epoch : int or None
        The epoch of the lowest monitored cost.
    stop_reason : str
        ``"epochs"``, ``"patience"``, ``"callback"`` or ``"interrupted"``.
    random_state : int
        The seed drawn or given.
    timing : mapping of str to number
        ``load_seconds``, ``train_seconds``, ``steps`` and ``examples_per_second``.
    diagnosis : Diagnosis
        What is wrong with the fit and what mends it, a tuple of `xpnet.diagnosis.Finding`; empty when nothing is. Of a
        network that a callback is shown, and of one made in another way than by `xpnet.fit`, nothing is said.

    Examples
    --------
    >>> import xpnet
    >>> X, Y = xpnet.datasets.flower()
    >>> net = xpnet.fit(X, Y, hidden=16, activation="tanh", optimizer="lbfgs", random_state=0)
    >>> net.sizes, net.task, net.classes.tolist(), net.W1.shape
    ((2, 16, 1), 'binary', [0, 1], (16, 2))
    >>> net.diagnosis
    nothing found
    """

    layers: tuple[Layer, ...]
    activation: Activation
    kind: Task
    place: Place = HOST
    feature_names: tuple[str, ...] | None = None
    features: Features | None = None
    scaling: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None
    history: Mapping[str, list[float]] = field(default_factory=dict)
    epochs_run: int = 0
    best_epoch: int | None = None
    stop_reason: str = "epochs"
    random_state: int = 0
    timing: Mapping[str, float] = field(default_factory=dict)
    diagnosis: Diagnosis = field(default_factory=Diagnosis)

    def __post_init__(self) -> None:
        for array in (part for parts in (*self.layers, self.scaling or ()) for part in parts):
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
        for name in ("history", "timing"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle or a copy holds."""
        kept = {each.name: getattr(self, each.name) for each in fields(self)}
        return kept | {"history": dict(self.history), "timing": dict(self.timing)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what a pickle or a copy held, where arrays had become writeable."""
        self.__dict__.update(state)
        self.__post_init__()

    @property
    def task(self) -> str:
        """The kind of Y it was trained on."""
        return self.kind.name

    @property
    def classes(self) -> npt.NDArray[Any] | None:
        """The labels, sorted; None for numbers."""
        return None if self.kind.classes is None else self.kind.classes.copy()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units of each layer: ``(n_x, n_h, …, n_y)``."""
        return (int(self.layers[0].W.shape[1]), *(int(W.shape[0]) for W, _ in self.layers))

    @property
    def device(self) -> str:
        """Where the parameters live and predictions are computed: ``"cpu"``, ``"cuda:0"``."""
        return self.place.name

    @property
    def dtype(self) -> str:
        """The parameters' dtype, ``"float32"`` or ``"float64"``."""
        return devices.dtype_name(self.layers[0].W)

    def __getattr__(self, name: str) -> Array:
        """Return ``W1``, ``b1``, ``W2`` and so on."""
        found = _PARAMETER.fullmatch(name)
        if found and "layers" in self.__dict__ and int(found[2]) <= len(self.layers):
            return getattr(self.layers[int(found[2]) - 1], found[1])
        raise AttributeError(f"Network has no attribute {name!r}.{nearest(name, dir(type(self)))}")

    def __dir__(self) -> list[str]:
        """Return the attributes' names, the parameters' too, for completion."""
        return [*super().__dir__(), *named(self.layers)]

    def __repr__(self) -> str:
        """Return one line: sizes, activation, task, epochs, last cost and device, and the kinds of findings."""
        cost = self.history.get("cost") or []
        last = f", cost {cost[-1]:.4g}" if cost else ""
        shape = "-".join(map(str, self.sizes))
        hidden = f" {self.activation.name}" if len(self.sizes) > 2 else ""
        found = ", ".join(finding.kind for finding in self.diagnosis)
        where = f"{self.dtype} on {self.device}" + (f"; diagnosis: {found}" if found else "")
        return f"<Network {shape}{hidden}, {self.task}, {self.epochs_run} epochs{last}, {where}>"

    def predict(self, X: Any, *, examples: str = "columns") -> Array:
        """Return labels ``(m,)``; for regression, counts and multilabel ``(n_y, m)``.

        Parameters
        ----------
        X : (n_x, m) array or table
            Examples as columns, or ``(m, n_x)`` with ``examples="rows"``. A table must have the columns trained on, in
            their order; an array is taken to have the features so.
        examples : {"columns", "rows"}
            Which way the examples lie.

        Returns
        -------
        array
            In X's namespace and on X's device; labels that are words are NumPy's.

        Raises
        ------
        ShapeError
            X has not the features that were trained on.
        DataError
            X is empty, not numbers, not finite, or so large that the output is not, or a table has words that were not
            trained on.

        Examples
        --------
        >>> import xpnet
        >>> net = xpnet.fit([[0.0, 0.1, 0.9, 1.0]], ["low", "low", "high", "high"], optimizer="lbfgs", random_state=0)
        >>> net.predict([[0.2, 0.8]]).tolist()
        ['low', 'high']
        """
        if self.kind.classes is None:
            A, home = self._output(X, examples)
            return home.asarray(A)
        few = self._output_of_few(X, examples)
        if few is not None:
            return targets.decode(few, self.kind)
        source = self._source(X, examples)
        with closing(self._outputs(source)) as outputs:
            labels = _filled((targets.decode(devices.to_host(A), self.kind) for A in outputs), source.n_examples)
        return labels if labels.dtype.kind == "U" else source.place.asarray(labels)

    def predict_proba(self, X: Any, *, examples: str = "columns") -> Array:
        """Return the output A of the last layer, ``(n_y, m)``, in X's namespace and on X's device.

        Rows are the probabilities of ``classes`` (binary: of ``classes[1]`` alone); for regression and counts they are
        the predicted numbers.

        Parameters
        ----------
        X : (n_x, m) array
            Examples as columns, or ``(m, n_x)`` with ``examples="rows"``.
        examples : {"columns", "rows"}
            Which way the examples lie.

        Returns
        -------
        (n_y, m) float array

        Raises
        ------
        ShapeError, DataError
            As `predict`.

        Examples
        --------
        >>> import xpnet
        >>> net = xpnet.fit([[0.0, 0.1, 0.9, 1.0]], [0, 0, 1, 1], optimizer="lbfgs", random_state=0)
        >>> (net.predict_proba([[0.0, 1.0]]) > 0.5).tolist()
        [[False, True]]
        """
        A, home = self._output(X, examples)
        return A if home is self.place else home.asarray(A)

    def outputs(self, X: Any, *, examples: str = "columns") -> Generator[Array, None, None]:
        """Yield what `predict_proba` returns a few columns after others, ``(n_y, b)``, at the network's place.

        For what is too large to be kept, such as predictions that are written to a file.

        Parameters
        ----------
        X : (n_x, m) array
            Examples as columns, or ``(m, n_x)`` with ``examples="rows"``.
        examples : {"columns", "rows"}
            Which way the examples lie.

        Returns
        -------
        generator of (n_y, b) float arrays
            To be gone through to its end, or closed.

        Raises
        ------
        ShapeError, DataError
            As `predict`.

        Examples
        --------
        >>> import xpnet
        >>> X, Y = xpnet.datasets.flower()
        >>> net = xpnet.fit(X, Y, epochs=1, random_state=0)
        >>> sum(A.shape[1] for A in net.outputs(X))
        400
        """
        yield from self._outputs(self._source(X, examples))

    def score(self, X: Any, Y: Any, *, sample_weight: Any = None, examples: str = "columns") -> float:
        """Return the accuracy, R² (regression) or D² (counts) on these examples.

        Parameters
        ----------
        X : (n_x, m) array
            Examples as columns.
        Y : (m,), (1, m) or (n_y, m) array
            Labels of the kind trained on, or numbers.
        sample_weight : (m,) array, optional
            Weights of the examples.
        examples : {"columns", "rows"}
            Which way the examples lie.

        Returns
        -------
        float
            1 is perfect. Multilabel accuracy asks for every label of an example.

        Examples
        --------
        >>> import xpnet
        >>> X, Y = xpnet.datasets.flower()
        >>> net = xpnet.fit(X, Y, hidden=16, activation="tanh", optimizer="lbfgs", random_state=0)
        >>> net.score(X, Y) > 0.9
        True
        """
        source, Y = self._labelled(X, Y, examples)
        weight = targets.weights(sample_weight, None, Y, self.kind, source.n_examples)
        with closing(self._outputs(source)) as outputs:
            return targets.score(Y, map(devices.to_host, outputs), self.kind, weight)

    def cost(self, X: Any, Y: Any, *, sample_weight: Any = None, examples: str = "columns") -> float:
        """Return the mean cost over these examples, in nats, without the penalty.

        Parameters
        ----------
        X, Y, sample_weight, examples
            As `score` takes them.

        Returns
        -------
        float
            0 is perfect, but of counts, whose cost leaves out what holds Y alone.

        Examples
        --------
        >>> import xpnet
        >>> X, Y = xpnet.datasets.flower()
        >>> net = xpnet.fit(X, Y, hidden=16, activation="tanh", optimizer="lbfgs", random_state=0)
        >>> net.cost(X, Y) < 0.2
        True
        """
        source, Y = self._labelled(X, Y, examples)
        weight = targets.weights(sample_weight, None, Y, self.kind, source.n_examples)
        given = prepared(source, Y, self.kind, self.place, self.dtype, self.scaling, weight, most=data.WINDOW)
        with self._engine(source.n_examples) as run, self.place.active():
            total = float(run.cost(self.layers, given.kept(gathered=False).whole().pieces))
        if not math.isfinite(total):
            raise DataError(
                f"X and Y must be of about the size that the network was trained on; their cost is {total}, beyond "
                f"{self.dtype}. Scale them as they were then, or leave the largest out."
            )
        return total / source.n_examples

    def encode(self, X: Any, *, examples: str = "columns") -> Array:
        """Return X as the numbers that the network takes, ``(n_x, m)``, before it standardizes them.

        Of a table it is what an ONNX model or an exported file has to be given; they know no columns.

        Parameters
        ----------
        X : (m, n_columns) table
            With ``examples="rows"``; or an array, which is numbers already.
        examples : {"columns", "rows"}
            Which way the examples lie.

        Returns
        -------
        (n_x, m) array
            The rows are ``net.feature_names``.

        Raises
        ------
        ShapeError
            X has other columns than were trained on.
        DataError
            X is empty, or has values that the network has no treatment for.

        Examples
        --------
        >>> import xpnet
        >>> net = xpnet.fit([[0.0, 0.1, 0.9, 1.0]], [0, 0, 1, 1], epochs=1)
        >>> net.encode([[0.25, 0.5]]).tolist()
        [[0.25, 0.5]]
        """
        source = self._source(X, examples)
        return source.place.xp.matrix_transpose(source.read(0, source.n_examples))

    def to(self, device: str) -> "Network":
        """Return this network on another device.

        Parameters
        ----------
        device : str
            ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"auto"``.

        Returns
        -------
        Network

        Raises
        ------
        DeviceUnavailableError
            The device cannot be used here.

        Examples
        --------
        >>> import xpnet
        >>> X, Y = xpnet.datasets.flower()
        >>> xpnet.fit(X, Y, epochs=1).to("cpu").device
        'cpu'
        """
        place = devices.resolve(device)
        with place.active():
            layers = tuple(Layer(*(place.asarray(array) for array in layer)) for layer in self.layers)
        return replace(self, layers=layers, place=place)

    def save(self, path: Any) -> None:
        """Write the network to a safetensors file, whole or not at all.

        Parameters
        ----------
        path : str or path
            Usually ends in ``.safetensors``.

        Raises
        ------
        OSError
            The file cannot be written; one that was there before is untouched.

        Examples
        --------
        >>> net.save("net.safetensors")  # doctest: +SKIP
        """
        tensors = {name: devices.to_host(array) for name, array in named(self.layers).items()}
        tensors |= history_arrays(self.history)
        if self.scaling is not None:
            tensors["feature_mean"], tensors["feature_deviation"] = self.scaling
        classes = self.kind.classes
        files.write(
            path,
            tensors,
            {
                "task": self.task,
                "classes": None if classes is None else classes.tolist(),
                "classes_dtype": None if classes is None else _label_dtype(classes),
                "activation": self.activation.name,
                "feature_names": self.feature_names,
                "features": packed(self.features),
                "epochs_run": self.epochs_run,
                "best_epoch": self.best_epoch,
                "stop_reason": self.stop_reason,
                "random_state": self.random_state,
                "timing": dict(self.timing),
                "diagnosis": [astuple(finding) for finding in self.diagnosis],
                "trained_on": self.device,
            },
            kind="network",
        )

    def to_onnx(self, path: Any) -> None:
        """Write the network as an ONNX model, whole or not at all; see `xpnet.onnx.model`.

        The input is ``X (batch, n_x)``, examples as rows and not standardized; the output ``(batch, n_y)``. It knows no
        columns: of a table with `features`, X is ``net.encode(table, examples="rows").T``.

        Parameters
        ----------
        path : str or path
            Usually ends in ``.onnx``.

        Raises
        ------
        MissingPackageError
            The package onnx is not installed: ``pip install "xpnet[onnx]"``.
        ActivationError
            The activation is a user's own and does what ONNX cannot.
        OSError
            The file cannot be written; one that was there before is untouched.

        Examples
        --------
        >>> net.to_onnx("net.onnx")  # doctest: +SKIP
        """
        from xpnet import onnx

        _write(path, onnx.model(self))

    def export(self, path: Any) -> None:
        """Write the network as one Python file that predicts with NumPy alone; see `xpnet.export.source`.

        It takes numbers alone: of a table with `features`, those that ``net.encode(table, examples="rows")`` returns.

        Parameters
        ----------
        path : str or path
            Usually ends in ``.py``.

        Raises
        ------
        ActivationError
            The activation is a user's own, and its source cannot be read or needs more than NumPy and Python.
        ArgumentError
            The parameters are more than 64 MiB.
        OSError
            The file cannot be written; one that was there before is untouched.

        Examples
        --------
        >>> net.export("predict.py")  # doctest: +SKIP
        """
        from xpnet import export

        _write(path, export.source(self).encode())

    def plot(self, ax: Any = None) -> Any:
        """Draw the history: cost, validation cost, best epoch and learning rate; see `xpnet.plot.history`.

        Parameters
        ----------
        ax : Matplotlib's Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        Axes
            Of the costs.

        Raises
        ------
        MissingPackageError
            Matplotlib is not installed: ``pip install "xpnet[plot]"``.

        Examples
        --------
        >>> net.plot().figure.savefig("history.png")  # doctest: +SKIP
        """
        from xpnet import plot

        return plot.history(self, ax)

    def _repr_html_(self) -> str:
        """Return the table that notebooks show."""
        from xpnet import plot

        return plot.table(self)

    def explain(self, X: Any, Y: Any = None, *, examples: str = "columns", file: TextIO | None = None) -> None:
        """Print the equations with the shapes and values that these examples give.

        Parameters
        ----------
        X : (n_x, m) array
            A few examples, as columns.
        Y : (m,) or (n_y, m) array, optional
            With it, the backward equations too.
        examples : {"columns", "rows"}
            Which way the examples lie.
        file : text file, optional
            Where to print; standard output by default.

        Raises
        ------
        ArgumentError
            There are more than 100 examples.
        DataError
            X or Y cannot be used with this network.

        Examples
        --------
        >>> import xpnet
        >>> X, Y = xpnet.datasets.flower()
        >>> net = xpnet.fit(X, Y, hidden=(), epochs=1, random_state=0)
        >>> net.explain(X[:, :2])  # doctest: +ELLIPSIS
        X = A0  (2, 2)
            [[...]]
        (1) Z1 = W1 A0 + b1  (1, 2)
            [[...]]
        (2) A1 = sigmoid(Z1)  (1, 2)
            [[...]]
        """
        out = sys.stdout if file is None else file
        if Y is None:
            source, labels = self._source(X, examples), None
        else:
            source, labels = self._labelled(X, Y, examples)
        if source.n_examples > EXPLAINED:
            raise ArgumentError(
                f"explain is for a few examples, {EXPLAINED} at most; X has {source.n_examples}: pass X[:, :3]."
            )
        reader = data.Examples(source, self.place, self.dtype, self.scaling, None)
        with self._engine(source.n_examples), self.place.active():
            rows = reader.converted(0, source.n_examples)
            lines = self._explained(self.place.xp.matrix_transpose(rows), labels)
        print("\n".join(lines), file=out)

    def _explained(self, X: Array, labels: Any) -> list[str]:
        xp, head, L = self.place.xp, heads.HEADS[self.kind.head], len(self.layers)
        Z, A = equations.forward(self.layers, X, activation=self.activation, head=head, xp=xp)
        lines = [_shown("X = A0", X)]
        for l in range(1, L + 1):
            g = self.activation.name if l < L else head.name
            lines += [
                _shown(f"({2 * l - 1}) Z{l} = W{l} A{l - 1} + b{l}", Z[l - 1]),
                _shown(f"({2 * l}) A{l} = {g}(Z{l})", A[l]),
            ]
        if labels is None:
            return lines
        Y = self.place.asarray(targets.encode(labels, self.kind), dtype=self.dtype)
        gradients = equations.backward(self.layers, Z, A, Y, activation=self.activation, xp=xp)
        m, number = X.shape[1], 2 * L + 1
        # The gradient of b sums dZ over columns, so over one column it is that column of dZ: no second backward pass.
        alone = [
            equations.backward(
                self.layers,
                [part[:, i : i + 1] for part in Z],
                [part[:, i : i + 1] for part in A],
                Y[:, i : i + 1],
                activation=self.activation,
                xp=xp,
            )
            for i in range(m)
        ]
        lines.append(_shown("Y", Y))
        for l in range(L, 0, -1):
            dW, db = gradients[l - 1]
            dZ = xp.concat([column[l - 1].b for column in alone], axis=1)
            rule = f"A{L} − Y" if l == L else f"W{l + 1}ᵀ dZ{l + 1} ∘ g′(Z{l})"
            lines += [
                _shown(f"({number}) dZ{l} = {rule}", dZ),
                _shown(f"({number + 1}) dW{l} = (1/m) dZ{l} A{l - 1}ᵀ", dW / m),
                _shown(f"({number + 2}) db{l} = (1/m) Σ dZ{l}", db / m),
            ]
            number += 3
        return lines

    # The parts of the public methods ----------------------------------------------------------------------------------

    def _engine(self, columns: int, threads: int | None = None) -> Any:
        head = heads.HEADS[self.kind.head]
        return engine.running(self.place, self.sizes, self.activation, head, columns=columns, threads=threads)

    def _source(self, X: Any, examples: str) -> data.Source:
        source = data.source(X, examples=examples, features=self.features, names=self.feature_names)
        n_x = self.sizes[0]
        if source.n_features != n_x:
            these = f" ({frames.listed(list(map(repr, source.names)))})" if source.names else ""
            problem = f"X has {source.n_features} features{these} but the network was trained on {n_x}."
            if self.features is not None:
                raise ShapeError(f"{problem} They are made of a table's columns: pass the table, or net.encode(table).")
            other = 'examples="rows"' if examples == "columns" else 'examples="columns"'
            turned = f" Examples are {examples}: did you mean X.T or {other}?" if source.n_examples == n_x else ""
            raise ShapeError(problem + (turned or " Pass the features that it was trained on, in the same order."))
        return source

    def _labelled(self, X: Any, Y: Any, examples: str) -> tuple[data.Source, npt.NDArray[Any]]:
        source = self._source(X, examples)
        labels = targets.read(Y, examples=examples)
        data.check_orientation(source, labels.shape[-1], examples=examples)
        return source, labels

    def _output(self, X: Any, examples: str) -> tuple[Array, Place]:
        few = self._output_of_few(X, examples)
        if few is not None:
            return few, HOST
        source = self._source(X, examples)
        return self._output_of(source), source.place

    @cached_property
    def _few(self) -> tuple[np.dtype[Any] | None, int, heads.Head]:
        """The dtype of examples that need nothing but the equations, if there are such; n_x and the head."""
        dtype = np.dtype(self.dtype) if self.place.is_numpy and self.scaling is None else None
        return dtype, self.sizes[0], heads.HEADS[self.kind.head]

    def _output_of_few(self, X: Any, examples: str) -> Array | None:
        """Return A for a few examples of a NumPy array at once; the machinery for many costs 5 times the equations.

        None stands for everything else, and for whatever is to be refused.
        """
        dtype, n_x, head = self._few
        if dtype is None or type(X) is not np.ndarray or X.ndim != 2 or examples not in ("columns", "rows"):
            return None
        X = X if examples == "columns" else X.T
        if X.shape[0] != n_x or not 0 < X.shape[1] <= FEW or X.dtype.kind != "f":
            return None
        with np.errstate(all="ignore"):
            given = X.astype(dtype, copy=False)
            if not math.isfinite(np.add.reduce(given, axis=None)):
                return None
            A = equations.forward(self.layers, given, activation=self.activation, head=head, xp=np)[1][-1]
            return A if math.isfinite(A.item() if A.size == 1 else np.add.reduce(A, axis=None)) else None

    def _output_of(self, source: data.Source, threads: int | None = None) -> Array:
        """Return A of the last layer, ``(n_y, m)``, at the network's place."""
        with closing(self._outputs(source, threads)) as outputs:
            if self.place.is_numpy:
                return _filled(outputs, source.n_examples)
            found = list(outputs)
            return found[0] if len(found) == 1 else self.place.xp.concat(found, axis=-1)

    def _outputs(self, source: data.Source, threads: int | None = None) -> Generator[Array, None, None]:
        """Yield A of the last layer, ``(n_y, b)`` at the network's place, `PREDICTED` numbers at a time.

        A file's next examples are read while these are computed with. Close it, for the threads of BLAS.
        """
        reader = data.Examples(source, self.place, self.dtype, self.scaling, Y=None)
        m = source.n_examples
        step = min(m, max(1, PREDICTED // max(self.sizes)))
        bounds = [(start, min(start + step, m)) for start in range(0, m, step)]
        blocks: Iterable[Array] = starmap(reader.converted, bounds)
        if not source.in_memory and self.place.is_numpy:
            buffers = cycle([reader.empty(step, together=False) for _ in bounds[:2]])
            blocks = data.ahead((reader.fill(next(buffers), *block)[: block[1] - block[0]] for block in bounds), 1)
        with self._engine(step, threads) as run, self.place.active():
            for rows, (start, _) in zip(blocks, bounds, strict=True):
                A = run.output(self.layers, self.place.xp.matrix_transpose(rows))
                self._check_output(A, start)
                yield A

    def _check_output(self, A: Array, start: int) -> None:
        """Check that the output from an example on is of finite numbers, which finite X may lead out of."""
        if bool(self.place.xp.all(self.place.xp.isfinite(A))):
            return
        host = devices.to_host(A)
        row, example = (int(i) for i in np.argwhere(~np.isfinite(host))[0])
        raise DataError(
            f"X must be of about the size that the network was trained on; its output for example {start + example} is "
            f"{host[row, example]}, beyond {self.dtype}. Scale X as it was then, or leave such examples out."
        )


def _write(path: Any, content: bytes) -> None:
    """Write a file whole or not at all."""
    target = file_path("path", path)
    if files._is_special(target):  # which would be replaced like a file
        raise ArgumentError(f"path must name a file; {target!r} is a pipe, a socket or a device. Pass another.")
    with files.replacing(target) as temporary, open(temporary, "xb") as file:
        file.write(content)


def _shown(name: str, array: Array) -> str:
    """Return an equation's line with the shape and values of its left side, at most six rows and columns of it."""
    host = devices.to_host(array)
    values = np.array2string(host, precision=4, suppress_small=True, threshold=36, edgeitems=3, max_line_width=100)
    return f"{name}  {host.shape}\n    " + values.replace("\n", "\n    ")


_HISTORY = "history."


def history_arrays(history: Mapping[str, Sequence[float]]) -> dict[str, npt.NDArray[np.float64]]:
    """Return a history as a file keeps it: in arrays, for a million epochs in JSON would outgrow the header."""
    return {_HISTORY + key: np.asarray(values, dtype=np.float64) for key, values in history.items()}


def take_history(tensors: dict[str, npt.NDArray[Any]]) -> dict[str, list[float]]:
    """Take the history out of a file's arrays; ValueError when it is none."""
    found = {key: tensors.pop(key) for key in sorted(tensors) if key.startswith(_HISTORY)}
    for key, values in found.items():
        if values.ndim != 1 or values.dtype != np.float64 or not np.isfinite(values).all():
            raise ValueError(f"a {key} of shape {values.shape} and dtype {values.dtype}, or not finite")
    history = {key.removeprefix(_HISTORY): values.tolist() for key, values in found.items()}
    lengths = {key: len(values) for key, values in history.items()}
    epochs = lengths.get("cost", 0)
    validated = lengths.get("validation_cost", 0)
    whole_one = {"cost": epochs, "learning_rate": epochs, "seconds": epochs, "validation_cost": validated}
    if lengths and (lengths != whole_one or validated not in (0, epochs)):
        raise ValueError(f"histories of {lengths} epochs")
    return history


def named(layers: Sequence[Layer]) -> dict[str, Array]:
    """Return the parameters by name: ``W1``, ``b1``, ``W2`` and so on."""
    return {f"{key}{l}": array for l, layer in enumerate(layers, 1) for key, array in layer._asdict().items()}


def _filled(parts: Iterator[npt.NDArray[Any]], m: int) -> npt.NDArray[Any]:
    """Return parts joined along their last axis, m long in all; no more than one of them is there besides."""
    first = next(parts)
    if first.shape[-1] == m:
        return first
    whole, done = np.empty((*first.shape[:-1], m), first.dtype), 0
    for part in chain([first], parts):
        whole[..., done : done + part.shape[-1]] = part
        done += part.shape[-1]
    return whole


def prepared(
    source: data.Source,
    Y: npt.NDArray[Any] | Picked,
    kind: Task,
    place: Place,
    dtype: str,
    scaling: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None,
    weight: npt.NDArray[np.float64] | None,
    *,
    most: int = data.PERMUTED,
    name: str = "Y",
    whole: tuple[float, float] | None = None,
) -> data.Examples:
    """Return X, the encoded Y and the weights, ready at `place`.

    For `most` see `Examples`; weights are scaled by `targets.relative`, to which `whole` goes.
    """
    later, m = place.is_numpy and not source.in_memory and source.size > most, Y.shape[-1]
    step = targets.COLUMNS if later else max(1, m)
    for start in range(0, max(1, m), step):  # also where a machine of several has no example
        encoded = np.ascontiguousarray(targets.encode(Y[..., start : start + step], kind, name=name).T)
        _check_range(encoded, start, dtype, name, flat=Y.ndim == 1)
    factors = None if weight is None else targets.relative(weight, whole)[:, None]
    with place.active():
        return data.Examples(
            source,
            place,
            dtype,
            scaling,
            data.Encoded(Y, kind, dtype) if later else place.asarray(encoded, dtype=dtype),
            None if factors is None else place.asarray(factors, dtype=dtype),
            most=most,
        )


def _check_range(encoded: npt.NDArray[np.float64], start: int, dtype: str, name: str, *, flat: bool) -> None:
    """Check that the rows of Y of the examples from `start` on fit in `dtype`."""
    beyond = np.abs(encoded) > np.finfo(dtype).max
    if beyond.any():
        example, row = (int(i) for i in np.argwhere(beyond)[0])
        raise DataError(
            f"{name} must fit in {dtype}; {name}[{start + example if flat else f'{row}, {start + example}'}] is "
            f'{encoded[example, row]:g}, beyond its range. Scale it, or pass dtype="float64".'
        )


def load(path: str | Path, *, device: str = "cpu", activation: Activation | None = None) -> Network:
    """Read a network that `Network.save` wrote. Nothing in the file is executed.

    Parameters
    ----------
    path : str or path
        The file.
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"auto"``.
    activation : Activation, optional
        The pair that the network was trained with, when it was the user's own: a file keeps its name only.

    Returns
    -------
    Network

    Raises
    ------
    FileFormatError
        The file is damaged, is not xpnet's, or was written by a later version.
    ArgumentError
        The network needs `activation`, or was trained with another.
    DeviceUnavailableError
        The device cannot be used here.

    Examples
    --------
    >>> import os, tempfile, xpnet
    >>> X, Y = xpnet.datasets.flower()
    >>> net = xpnet.fit(X, Y, epochs=5, random_state=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     net.save(os.path.join(folder, "net.safetensors"))
    ...     loaded = xpnet.load(os.path.join(folder, "net.safetensors"))
    >>> bool((loaded.predict_proba(X) == net.predict_proba(X)).all())
    True
    """
    place, path = devices.resolve(device), file_path("path", path)
    tensors, metadata = files.read(path, kind="network")
    name = metadata.get("activation")
    if not isinstance(name, str):
        raise FileFormatError(
            f"{path} is not a whole xpnet network (its activation is {name!r:.80}). Save it again, or take a copy."
        )
    chosen = _activation_of(name, activation)
    try:
        net = _from_file(tensors, metadata, chosen)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError) as error:
        raise FileFormatError(
            f"{path} is not a whole xpnet network ({type(error).__name__}: {error!s:.200}). Save it again, or take a "
            "copy."
        ) from error
    return net if place == HOST else net.to(place.name)


def _activation_of(name: str, given: Activation | None) -> Activation:
    if given is not None and not isinstance(given, Activation):
        raise ArgumentError(f"activation must be an xpnet.Activation(g, dg); it is {given!r}.")
    if name in activations.ACTIVATIONS and given is None:
        return activations.ACTIVATIONS[name]
    if given is None:
        raise ArgumentError(
            f"This network's activation, {name!r:.80}, is not one of xpnet's and a file keeps no code. "
            "Pass load(path, activation=xpnet.Activation(g, dg))."
        )
    if given.name != name:
        raise ArgumentError(
            f"This network was trained with the activation {name!r:.80}; the one passed is {given.name!r}."
        )
    return activations.resolve(given)


def _from_file(tensors: dict[str, npt.NDArray[Any]], metadata: dict[str, Any], activation: Activation) -> Network:
    history, scaling = take_history(tensors), None
    if "feature_mean" in tensors:
        scaling = tensors.pop("feature_mean"), tensors.pop("feature_deviation")
    depth = len(tensors) // 2
    layers = tuple(Layer(tensors[f"W{l}"], tensors[f"b{l}"]) for l in range(1, depth + 1))
    _check_layers(layers, len(tensors), scaling)
    task = choice("task", metadata["task"], tuple(heads.TASK_HEADS))
    classes = _classes_from(metadata["classes"], metadata["classes_dtype"], task)
    kind = Task(task, classes, int(layers[-1].W.shape[0]))
    if kind.classes is not None and kind.n_outputs != (1 if task == "binary" else kind.classes.size):
        raise ValueError(f"{kind.classes.size} classes for {kind.n_outputs} outputs")
    names = metadata["feature_names"]
    if names is not None and not (
        isinstance(names, list) and len(names) == layers[0].W.shape[1] and all(isinstance(name, str) for name in names)
    ):
        raise ValueError("feature names that do not fit the weights")
    treatment = unpacked(metadata.get("features"))  # which earlier versions had not
    if treatment is not None and list(treatment.names) != names:
        raise ValueError("features that do not fit their names")
    if not isinstance(metadata["stop_reason"], str):
        raise ValueError("stop_reason that is not a word")
    best = metadata["best_epoch"]
    return Network(
        layers=layers,
        activation=activation,
        kind=kind,
        feature_names=None if names is None else tuple(names),
        features=treatment,
        scaling=scaling,
        history=history,
        epochs_run=whole("epochs_run", metadata["epochs_run"], low=0),
        best_epoch=None if best is None else whole("best_epoch", best, low=0),
        stop_reason=metadata["stop_reason"],
        random_state=whole("random_state", metadata["random_state"], low=0),
        timing={key: real(key, value) for key, value in metadata["timing"].items()},
        diagnosis=_diagnosis_from(metadata.get("diagnosis", [])),  # which files had not at first
    )


def _diagnosis_from(values: Any) -> Diagnosis:
    if not isinstance(values, list) or not all(isinstance(text, str) for value in values for text in value):
        raise ValueError("a diagnosis that is no list of texts")
    return Diagnosis(Finding(*value) for value in values)


def _check_layers(layers: Sequence[Layer], n_tensors: int, scaling: Any) -> None:
    if not layers or n_tensors != 2 * len(layers):
        raise ValueError(f"{n_tensors} parameter arrays")
    dtypes = {array.dtype.name for layer in layers for array in layer}
    if len(dtypes) != 1 or not dtypes <= {"float32", "float64"}:
        raise ValueError(f"parameters of dtype {', '.join(sorted(dtypes))}")
    for W, b in layers:
        if W.ndim != 2 or 0 in W.shape or b.shape != (W.shape[0], 1):
            raise ValueError(f"W {W.shape} with b {b.shape}")
    for before, after in pairwise(layers):
        if after.W.shape[1] != before.W.shape[0]:
            raise ValueError(f"W {after.W.shape} after W {before.W.shape}")
    if not all(np.isfinite(array).all() for layer in layers for array in layer):
        raise ValueError("parameters that are not finite")
    if scaling is not None:
        mean, deviation = scaling
        if mean.shape != (layers[0].W.shape[1],) or deviation.shape != mean.shape:
            raise ValueError(f"scaling of shape {mean.shape}")
        if mean.dtype != np.float64 or deviation.dtype != np.float64:
            raise ValueError(f"scaling of dtype {mean.dtype} and {deviation.dtype}")
        if not (np.isfinite(mean).all() and np.isfinite(deviation).all() and (deviation > 0).all()):
            raise ValueError("scaling that is not finite and positive")


_LABEL_DTYPES = (
    *("str", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)


def _label_dtype(classes: npt.NDArray[Any]) -> str:
    """Return ``"str"``, whatever the words' length, ``"bool"``, ``"int64"`` and so on."""
    return "str" if classes.dtype.kind == "U" else classes.dtype.name


def _classes_from(values: Any, dtype: Any, task: str) -> npt.NDArray[Any] | None:
    if task in ("regression", "count"):
        if values is not None or dtype is not None:
            raise ValueError("classes for a task that has none")
        return None
    if not isinstance(values, list):
        raise ValueError("classes that are no list")
    kinds = {type(value) for value in values}
    if len(kinds) != 1 or not kinds <= {str, int, bool, float}:
        raise ValueError("classes of no single kind")
    if kinds == {float} and not all(math.isfinite(value) for value in values):
        raise ValueError("classes that are not finite")
    if dtype not in _LABEL_DTYPES:  # by name: NumPy makes a dtype of a gigabyte an item out of six letters
        raise ValueError(f"classes of dtype {dtype!r:.40}")
    with np.errstate(all="ignore"):
        classes = np.asarray(values, dtype=dtype)
    if classes.tolist() != values:
        raise ValueError(f"classes that are not of dtype {dtype}")
    if classes.size > 1 and not (classes[:-1] < classes[1:]).all():
        raise ValueError("classes out of order")
    if task == "binary" and classes.size != 2:
        raise ValueError(f"{classes.size} classes for a binary task")
    return classes
