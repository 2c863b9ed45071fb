"""Pictures: they show the numbers, fit in their figure, leave pyplot alone, and can be told apart without color."""

import dataclasses
import subprocess
import sys
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import oracle
import pytest

import xpnet
from xpnet import plot
from xpnet.diagnosis import Diagnosis
from xpnet.errors import ArgumentError, MissingPackageError, ShapeError
from xpnet.typing import Layer

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

PIXEL = 1.5  # a text's box is rounded to whole pixels


def problem(task="binary", m=80, n_x=2):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_x, m))
    score = X[0] * X[-1] + X[1]
    Y = {
        "binary": np.where(score > 0, "yes", "no"),
        "multiclass": np.array(["low", "middle", "high"])[np.digitize(score, [-0.5, 0.5])],
        "multilabel": np.stack([score > 0, X[0] > 0]).astype(int),
        "regression": score,
        "count": rng.poisson(np.exp(0.5 * score)),
    }[task]
    return X, Y


def trained(task="binary", n_x=2, **options):
    options = {"hidden": 5, "epochs": 6, "random_state": 0, "learning_rate": 0.02, "task": task, **options}
    return xpnet.fit(*problem(task, n_x=n_x), **options)


DRAWN = {
    "history": lambda net, _, ax: net.plot(ax),
    "decision_boundary": lambda net, task, ax: plot.decision_boundary(net, *problem(task), ax),
    "confusion": lambda net, task, ax: plot.confusion(net, *problem(task), ax),
    "gradient_flow": lambda net, task, ax: plot.gradient_flow(net, *problem(task), ax),
}
CASES = [
    *[("history", task) for task in ("binary", "multiclass", "multilabel", "regression", "count")],
    *[("decision_boundary", task) for task in ("binary", "multiclass", "regression", "count")],
    *[("confusion", task) for task in ("binary", "multiclass")],
    *[("gradient_flow", task) for task in ("binary", "multiclass", "multilabel", "regression", "count")],
]
every_picture = pytest.mark.parametrize(("name", "task"), CASES)


@pytest.fixture(autouse=True)
def _closed():
    plt.close("all")  # what other tests left open
    yield
    plt.close("all")


def blank():
    """Return axes that pyplot knows nothing of."""
    return Figure(layout="constrained").subplots()


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


# What all have in common ----------------------------------------------------------------------------------------------


@every_picture
def test_a_picture_is_drawn_into_the_axes_given_and_nowhere_else(name, task):
    ax = blank()
    assert DRAWN[name](trained(task), task, ax) is ax
    assert ax.has_data()
    assert plt.get_fignums() == []


@every_picture
def test_without_axes_a_new_figure_is_left_open_for_the_caller(name, task):
    before = plt.figure().number
    ax = DRAWN[name](trained(task), task, None)
    assert plt.get_fignums() == [before, ax.figure.number]


@every_picture
def test_every_label_is_inside_the_figure(name, task):
    figure = DRAWN[name](trained(task), task, None).figure
    figure.canvas.draw()
    box, whole = figure.get_tightbbox().transformed(figure.dpi_scale_trans), figure.bbox
    assert box.x0 >= whole.x0 - PIXEL
    assert box.y0 >= whole.y0 - PIXEL
    assert box.x1 <= whole.x1 + PIXEL
    assert box.y1 <= whole.y1 + PIXEL


@every_picture
def test_no_two_texts_overlap(name, task):
    figure = DRAWN[name](trained(task), task, None).figure
    figure.canvas.draw()
    boxes = []
    for ax in figure.axes:
        shown = [*ax.texts, *(ax.get_legend().get_texts() if ax.get_legend() else [])]
        for axis in (ax.xaxis, ax.yaxis):
            shown += [axis.label, *axis.get_ticklabels()] if axis.get_visible() else []
        boxes += [text.get_window_extent() for text in shown if text.get_text() and text.get_visible()]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].shrunk(0.9, 0.9).overlaps(pair[1].shrunk(0.9, 0.9))]


@every_picture
def test_both_axes_say_what_they_are(name, task):
    ax = DRAWN[name](trained(task), task, blank())
    assert all(each.get_xlabel() or each.get_ylabel() for each in ax.figure.axes)
    assert ax.get_ylabel()


@pytest.mark.parametrize("name", DRAWN)
def test_axes_of_another_kind_are_refused(name):
    with pytest.raises(ArgumentError, match="ax must be Matplotlib's Axes; it is of type Figure"):
        DRAWN[name](trained(), "binary", Figure())


@pytest.mark.parametrize("name", DRAWN)
def test_without_matplotlib_the_error_says_how_to_get_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(MissingPackageError, match=r'needs matplotlib.*pip install "xpnet\[plot\]"'):
        DRAWN[name](trained(), "binary", None)


def test_pyplot_is_not_imported_for_axes_that_are_given():
    code = (
        "import sys, xpnet, xpnet.plot; from matplotlib.figure import Figure\n"
        "X, Y = xpnet.datasets.flower(40); net = xpnet.fit(X, Y, hidden=3, epochs=2, random_state=0)\n"
        "net.plot(Figure().subplots())\n"
        "for draw in (xpnet.plot.decision_boundary, xpnet.plot.confusion, xpnet.plot.gradient_flow):\n"
        "    draw(net, X, Y, Figure().subplots())\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_module_imports_no_matplotlib():
    code = "import sys, xpnet.plot; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", DRAWN)
def test_a_network_of_any_namespace_is_drawn(name, backend):
    X, Y = problem()
    net = xpnet.fit(backend.asarray(X, "float32"), Y, hidden=4, epochs=2, batch_size="full", random_state=0)
    assert DRAWN[name](net, "binary", blank()).has_data()


# The history ----------------------------------------------------------------------------------------------------------


def lines_of(ax):
    return {line.get_label(): line for each in ax.figure.axes for line in each.get_lines()}


def test_the_lines_are_the_history():
    net = trained(validation_fraction=0.25, learning_rate=lambda epoch: 0.02 * 0.5**epoch)
    lines = lines_of(net.plot(blank()))
    for label, key in [
        ("cost", "cost"),
        ("validation cost", "validation_cost"),
        ("learning rate", "learning_rate"),
    ]:
        assert lines[label].get_ydata().tolist() == net.history[key]
        assert lines[label].get_xdata().tolist() == list(range(len(net.history[key])))


@pytest.mark.parametrize(("options", "key"), [({}, "cost"), ({"validation_fraction": 0.25}, "validation_cost")])
def test_the_best_epoch_is_marked_on_the_cost_that_is_monitored(options, key):
    net = trained(**options)
    best = lines_of(net.plot(blank()))[f"best epoch, {net.best_epoch}"]
    assert [*best.get_xdata(), *best.get_ydata()] == [net.best_epoch, net.history[key][net.best_epoch]]


def test_a_learning_rate_that_stays_is_in_the_legend():
    ax = trained(learning_rate=0.02).plot(blank())
    assert "learning rate 0.02" in texts(ax.get_legend())
    assert len(ax.figure.axes) == 1


def test_a_learning_rate_that_changes_is_on_the_right():
    ax = trained(learning_rate=lambda epoch: 0.1 / (1 + epoch)).plot(blank())
    assert [each.get_ylabel() for each in ax.figure.axes] == ["mean cost (nats per example)", "learning rate"]


def test_every_line_differs_from_the_others_in_more_than_color():
    net = trained(validation_fraction=0.25, learning_rate=lambda epoch: 0.1 / (1 + epoch))
    looks = [(line.get_linestyle(), line.get_marker()) for line in lines_of(net.plot(blank())).values()]
    assert len(set(looks)) == len(looks) == 4


@pytest.mark.parametrize(("costs", "scale"), [([3.0, 0.2], "log"), ([3.0, 2.0], "linear"), ([3.0, -0.1], "linear")])
def test_costs_that_span_a_factor_of_ten_have_a_logarithmic_axis(costs, scale):
    net = dataclasses.replace(trained(), history={"cost": costs}, best_epoch=None)
    assert net.plot(blank()).get_yscale() == scale


def test_a_single_epoch_can_be_seen():
    ax = trained(epochs=1).plot(blank())
    assert lines_of(ax)["cost"].get_marker() == "."


def test_a_network_without_a_history_is_refused():
    with pytest.raises(ArgumentError, match="has no history to draw"):
        dataclasses.replace(trained(), history={}).plot(blank())


# Decision boundaries --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_the_points_are_the_examples_by_class(task):
    net, (X, y) = trained(task), problem(task)
    ax = plot.decision_boundary(net, X, y, blank())
    drawn = {points.get_label(): points.get_offsets() for points in ax.collections if points.get_label() in set(y)}
    assert {label: offsets.tolist() for label, offsets in drawn.items()} == {
        label: X[:, y == label].T.tolist() for label in np.unique(y)
    }


def test_every_class_has_a_marker_of_its_own():
    paths = [points.get_paths()[0].vertices.tobytes() for points in _class_points("multiclass")]
    assert len(set(paths)) == 3


def _class_points(task):
    net, (X, y) = trained(task), problem(task)
    ax = plot.decision_boundary(net, X, y, blank())
    return [points for points in ax.collections if points.get_label() in set(y)]


def test_the_line_is_where_the_probability_is_one_half():
    net = trained(hidden=(), epochs=50)
    ax = plot.decision_boundary(net, *problem(), blank())
    (line,) = [each for each in ax.collections if getattr(each, "levels", [None])[0] == 0.5 and len(each.levels) == 1]
    points = np.concatenate([path.vertices for path in line.get_paths()])
    np.testing.assert_allclose(net.predict_proba(points.T), 0.5, atol=1e-3)  # a step of the grid is 0.02 of a feature


def test_the_regions_are_the_predicted_classes():
    net, (X, y) = trained("multiclass"), problem("multiclass")
    ax = plot.decision_boundary(net, X, y, blank())
    mesh = next(each for each in ax.collections if type(each).__name__ == "QuadMesh")
    first, second = (np.linspace(*limits, plot.STEPS) for limits in (ax.get_xlim(), ax.get_ylim()))
    grid = np.stack([part.ravel() for part in np.meshgrid(first, second)])
    drawn = net.classes[np.asarray(mesh.get_array(), dtype=int).ravel()]
    assert np.mean(drawn == net.predict(grid)) > 0.999  # but for rounding at the borders


def test_the_axes_have_the_features_names():
    frame = pytest.importorskip("pandas").DataFrame(problem()[0].T, columns=["width", "$height_of it$"])
    net = xpnet.fit(frame, problem()[1], examples="rows", hidden=3, epochs=1, random_state=0)
    ax = plot.decision_boundary(net, frame, problem()[1], blank(), examples="rows")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("width", r"\$height_of it\$")


def test_at_most_a_thousand_points_are_drawn():
    X, y = problem(m=5000)
    ax = plot.decision_boundary(trained(), X, y, blank())
    assert sum(len(points.get_offsets()) for points in ax.collections if points.get_label() in set(y)) == 1000


def test_a_single_example_can_be_drawn():
    X, y = problem()
    assert plot.decision_boundary(trained(), X[:, :1], y[:1], blank()).has_data()


def test_a_network_of_other_than_two_features_is_refused():
    with pytest.raises(ShapeError, match=r"a network of 2 features; this one has 3\."):
        plot.decision_boundary(trained(n_x=3), *problem(n_x=3), blank())


def test_a_network_of_several_outputs_is_refused():
    with pytest.raises(ArgumentError, match="draws one output; this multilabel network has 2"):
        plot.decision_boundary(trained("multilabel"), *problem("multilabel"), blank())


def test_many_classes_are_beside_the_picture():
    X, _ = problem(m=400)
    y = np.arange(400) % 30
    ax = plot.decision_boundary(xpnet.fit(X, y, task="multiclass", hidden=3, epochs=1, random_state=0), X, y)
    ax.figure.canvas.draw()
    assert len(ax.get_legend().get_texts()) == plot.LEGEND
    assert ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1


# Confusion ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_the_cells_count_examples_by_true_and_predicted_class(task):
    net, (X, y) = trained(task), problem(task)
    ax = plot.confusion(net, X, y, blank())
    written = {
        (row, column): int(text.get_text().split("\n")[0]) for text in ax.texts for column, row in [text.get_position()]
    }
    predicted = net.predict(X)
    assert written == {
        (i, j): int(np.sum((y == true) & (predicted == other)))
        for i, true in enumerate(net.classes)
        for j, other in enumerate(net.classes)
    }


def test_the_colors_are_shares_of_the_true_class():
    net, (X, y) = trained("multiclass"), problem("multiclass")
    ax = plot.confusion(net, X, y, blank())
    shares = np.asarray(ax.images[0].get_array())
    np.testing.assert_allclose(shares.sum(axis=1), 100.0)
    recall = [100 * np.mean(net.predict(X)[y == label] == label) for label in net.classes]
    np.testing.assert_allclose(np.diag(shares), recall)


def test_both_axes_have_the_classes():
    ax = plot.confusion(trained("multiclass"), *problem("multiclass"), blank())
    assert [text.get_text() for text in ax.get_xticklabels()] == ["high", "low", "middle"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["high", "low", "middle"]


def test_examples_may_be_rows():
    X, y = problem()
    drawn = [plot.confusion(trained(), X, y, blank()), plot.confusion(trained(), X.T, y, blank(), examples="rows")]
    assert np.array_equal(*(np.asarray(ax.images[0].get_array()) for ax in drawn))


def test_a_class_without_examples_has_no_share():
    X, y = problem()
    ax = plot.confusion(trained(), X[:, y == "no"], y[y == "no"], blank())
    assert np.asarray(ax.images[0].get_array())[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("k", [15, 60])
def test_many_classes_are_drawn(k):
    X, _ = problem(m=240)
    y = np.array([f"a class with a long name, number {i:03d}" for i in range(k)])[np.arange(240) % k]
    net = xpnet.fit(X, y, hidden=3, epochs=1, random_state=0)
    ax = plot.confusion(net, X, y)
    ax.figure.canvas.draw()
    assert ax.figure.get_tightbbox().y0 * ax.figure.dpi >= -PIXEL


@pytest.mark.parametrize("task", ["regression", "count", "multilabel"])
def test_a_network_that_tells_no_classes_apart_has_no_confusion(task):
    with pytest.raises(ArgumentError, match=f"needs a binary or multiclass network; this one is {task}"):
        plot.confusion(trained(task), *problem(task), blank())


# Gradients ------------------------------------------------------------------------------------------------------------


def heights(ax):
    return {bars.get_label(): [bar.get_height() for bar in bars] for bars in ax.containers}


def with_biases(net, layer, biases):
    layers = list(net.layers)
    W, b = layers[layer]
    layers[layer] = Layer(W, np.asarray(biases, dtype=b.dtype)[:, None])
    return dataclasses.replace(net, layers=tuple(layers))


def test_units_that_never_pass_a_gradient_on_are_dead():
    net = with_biases(trained(hidden=(4, 3), activation="relu"), 0, [-1e3, -1e3, 10.0, 10.0])
    shown = heights(plot.gradient_flow(net, *problem(), blank()))
    assert shown["dead: pass nothing on"][0] == 50.0
    assert shown["pass gradients on"][0] == 50.0


def test_units_that_seldom_pass_a_gradient_on_are_saturated():
    X, Y = problem(m=100)
    net = trained(hidden=2, activation="relu")
    W = np.eye(2, dtype=np.float32)
    b = np.asarray([[-np.sort(X[0])[-6]], [10.0]], dtype=np.float32)  # the first unit is on for 5 examples of 100
    net = dataclasses.replace(net, layers=(Layer(W, b), net.layers[1]))
    shown = heights(plot.gradient_flow(net, X, Y, blank()))
    assert shown["saturated: flat for 95% of examples or more"] == [50.0]
    assert shown["pass gradients on"] == [50.0]


def test_a_tanh_far_from_zero_is_dead_and_one_nearer_saturated():
    net = with_biases(trained(hidden=4, activation="tanh"), 0, [50.0, -50.0, 6.0, 0.0])
    layers = (Layer(0.1 * net.layers[0].W, net.layers[0].b), net.layers[1])
    shown = heights(plot.gradient_flow(dataclasses.replace(net, layers=layers), *problem(), blank()))
    assert [bars[0] for bars in shown.values()] == [25.0, 25.0, 50.0]


def test_a_leaky_unit_is_never_dead():
    net = with_biases(trained(hidden=2, activation="leaky_relu"), 0, [-1e3, 1.0])
    assert heights(plot.gradient_flow(net, *problem(), blank()))["dead: pass nothing on"] == [0.0]


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_the_gradient_is_the_lectures(activation, monkeypatch):
    monkeypatch.setattr(plot, "TRACED", 5 * 30)  # blocks of 30 columns, the last of them smaller
    net, (X, y) = trained(activation=activation, dtype="float64"), problem()
    _, gradients = oracle.gradients(net.layers, X, (y == "yes")[None].astype(float), activation=activation)
    drawn = lines_of(plot.gradient_flow(net, X, y, blank()))["gradient"]
    expected = [np.sqrt(np.mean(dW**2)) for dW, _ in gradients]
    np.testing.assert_allclose(drawn.get_ydata(), expected, rtol=1e-12)  # some hundred roundings of float64
    assert drawn.get_xdata().tolist() == [1, 2]


def test_a_standardized_network_is_given_standardized_examples():
    X, y = problem()
    net = xpnet.fit(1e6 + X, y, hidden=5, activation="tanh", epochs=3, random_state=0, standardize=True)
    assert heights(plot.gradient_flow(net, 1e6 + X, y, blank()))["dead: pass nothing on"] == [0.0]


def test_a_gradient_of_zero_is_said():
    net = trained(hidden=3)
    none = Layer(net.layers[0].W, np.full((3, 1), -1e3, dtype=np.float32))
    net = dataclasses.replace(net, layers=(none, net.layers[1]))
    ax = plot.gradient_flow(net, *problem(), blank())
    assert ax.figure.axes[1].get_ylabel() == "gradient: 0 in every layer"


def test_the_kinds_of_units_differ_in_more_than_color():
    ax = plot.gradient_flow(trained(), *problem(), blank())
    assert len({bars[0].get_hatch() for bars in ax.containers}) == 3


def test_a_network_without_hidden_layers_has_no_flow():
    with pytest.raises(ArgumentError, match="draws hidden layers; this network has none"):
        plot.gradient_flow(trained(hidden=()), *problem(), blank())


# Notebooks ------------------------------------------------------------------------------------------------------------


def cells(net):
    """Return the table's rows; parsing it fails unless it is well formed."""
    table = ElementTree.fromstring(net._repr_html_())
    return {row[0].text: "".join(row[1].itertext()).strip() for row in table.iter("tr")}


def test_the_table_says_what_the_network_is():
    net = trained(hidden=(5, 4), validation_fraction=0.25)
    assert cells(dataclasses.replace(net, diagnosis=Diagnosis())) == {
        "network": "2-5-4-1, relu (44 parameters)",
        "task": "binary: no, yes",
        "epochs": f"6, stopped by epochs; best epoch {net.best_epoch}",
        "cost": f"{net.history['cost'][-1]:.4g}, validation {net.history['validation_cost'][-1]:.4g} nats per example",
        "device": "cpu, float32",
    }


HOSTILE = ["<script>alert(1)</script>", "a & b", '"quoted"', "</td>"]


def test_labels_are_escaped():
    X = problem()[0]
    net = xpnet.fit(X, np.array(HOSTILE)[np.arange(80) % 4], hidden=3, epochs=1, random_state=0)
    assert "<script" not in net._repr_html_()
    shown = cells(net)["task"]
    assert all(label[:23] in shown for label in HOSTILE)


def test_features_names_are_escaped():
    net = dataclasses.replace(trained(), feature_names=tuple(HOSTILE[:2]))
    assert "<script" not in net._repr_html_()
    assert cells(net)["features"].endswith("a & b")


def test_an_activations_name_is_escaped():
    own = xpnet.Activation(np.tanh, np.ones_like, name="<b>own</b>")
    assert "<b>own</b>" in cells(dataclasses.replace(trained(), activation=own))["network"]


def test_the_sparkline_has_the_shape_of_the_cost():
    net = dataclasses.replace(trained(), history={"cost": [3.0, 1.0, 2.0], "validation_cost": []})
    (line,) = [each for each in ElementTree.fromstring(net._repr_html_()).iter() if each.tag == "polyline"]
    points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
    assert points == [(2.0, 2.0), (60.0, 22.0), (118.0, 12.0)]  # y goes down


def test_a_million_epochs_make_a_short_sparkline():
    costs = np.linspace(2.0, 1.0, 1_000_000).tolist()
    net = dataclasses.replace(trained(), history={"cost": costs, "validation_cost": costs})
    assert len(net._repr_html_()) < 5_000


def test_the_table_has_the_notebooks_own_colors():
    text = trained(validation_fraction=0.25)._repr_html_()
    assert 'stroke="currentColor"' in text
    assert not [part for part in ("#", "color:", "background", "rgb", "<style") if part in text]


def test_the_table_needs_no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "network" in cells(trained())


def test_many_classes_make_a_short_table():
    X = problem(m=400)[0]
    net = xpnet.fit(X, np.arange(400) % 200, task="multiclass", hidden=3, epochs=1, random_state=0)
    assert cells(net)["task"] == "multiclass: 0, 1, 2, 3, 4, 5, 6, 7 and 192 more"


def test_a_network_without_a_history_has_a_table():
    net = dataclasses.replace(trained(), history={}, epochs_run=0, best_epoch=None)
    assert cells(net)["epochs"] == "0"


@pytest.mark.parametrize("costs", [[1.0], [1.0, 1.0], [0.0, 0.0], [-1.0, 5.0]], ids=str)
def test_a_sparkline_of_few_or_equal_costs_has_finite_points(costs):
    net = dataclasses.replace(trained(), history={"cost": costs})
    (line,) = [each for each in ElementTree.fromstring(net._repr_html_()).iter() if each.tag == "polyline"]
    assert np.isfinite([float(number) for point in line.get("points").split() for number in point.split(",")]).all()
