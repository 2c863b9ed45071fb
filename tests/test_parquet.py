"""Parquet files are read a few rows at a time, and train and predict to the bits of the same numbers in memory."""

import numpy as np
import pytest

import xpnet
from xpnet import data
from xpnet.errors import ArgumentError, DataError, ShapeError

pyarrow = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

RNG = np.random.default_rng(12)
M = 700
NAMES = ("a", "b", "c", "d")
ROWS = RNG.standard_normal((M, 4)).astype(np.float32)
LABELS = (ROWS[:, 0] * ROWS[:, 1] > 0).astype(int)

GROUP = 90
"""Rows of a row group, which M is no multiple of."""


def table(rows=ROWS, **more):
    return pyarrow.table(dict(zip(NAMES, rows.T, strict=True)) | more)


@pytest.fixture
def path(tmp_path):
    pq.write_table(table(y=LABELS), tmp_path / "rows.parquet", row_group_size=GROUP)
    return tmp_path / "rows.parquet"


@pytest.fixture
def windows(monkeypatch):
    """Sizes with which M rows are more than is kept in memory."""
    for name, value in (("RUN", 16), ("WINDOW", 160), ("PERMUTED", 64), ("READ", 100)):
        monkeypatch.setattr(data, name, value)


def bits(net):
    return [array.tobytes() for layer in net.layers for array in layer], net.history["cost"]


def train(X, **arguments):
    common = {"hidden": 6, "epochs": 3, "batch_size": 32, "random_state": 2, "examples": "rows", "verbose": False}
    return xpnet.fit(X, LABELS, **common | arguments)


# --- reading


@pytest.mark.parametrize("decoded", [1, 40, 400, 2**20])
@pytest.mark.parametrize("spans", ["in turn", "backwards", "anywhere"])
def test_rows_are_read_in_any_order(path, monkeypatch, decoded, spans):
    monkeypatch.setattr(xpnet.parquet, "DECODED", decoded)
    X = xpnet.Parquet(path, NAMES)
    starts = {"in turn": range(0, M, 70), "backwards": range(630, -1, -70), "anywhere": RNG.integers(0, M - 70, 10)}
    for start in starts[spans]:
        assert np.array_equal(X.read(int(start), int(start) + 70), ROWS[start : start + 70])
    assert X.read(9, 9).shape == (0, 4)


def test_columns_are_those_named_in_that_order(path):
    X = xpnet.Parquet(path, ["d", "a"])
    assert (X.columns, X.shape, X.dtype) == (("d", "a"), (M, 2), np.float32)
    assert np.array_equal(X.read(85, 95), ROWS[85:95, [3, 0]])


def test_files_are_joined_along_their_rows(tmp_path):
    paths = [tmp_path / f"{i}.parquet" for i in range(3)]
    for part, rows in zip(paths, np.split(ROWS, [200, 205]), strict=True):
        pq.write_table(table(rows), part, row_group_size=GROUP)
    X = xpnet.Parquet(paths)
    assert X.shape == ROWS.shape
    assert np.array_equal(X.read(150, 400), ROWS[150:400])


def test_a_folder_is_its_files_in_the_order_of_their_numbers(tmp_path):
    for i, rows in enumerate(np.split(ROWS, 14)):
        pq.write_table(table(rows), tmp_path / f"part.{i}.parquet")
    (tmp_path / "_SUCCESS").touch()
    X = xpnet.Parquet(tmp_path)
    assert X.shape == ROWS.shape
    assert np.array_equal(X.read(0, M), ROWS)
    assert np.array_equal(xpnet.Parquet([str(tmp_path), tmp_path / "part.1.parquet"]).read(M, M + 50), ROWS[50:100])


def test_a_folder_without_parquet_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"has none that ends in \.parquet"):
        xpnet.Parquet(tmp_path)


def test_numbers_of_several_kinds_have_a_dtype_that_all_fit_in(tmp_path):
    mixed = pyarrow.table({"whole": [1, 2], "yes": [True, False], "part": [0.5, 1.5]})
    pq.write_table(mixed, tmp_path / "mixed.parquet")
    X = xpnet.Parquet(tmp_path / "mixed.parquet")
    assert X.dtype == np.float64
    assert X.read(0, 2).tolist() == [[1.0, 1.0, 0.5], [2.0, 0.0, 1.5]]


def test_it_says_how_large_it_is(path):
    assert repr(xpnet.Parquet(path)) == f"<Parquet {M} × 5, float64, 8 row groups>"


# --- training and predicting


TRAINING = {
    "minibatches": {},
    "held out": {"validation_fraction": 0.2},
    "standardized": {"standardize": True},
    "full batch": {"batch_size": "full", "optimizer": "gd"},
}


@pytest.mark.parametrize("training", TRAINING)
def test_parquet_trains_to_the_bits_of_the_table_in_memory(path, training):
    assert bits(train(xpnet.Parquet(path, NAMES), **TRAINING[training])) == bits(train(table(), **TRAINING[training]))


@pytest.mark.parametrize("training", TRAINING)
def test_large_parquet_trains_to_the_bits_of_the_table_in_memory(windows, path, training):
    assert bits(train(xpnet.Parquet(path, NAMES), **TRAINING[training])) == bits(train(table(), **TRAINING[training]))


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_parquetfile_and_parts_of_several_are_taken_as_x(path, tmp_path, size, request):
    if size == "large":
        request.getfixturevalue("windows")
    pq.write_table(table(), tmp_path / "x.parquet")
    file = pq.ParquetFile(tmp_path / "x.parquet")
    assert bits(train(file)) == bits(train(ROWS))
    parts = [file, xpnet.Parquet(path, NAMES), file]
    joined = xpnet.fit(parts, np.tile(LABELS, 3), examples="rows", epochs=2, random_state=0, verbose=False)
    memory = xpnet.fit(
        np.tile(ROWS, (3, 1)), np.tile(LABELS, 3), examples="rows", epochs=2, random_state=0, verbose=False
    )
    assert bits(joined) == bits(memory)


def test_predictions_scores_and_costs_are_those_of_memory(windows, monkeypatch, path):
    monkeypatch.setattr(xpnet.network, "PREDICTED", 600)
    net, X = train(ROWS), xpnet.Parquet(path, NAMES)
    assert np.array_equal(net.predict(X, examples="rows"), net.predict(ROWS, examples="rows"))
    assert np.array_equal(net.predict_proba(X, examples="rows"), net.predict_proba(ROWS, examples="rows"))
    assert net.score(X, LABELS, examples="rows") == net.score(ROWS, LABELS, examples="rows")
    assert net.cost(X, LABELS, examples="rows") == net.cost(ROWS, LABELS, examples="rows")


def test_a_loader_gives_parquet_as_it_gives_memory(windows, path):
    X = xpnet.Parquet(path, NAMES)
    ours, memory = (xpnet.Loader(each, LABELS, examples="rows", batch_size=50) for each in (X, ROWS))
    for (X_batch, Y_batch), (X_known, Y_known) in zip(ours, memory, strict=True):
        assert np.array_equal(X_batch, X_known)
        assert np.array_equal(Y_batch, Y_known)


def test_a_network_keeps_the_columns_names(path):
    assert train(xpnet.Parquet(path, NAMES)).feature_names == NAMES


# --- refusals


def test_what_the_disk_has_no_room_for_is_refused_before_it_is_written(windows, monkeypatch, path):
    monkeypatch.setattr(data.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(DataError, match=r"from a temporary file of 0\.0 GiB, and .* Set TMPDIR to a folder"):
        train(xpnet.Parquet(path, NAMES))


def test_the_temporary_file_has_no_name(windows, monkeypatch, tmp_path, path):
    folder = tmp_path / "spool"
    folder.mkdir()
    monkeypatch.setattr(data.tempfile, "tempdir", str(folder))
    seen = []
    train(xpnet.Parquet(path, NAMES), callbacks=lambda _: seen.append(list(folder.iterdir())))
    assert seen == [[]] * 3


def test_rows_are_said_to_be_examples(path):
    with pytest.raises(ShapeError, match=r'X is a table, whose examples are rows\. Pass examples="rows"\.'):
        xpnet.fit(xpnet.Parquet(path, NAMES), LABELS)


REFUSED = [
    (
        {"columns": ["a", "z"]},
        DataError,
        r"The column 'z' must be in the Parquet file once; it is not there\. It has 'a'",
    ),
    ({"columns": "a"}, ArgumentError, r"columns must be a sequence of names; it is the word 'a'\. Pass \['a'\]"),
    ({"columns": []}, DataError, "must have columns"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED)
def test_columns_that_cannot_be_are_refused(path, arguments, error, message):
    with pytest.raises(error, match=message):
        xpnet.Parquet(path, **arguments)


def test_words_are_refused(tmp_path):
    pq.write_table(table(word=["x"] * M), tmp_path / "words.parquet")
    with pytest.raises(DataError, match=r"must be numbers; 'word' \(string\) is not\. Pass columns=\["):
        xpnet.Parquet(tmp_path / "words.parquet")


@pytest.mark.parametrize("value", [None, float("nan")])
def test_missing_numbers_are_refused_with_their_column(tmp_path, value):
    column = pyarrow.array([0.5] * 300 + [value] + [0.5] * (M - 301))
    pq.write_table(table(gap=column), tmp_path / "gaps.parquet")
    with pytest.raises(DataError, match="'gap'"):
        train(xpnet.Parquet(tmp_path / "gaps.parquet"))


def test_files_with_other_columns_are_refused(path, tmp_path):
    pq.write_table(table(), tmp_path / "x.parquet")
    with pytest.raises(ShapeError, match=r"must have the same columns; file 1 lacks 'y'"):
        xpnet.Parquet([path, tmp_path / "x.parquet"])


def test_what_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"not this")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        xpnet.Parquet(tmp_path / "x.parquet")
    with pytest.raises(FileNotFoundError):
        xpnet.Parquet(tmp_path / "nowhere.parquet")
    with pytest.raises(ArgumentError, match="the list is empty"):
        xpnet.Parquet([])
