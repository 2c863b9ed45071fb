"""Files that somebody made to be misread: loading and resuming refuse them, or take what is right, and do nothing else.

The mutants are made from whole files with their structure in mind, and half of them have no checksum, as an attacker's
would not. What a checkpoint holds is not looked into here: whatever it is, some of it is changed.
"""

import contextlib
import json
import os
import random
import struct
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import xpnet
from xpnet import files
from xpnet.errors import ArgumentError, CheckpointError, DataError, DivergedError, FileFormatError

ROOT = Path(xpnet.__file__).parents[1]
SEEDS = 6
LOADS, RESUMES = 170, 80  # mutants for each seed, 1,500 in all; under --soak 24,000
FACTOR = 64  # the peak's bytes for each of the file's: 30 for the JSON's of the header, twice, for the entry is in it
SLACK = {"load": 200_000, "resume": 1_000_000}  # bytes: messages and parsers, and the fit of a small network

JUNK = [
    *(None, True, False, 0, 1, -1, 1.5, -0.0, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**400, -(10**400), 1e308),
    *(
        "",
        "1",
        "a\0",
        "\ud800",
        "é",
        "F64",
        "F4",
        "BF16",
        "network",
        "str",
        "U9999999",
        "99999999i8",
        "O",
        "M8[s]",
        "a9",
    ),
    *([], [[]], [0], [4, 0], [0, 2**63], [2**32, 2**32], [1] * 70, {}, {"": {}}, {"xpnet": "{}"}, {"names": ["a"]}),
    {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
    {"names": ["a"], "formats": ["f8"], "offsets": [10**8]},
]
NUMBERS = ["NaN", "-Infinity", "1e999", "1" * 5_000, "0x10", "1_0", "00", "1e-400", "[" * 3_000, '{"a":' * 2_000]
DTYPES = ["BOOL", "U8", "I8", "F16", "BF16", "F8_E4M3", "I16", "U16", "I32", "U32", "F32", "F64", "I64", "U64", "C64"]
BITS = [
    *(struct.pack("<f", value) for value in (np.nan, np.inf, -np.inf, 3.4028235e38, -3.4028235e38, 1e-45, -0.0, 1e30)),
    *(struct.pack("<d", value) for value in (np.nan, np.inf, 1e308, -1e308, 5e-324, -1.0)),
    *(b"\x00\x00\xa0\x7f", b"\xff" * 8, b"\x00" * 16, b"\x01\x00\xf0\x7f\x00\x00\xf0\x7f"),  # signaling nan among them
]


def taken_apart(data):
    """Return a file's header, xpnet's entry in it, and the numbers."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length].decode())  # of bytes, JSON would import what decodes them
    return header, json.loads(header["__metadata__"]["xpnet"]), data[8 + length :]


def put_together(header, entry, body, text=json.dumps):
    header = header | {"__metadata__": {"xpnet": text(entry)}}
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + body


def confused(node, rng):
    """Return the JSON value with one thing somewhere inside it replaced, removed, added or put elsewhere."""
    if not isinstance(node, dict | list) or not node or rng.random() < 0.15:
        return rng.choice([*JUNK, [node], [node] * 3, {"a": node}, str(node)])
    changed = dict(node) if isinstance(node, dict) else dict(enumerate(node))
    key, what = rng.choice(list(changed)), rng.random()
    if what < 0.1:
        del changed[key]
    elif what < 0.2:
        changed[rng.choice(["__metadata__", "xpnet", "format", "W3", "b1", "history.cost", "", -1])] = rng.choice(JUNK)
    elif what < 0.3:
        changed[key] = changed[rng.choice(list(changed))]
    else:
        changed[key] = confused(changed[key], rng)
    return changed if isinstance(node, dict) else list(changed.values())


def other_metadata(data, rng):
    header, entry, body = taken_apart(data)
    if rng.random() < 0.2:
        return put_together(header, confused(entry, rng), body)
    metadata = entry["metadata"]
    key = rng.choice(list(metadata))
    return put_together(header, entry | {"metadata": metadata | {key: confused(metadata[key], rng)}}, body)


def other_header(data, rng):
    header, _, body = taken_apart(data)
    written = json.dumps(confused(header, rng)).encode()
    return struct.pack("<Q", len(written)) + written + body


def other_text(data, rng):
    """Change the JSON's text, where Python's parser, or a second one, takes more than JSON is."""
    header, entry, body = taken_apart(data)

    def text(entry):
        words = json.dumps(entry)
        places = [i for i, letter in enumerate(words) if letter in ',:[{"0123456789']
        at = rng.choice(places)
        if words[at].isdecimal():
            return words[:at] + rng.choice([*NUMBERS, "e9", "E-400", ".5"]) + words[at + rng.randint(0, 1) :]
        what = rng.choice(['"\\ud800"', "\\u0000", '"a":1,"a":2,', '{"a":', "[", " " * 5_000, ""])
        return words[:at] + rng.choice(["", words[at]]) + what + words[at + rng.randint(1, 2) :]

    if rng.random() < 0.5:
        return put_together(header, entry, body, text)
    written = text(header | {"__metadata__": {"xpnet": json.dumps(entry)}}).encode(errors="surrogatepass")
    return struct.pack("<Q", len(written)) + written + body


def other_arrays(data, rng):
    """Give arrays other dtypes, shapes, places, names and numbers, most of them as the format allows."""
    header, entry, body = taken_apart(data)
    arrays = {name: value for name, value in header.items() if name != "__metadata__"}
    kept = {name: body[slice(*value["data_offsets"])] for name, value in arrays.items()}
    name, other = rng.choice(list(arrays)), rng.choice(list(arrays))
    it = arrays[name] = dict(arrays[name])
    match rng.randrange(8):
        case 0:
            it["dtype"] = rng.choice(DTYPES)
        case 1:
            it["shape"] = rng.choice([[1, *it["shape"]], it["shape"][::-1], [*it["shape"], 1], [], [0], [-1], [1] * 64])
        case 2:
            kept[name] = kept[name][: rng.randrange(len(kept[name]) + 1)] if len(kept[name]) else bytes(8)
            it["shape"] = [len(kept[name]) // 4]
            kept[name] = kept[name][: 4 * it["shape"][0]]
            it["dtype"] = "F32"
        case 3:
            special = rng.choice(BITS)
            at = rng.randrange(0, max(1, len(kept[name])), 4)
            kept[name] = (kept[name][:at] + special + kept[name][at + len(special) :])[: len(kept[name])]
        case 4:
            arrays[name], arrays[other] = arrays[other], arrays[name]
            kept[name], kept[other] = kept[other], kept[name]
        case 5:
            del arrays[name]
        case 6:
            arrays[rng.choice(["W3", "b3", "W9", "theta", "feature_mean", "history.x", "é", "\x00"])] = dict(it)
        case _:
            it["shape"] = rng.choice([[2**32, 2**32], [2**63], [0, 2**62], [2**64 - 1, 2], [10**30], [1.0], "1", None])
    found, end = b"", 0
    for key, value in arrays.items():
        bits = kept.get(key, kept[name])
        value["data_offsets"] = [end, end + len(bits)]
        found, end = found + bits, end + len(bits)
    if rng.random() < 0.2:
        arrays[rng.choice(list(arrays))]["data_offsets"] = [
            rng.choice([0, end, -1, end - 1, 2**63, 2**64 - 1]) for _ in range(2)
        ]
    return put_together(arrays, entry, found)


def other_bytes(data, rng):
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        damaged[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(damaged)


def other_pieces(data, rng):
    start, stop = sorted(rng.choices(range(len(data) + 1), k=2))
    return data[:start] + data[start:stop] * rng.choice([0, 2, 3]) + data[stop:]


def other_length(data, rng):
    honest = int.from_bytes(data[:8], "little")
    lie = rng.choice([rng.randrange(len(data)), honest + rng.randint(-9, 9), 2**63, 2**64 - 1, rng.getrandbits(64), 0])
    return struct.pack("<Q", lie % 2**64) + data[8:]


def cut(data, rng):
    return data[: rng.randrange(len(data))]


def longer(data, rng):
    return data + rng.choice([b"\0", b"\0" * 4_096, data, b"\n"])


MUTATIONS = [
    other_metadata,
    other_header,
    other_text,
    other_arrays,
    other_bytes,
    other_pieces,
    other_length,
    cut,
    longer,
]
WEIGHTS = [12, 4, 4, 16, 2, 1, 1, 1, 1]


def mutant(data, rng):
    """Return a file made from this one by one to three mutations, half of the time without its checksum."""
    if rng.random() < 0.5:
        header, entry, body = taken_apart(data)
        data = put_together(header, {key: entry[key] for key in ("format", "kind", "metadata")}, body)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        try:
            data = rng.choices(MUTATIONS, WEIGHTS)[0](data, rng)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            break  # what an earlier mutation has left has that structure no more
    return data


# Whole files to start from --------------------------------------------------------------------------------------------

X = np.random.default_rng(0).standard_normal((3, 24))
LABELS = np.arange(24) % 3
TRAINED = {
    "words": (np.array(["no", "so", "yes"])[LABELS], {"standardize": True}),
    "half precision": (LABELS.astype(np.float16), {"activation": "tanh"}),
    "numbers": (X[0] * X[1], {"dtype": "float64", "hidden": (3, 2), "validation_fraction": 0.25}),
    "counts": (LABELS, {"task": "count", "hidden": ()}),
}
RESUMED = {
    "adam": {"validation_fraction": 0.25, "batch_size": 7},
    "lbfgs": {"optimizer": "lbfgs", "dtype": "float64"},
    "momentum": {"optimizer": "momentum", "standardize": True, "batch_size": "full"},
}


def fit(Y, **options):
    return xpnet.fit(X, Y, **{"hidden": 3, "epochs": 3, "random_state": 5, "verbose": False} | options)


def networks(path):
    """Return the files of several networks."""
    found = []
    for Y, options in TRAINED.values():
        fit(Y, **options).save(path)
        found.append(path.read_bytes())
    return found


def checkpoints(path):
    """Return the files of several checkpoints, each with the call that would go on from it."""
    found = []
    for options in RESUMED.values():
        path.unlink(missing_ok=True)
        fit(LABELS, checkpoint=path, **options)
        found.append((path.read_bytes(), partial(fit, LABELS, checkpoint=path, epochs=5, **options)))
    return found


def load(path):
    """Load a file; what is let in is a network that works: it prints, predicts or says why not, and can be saved."""
    net = xpnet.load(path)
    assert repr(net).startswith("<Network ")
    points = np.zeros((net.sizes[0], 2), dtype=net.dtype)
    with contextlib.suppress(DataError):  # finite parameters may well lead out of the finite numbers
        assert np.isfinite(net.predict_proba(points)).all()
    net.save(path)
    assert everything(xpnet.load(path)) == everything(net)


def everything(net):
    """Return what a network is; that all of it is finite."""
    arrays = [*(array for layer in net.layers for array in layer), *map(np.asarray, net.history.values())]
    assert all(np.isfinite(array).all() for array in arrays)
    return [array.tobytes() for array in arrays], repr(net), repr(net.classes), net.feature_names, dict(net.timing)


def refused(call, size, slack, refusals):
    """Return whether a call refuses a file of that size, having seen how much memory it took to its end."""
    tracemalloc.start()
    try:
        call()
    except refusals:
        return True
    else:
        return False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < slack + FACTOR * size


def load_mutants(path, seed, number):
    """Load so many files that somebody changed; return how many were refused, the only other thing allowed."""
    rng, whole, count = random.Random(seed), networks(path), 0
    for _ in range(number):
        data = mutant(rng.choice(whole), rng)
        path.write_bytes(data)
        # An activation of another name may be the user's own.
        count += refused(partial(load, path), len(data), SLACK["load"], (FileFormatError, ArgumentError))
    return count


def resume_mutants(path, seed, number):
    """Resume from so many files that somebody changed; return how many were refused, and finite networks otherwise."""
    rng, whole, count = random.Random(seed), checkpoints(path), 0
    for _ in range(number):
        data, resume = rng.choice(whole)
        data = mutant(data, rng)
        path.write_bytes(data)
        # Numbers of the right form may be those of a state from which training diverges.
        refusals = FileFormatError, CheckpointError, DivergedError
        count += refused(lambda resume=resume: everything(resume()), len(data), SLACK["resume"], refusals)
    return count


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_network_that_somebody_changed_is_refused_or_works(tmp_path, seed, soak):
    number = 16 * LOADS if soak else LOADS
    assert load_mutants(tmp_path / "net.safetensors", seed, number) > number / 2


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_checkpoint_that_somebody_changed_is_refused_or_goes_on(tmp_path, seed, soak):
    number = 16 * RESUMES if soak else RESUMES
    assert resume_mutants(tmp_path / "run.ckpt", seed, number) > number / 2


EXECUTING = ("exec", "compile", "pickle.", "marshal.", "os.system", "os.exec", "os.fork", "os.spawn", "os.posix_spawn",
             "subprocess.", "ctypes.", "socket.", "urllib.", "code.__new__", "import")  # fmt: skip
"""What an audit hook is told of that no file may bring about, by the beginnings of the names."""


def watched(folder, number):
    """Load and resume in this process under Python's audit and with little memory; print what was executed."""
    import resource

    for mutants in (load_mutants, resume_mutants):
        mutants(Path(folder) / "file", 0, 40)  # imports what is imported when it is first needed
    noted, open_only = [], [True]
    sys.addaudithook(lambda event, _: open_only and event.startswith(EXECUTING) and noted.append(event))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
    for mutants in (load_mutants, resume_mutants):
        mutants(Path(folder) / "file", 1, number)
    open_only.clear()
    print(sorted(set(noted)))


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="a limit of memory as Linux has it")
def test_nothing_in_a_file_is_executed_nor_asks_for_memory(tmp_path, soak):
    code = f"import warnings; warnings.simplefilter('error'); import test_fuzz; test_fuzz.watched({str(tmp_path)!r}, "
    done = subprocess.run(
        [sys.executable, "-c", f"{code}{4_000 if soak else 150})"],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


# By Hypothesis: other arrays and other metadata than a network's ------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
ENTRIES = ["task", "classes", "classes_dtype", "activation", "feature_names", "epochs_run", "best_epoch", "timing"]
dtypes = st.sampled_from(["f2", "f4", "f8", "i1", "i8", "u8", "?"])
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
quietly = settings(deadline=None, database=None, derandomize=True)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A place for a file, and what a network's holds."""
    path = tmp_path_factory.mktemp("fuzz") / "net.safetensors"
    fit(*TRAINED["words"][:1], **TRAINED["words"][1]).save(path)
    return path, *files.read(path, kind="network")


def load_or_refuse(path, tensors, metadata):
    """Write a whole file of these contents, and load it when it is a network's."""
    header, body = {}, b""
    for name, array in tensors.items():
        code = {"f": "F", "i": "I", "u": "U"}.get(array.dtype.kind, "BOOL") + str(8 * array.itemsize) * (
            array.dtype != bool
        )
        bits = array.tobytes()
        header[name] = {"dtype": code, "shape": array.shape, "data_offsets": [len(body), len(body) + len(bits)]}
        body += bits
    path.write_bytes(put_together(header, {"format": 1, "kind": "network", "metadata": metadata}, body))
    with contextlib.suppress(FileFormatError, ArgumentError):
        load(path)


@quietly
@given(metadata=st.dictionaries(st.sampled_from(ENTRIES), JSON, min_size=1, max_size=3))
def test_any_metadata_makes_a_network_or_is_refused(words, metadata):
    path, tensors, whole = words
    load_or_refuse(path, tensors, whole | metadata)


@quietly
@given(
    data=st.data(), names=st.sets(st.sampled_from(["W1", "b1", "W2", "b2", "W3", "feature_mean", "history.cost", "x"]))
)
def test_any_arrays_make_a_network_or_are_refused(words, data, names):
    path, whole, metadata = words
    changed = {name: data.draw(hnp.arrays(data.draw(dtypes), data.draw(shapes)), label=name) for name in sorted(names)}
    load_or_refuse(path, whole | changed, metadata)
