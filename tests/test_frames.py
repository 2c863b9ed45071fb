"""Columns of every library are read as what they hold, with what is missing; what cannot be learned from is named."""

import datetime
import decimal

import numpy as np
import pytest

import xpnet
from xpnet import frames, targets
from xpnet.errors import DataError, ShapeError
from xpnet.features import auto
from xpnet.frames import BOOLS, NOTHING, NUMBERS, WORDS

DATE, TIME = datetime.date(2024, 1, 31), datetime.datetime(2024, 1, 31, 12)
PARTS = [decimal.Decimal("1.5"), None, decimal.Decimal("-2")]


def pandas(values, dtype=None):
    pd = pytest.importorskip("pandas")
    if isinstance(dtype, str) and "pyarrow" in dtype:
        pytest.importorskip("pyarrow")
    return pd.DataFrame({"a": pd.Series(values, dtype=dtype)})


def arrow_in_pandas(values, kind):
    pa = pytest.importorskip("pyarrow")
    return pandas(values, pytest.importorskip("pandas").ArrowDtype(kind(pa)))


def polars(values, dtype=None):
    pl = pytest.importorskip("polars")
    return pl.DataFrame({"a": pl.Series(values, dtype=None if dtype is None else dtype(pl))})


def pyarrow(values, kind=None):
    pa = pytest.importorskip("pyarrow")
    return pa.table({"a": pa.array(values, type=None if kind is None else kind(pa))})


def encoded(values):
    pa = pytest.importorskip("pyarrow")
    return pa.table({"a": pa.array(values).dictionary_encode()})


def chunked(values):
    pa = pytest.importorskip("pyarrow")
    return pa.table({"a": pa.chunked_array([values[:1], values[1:]])})


def batch(values):
    return pytest.importorskip("pyarrow").RecordBatch.from_pydict({"a": values})


NAN = float("nan")
READ = {
    # pandas
    "pandas floats": (lambda: pandas([1.5, None, NAN]), NUMBERS, [1.5, None, None]),
    "pandas whole numbers": (lambda: pandas([3, 2, 1]), NUMBERS, [3, 2, 1]),
    "pandas bools": (lambda: pandas([True, False, True]), BOOLS, [True, False, True]),
    "pandas words": (lambda: pandas(["x", None, "y"]), WORDS, ["x", None, "y"]),
    "pandas words as objects": (lambda: pandas(["x", NAN, "y"], object), WORDS, ["x", None, "y"]),
    "pandas string": (lambda: pandas(["x", None, ""], "string"), WORDS, ["x", None, ""]),
    "pandas Int64": (lambda: pandas([3, None, 1], "Int64"), NUMBERS, [3, None, 1]),
    "pandas Int64, all there": (lambda: pandas([3, 2, 1], "Int64"), NUMBERS, [3, 2, 1]),
    "pandas UInt8": (lambda: pandas([3, None, 1], "UInt8"), NUMBERS, [3, None, 1]),
    "pandas Float32": (lambda: pandas([1.5, None, 1.0], "Float32"), NUMBERS, [1.5, None, 1.0]),
    "pandas boolean": (lambda: pandas([True, None, False], "boolean"), BOOLS, [True, None, False]),
    "pandas bools as objects": (lambda: pandas([True, None, False], object), BOOLS, [True, None, False]),
    "pandas numbers as objects": (lambda: pandas([1, None, 2.5], object), NUMBERS, [1, None, 2.5]),
    "pandas Decimal": (lambda: pandas(PARTS, object), NUMBERS, [1.5, None, -2]),
    "pandas category": (lambda: pandas(["x", None, "y"], "category"), WORDS, ["x", None, "y"]),
    "pandas category of numbers": (lambda: pandas([3, None, 1], "category"), NUMBERS, [3, None, 1]),
    "pandas sparse": (lambda: pandas([0.0, None, 1.0], "Sparse[float]"), NUMBERS, [0, None, 1]),
    "pandas int64[pyarrow]": (lambda: pandas([3, None, 1], "int64[pyarrow]"), NUMBERS, [3, None, 1]),
    "pandas double[pyarrow]": (lambda: pandas([1.5, None, 1], "double[pyarrow]"), NUMBERS, [1.5, None, 1]),
    "pandas bool[pyarrow]": (lambda: pandas([True, None, False], "bool[pyarrow]"), BOOLS, [True, None, False]),
    "pandas string[pyarrow]": (lambda: pandas(["x", None, "y"], "string[pyarrow]"), WORDS, ["x", None, "y"]),
    "pandas decimal[pyarrow]": (
        lambda: arrow_in_pandas(PARTS, lambda pa: pa.decimal128(5, 2)),
        NUMBERS,
        [1.5, None, -2],
    ),
    "pandas dictionary[pyarrow]": (
        lambda: arrow_in_pandas(["x", None, "y"], lambda pa: pa.dictionary(pa.int32(), pa.string())),
        WORDS,
        ["x", None, "y"],
    ),
    "pandas nothing": (lambda: pandas([None, None], object), NOTHING, [None, None]),
    # polars
    "polars floats": (lambda: polars([1.5, None, NAN]), NUMBERS, [1.5, None, None]),
    "polars whole numbers": (lambda: polars([3, None, 1]), NUMBERS, [3, None, 1]),
    "polars bools": (lambda: polars([True, None, False]), BOOLS, [True, None, False]),
    "polars words": (lambda: polars(["x", None, "y"]), WORDS, ["x", None, "y"]),
    "polars Categorical": (lambda: polars(["x", None, "y"], lambda pl: pl.Categorical), WORDS, ["x", None, "y"]),
    "polars Enum": (lambda: polars(["x", None, "y"], lambda pl: pl.Enum(["y", "x"])), WORDS, ["x", None, "y"]),
    "polars Decimal": (lambda: polars(PARTS), NUMBERS, [1.5, None, -2]),
    "polars nothing": (lambda: polars([None, None]), NOTHING, [None, None]),
    # pyarrow
    "pyarrow floats": (lambda: pyarrow([1.5, None, NAN]), NUMBERS, [1.5, None, None]),
    "pyarrow half precision": (lambda: pyarrow(np.float16([1.5, 2])), NUMBERS, [1.5, 2]),
    "pyarrow whole numbers": (lambda: pyarrow([3, None, 1]), NUMBERS, [3, None, 1]),
    "pyarrow bools": (lambda: pyarrow([True, None, False]), BOOLS, [True, None, False]),
    "pyarrow words": (lambda: pyarrow(["x", None, "y"]), WORDS, ["x", None, "y"]),
    "pyarrow large words": (lambda: pyarrow(["x", None], lambda pa: pa.large_string()), WORDS, ["x", None]),
    "pyarrow dictionary": (lambda: encoded(["x", None, "y"]), WORDS, ["x", None, "y"]),
    "pyarrow dictionary of numbers": (lambda: encoded([3, None, 1]), NUMBERS, [3, None, 1]),
    "pyarrow decimal": (lambda: pyarrow(PARTS), NUMBERS, [1.5, None, -2]),
    "pyarrow chunked": (lambda: chunked(["x", None, "y"]), WORDS, ["x", None, "y"]),
    "pyarrow chunked numbers": (lambda: chunked([3, None, 1]), NUMBERS, [3, None, 1]),
    "pyarrow batch": (lambda: batch(["x", None, "y"]), WORDS, ["x", None, "y"]),
    "pyarrow nothing": (lambda: pyarrow([None, None]), NOTHING, [None, None]),
}


@pytest.mark.parametrize(("make", "holds", "values"), READ.values(), ids=READ)
def test_a_column_is_read_as_what_it_holds(make, holds, values):
    [column] = frames.columns(make(), name="X")
    assert (column.name, column.holds) == ("a", holds)
    assert column.missing.tolist() == [value is None for value in values]
    assert column.present().tolist() == [value for value in values if value is not None]
    assert column.values.dtype.kind in {NUMBERS: "iuf", BOOLS: "b", WORDS: "O", NOTHING: "fO"}[holds]


CATEGORIES = [name for name in READ if any(word in name for word in ("categor", "Categor", "Enum", "dictionary"))]


@pytest.mark.parametrize("name", READ)
def test_categories_are_told_from_other_columns(name):
    [column] = frames.columns(READ[name][0](), name="X")
    assert column.is_category == (name in CATEGORIES)


UNREADABLE = {
    "pandas dates": (lambda: pandas([TIME, None]), r"datetime64\[\ws\]"),
    "pandas dates with a time zone": (lambda: pandas([TIME], "datetime64[ns, UTC]"), r"datetime64\[ns, UTC\]"),
    "pandas dates as objects": (lambda: pandas([DATE], object), "date"),
    "pandas differences of time": (lambda: pandas([TIME - TIME]), r"timedelta64\[\ws\]"),
    "pandas periods": (lambda: pandas(pytest.importorskip("pandas").period_range("2024", periods=2)), r"period\[D\]"),
    "pandas date32[pyarrow]": (lambda: arrow_in_pandas([DATE], lambda pa: pa.date32()), r"date32\[day\]\[pyarrow\]"),
    "pandas complex": (lambda: pandas([1j]), "complex128"),
    "pandas bytes": (lambda: pandas([b"x"], object), "bytes"),
    "pandas lists": (lambda: pandas([[1], [2]], object), "list"),
    "pandas words and numbers": (lambda: pandas(["x", 3, None], object), "int and str"),
    "pandas bools and numbers": (lambda: pandas([True, 3], object), "bool and int"),
    "pandas huge numbers": (lambda: pandas([10**400], object), "numbers beyond float64"),
    "polars dates": (lambda: polars([DATE, None]), "Date"),
    "polars times": (lambda: polars([datetime.time(1)]), "Time"),
    "polars lists": (lambda: polars([[1], [2, 3]]), r"List\(Int64\)"),
    "polars arrays": (lambda: polars([[1, 2], [2, 3]], lambda pl: pl.Array(pl.Int64, 2)), "Array"),
    "polars structs": (lambda: polars([{"u": 1}]), "Struct"),
    "polars bytes": (lambda: polars([b"x"]), "Binary"),
    "polars 128 bits": (lambda: polars([1, 2], lambda pl: pl.Int128), "Int128"),
    "pyarrow dates": (lambda: pyarrow([DATE, None]), r"date32\[day\]"),
    "pyarrow times": (lambda: pyarrow([TIME]), r"timestamp\[us\]"),
    "pyarrow lists": (lambda: pyarrow([[1], [2, 3]]), "list<"),
    "pyarrow structs": (lambda: pyarrow([{"u": 1}]), "struct<"),
    "pyarrow bytes": (lambda: pyarrow([b"x"]), "binary"),
}


@pytest.mark.parametrize(("make", "kind"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_learned_from_is_refused_by_name_and_type(make, kind):
    message = (
        rf"^The columns of X must be numbers; 'a' \({kind}.*\) is not\. Drop them, or train with fit\(.*\"drop\"\}}\)"
    )
    with pytest.raises(DataError, match=message):
        frames.numbers(make(), name="X")


@pytest.mark.parametrize("name", [name for name, (_, holds, _) in READ.items() if holds in (NUMBERS, BOOLS)])
def test_numbers_are_an_array_and_gaps_are_refused_by_name(name):
    make, _, values = READ[name]
    if name in CATEGORIES:
        with pytest.raises(DataError, match=r"'a' \(categories that are numbers\) is not.*\{\"a\": \"onehot\"\}"):
            frames.numbers(make(), name="X")
    elif None in values:
        with pytest.raises(
            DataError, match=r"^X has missing values in 'a' \([12]\)\. Fill .*\{\"a\": \"median\"\}\)\.$"
        ):
            frames.numbers(make(), name="X")
    else:
        assert frames.numbers(make(), name="X").tolist() == [[value] for value in values]


@pytest.mark.parametrize(("make", "kind"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_learned_from_can_be_dropped_and_is_refused_otherwise(make, kind):
    table = make()
    rows = np.zeros(1, dtype=np.int64)
    with pytest.raises(DataError, match=rf"'a' \({kind}.*\) has none\. Pass fit\(.*\{{\"a\": \"drop\"\}}\)"):
        auto().learn([table], rows)
    with pytest.raises(DataError, match="X has no column that features does not drop"):
        auto({"a": "drop"}).learn([table], rows)


def test_all_columns_that_are_not_numbers_are_named():
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"age": [1, 2], "city": ["x", "y"], "born": [TIME, TIME]})
    with pytest.raises(
        DataError, match=r"'city' \(words\), 'born' \(datetime64.*\) are not.*\{\"city\": \"onehot\", \"born"
    ):
        xpnet.fit(table, [0, 1], examples="rows")


def test_a_long_list_of_columns_is_cut():
    pd = pytest.importorskip("pandas")
    with pytest.raises(DataError, match=r"'c7' \(words\) and 2 more are not.*\"c7\": \"onehot\", \.\.\.\}\)\.$"):
        frames.numbers(pd.DataFrame({f"c{i}": ["x"] for i in range(10)}), name="X")


def test_the_index_of_pandas_is_ignored():
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"a": [1, 2, 3], "b": [4, 5, 6]}, index=[2, 0, 1])
    assert frames.numbers(table, name="X").tolist() == [[1, 4], [2, 5], [3, 6]]


def test_names_that_are_no_strings_are_taken_as_strings():
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame([[1.0, 2.0, 3.0]], columns=[0, ("a", "b"), DATE])
    assert frames.names(table) == ("0", "('a', 'b')", "2024-01-31")
    assert frames.numbers(table, name="X").tolist() == [[1, 2, 3]]


def test_names_that_are_alike_as_strings_are_refused():
    pd = pytest.importorskip("pandas")
    with pytest.raises(DataError, match="must have columns of different names; '1' is there twice"):
        frames.numbers(pd.DataFrame([[1.0, 2.0]], columns=[1, "1"]), name="X")


NAMES = {
    "lacking": ("ab", "it lacks 'c'. Add or rename columns."),
    "extra": ("abcd", "it also has 'd'. Pass X[list(net.feature_names)]."),
    "other": ("abd", "it lacks 'c' and it also has 'd'. Add or rename columns."),
    "turned": ("acb", "'c', 'b' are out of place. Pass X[list(net.feature_names)]."),
}


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
@pytest.mark.parametrize(("given", "message"), NAMES.values(), ids=NAMES)
def test_columns_that_are_others_are_named(library, given, message):
    module = pytest.importorskip(library)
    make = module.table if library == "pyarrow" else module.DataFrame
    if library == "pyarrow":
        message = message.replace("X[list(net.feature_names)]", "X.select(list(net.feature_names))")
    with pytest.raises(ShapeError) as caught:
        frames.check_names(make({name: [1.0] for name in given}), "abc", name="X", kept_as="net.feature_names")
    assert str(caught.value) == f"X must have the columns trained on, in their order; {message}"


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_the_advice_for_other_columns_works(library):
    module = pytest.importorskip(library)
    make = module.table if library == "pyarrow" else module.DataFrame
    X, (Y, rows) = make({name: [1.0, 2.0] for name in "abc"}), ([0, 1], {"examples": "rows"})
    net = xpnet.fit(X, Y, hidden=2, epochs=1, random_state=0, **rows)
    turned = make({name: [1.0, 2.0] for name in "cbda"})
    with pytest.raises(ShapeError) as caught:
        net.predict(turned, **rows)
    mended = eval(str(caught.value).rpartition("Pass ")[2].rstrip("."), {"X": turned, "net": net})
    assert net.predict(mended, **rows).tolist() == net.predict(X, **rows).tolist()


LAZY = {
    "polars": (lambda: polars([1.0]).lazy(), r"of type LazyFrame\. Pass X\.collect\(\), with examples=\"rows\"\.$"),
    "pyarrow": (
        lambda: pytest.importorskip("pyarrow").RecordBatchReader.from_batches(batch([1]).schema, [batch([1])]),
        r"of type RecordBatchReader\. Pass X\.read_all\(\), with examples=\"rows\"\.$",
    ),
    "pyarrow dataset": (
        lambda: pytest.importorskip("pyarrow.dataset").dataset(pyarrow([1])),
        r"of type InMemoryDataset\. Pass X\.to_table\(\), with examples=\"rows\"\.$",
    ),
}


@pytest.mark.parametrize("examples", ["rows", "columns"])
@pytest.mark.parametrize(("make", "message"), LAZY.values(), ids=LAZY)
def test_a_table_that_is_not_there_yet_is_to_be_collected(make, message, examples):
    with pytest.raises(DataError, match=message):
        xpnet.fit(make(), [0, 1], examples=examples)


@pytest.mark.parametrize("name", ["pyarrow dictionary", "pyarrow dictionary of numbers"])
def test_a_missing_label_is_not_read_as_another(name):
    table = READ[name][0]()
    for Y in (table, table["a"], table["a"].combine_chunks()):
        with pytest.raises(DataError, match=r"Fill in what is missing|must be finite; Y\[1\] is nan"):
            targets.read(Y, examples="rows")


@pytest.mark.parametrize(
    "make", [lambda: encoded(["u", "v"]), lambda: pyarrow(["u", "v"])], ids=["dictionary", "words"]
)
def test_labels_come_as_a_column_or_as_a_table_of_one(make):
    for Y in (make(), make()["a"]):
        assert targets.read(Y, examples="rows").tolist() == ["u", "v"]
