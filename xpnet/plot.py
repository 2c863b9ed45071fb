"""Pictures of a trained network, with Matplotlib; and the table that notebooks show, without it.

Each function draws into the ``ax`` that it is given and returns it, or makes a figure through `matplotlib.pyplot` when
it is given none. Nothing is shown, saved or closed: that is the caller's. Colors are those of [1]_, which color-blind
readers tell apart, and each has a line style, a marker or a hatch beside it.

References
----------
.. [1] M. Okabe, K. Ito, Color universal design, 2008: https://jfly.uni-koeln.de/color/
"""

import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xpnet import data, equations, heads, parameters, targets
from xpnet import device as devices
from xpnet.device import HOST
from xpnet.diagnosis import STUCK, flatness, steepest
from xpnet.errors import ArgumentError, MissingPackageError, ShapeError
from xpnet.network import Network, prepared

__all__ = ["confusion", "decision_boundary", "gradient_flow", "history", "table"]

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW, BLACK = "#E69F00", "#56B4E9", "#F0E442", "#000000"

COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, YELLOW, BLACK)
MARKERS = "os^DvP*X<>p"
"""Their numbers have no common factor: 88 classes have a pair of their own each."""

POINTS = 1_000
"""The most examples that are drawn; more, taken evenly, would hide what is under them."""

LEGEND = 20
"""The most classes in a legend."""

STEPS = 300
"""Points of a decision boundary's grid along each axis."""

WRITTEN = 20
"""The most classes for which each cell of a confusion matrix has its numbers written in it."""

NAMED = 40
"""The most classes whose names stand at a confusion matrix."""

TRACED = 2**22
"""Numbers of the widest layer whose gradients are computed at a time."""

SPARK = 120
"""The most epochs that a sparkline has points for."""


# The history ----------------------------------------------------------------------------------------------------------


def history(net: Network, ax: Any = None) -> Any:
    """Draw the cost and the validation cost of every epoch, the best epoch, and the learning rate.

    Costs that are all above 0 and span a factor of 10 or more have a logarithmic axis. A learning rate that changes
    has an axis of its own on the right; one that does not is said in the legend.

    Parameters
    ----------
    net : Network
        One with a history.
    ax : Matplotlib's Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Axes
        Of the costs: in nats per example, of regression half the square of Y's unit.

    Raises
    ------
    ArgumentError
        The network has no history, or `ax` is no Axes.
    MissingPackageError
        Matplotlib is not installed.

    Examples
    --------
    >>> import xpnet.plot
    >>> X, Y = xpnet.datasets.flower(40)
    >>> net = xpnet.fit(X, Y, hidden=3, epochs=5, random_state=0)
    >>> ax = xpnet.plot.history(net)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('epoch', 'mean cost (nats per example)')
    """
    found = net.history
    if not found.get("cost"):
        raise ArgumentError(f"{net!r} has no history to draw. Draw one that xpnet.fit returned.")
    ax = _axes(ax)
    epochs = np.arange(len(found["cost"]))
    marker = "." if epochs.size == 1 else ""
    ax.plot(epochs, found["cost"], color=BLUE, marker=marker, label="cost")
    monitored = found["cost"]
    if found.get("validation_cost"):
        monitored = found["validation_cost"]
        ax.plot(epochs, monitored, color=VERMILLION, linestyle="--", marker=marker, label="validation cost")
    if net.best_epoch is not None and net.best_epoch < epochs.size:
        label = f"best epoch, {net.best_epoch}"
        at = (net.best_epoch, monitored[net.best_epoch])
        ax.plot(*at, color=BLACK, linestyle="", marker="D", markerfacecolor="white", label=label, zorder=3)
    if _is_wide([*found["cost"], *found.get("validation_cost", ())]):
        ax.set_yscale("log")
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"mean cost ({_unit(net)})")
    ax.xaxis.get_major_locator().set_params(integer=True)
    rate = _draw_learning_rate(found.get("learning_rate", []), ax)
    _legend_above(ax, [*ax.get_lines(), *([] if rate is None else rate.get_lines())])
    return ax


def _draw_learning_rate(rates: Sequence[float], ax: Any) -> Any:
    """Draw a learning rate that changes, and return its axes; write down one that does not."""
    if len(set(rates)) < 2:
        if rates:
            ax.plot([], [], linestyle="", label=f"learning rate {rates[0]:g}")
        return None
    right = ax.twinx()
    right.plot(np.arange(len(rates)), rates, color=GREEN, linestyle=":", label="learning rate")
    right.set_ylabel("learning rate")
    if _is_wide(rates):
        right.set_yscale("log")
    return right


def _is_wide(values: Sequence[float]) -> bool:
    """Return whether numbers span so much that a logarithmic axis shows them better."""
    return min(values) > 0.0 and max(values) >= 10.0 * min(values)


def _unit(net: Network) -> str:
    return "half the squared error" if net.task == "regression" else "nats per example"


# Predictions ----------------------------------------------------------------------------------------------------------


def decision_boundary(net: Network, X: Any, y: Any, ax: Any = None, *, examples: str = "columns") -> Any:
    """Draw what a network of two features predicts everywhere, and examples over it.

    Of two classes, the probability of the second with a line where it is ½; of more, the regions of the likeliest
    class; of one number, its value.

    Parameters
    ----------
    net : Network
        Of two features.
    X : (2, m) array
        Examples as columns; at most 1,000, taken evenly, are drawn.
    y : (m,) array
        Their labels or numbers.
    ax : Matplotlib's Axes, optional
        Where to draw; a new figure by default.
    examples : {"columns", "rows"}
        Which way the examples lie.

    Returns
    -------
    Axes

    Raises
    ------
    ShapeError
        The network has not two features, or X and y do not fit it.
    ArgumentError
        It has several outputs that are no classes, or `ax` is no Axes.
    MissingPackageError
        Matplotlib is not installed.

    Examples
    --------
    >>> import xpnet.plot
    >>> X, Y = xpnet.datasets.flower(40)
    >>> net = xpnet.fit(X, Y, hidden=3, epochs=5, random_state=0)
    >>> ax = xpnet.plot.decision_boundary(net, X, Y)
    >>> ax.get_xlabel(), [text.get_text() for text in ax.get_legend().get_texts()]
    ('feature 0', ['0', '1'])
    """
    if net.sizes[0] != 2:
        raise ShapeError(
            f"decision_boundary draws a network of 2 features; this one has {net.sizes[0]}. Train one on two of them, "
            "or see plot.confusion and net.plot."
        )
    if net.task == "multilabel" or (net.kind.classes is None and net.sizes[-1] > 1):
        raise ArgumentError(
            f"decision_boundary draws one output; this {net.task} network has {net.sizes[-1]}. Train one on a row of Y."
        )
    source, labels = net._labelled(X, y, examples)
    taken = np.unique(np.linspace(0, source.n_examples - 1, POINTS).astype(np.int64))
    rows = devices.to_host(data.Examples(source.subset(taken), HOST, "float64", None, None).converted(0, taken.size))
    labels = labels[..., taken] if labels.ndim == 1 else labels[:, taken]
    ax = _axes(ax)
    first, second, A = _over_grid(net, rows)
    drawn = {"binary": _draw_probability, "multiclass": _draw_regions}.get(net.task, _draw_surface)
    drawn(net, (first, second, A), rows, labels, ax)
    names = net.feature_names or ("feature 0", "feature 1")
    ax.set_xlabel(_short(names[0], 40))
    ax.set_ylabel(_short(names[1], 40))
    ax.set_xlim(first[0], first[-1])
    ax.set_ylim(second[0], second[-1])
    return ax


def _over_grid(net: Network, rows: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """Return a grid's coordinates, a twentieth beyond the examples on each side, and the output there."""
    low, high = rows.min(axis=0), rows.max(axis=0)
    room = np.where(high > low, 0.05 * (high - low), 1.0)
    first, second = np.linspace(low - room, high + room, STEPS).T
    grid = np.stack([part.ravel() for part in np.meshgrid(first, second)])
    A = devices.to_host(net.predict_proba(grid)).astype(np.float64)
    return first, second, A.reshape(-1, STEPS, STEPS)


_Surface = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]


def _draw_probability(
    net: Network, surface: _Surface, rows: npt.NDArray[Any], labels: npt.NDArray[Any], ax: Any
) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    first, second, A = surface
    colors = LinearSegmentedColormap.from_list(
        "probability", ["#79B4D6", "#F7F7F7", "#EDA267"]
    )  # light blue, vermillion
    filled = ax.contourf(first, second, A[0], levels=np.linspace(0.0, 1.0, 11), cmap=colors)
    if A.min() < 0.5 < A.max():
        ax.contour(first, second, A[0], levels=[0.5], colors=BLACK, linewidths=1.5)
    assert net.kind.classes is not None
    ax.figure.colorbar(filled, ax=ax, label=f"probability of {_short(net.kind.classes[1])}")
    _draw_classes(net, rows, labels, ax)


def _draw_regions(net: Network, surface: _Surface, rows: npt.NDArray[Any], labels: npt.NDArray[Any], ax: Any) -> None:
    from matplotlib.colors import ListedColormap

    first, second, A = surface
    likeliest = np.argmax(A, axis=0)
    colors = ListedColormap([COLORS[i % len(COLORS)] for i in range(len(A))])
    ax.pcolormesh(first, second, likeliest, cmap=colors, vmin=-0.5, vmax=len(A) - 0.5, alpha=0.35, rasterized=True)
    for i in range(len(A)):
        if (likeliest == i).any() and not (likeliest == i).all():
            ax.contour(first, second, likeliest == i, levels=[0.5], colors=BLACK, linewidths=1.0)
    _draw_classes(net, rows, labels, ax)


def _draw_classes(net: Network, rows: npt.NDArray[Any], labels: npt.NDArray[Any], ax: Any) -> None:
    classes = net.kind.classes
    assert classes is not None
    numbers = targets._members(labels, net.kind)
    for i, label in enumerate(classes):
        of_class, color, marker = rows[numbers == i], COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        ax.scatter(
            *of_class.T, color=color, marker=marker, label=_short(label), edgecolors="black", **_points(len(rows))
        )
    handles = ax.get_legend_handles_labels()[0][:LEGEND]
    if len(classes) <= 6:
        _legend_above(ax, handles, title="true class")
    else:
        ax.legend(handles=handles, title="true class", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _points(count: int) -> dict[str, Any]:
    """Return the look of so many points: the more, the smaller."""
    return {"s": 24.0 * min(1.0, max(0.5, 500.0 / count)), "linewidths": 0.5}


def _draw_surface(net: Network, surface: _Surface, rows: npt.NDArray[Any], labels: npt.NDArray[Any], ax: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    first, second, A = surface
    numbers = targets.encode(labels, net.kind)[0]
    levels = MaxNLocator(15).tick_values(min(A.min(), numbers.min()), max(A.max(), numbers.max()))
    filled = ax.contourf(first, second, A[0], levels=levels, cmap="cividis")
    ax.scatter(
        *rows.T, c=numbers, cmap="cividis", vmin=levels[0], vmax=levels[-1], edgecolors="white", **_points(len(rows))
    )
    what = "count" if net.task == "count" else "number"
    ax.figure.colorbar(filled, ax=ax, label=f"{what}: predicted (surface) and true (points)")


def confusion(net: Network, X: Any, y: Any, ax: Any = None, *, examples: str = "columns") -> Any:
    """Draw how many examples of each true class are predicted to be of each class.

    Rows are true classes and columns predicted ones; a cell's color is its share of the true class.

    Parameters
    ----------
    net : Network
        Binary or multiclass.
    X : (n_x, m) array
        Examples as columns.
    y : (m,) array
        Their labels.
    ax : Matplotlib's Axes, optional
        Where to draw; a new figure by default.
    examples : {"columns", "rows"}
        Which way the examples lie.

    Returns
    -------
    Axes

    Raises
    ------
    ArgumentError
        The network tells no classes apart, or `ax` is no Axes.
    DataError
        X or y cannot be used with it.
    MissingPackageError
        Matplotlib is not installed.

    Examples
    --------
    >>> import xpnet.plot
    >>> X, Y = xpnet.datasets.flower(40)
    >>> net = xpnet.fit(X, Y, hidden=3, epochs=5, random_state=0)
    >>> ax = xpnet.plot.confusion(net, X, Y)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('predicted class', 'true class')
    """
    classes = net.kind.classes
    if classes is None or net.task == "multilabel":
        raise ArgumentError(
            f"confusion needs a binary or multiclass network; this one is {net.task}. "
            f"{'Draw' if classes is None else 'Train and draw'} "
            f"{'net.plot() instead' if classes is None else 'one label at a time'}."
        )
    _, labels = net._labelled(X, y, examples)
    true = targets._members(labels, net.kind)
    A = devices.to_host(net.predict_proba(X, examples=examples))
    predicted = targets.indices(targets.decode(A, net.kind), classes)
    counts = np.zeros((classes.size, classes.size), dtype=np.int64)
    np.add.at(counts, (true, predicted), 1)
    ax = _axes(ax)
    shares = 100.0 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = ax.imshow(shares, cmap="Blues", vmin=0.0, vmax=100.0, aspect="equal")
    ax.figure.colorbar(image, ax=ax, label="share of the true class's examples (%)")
    if classes.size <= WRITTEN:
        _write_cells(counts, shares, ax)
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    if classes.size <= NAMED:
        names = [_short(label) for label in classes]
        turned = max(map(len, names)) * classes.size > 40
        ax.set_xticks(range(classes.size), names, rotation=45 * turned, ha="right" if turned else "center")
        ax.set_yticks(range(classes.size), names)
    else:
        ax.set_xlabel("predicted class, by its number in net.classes")
        ax.set_ylabel("true class, by its number in net.classes")
    return ax


def _write_cells(counts: npt.NDArray[Any], shares: npt.NDArray[Any], ax: Any) -> None:
    few = len(counts) <= 5
    size = 10.0 if few else 8.0 if len(counts) <= 10 else 6.0
    for (row, column), count in np.ndenumerate(counts):
        if not few and count == 0:
            continue  # a hundred zeros hide the rest
        share = f"\n{shares[row, column]:.0f}%" if few else ""
        color = "white" if shares[row, column] > 55.0 else "black"
        ax.text(column, row, f"{count:,}{share}", ha="center", va="center", color=color, fontsize=size)


# Gradients ------------------------------------------------------------------------------------------------------------


class _Flow(NamedTuple):
    """What a layer passes on.

    Attributes
    ----------
    flat, dead : (n[l],) float arrays
        Of each hidden unit, the share of the examples for which its slope is below `FLAT` and `DEAD`.
    gradient : float
        The root mean square of the entries of dW, in nats per unit of weight.
    """

    flat: npt.NDArray[np.float64]
    dead: npt.NDArray[np.float64]
    gradient: float


def gradient_flow(net: Network, X: Any, Y: Any, ax: Any = None, *, examples: str = "columns") -> Any:
    """Draw, layer by layer, which hidden units pass gradients on, and how large the gradient is.

    A unit is *dead* when its slope g′(Z) is 0 for all examples, or below a millionth of the activation's steepest: none
    can change its weights. It is *saturated* when the slope is below a hundredth for 95% of the examples or more. The
    gradient is that of the mean cost, without the penalty.

    Parameters
    ----------
    net : Network
        With a hidden layer or more.
    X : (n_x, m) array
        Examples as columns.
    Y : (m,) or (n_y, m) array
        Labels or numbers of the kind trained on.
    ax : Matplotlib's Axes, optional
        Where to draw; a new figure by default.
    examples : {"columns", "rows"}
        Which way the examples lie.

    Returns
    -------
    Axes
        Of the units, in percent; the gradient's is on its right, logarithmic, in nats per unit of weight.

    Raises
    ------
    ArgumentError
        The network has no hidden layer, or `ax` is no Axes.
    DataError
        X or Y cannot be used with it.
    MissingPackageError
        Matplotlib is not installed.

    Examples
    --------
    >>> import xpnet.plot
    >>> X, Y = xpnet.datasets.flower(40)
    >>> net = xpnet.fit(X, Y, hidden=(4, 3), epochs=5, random_state=0)
    >>> ax = xpnet.plot.gradient_flow(net, X, Y)
    >>> [tick.get_text().splitlines() for tick in ax.get_xticklabels()]
    [['layer 1', '4 units'], ['layer 2', '3 units'], ['layer 3', 'output']]
    """
    if len(net.layers) == 1:
        raise ArgumentError("gradient_flow draws hidden layers; this network has none. Draw net.plot() instead.")
    flows = _flows(net, X, Y, examples)
    ax = _axes(ax)
    kinds: dict[str, tuple[str, str, list[float]]] = {
        "pass gradients on": (SKY, "", []),
        f"saturated: flat for {STUCK:.0%} of examples or more": (ORANGE, "//", []),
        "dead: pass nothing on": ("#555555", "xx", []),
    }
    for flow in flows[:-1]:
        dead = float(np.mean(flow.dead == 1.0))
        stuck = float(np.mean(flow.flat >= STUCK))
        for (_, _, parts), part in zip(kinds.values(), (1.0 - stuck, stuck - dead, dead), strict=True):
            parts.append(part)
    layers, bottom = np.arange(1, len(flows) + 1), np.zeros(len(flows) - 1)
    for label, (color, hatch, parts) in kinds.items():
        heights = 100.0 * np.asarray(parts)
        ax.bar(layers[:-1], heights, 0.6, bottom=bottom, color=color, hatch=hatch, edgecolor="white", label=label)
        bottom += heights
    units = [f"{size:,} units" if size > 1 else "1 unit" for size in net.sizes[1:-1]]
    ax.set_xticks(layers, [f"layer {l}\n{text}" for l, text in zip(layers, [*units, "output"], strict=True)])
    ax.set_xlim(0.5, len(flows) + 0.5)
    ax.set_ylim(0.0, 100.0)
    ax.set_ylabel("hidden units (%)")
    right = _draw_gradients(layers, [flow.gradient for flow in flows], ax)
    _legend_above(ax, [*ax.containers, *right.get_lines()])
    return ax


def _draw_gradients(layers: npt.NDArray[Any], sizes: Sequence[float], ax: Any) -> Any:
    """Draw the sizes of gradients on an axis of their own, and return its axes."""
    from matplotlib.ticker import NullFormatter

    right, above = ax.twinx(), [size for size in sizes if size > 0.0]
    if not above:
        right.set_yticks([])
        right.set_ylabel("gradient: 0 in every layer")
        return right
    label = "gradient" if len(above) == len(sizes) else "gradient, where it is not 0"
    shown = [size if size > 0.0 else math.nan for size in sizes]
    right.plot(layers, shown, color=BLACK, marker="D", markeredgecolor="white", label=label)
    right.set_yscale("log")
    # Whole powers of ten, two at least: an axis within one would have no numbers.
    low, high = math.floor(math.log10(min(above))), math.ceil(math.log10(max(above)))
    right.set_ylim(10.0**low, 10.0 ** max(high, low + 1))
    right.yaxis.set_minor_formatter(NullFormatter())
    right.set_ylabel("gradient: RMS of dW (nats per unit of weight)")
    return right


def _flows(net: Network, X: Any, Y: Any, examples: str) -> list[_Flow]:
    """Return what each layer passes on, on the host: sums over columns, a block at a time."""
    net = net.to("cpu")
    source, labels = net._labelled(X, Y, examples)
    given = prepared(source, labels, net.kind, HOST, net.dtype, net.scaling, None)
    head, steep = heads.HEADS[net.kind.head], steepest(net.activation)
    flat, dead = ([np.zeros(size) for size in net.sizes[1:-1]] for _ in range(2))
    total = np.zeros(parameters.count(net.sizes))
    step = max(1, TRACED // max(net.sizes))
    with np.errstate(all="ignore"):
        for piece in given.whole().pieces:
            for start in range(0, piece.columns, step):
                X_block, Y_block, _ = piece.cut(slice(start, start + step)).taken(HOST)
                Z, A = equations.forward(net.layers, X_block, activation=net.activation, head=head, xp=np)
                gradients = equations.backward(net.layers, Z, A, Y_block, activation=net.activation, xp=np)
                total += parameters.flatten(gradients, xp=np)
                for l in range(len(flat)):
                    for counts, more in zip(
                        (flat, dead), flatness(net.activation, Z[l], A[l + 1], steep=steep), strict=True
                    ):
                        counts[l] += more
    m = source.n_examples
    means = parameters.unflatten(total / m, net.sizes, xp=np)
    sizes = [float(np.sqrt(np.mean(dW * dW))) for dW, _ in means]
    hidden = [_Flow(flat[l] / m, dead[l] / m, sizes[l]) for l in range(len(flat))]
    return [*hidden, _Flow(np.zeros(0), np.zeros(0), sizes[-1])]


# Matplotlib -----------------------------------------------------------------------------------------------------------


def _axes(ax: Any) -> Any:
    """Return the axes to draw into: those given, or a new figure's."""
    if ax is None:
        return _pyplot().subplots(layout="constrained")[1]
    if not hasattr(ax, "get_xlabel") or not hasattr(ax, "twinx"):
        raise ArgumentError(
            f"ax must be Matplotlib's Axes; it is of type {type(ax).__name__}. Pass one of those that "
            "plt.subplots() returns, or nothing."
        )
    return ax


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise _missing(error) from error
    return plt


def _figure() -> Any:
    """Return a new figure for a file, which no window shows and pyplot does not know."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise _missing(error) from error
    return Figure(layout="constrained")


def _missing(error: ImportError) -> MissingPackageError:
    problem = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
    return MissingPackageError(f'A plot needs matplotlib, which {problem}. Run: pip install "xpnet[plot]"')


def _legend_above(ax: Any, handles: Sequence[Any], *, title: str | None = None) -> None:
    """Put a legend above the axes, where it hides nothing."""
    columns = 2 if title is None else 3
    ax.legend(handles=handles, title=title, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False)


def _short(label: Any, length: int = 24) -> str:
    """Return a label as text of limited length, in which Matplotlib sees no formula."""
    text = " ".join(str(label).split())
    text = text if len(text) <= length else text[: length - 1] + "…"
    return text.replace("$", r"\$")


# Notebooks ------------------------------------------------------------------------------------------------------------


def table(net: Network) -> str:
    """Return a network as an HTML table, for a notebook: what it is, how it was trained, and its cost as a sparkline.

    Colors are the notebook's own, so dark ones and light ones are read alike; all text from data is escaped.

    Parameters
    ----------
    net : Network
        Any.

    Returns
    -------
    str
        HTML, without scripts and style sheets.

    Examples
    --------
    >>> import xpnet.plot
    >>> X, Y = xpnet.datasets.flower(40)
    >>> net = xpnet.fit(X, Y, hidden=3, epochs=5, random_state=0)
    >>> "2-3-1, relu" in xpnet.plot.table(net)
    True
    """
    shape = "-".join(map(str, net.sizes)) + (f", {net.activation.name}" if len(net.layers) > 1 else "")
    classes = "" if net.kind.classes is None else f": {_listed(net.kind.classes)}"
    best = "" if net.best_epoch is None else f"; best epoch {net.best_epoch}"
    rows = {
        "network": f"{shape} ({parameters.count(net.sizes):,} parameters)",
        "task": net.task + classes,
        "features": "" if net.feature_names is None else _listed(net.feature_names),
        "epochs": f"{net.epochs_run:,}, stopped by {net.stop_reason}{best}" if net.epochs_run else "0",
        "cost": "",
        "device": f"{net.device}, {net.dtype}",
        "diagnosis": "; ".join(f"{finding.kind.replace('_', ' ')}: {finding.where}" for finding in net.diagnosis),
    }
    cells = {name: html.escape(text) for name, text in rows.items() if text}
    cost, validation = net.history.get("cost") or [], net.history.get("validation_cost") or []
    if cost:
        words = f"{cost[-1]:.4g}" + (f", validation {validation[-1]:.4g}" if validation else "") + f" {_unit(net)}"
        cells["cost"] = f"{_sparkline(cost, validation)} {words}"
    lines = "".join(
        f'<tr><th style="text-align: left">{name}</th><td style="text-align: left">{cells[name]}</td></tr>'
        for name in rows
        if name in cells
    )
    return f"<table><caption>xpnet.Network</caption><tbody>{lines}</tbody></table>"


def _listed(values: Sequence[Any] | npt.NDArray[Any]) -> str:
    """Return the first few values, and how many there are more."""
    shown = ", ".join(text if len(text) <= 24 else text[:23] + "…" for text in map(str, values[:8]))
    return shown + (f" and {len(values) - 8:,} more" if len(values) > 8 else "")


def _sparkline(cost: Sequence[float], validation: Sequence[float]) -> str:
    """Return the costs as a small SVG, the validation costs dashed."""
    both = np.asarray([*cost, *validation])
    scale = np.log if _is_wide(both.tolist()) else np.asarray
    low, high = float(scale(both).min()), float(scale(both).max())
    paths = []
    for values, dashes in ((cost, ""), (validation, ' stroke-dasharray="3 2"')):
        if values:
            taken = np.unique(np.linspace(0, len(values) - 1, SPARK).astype(np.int64))
            x = 2.0 + 116.0 * taken / max(1, len(values) - 1)
            y = 2.0 + 20.0 * (high - scale(np.asarray(values)[taken])) / ((high - low) or 1.0)
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
            paths.append(f'<polyline points="{points}"{dashes}/>')
    return (
        '<svg role="img" aria-label="cost by epoch" width="120" height="24" viewBox="0 0 120 24" fill="none" '
        f'stroke="currentColor" stroke-width="1.2" style="vertical-align: middle">{"".join(paths)}</svg>'
    )
