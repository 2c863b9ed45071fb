"""Files: what is written is read back bit for bit, is there whole or not at all, and a damaged one is only refused."""

import io
import json
import os
import pickle
import random
import re
import signal
import stat
import struct
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from xpnet import files
from xpnet.errors import ArgumentError, FileFormatError

TENSORS = {"W1": np.arange(12, dtype=np.float32).reshape(4, 3), "b1": np.zeros((4, 1)), "m": np.array(7)}
METADATA = {"task": "binary", "classes": [0, 1], "history": {"cost": [0.1, 0.05]}, "best_epoch": None}
SMALL = 1_000_000  # bytes: what a refusal may allocate, for messages and the parser, whatever the file claims
FUZZ = 400  # files per kind of damage, 2,000 in all
DTYPES = ["<f4", ">f4", "<f8", ">f8", "<i8", ">i8", "?"]
LAYOUTS = {
    "C": lambda a: np.array(a, order="C"),
    "F": lambda a: np.array(a, order="F"),
    "reversed": lambda a: a[(slice(None, None, -1),) * a.ndim],
    "every other": lambda a: np.repeat(a[np.newaxis], 3, axis=0)[::2],
    "transposed": lambda a: a.T,
    "broadcast": lambda a: np.broadcast_to(a, (2, *a.shape)),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
quietly = settings(deadline=None, database=None)
posix = pytest.mark.skipif(os.name != "posix", reason="permissions, pipes and signals as POSIX has them")


def framed(header, body=b""):
    """Return a safetensors file by hand, so that no test leans on the library's own writer."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def xpnet_file(entry, tensors=None, body=b""):
    text = entry if isinstance(entry, str) else json.dumps(entry)
    return framed({"__metadata__": {"xpnet": text}, **(tensors or {})}, body)


def entry(**changes):
    return {"format": 1, "kind": "network", "metadata": {}} | changes


def tensor(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


def same_bits(a, b):
    return a.dtype == b.dtype.newbyteorder("=") and a.shape == b.shape and a.tobytes() == b.astype(a.dtype).tobytes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


@pytest.fixture
def old(path):
    """A file that is already there."""
    files.write(path, TENSORS, METADATA, kind="network")
    return path


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("files") / "scratch.safetensors"


def refusal(path, data, kind="network"):
    path.write_bytes(data)
    with pytest.raises(FileFormatError) as raised:
        files.read(path, kind=kind)
    return str(raised.value)


# What is written is read back.


@quietly
@given(data=st.data(), dtype=st.sampled_from(DTYPES), layout=st.sampled_from(sorted(LAYOUTS)))
def test_arrays_come_back_bit_for_bit(scratch, data, dtype, layout):
    shape = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
    array = LAYOUTS[layout](data.draw(hnp.arrays(dtype, shape)))
    files.write(scratch, {"a": array, "b": array}, {}, kind="checkpoint")
    tensors, _ = files.read(scratch, kind="checkpoint")
    assert same_bits(tensors["a"], array)
    assert same_bits(tensors["b"], array)


@quietly
@given(metadata=st.dictionaries(st.text(), JSON, max_size=4))
def test_metadata_comes_back_equal(scratch, metadata):
    files.write(scratch, TENSORS, metadata, kind="network")
    assert files.read(scratch, kind="network")[1] == metadata


@quietly
@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_floats_of_the_metadata_come_back_bit_for_bit(scratch, value):
    files.write(scratch, TENSORS, {"cost": [value]}, kind="network")
    back = files.read(scratch, kind="network")[1]["cost"][0]
    assert struct.pack("<d", back) == struct.pack("<d", value)


@quietly
@given(names=st.sets(st.text().filter(lambda name: name != "__metadata__"), min_size=1, max_size=5))
def test_any_text_can_name_an_array(scratch, names):
    files.write(scratch, {name: np.array(i) for i, name in enumerate(sorted(names))}, {}, kind="network")
    tensors, _ = files.read(scratch, kind="network")
    assert {name: int(array) for name, array in tensors.items()} == {n: i for i, n in enumerate(sorted(names))}


def test_arrays_come_back_writable_and_apart(old):
    first, second = (files.read(old, kind="network")[0]["W1"] for _ in range(2))
    first += 1
    assert np.array_equal(second, TENSORS["W1"])


@pytest.mark.parametrize("spell", [str, Path, os.fsencode])
def test_a_path_may_be_text_bytes_or_a_path(path, spell):
    files.write(spell(path), TENSORS, METADATA, kind="network")
    assert files.read(spell(path), kind="network")[1] == METADATA


def test_a_path_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.write("net", TENSORS, METADATA, kind="network")
    assert files.read("net", kind="network")[1] == METADATA


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / ("n" * 255)
    files.write(path, TENSORS, METADATA, kind="network")
    assert files.read(path, kind="network")[1] == METADATA


def test_a_file_is_one_metadata_entry_and_the_arrays(old):
    data = old.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert set(header) == {"__metadata__", *TENSORS}
    assert set(header["__metadata__"]) == {"xpnet"}
    found = json.loads(header["__metadata__"]["xpnet"])
    assert isinstance(found.pop("checksum"), int)
    assert found == {"format": 1, "kind": "network", "metadata": METADATA}


@pytest.mark.parametrize("kind", ["network", "checkpoint"])
def test_numbers_that_are_not_those_that_were_written_are_refused(path, kind):
    files.write(path, TENSORS, METADATA, kind=kind)
    data = path.read_bytes()
    for torn in (data[:-48] + bytes(48), data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]):
        assert re.search(
            "is damaged .* its numbers are not those that were written.*"
            + (", or delete it to start anew" if kind == "checkpoint" else "a whole copy of this one")
            + r"\.$",
            refusal(path, torn, kind),
        )


def test_a_file_made_by_hand_can_be_read(path):
    path.write_bytes(xpnet_file(entry(metadata={"l2": 0.5}), tensor(), struct.pack("<f", 1.5)))
    tensors, metadata = files.read(path, kind="network")
    assert metadata == {"l2": 0.5}
    assert tensors["a"].tolist() == [1.5]


# What cannot be stored is refused before anything is touched.


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"a": np.array([None])}, {}, r"tensors\['a'\] is of dtype object; .* Convert it with astype\."),
        ({"a": np.array(["x"])}, {}, "is of dtype <U1"),
        ({"a": np.zeros(1, complex)}, {}, "is of dtype complex128"),
        ({"a": np.zeros(1, np.complex64)}, {}, "is of dtype complex64"),
        ({"a": np.zeros(1, "M8[s]")}, {}, r"is of dtype datetime64\[s\]"),
        ({"a": np.zeros(1, "f4,i4")}, {}, "is of dtype"),
        ({"__metadata__": np.zeros(1)}, {}, "the name '__metadata__', which the format keeps for itself. Rename"),
        ({1: np.zeros(1)}, {}, "tensors must be arrays by name, but: .* Rename"),
        ({"\ud800": np.zeros(1)}, {}, "tensors must be arrays by name, but: .*surrogates"),
        (TENSORS, {"cost": [float("nan")]}, "metadata must be strict JSON, but: .* finite float"),
        (TENSORS, {"cost": float("-inf")}, "metadata must be strict JSON"),
        (TENSORS, {"cost": np.float32(1)}, "metadata must be strict JSON, but: .*float32"),
        (TENSORS, {"f": print}, "metadata must be strict JSON"),
        (TENSORS, {("a", 1): 0}, "metadata must be strict JSON"),
        (TENSORS, {1: 0, "1": 1}, "metadata must be strict JSON, but: an object has a name twice"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_the_old_file_stays(old, tensors, metadata, message):
    before = old.read_bytes()
    with pytest.raises(ArgumentError, match=message):
        files.write(old, tensors, metadata, kind="network")
    assert old.read_bytes() == before
    assert os.listdir(old.parent) == [old.name]


def test_metadata_nested_without_end_is_refused(path):
    knot = {}
    knot["self"] = knot
    with pytest.raises(ArgumentError, match="metadata must be strict JSON"):
        files.write(path, TENSORS, knot, kind="network")


def test_a_header_too_long_to_be_read_is_not_written(path, monkeypatch):
    monkeypatch.setattr(files, "HEADER_LIMIT", 1_000)
    with pytest.raises(ArgumentError, match=r"metadata makes a header of 1,\d{3} bytes; a file holds 1,000\. Store"):
        files.write(path, TENSORS, {"x": "x" * 1_000}, kind="network")
    assert not path.exists()


# A file is there whole or not at all.


def fail(error, *args, **kwargs):
    raise error


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Denied"), OSError("?")])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(old, monkeypatch, step, error):
    before = old.read_bytes()
    monkeypatch.setattr(os, step, partial(fail, error))
    with pytest.raises(type(error), match=r"nothing was changed: .*net\.safetensors"):
        files.write(old, {"a": np.ones(9)}, {}, kind="network")
    assert old.read_bytes() == before
    assert os.listdir(old.parent) == [old.name]


def test_a_write_that_is_interrupted_leaves_the_old_file_and_nothing_else(old, monkeypatch):
    before = old.read_bytes()
    monkeypatch.setattr(os, "fsync", partial(fail, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        files.write(old, {"a": np.ones(9)}, {}, kind="network")
    assert old.read_bytes() == before
    assert os.listdir(old.parent) == [old.name]


@posix
def test_a_disk_that_fills_up_leaves_the_old_file_and_nothing_else(old):
    before = old.read_bytes()
    code = """
        import resource, signal, numpy as np
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            files.write(path, {"a": np.ones(100_000)}, {}, kind="network")
        except OSError as error:
            print(error)
    """
    said = run(code, old).communicate()[0]
    assert "nothing was changed" in said
    assert old.read_bytes() == before
    assert os.listdir(old.parent) == [old.name]


@posix
@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may write to a read-only folder")
def test_a_read_only_folder_is_a_permission_error(old):
    before = old.read_bytes()
    old.parent.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match=r"nothing was changed: .*net\.safetensors"):
            files.write(old, {"a": np.ones(9)}, {}, kind="network")
        assert os.listdir(old.parent) == [old.name]
    finally:
        old.parent.chmod(0o700)
    assert old.read_bytes() == before


def test_a_missing_folder_is_named_with_the_path_that_was_given(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing was changed: .*nowhere.net'"):
        files.write(tmp_path / "nowhere" / "net", TENSORS, METADATA, kind="network")


def test_a_folder_is_not_written_over(tmp_path):
    (tmp_path / "net").mkdir()
    with pytest.raises(OSError, match=r"nothing was changed: .*net'"):
        files.write(tmp_path / "net", TENSORS, METADATA, kind="network")
    assert os.listdir(tmp_path) == ["net"]


@posix
def test_the_bytes_reach_the_disk_before_the_name_and_the_name_before_the_return(path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def noted_replace(source, target):
        steps.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    files.write(path, TENSORS, METADATA, kind="network")
    assert steps == ["file", "replace", "folder"]


@posix
def test_a_folder_that_cannot_be_synced_does_not_fail_the_write(path, monkeypatch):
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda d: fail(OSError(22, "?")) if stat.S_ISDIR(os.fstat(d).st_mode) else fsync(d)
    )
    files.write(path, TENSORS, METADATA, kind="network")
    assert files.read(path, kind="network")[1] == METADATA


def run(code, path):
    """Start a Python that has `files` and `path`, and runs `code`."""
    lines = [line[8:] for line in code.splitlines()]
    root = Path(files.__file__).parents[1]
    start = f"import sys; sys.path.insert(0, {str(root)!r}); from xpnet import files; path = {str(path)!r}"
    return subprocess.Popen([sys.executable, "-c", "\n".join([start, *lines])], stdout=subprocess.PIPE, text=True)


@posix
@pytest.mark.parametrize("delay", [0.001, 0.005, 0.02, 0.05, 0.1])
def test_a_file_is_whole_after_kill_9(path, delay):
    code = """
        import itertools, numpy as np
        for i in itertools.count():
            files.write(path, {"a": np.full(100_000 + i % 7, float(i))}, {"i": i}, kind="checkpoint")
            if i == 1:
                print("ready", flush=True)
    """
    writer = run(code, path)
    writer.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        writer.wait(delay)
    writer.kill()
    assert writer.wait() == -signal.SIGKILL
    writer.stdout.close()
    tensors, metadata = files.read(path, kind="checkpoint")
    assert metadata["i"] >= 1
    assert np.array_equal(tensors["a"], np.full(100_000 + metadata["i"] % 7, float(metadata["i"])))


@posix
def test_a_reader_among_writers_always_finds_a_whole_file(old):
    def write(i):
        files.write(old, {"a": np.full(10_000 + i, float(i))}, {"i": i}, kind="network")
        tensors, metadata = files.read(old, kind="network")
        return np.array_equal(tensors["a"], np.full(10_000 + metadata["i"], float(metadata["i"])))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(write, range(80)))
    assert os.listdir(old.parent) == [old.name]


# Permissions, links and things that are not files.


@posix
def test_a_new_file_has_the_permissions_of_the_umask(path):
    before = os.umask(0o027)
    try:
        files.write(path, TENSORS, METADATA, kind="network")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@posix
@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_an_old_file_keeps_its_permissions(old, mode):
    old.chmod(mode)
    files.write(old, TENSORS, {}, kind="network")
    assert stat.S_IMODE(old.stat().st_mode) == mode


@posix
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_stays_a_link_and_its_target_is_written(tmp_path, dangling):
    target, link = tmp_path / "there" / "net", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to(target)
    if not dangling:
        target.write_bytes(b"old")
    files.write(link, TENSORS, METADATA, kind="network")
    assert link.is_symlink()
    assert files.read(target, kind="network")[1] == METADATA
    assert os.listdir(target.parent) == ["net"]


@posix
def test_a_pipe_is_refused_without_waiting_for_it(path):
    os.mkfifo(path)
    with pytest.raises(FileFormatError, match=r"is a pipe, a socket or a device; expected a file\. Pass one"):
        files.read(path, kind="network")
    with pytest.raises(ArgumentError, match=r"is a pipe, a socket or a device; xpnet writes files\. Pass"):
        files.write(path, TENSORS, METADATA, kind="network")
    assert path.is_fifo()


@posix
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_neither_read_nor_replaced(device):
    with pytest.raises(FileFormatError, match="is a pipe, a socket or a device"):
        files.read(device, kind="network")
    with pytest.raises(ArgumentError, match="is a pipe, a socket or a device"):
        files.write(device, TENSORS, METADATA, kind="network")
    assert stat.S_ISCHR(os.stat(device).st_mode)


def test_a_missing_file_is_a_file_not_found_error_with_its_path(path):
    with pytest.raises(FileNotFoundError, match=r"net\.safetensors"):
        files.read(path, kind="network")


@posix
def test_reading_a_folder_is_an_is_a_directory_error(tmp_path):
    with pytest.raises(IsADirectoryError):
        files.read(tmp_path, kind="network")


# A file that is not right is refused, and nothing more.


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it announces a header of 0 bytes and has 0 bytes in all. Expected a file that xpnet wrote; pass anoth"),
        (b"abc", "and has 3 bytes in all"),
        (b"x,y\n1,2\n3,4\n", "damaged or not a safetensors file: it announces a header of"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "a header of 18,446,744,073,709,551,615 bytes and has 10 bytes in"),
        (struct.pack("<Q", 99_999_999) + b"{}", "a header of 99,999,999 bytes and has 10 bytes in all"),
        (framed(b"\xff\xfe{}"), "its header is not JSON"),
        (framed(b"[" * 100_000), "its header is not JSON"),
        (framed(b'{"__metadata__":'), "its header is not JSON"),
        (framed([1]), "its header is not a JSON object"),
        (framed({}), "is a safetensors file but not one of xpnet's: expected a network. Open it with the library"),
        (framed(tensor(), b"1234"), "is a safetensors file but not one of xpnet's"),
        (framed({"__metadata__": {"format": "pt"}}), "is a safetensors file but not one of xpnet's"),
        (framed({"__metadata__": ["xpnet"]}), "is a safetensors file but not one of xpnet's"),
        (framed({"__metadata__": {"xpnet": {"format": 1}}}), "its xpnet metadata is not JSON"),
        (xpnet_file("{"), "its xpnet metadata is not JSON"),
        (xpnet_file("[" * 100_000), "its xpnet metadata is not JSON"),
        (xpnet_file(entry(metadata={"cost": float("nan")})), r"its xpnet metadata is not JSON \(NaN is not a JSON"),
        (xpnet_file("[]"), "its xpnet metadata lacks a known format, a known kind or the metadata itself"),
        (xpnet_file(entry(metadata=[])), "lacks a known format"),
        (xpnet_file(entry(kind="tokenizer")), "lacks a known format"),
        (xpnet_file(entry(kind=["network"])), "lacks a known format"),
        (xpnet_file(entry(format=0)), "lacks a known format"),
        (xpnet_file(entry(format="1")), "lacks a known format"),
        (xpnet_file(entry(format=2)), r"later xpnet \(format 2\); this one reads up to 1: pip install -U xpnet"),
        (xpnet_file({"format": 10**30}), r"later xpnet \(format 10{30}\)"),
        (xpnet_file(entry(format=3, kind="x"), tensor("F4", [2])), r"written by a later xpnet \(format 3\)"),
        (
            xpnet_file(entry(kind="checkpoint")),
            r"is a checkpoint, not a network: pass it as fit\(..., checkpoint=...\)",
        ),
        (xpnet_file(entry(), tensor("BF16", [2]), b"1234"), r"its arrays cannot be read \(KeyError: 'BF16'\)"),
        (xpnet_file(entry(), tensor("F8_E4M3", [4]), b"1234"), "its arrays cannot be read"),
        (xpnet_file(entry(), tensor("F3"), b"1234"), "its arrays cannot be read"),
        (xpnet_file(entry(), tensor(), b"123"), r"its arrays cannot be read \(they end at byte 4 of 3\)"),
        (xpnet_file(entry(), tensor(), b"12345"), "its arrays cannot be read"),
        (xpnet_file(entry(), tensor("F16"), b"1234"), r"its arrays cannot be read \(SafetensorError: "),
        (xpnet_file(entry(), tensor("C64", offsets=[0, 8]), bytes(8)), "its arrays cannot be read .*C64"),
        (xpnet_file(entry(), tensor(offsets=[0, "4"]), b"1234"), "its arrays cannot be read"),
        (xpnet_file(entry(), {"a": None}), "its arrays cannot be read"),
        (framed(b'{"__metadata__":{},"__metadata__":{"xpnet":""}}'), r"not JSON \(an object has a name twice\)"),
        (xpnet_file('{"format":1,"format":1}'), r"its xpnet metadata is not JSON \(an object has a name twice\)"),
        (xpnet_file(entry(), tensor(shape=[2]), b"1234"), "its arrays cannot be read"),
        (xpnet_file(entry(), tensor(shape=[-1]), b"1234"), "its arrays cannot be read"),
        (xpnet_file(entry(), tensor(shape=[2**63, 2]), b"1234"), "its arrays cannot be read"),
        (xpnet_file(entry(), tensor(shape=[0, 2**63], offsets=[0, 0])), "its arrays cannot be read"),
        (xpnet_file(entry(), tensor(shape=[1] * 70), b"1234"), "its arrays cannot be read"),
        (xpnet_file(entry(), tensor(offsets=[4, 0]), b"1234"), "its arrays cannot be read"),
        (xpnet_file(entry(), tensor(offsets=[0, 2**64 - 1]), b"1234"), "its arrays cannot be read"),
        (xpnet_file(entry(), {"a" * 10_000: {}}), "its arrays cannot be read"),
    ],
)
def test_a_refusal_says_what_came_and_what_to_do(path, data, message):
    said = refusal(path, data)
    assert repr(str(path)) in said
    with pytest.raises(FileFormatError, match=message):
        files.read(path, kind="network")


def test_a_network_is_not_taken_for_a_checkpoint(old):
    with pytest.raises(FileFormatError, match=r"is a network, not a checkpoint: open it with xpnet.load\(...\)"):
        files.read(old, kind="checkpoint")


def test_no_refusal_quotes_more_than_a_paragraph_of_the_file(path):
    data = xpnet_file(entry(), {"a" * 10_000: {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}})
    assert len(refusal(path, data)) < 700 + len(str(path))


def test_every_truncation_is_refused(old):
    data = old.read_bytes()
    for length in range(len(data)):
        assert refusal(old, data[:length])


@pytest.mark.parametrize("announced", [150_000_000, 199_999_992, 2**40])
def test_a_refusal_reads_no_header_above_the_limit(path, announced):
    with path.open("wb") as file:
        file.write(struct.pack("<Q", announced))
        file.truncate(200_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError, match="it announces a header of"):
            files.read(path, kind="network")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < SMALL


def test_a_large_file_of_another_library_is_refused_before_its_numbers_are_read(path):
    with path.open("wb") as file:
        file.write(framed(tensor(shape=[50_000_000], offsets=[0, 200_000_000])))
        file.truncate(file.tell() + 200_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError, match="not one of xpnet's"):
            files.read(path, kind="network")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < SMALL


@posix
@pytest.mark.parametrize("hole", [2**30, 2**41])
def test_a_hole_behind_the_numbers_is_refused_before_it_is_read(old, hole):
    os.truncate(old, hole)
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError, match=r"they end at byte \d+ of [\d,]+\)"):
            files.read(old, kind="network")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < SMALL


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def pickled(bomb):
    return pickle.dumps(bomb)


def pickled_in_an_array(bomb):
    stream = io.BytesIO()
    np.save(stream, np.array([bomb], dtype=object), allow_pickle=True)
    return stream.getvalue()


def pickled_in_the_metadata(bomb):
    return xpnet_file(pickle.dumps(bomb, protocol=0).decode())


@pytest.mark.parametrize("make", [pickled, pickled_in_an_array, pickled_in_the_metadata])
def test_a_pickle_is_refused_and_not_executed(path, make):
    bomb = path.parent / "bomb"
    assert refusal(path, make(Bomb(str(bomb))))
    assert not bomb.exists()


# Damage at random: a file is read cleanly or refused.


def flip_bytes(data, rng):
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        damaged[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(damaged)


def cut_or_double_a_piece(data, rng):
    start, stop = sorted(rng.choices(range(len(data) + 1), k=2))
    return data[:start] + data[start:stop] * rng.choice([0, 2, 3]) + data[stop:]


def lie_about_the_header(data, rng):
    honest = int.from_bytes(data[:8], "little")
    lie = rng.choice([rng.randrange(len(data)), honest + rng.randint(-9, 9), rng.getrandbits(64), rng.getrandbits(28)])
    return struct.pack("<Q", lie) + data[8:]


JUNK = [
    *(None, True, 0, 1, -1, 1.5, 2**31, 2**63, 2**64, 10**400, 1e308, "", "1", "F64", "BF16", "C64", "network"),
    *([], [[]], [0], [4, 0], {}, {"": {}}, {"xpnet": "{}"}, {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}),
]


def confuse(node, rng):
    """Return the JSON value with one thing somewhere inside it replaced, removed or added."""
    if not isinstance(node, dict | list) or not node or rng.random() < 0.2:
        return rng.choice(JUNK)
    changed = dict(node) if isinstance(node, dict) else dict(enumerate(node))
    key = rng.choice(list(changed))
    what = rng.random()
    if what < 0.1:
        del changed[key]
    elif what < 0.2:
        changed[rng.choice(["__metadata__", "xpnet", "format", "b1", -1])] = rng.choice(JUNK)
    else:
        changed[key] = confuse(changed[key], rng)
    return changed if isinstance(node, dict) else list(changed.values())


def confuse_the_header(data, rng):
    length = int.from_bytes(data[:8], "little")
    return framed(confuse(json.loads(data[8 : 8 + length]), rng), data[8 + length :])


def confuse_the_metadata(data, rng):
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["xpnet"] = json.dumps(confuse(json.loads(header["__metadata__"]["xpnet"]), rng))
    return framed(header, data[8 + length :])


@pytest.mark.parametrize(
    "damage", [flip_bytes, cut_or_double_a_piece, lie_about_the_header, confuse_the_header, confuse_the_metadata]
)
def test_a_damaged_file_is_refused_or_read_cleanly(old, damage):
    data, rng = old.read_bytes(), random.Random(2024)
    refused = 0
    for _ in range(FUZZ):
        old.write_bytes(damage(data, rng))
        try:
            tensors, metadata = files.read(old, kind="network")
        except FileFormatError:
            refused += 1
        else:
            assert all(isinstance(array, np.ndarray) for array in tensors.values())
            assert isinstance(metadata, dict)
    assert refused > 0


@quietly
@given(data=st.binary(max_size=200))
def test_bytes_that_nobody_wrote_are_refused(scratch, data):
    assert refusal(scratch, data)
