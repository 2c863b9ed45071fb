"""Tables in files: every format gives the same examples, and what cannot be learned from is refused by name."""

import csv
import datetime
import decimal
import io
import os
import sys
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest

from xpnet import tables
from xpnet.errors import ArgumentError, DataError, MissingPackageError, ShapeError, XpnetWarning
from xpnet.features import auto
from xpnet.selection import Selection

pa = pytest.importorskip("pyarrow")
pa_csv = pytest.importorskip("pyarrow.csv")
pq = pytest.importorskip("pyarrow.parquet")

X = np.asarray([[1.0, 20.0], [2.5, 40.0], [-3.0, 60.0]])
Y = np.asarray([0, 1, 1])
CSV = "a,b,y\n1,20,0\n2.5,40,1\n-3,60,1\n"


def saved(path, content):
    """Write text, bytes, arrays by name, one array, or a pyarrow table."""
    if isinstance(content, str | bytes):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        pq.write_table(content, path)
    return str(path)


def numbers(X):
    return np.column_stack([np.asarray(X[name]) for name in X.column_names]) if hasattr(X, "column_names") else X


WORKING = {
    "csv": ("t.csv", CSV, "y"),
    "csv with a BOM": ("t.csv", b"\xef\xbb\xbf" + CSV.encode(), "y"),
    "csv with CRLF": ("t.csv", CSV.replace("\n", "\r\n"), "y"),
    "csv quoted": ("t.csv", '"a","b","y"\n"1","20","0"\n"2.5","40","1"\n"-3","60","1"\n', "y"),
    "csv without a last newline": ("t.csv", CSV.rstrip(), "y"),
    "csv in capitals": ("t.CSV", CSV, "y"),
    "csv, target in front": ("t.csv", "y,a,b\n0,1,20\n1,2.5,40\n1,-3,60\n", "y"),
    "parquet": ("t.parquet", pa.table({"a": X[:, 0], "b": X[:, 1].astype(np.int32), "y": Y}), "y"),
    "parquet, half precision": ("t.parquet", pa.table({"a": X[:, 0].astype(np.float16), "b": X[:, 1], "y": Y}), "y"),
    "parquet, decimal numbers": (
        "t.parquet",
        pa.table({"a": [decimal.Decimal(text) for text in ("1.0", "2.5", "-3.0")], "b": X[:, 1], "y": Y}),
        "y",
    ),
    "npy": ("t.npy", np.column_stack([X, Y]), "-1"),
    "npy, target in front": ("t.npy", np.column_stack([Y, X]), "0"),
    "npy in Fortran order": ("t.npy", np.asfortranarray(np.column_stack([X, Y])), "2"),
    "npz": ("t.npz", {"features": X, "labels": Y}, "labels"),
}


@pytest.mark.parametrize(("name", "content", "target"), WORKING.values(), ids=WORKING)
def test_every_format_gives_the_same_examples(tmp_path, name, content, target):
    given = tables.read_labeled(saved(tmp_path / name, content), target)
    np.testing.assert_array_equal(numbers(given.X), X)
    np.testing.assert_array_equal(given.Y, Y)


@pytest.mark.parametrize("name", ["csv", "parquet"])
def test_the_columns_of_a_table_keep_their_names(tmp_path, name):
    file, content, target = WORKING[name]
    assert tables.read_labeled(saved(tmp_path / file, content), target).X.column_names == ["a", "b"]


@pytest.mark.parametrize("name", ["csv", "npy", "npz"])
def test_rows_are_picked_by_number(tmp_path, name):
    file, content, target = WORKING[name]
    picked = tables.read_labeled(saved(tmp_path / file, content), target).rows(
        Selection(np.isin(range(len(Y)), [0, 2]))
    )
    np.testing.assert_array_equal(numbers(picked.X), X[[0, 2]])
    np.testing.assert_array_equal(picked.Y, Y[[0, 2]])


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("yes,no,yes", ["yes", "no", "yes"]),
        ('"a ""b""","c, d","é"', ['a "b"', "c, d", "é"]),
        ("true,false,true", [True, False, True]),
        ("3,1,2", [3, 1, 2]),
        ("0.5,1,2", [0.5, 1.0, 2.0]),
        ('"NA","b","NA"', ["NA", "b", "NA"]),
    ],
    ids=["words", "quoted words", "bools", "whole numbers", "numbers", "the word NA in quotes"],
)
def test_targets_of_every_kind_are_read(tmp_path, text, labels):
    [cells] = csv.reader([text])
    quoted = text.startswith('"')
    written = [f'"{cell.replace(chr(34), chr(34) * 2)}"' if quoted else cell for cell in cells]
    lines = "".join(f"{i},{cell}\n" for i, cell in enumerate(written))
    Y = tables.read_labeled(saved(tmp_path / "t.csv", "a,y\n" + lines), "y").Y
    assert Y.tolist() == labels
    assert Y.dtype == np.asarray(labels).dtype


def test_categories_are_read_as_what_they_stand_for(tmp_path):
    words = pa.array(["u", "v", "u"]).dictionary_encode()
    assert tables.read_labeled(
        saved(tmp_path / "t.parquet", pa.table({"a": [1, 2, 3], "y": words})), "y"
    ).Y.tolist() == [
        "u",
        "v",
        "u",
    ]


def test_npz_targets_may_have_several_columns(tmp_path):
    path = saved(tmp_path / "t.npz", {"X": X, "Y": np.eye(3)[:, :2]})
    assert tables.read_labeled(path, "Y").Y.shape == (3, 2)


def test_a_column_whose_numbers_get_fractions_after_the_first_megabyte_is_read(tmp_path):
    rows = 200_000  # of 6 bytes: pyarrow infers types from the first 1 MiB
    path = saved(tmp_path / "t.csv", "a,y\n" + "1234,0\n" * rows + "0.5,1\n")
    given = tables.read_labeled(path, "y")
    assert numbers(given.X)[-1, 0] == 0.5
    assert len(given.Y) == rows + 1


def test_folders_names_do_not_become_columns(tmp_path):
    folder = tmp_path / "year=2024"
    folder.mkdir()
    given = tables.read_labeled(saved(folder / "t.parquet", pa.table({"a": [1, 2], "y": [0, 1]})), "y")
    assert given.X.column_names == ["a"]


@pytest.mark.parametrize(("name", "shown"), [("", "''"), ("__index_level_0__", "'__index_level_0__'")])
def test_row_numbers_of_pandas_are_left_out_with_a_warning(tmp_path, name, shown):
    path = saved(tmp_path / "t.parquet", pa.table({name: [0, 1], "a": [5, 6], "y": [0, 1]}))
    with pytest.warns(XpnetWarning) as caught:
        given = tables.read_labeled(path, "y")
    assert given.X.column_names == ["a"]
    assert (
        str(caught[0].message) == f"{path} has the column {shown}, in which pandas keeps row numbers; it is left out."
    )


def test_dropped_columns_are_left_out(tmp_path):
    path = saved(tmp_path / "t.csv", "id,a,name,y\n1,5,u,0\n2,6,v,1\n")
    assert tables.read_labeled(path, "y", drop=["id", "name"]).X.column_names == ["a"]


def test_dropped_columns_of_npy_go_by_numbers(tmp_path):
    path = saved(tmp_path / "t.npy", np.column_stack([[7, 8, 9], X, Y]))
    np.testing.assert_array_equal(tables.read_labeled(path, "-1", drop=["0"]).X, X)


# Words and gaps, which `fit` has a treatment for

MIXED = "id,city,zone,born,y\n1,Rome,1,2024-01-01,0\n2,,2,2024-01-02,1\n3,Oslo,3A,,1\n"


def test_columns_that_are_treated_are_read_as_they_are(tmp_path):
    given = tables.read_labeled(saved(tmp_path / "t.csv", MIXED), "y", drop=["id"], treated=True)
    assert given.X.column_names == ["city", "zone", "born"]
    assert given.X["city"].to_pylist() == ["Rome", None, "Oslo"]
    assert given.X["zone"].to_pylist() == ["1", "2", "3A"]
    assert given.rows(Selection(np.array([True, False, True]))).X["city"].to_pylist() == ["Rome", "Oslo"]
    np.testing.assert_array_equal(given.Y, Y)


def test_two_columns_of_one_name_are_not_treated(tmp_path):
    path = saved(tmp_path / "t.csv", "a,a,y\n1,2,0\n3,4,1\n")
    with pytest.raises(DataError, match="has 2 columns named 'a'"):
        tables.read_labeled(path, "y", treated=True)


@pytest.mark.parametrize("name", ["npy", "npz"])
def test_arrays_have_no_columns_to_treat(tmp_path, name):
    file, content, target = WORKING[name]
    with pytest.raises(ArgumentError, match=rf"^features needs columns with names, which a \.{name} file has not; "):
        tables.read_labeled(saved(tmp_path / file, content), target, treated=True)


# What is refused


LATIN = "a,y\n1,é\n2,b\n".encode("latin-1")
STAMPS = pa.table({"a": [1, 2], "y": [datetime.datetime(2024, 1, 1), datetime.datetime(2024, 1, 2)]})
REFUSED = {
    "an empty file": ("t.csv", "", "y", DataError, "{} is empty."),
    "an empty .npy": ("t.npy", b"", "0", DataError, "{} is empty."),
    "a header alone": ("t.csv", "a,y\n", "y", DataError, "{} has the columns 'a', 'y' and no rows."),
    "rows of other lengths": (
        "t.csv",
        "a,y\n1,2\n3\n",
        "y",
        DataError,
        "{} cannot be read as CSV in UTF-8: …",
    ),
    "another ending": (
        "t.xlsx",
        "a,y\n1,0\n",
        "y",
        ArgumentError,
        "{} is not a file of a known format; expected one that ends in .csv, .parquet, .npy or .npz.",
    ),
    "an unknown target": (
        "t.csv",
        "age,Size,y\n1,2,0\n",
        "size",
        ArgumentError,
        "{} has no column 'size'. Did you mean 'Size'? Its columns are 'age', 'Size', 'y'.",
    ),
    "an unknown target like none": (
        "t.csv",
        ",".join("abcdefghij") + "\n" + ",".join("1234567890") + "\n",
        "price",
        ArgumentError,
        "{} has no column 'price'. Its columns are 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h' and 2 more.",
    ),
    "semicolons": (
        "t.csv",
        "a;y\n1;0\n",
        "y",
        ArgumentError,
        "{} has no column 'y'. Columns must be separated by commas. Its columns are 'a;y'.",
    ),
    "words": (
        "t.csv",
        "a,name,city,y\n1,Ann,Oslo,0\n2,Bo,Rome,1\n",
        "y",
        DataError,
        "{} has columns that are not numbers: 'name' (string), 'city' (string). Leave them out with --drop, "
        "or pass --features name=onehot,city=onehot.",
    ),
    "words and dates": (
        "t.csv",
        'a,"home, town",born,y\n1,Ann,2024-01-01,0\n2,Bo,2024-01-02,1\n',
        "y",
        DataError,
        "{} has columns that are not numbers: 'home, town' (string), 'born' (date32[day]). Leave them out with --drop, "
        "or pass --features '\"home, town=onehot\"'.",
    ),
    "missing numbers": (
        "t.csv",
        "a,b,c,y\n1,,3,0\n2,,nan,1\n3,4,NA,1\n",
        "y",
        DataError,
        "{} has missing values in 'b' (2), 'c' (2). Fill them in or remove those rows, or pass --features "
        "b=median,c=median.",
    ),
    "nothing but missing numbers": (
        "t.csv",
        "a,b,y\n1,,0\n2,,1\n",
        "y",
        DataError,
        "{} has missing values in 'b' (2). Fill them in or remove those rows, or pass --features b=median.",
    ),
    "infinite numbers": (
        "t.csv",
        "a,y\ninf,0\n2.5,1\n",
        "y",
        DataError,
        "{} has infinite values in 'a' (1). Fill them in or remove those rows.",
    ),
    "missing bools": (
        "t.csv",
        "a,y\ntrue,0\n,1\n",
        "y",
        DataError,
        "{} has missing values in 'a' (1). Fill them in or remove those rows, or pass --features a=median.",
    ),
    "missing labels": (
        "t.csv",
        "a,y\n1,u\n2,\n3,v\n",
        "y",
        DataError,
        "{} has missing values in 'y' (1). Fill them in or remove those rows.",
    ),
    "missing targets": (
        "t.csv",
        "a,y\n1,0.5\n2,\n",
        "y",
        DataError,
        "{} has missing values in 'y' (1). Fill them in or remove those rows.",
    ),
    "two columns of one name": (
        "t.csv",
        "a,a,y\n1,2,0\n",
        "y",
        DataError,
        "{} has 2 columns named 'a'. Rename them.",
    ),
    "the target alone": (
        "t.csv",
        "y\n0\n1\n",
        "y",
        DataError,
        "{} has no column besides the target 'y'; there is nothing to learn from.",
    ),
    "words that are not UTF-8": (
        "t.csv",
        LATIN,
        "y",
        DataError,
        "The target 'y' in {} is of type binary; expected words, whole numbers or bools as labels, or numbers. Encode "
        "it as one of them.",
    ),
    "times": (
        "t.parquet",
        STAMPS,
        "y",
        DataError,
        "The target 'y' in {} is of type timestamp[us]; expected words, whole numbers or bools as labels, or numbers. "
        "Encode it as one of them.",
    ),
    "no Parquet": (
        "t.parquet",
        CSV,
        "y",
        DataError,
        "{} cannot be read as Parquet: …",
    ),
    "no .npy": (
        "t.npy",
        CSV,
        "0",
        DataError,
        "{} cannot be read as a .npy array: …",
    ),
    "no .npz": ("t.npz", CSV, "y", DataError, "{} cannot be read as .npz arrays: it is not a zip file"),
    "one axis": (
        "t.npy",
        np.arange(3.0),
        "0",
        DataError,
        "{} must hold a table of numbers, (m, n_x), rows being examples; it holds float64 of shape (3,).",
    ),
    "words in .npy": (
        "t.npy",
        np.asarray([["u", "v"]]),
        "0",
        DataError,
        "{} must hold a table of numbers, (m, n_x), rows being examples; it holds <U1 of shape (1, 2).",
    ),
    "no such number": (
        "t.npy",
        np.ones((2, 3)),
        "3",
        ArgumentError,
        "{} has no column '3': a .npy file's columns go by numbers, here 0 to 2, or -1 for the last.",
    ),
    "no number": (
        "t.npy",
        np.ones((2, 3)),
        "y",
        ArgumentError,
        "{} has no column 'y': a .npy file's columns go by numbers, here 0 to 2, or -1 for the last.",
    ),
    "missing numbers in .npy": (
        "t.npy",
        np.asarray([[1.0, np.nan, 0], [np.nan, np.nan, 1]]),
        "2",
        DataError,
        "{} has missing values in column 0 (1), column 1 (2). Fill them in or remove those rows.",
    ),
    "missing targets in .npy": (
        "t.npy",
        np.asarray([[1.0, np.nan], [2.0, 1]]),
        "1",
        DataError,
        "{} has missing values in column 1 (1). Fill them in or remove those rows.",
    ),
    "one column in .npy": (
        "t.npy",
        np.ones((2, 1)),
        "0",
        DataError,
        "{} has no column besides the target; there is nothing to learn from.",
    ),
    "three arrays": (
        "t.npz",
        {"X": X, "groups": Y, "y": Y},
        "y",
        DataError,
        "{} has the arrays 'X', 'groups' besides 'y'; expected one, the features. Leave others out with --drop.",
    ),
    "one array": (
        "t.npz",
        {"y": Y},
        "y",
        DataError,
        "{} has no array besides 'y'; expected one, the features. Leave others out with --drop.",
    ),
    "no such array": (
        "t.npz",
        {"X": X, "label": Y},
        "labels",
        ArgumentError,
        "{} has no array 'labels'. Did you mean 'label'? Its arrays are 'X', 'label'.",
    ),
    "examples as columns": (
        "t.npz",
        {"X": X.T, "y": Y},
        "y",
        ShapeError,
        "{} must have a row of 'y' for each of the 2 rows of 'X'; 'y' is int64 of shape (3,).",
    ),
    "flat features": (
        "t.npz",
        {"X": X[:, 0], "y": Y},
        "y",
        DataError,
        "'X' in {} must be a table of numbers, (m, n_x), rows being examples; it is float64 of shape (3,).",
    ),
}


@pytest.mark.parametrize(("name", "content", "target", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_learned_from_is_refused_by_name(tmp_path, name, content, target, kind, message):
    path = saved(tmp_path / name, content)
    with pytest.raises(kind) as raised:
        tables.read_labeled(path, target)
    said, (expected, cut, _) = str(raised.value), message.format(path).partition("…")  # what follows … is others' words
    assert (said[: len(expected)] if cut else said) == expected


def test_names_that_are_not_utf_8_are_refused(tmp_path):
    path = saved(tmp_path / "t.csv", "é,y\n1,0\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"t\.csv cannot be read as CSV in UTF-8: "):
        tables.read_labeled(path, "y")


def test_objects_are_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    for name in ("t.npy", "t.npz"):
        path = tmp_path / name
        if name == "t.npy":
            np.save(path, np.asarray([[Bomb()]], dtype=object), allow_pickle=True)
        else:
            np.savez(path, X=np.asarray([[Bomb()]], dtype=object), y=Y)
        with pytest.raises(DataError, match="cannot be read"):
            tables.read_labeled(str(path), "0")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["csv", "parquet", "npy", "npz"])
@pytest.mark.parametrize("seed", range(10))
def test_a_damaged_file_is_refused_or_read(tmp_path, name, seed, soak):
    file, content, target = WORKING[name]
    path = tmp_path / file
    saved(path, content)
    generator, whole = np.random.default_rng(seed), path.read_bytes()
    for _ in range(500 if soak else 5):
        data, end = bytearray(whole), generator.choice([len(whole), min(len(whole), 200)])
        for place in generator.integers(0, end, generator.integers(1, 6)):
            data[place] = generator.integers(256)
        path.write_bytes(data[: generator.integers(1, len(data) + 1)] if generator.random() < 0.3 else data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", XpnetWarning)  # a name may have become that of pandas' row numbers
                tables.read_labeled(str(path), target)
        except (DataError, ArgumentError) as error:
            assert str(path) in str(error)  # noqa: PT017  # it may also be read: a digit may be what was damaged


def python_2(array):
    """Return a .npy file as Python 2 wrote them, with long numbers in its header."""
    shape = "".join(f"{n}L, " for n in array.shape)
    header = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': ({shape}), }}"
    header = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + array.tobytes()


def test_arrays_that_python_2_wrote_are_read(tmp_path):
    (tmp_path / "t.npy").write_bytes(python_2(np.column_stack([X, Y])))
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as file:
        file.writestr("X.npy", python_2(X))
        file.writestr("y.npy", python_2(Y))
    for name, target in (("t.npy", "-1"), ("t.npz", "y")):
        np.testing.assert_array_equal(tables.read_labeled(str(tmp_path / name), target).X, X)


BOMBS = {
    "npz": lambda path: np.savez_compressed(path, X=np.zeros((40_000, 50)), y=np.zeros(40_000)),
    "parquet": lambda path: pq.write_table(pa.table({key: np.zeros(2_500_000) for key in "aby"}), path),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_expands_beyond_the_memory_there_is_is_refused_before_it_does(tmp_path, monkeypatch, name):
    path = tmp_path / f"t.{name}"
    BOMBS[name](path)
    assert path.stat().st_size < 100_000  # bytes, of 16 million and more
    monkeypatch.setattr(tables, "_memory", lambda: 10e6)
    tracemalloc.start()
    try:
        with pytest.raises(
            DataError, match=r"must expand to less than the 0\.00931 GiB of memory .* Pass fewer rows or"
        ):
            tables.read_labeled(str(path), "y")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("shape", [(10**12, 10), (10**9, 3), (-1, 3)], ids=str)
def test_an_array_that_says_more_than_its_file_has_is_refused(tmp_path, shape):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(240)
    (tmp_path / "t.npy").write_bytes(array)
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as file:
        file.writestr("X.npy", array)
        file.writestr("y.npy", python_2(Y))
    for name, target in (("t.npy", "-1"), ("t.npz", "y")):
        with pytest.raises(DataError, match=r"cannot be read as (a )?\.np[yz] array"):
            tables.read_labeled(str(tmp_path / name), target)


def test_the_memory_of_this_computer_is_known_or_has_no_bounds():
    assert tables._memory() > 2**27


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        tables.read_labeled(str(tmp_path / "t.csv"), "y")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ArgumentError) as raised:
        tables.read_labeled(str(tmp_path), "y")
    assert str(raised.value) == f"{tmp_path} is a folder; expected one that ends in .csv, .parquet, .npy or .npz."


@pytest.mark.parametrize("name", ["csv", "parquet"])
def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch, name):
    file, content, target = WORKING[name]
    path = saved(tmp_path / file, content)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError) as raised:
        tables.read_labeled(path, target)
    assert str(raised.value) == f'{path} needs pyarrow, which is not installed. Run: pip install "xpnet[data]"'


@pytest.mark.parametrize("name", ["npy", "npz"])
def test_arrays_do_not_need_pyarrow(tmp_path, monkeypatch, name):
    file, content, target = WORKING[name]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    np.testing.assert_array_equal(tables.read_labeled(saved(tmp_path / file, content), target).X, X)


# Features for a network


def test_features_are_picked_by_name_whatever_their_order(tmp_path):
    path = saved(tmp_path / "t.csv", "name,y,b,a\nu,0,20,1\nv,1,40,2.5\nw,1,60,-3\n")
    np.testing.assert_array_equal(numbers(tables.read_features(path, n_features=2, names=("a", "b"))), X)


@pytest.mark.parametrize("names", [("a", "b"), None], ids=["with names", "without names"])
def test_arrays_of_exactly_the_features_need_no_names(tmp_path, names):
    path = saved(tmp_path / "t.npy", X)
    np.testing.assert_array_equal(tables.read_features(path, n_features=2, names=names), X)


def test_of_several_arrays_the_one_that_fits_is_taken(tmp_path):
    path = saved(tmp_path / "t.npz", {"y": Y, "X": X, "other": X[:, :1]})
    np.testing.assert_array_equal(tables.read_features(path, n_features=2, names=None), X)


def test_a_table_without_known_names_needs_exactly_the_features(tmp_path):
    path = saved(tmp_path / "t.csv", "u,v\n1,20\n2.5,40\n-3,60\n")
    np.testing.assert_array_equal(numbers(tables.read_features(path, n_features=2, names=None)), X)


def treated(tmp_path):
    """Return what a network learned from columns of words, one of which look like numbers but for the last."""
    return auto({"born": "drop"}).learn([tables.read_labeled(saved(tmp_path / "t.csv", MIXED), "y", treated=True).X])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_that_a_network_treats_are_read_as_when_it_was_trained(tmp_path, suffix):
    features = treated(tmp_path)
    content = pa.table({"y": [1, 0], "zone": ["1", "2"], "born": ["x", "y"], "city": ["Oslo", None], "id": [7, 8]})
    path = saved(tmp_path / f"new.{suffix}", "y,zone,city,id\n1,1,Oslo,7\n0,2,,8\n" if suffix == "csv" else content)
    X = tables.read_features(path, n_features=7, names=features.names, features=features)
    assert X.column_names == ["id", "city", "zone"]
    assert features.encode(X).tolist() == [[7, 1, 0, 0, 1, 0, 0], [8, 0, 0, 1, 0, 1, 0]]


def test_columns_that_a_network_treats_have_to_be_there(tmp_path):
    features = treated(tmp_path)
    path = saved(tmp_path / "new.csv", "zone,id\n1,7\n")
    with pytest.raises(ShapeError, match=r"new\.csv lacks columns that the network was trained on: 'city'\.$"):
        tables.read_features(path, n_features=7, names=features.names, features=features)


def test_arrays_are_what_a_network_has_encoded(tmp_path):
    path = saved(tmp_path / "t.npy", np.eye(7))
    X = tables.read_features(path, n_features=7, names=None, features=treated(tmp_path))
    np.testing.assert_array_equal(X, np.eye(7))


OTHER_FEATURES = {
    "missing columns": (
        "t.csv",
        CSV,
        ("a", "c", "d"),
        ShapeError,
        "{} lacks columns that the network was trained on: 'c', 'd'.",
    ),
    "one column more": (
        "t.csv",
        CSV,
        None,
        ShapeError,
        "{} has 3 columns and the network was trained on 2 features without names. Leave out the target and whatever "
        "else is not a feature.",
    ),
    "one column more in .npy": (
        "t.npy",
        np.ones((4, 3)),
        None,
        ShapeError,
        "{} has 3 columns and the network was trained on 2 features. Leave out the target and whatever else is not a "
        "feature.",
    ),
    "no fitting array": (
        "t.npz",
        {"X": np.ones((4, 3)), "y": Y},
        None,
        ShapeError,
        "{} must have one array of the 2 features that the network was trained on, (m, 2); its arrays are 'X' (4, 3), "
        "'y' (3,).",
    ),
    "two fitting arrays": (
        "t.npz",
        {"X": X, "Z": X},
        None,
        ShapeError,
        "{} must have one array of the 2 features that the network was trained on, (m, 2); its arrays are 'X' (3, 2), "
        "'Z' (3, 2).",
    ),
    "words": (
        "t.csv",
        "a,b\n1,x\n",
        ("a", "b"),
        DataError,
        "{} has columns that are not numbers: 'b' (string). Encode them as they were when it was trained.",
    ),
    "missing numbers": (
        "t.npy",
        np.asarray([[1.0, np.nan]]),
        None,
        DataError,
        "{} has missing values in column 1 (1). Fill them in or remove those rows.",
    ),
}


@pytest.mark.parametrize(("name", "content", "names", "kind", "message"), OTHER_FEATURES.values(), ids=OTHER_FEATURES)
def test_other_features_than_the_networks_are_refused(tmp_path, name, content, names, kind, message):
    path = saved(tmp_path / name, content)
    with pytest.raises(kind) as raised:
        tables.read_features(path, n_features=2, names=names)
    assert str(raised.value) == message.format(path)


# Writing

COLUMNS = {
    "word": np.asarray(["a,b", 'say "c"', "é\nf"]),
    "number": np.asarray([0.1, 1 / 3, 1e-30], dtype=np.float32),
    "whole": np.asarray([-1, 2, 2**62]),
    "bool": np.asarray([True, False, True]),
}


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_what_is_written_is_read_back(tmp_path, name):
    path = str(tmp_path / name)
    tables.write(path, [COLUMNS])
    options = pa_csv.ParseOptions(newlines_in_values=True)
    table = pa_csv.read_csv(path, parse_options=options) if name.endswith("csv") else pq.read_table(path)
    assert table.column_names == list(COLUMNS)
    for key, column in COLUMNS.items():
        np.testing.assert_array_equal(np.asarray(table[key].to_pylist()).astype(column.dtype), column)


def test_csv_is_written_in_chunks_that_join(monkeypatch):
    monkeypatch.setattr(tables, "CHUNK", 2)
    file = io.StringIO()
    tables.write_csv([{"a": np.arange(5), "b": np.arange(5) / 2}], file)
    assert file.getvalue() == "a,b\n0,0.0\n1,0.5\n2,1.0\n3,1.5\n4,2.0\n"


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, name):
    path = tmp_path / name
    path.write_text("old")

    class Unwritable(np.ndarray):
        def astype(self, *_args, **_options):
            raise OSError(28, "No space left on device")

        tolist = astype

    column = np.asarray(["a", "b"]).view(Unwritable)
    with pytest.raises(OSError, match="No space left on device; nothing was changed"):
        tables.write(str(path), [{"a": column}])
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [name]


def test_a_symbolic_link_stays_one(tmp_path):
    link, real = tmp_path / "link.csv", tmp_path / "real.csv"
    real.write_text("old")
    link.symlink_to(real)
    tables.write(str(link), [{"a": np.asarray([1])}])
    assert link.is_symlink()
    assert real.read_text() == "a\n1\n"


NOT_WRITABLE = {
    "another ending": ("p.json", "--out must end in .csv or .parquet; it is '{}'."),
    "no folder": ("no/p.csv", "--out must be in a folder that is there; '{0}' is not. Make it first."),
    "a folder": ("folder.csv", "--out must name a file; '{}' is a folder."),
    "a file that is read": ("data.csv", "--out must be another file than the ones read; '{}' would be overwritten."),
}


@pytest.mark.parametrize(("name", "message"), NOT_WRITABLE.values(), ids=NOT_WRITABLE)
def test_where_nothing_can_be_written_is_refused(tmp_path, name, message):
    (tmp_path / "data.csv").write_text("")
    (tmp_path / "folder.csv").mkdir()
    path = tmp_path / name
    with pytest.raises(ArgumentError) as raised:
        tables.check_output(
            str(path), option="--out", inputs=[str(tmp_path / "data.csv")], endings=(".csv", ".parquet")
        )
    assert str(raised.value) == message.format(path.parent if name.startswith("no/") else path)


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="devices as POSIX has them")
def test_a_device_is_no_output():
    with pytest.raises(ArgumentError) as raised:
        tables.check_output("/dev/null", option="--out", inputs=[])
    assert str(raised.value) == "--out must name a file; '/dev/null' is a device."


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_is_closed_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ArgumentError) as raised:
            tables.check_output(str(tmp_path / "p.csv"), option="--out", inputs=[])
    finally:
        tmp_path.chmod(0o700)
    assert str(raised.value) == f"--out must be in a folder that may be written to; '{tmp_path}' may not."
