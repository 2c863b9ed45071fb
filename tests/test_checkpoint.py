"""Checkpoints: whatever ends a process, the same call goes on as if nothing had; and one fit at a time has the file.

What is the same for every kind of fit is in `test_training`; here are the moments and the surroundings: kill -9,
signals, full and read-only disks, torn files, two processes, two devices.
"""

import contextlib
import errno
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path
from typing import Any, NamedTuple

import killed
import numpy as np
import pytest
from conftest import BACKENDS

import xpnet
from xpnet import checkpoint as checkpoints
from xpnet import files
from xpnet.checkpoint import Every, Kept, Terminated
from xpnet.device import to_host
from xpnet.engine import Engine
from xpnet.errors import ArgumentError, CheckpointError, CheckpointWarning, FileFormatError

NAMESPACES = 1e-5  # the design's promise between devices, in float32
LARGE = {"hidden": 2_000, "epochs": 4}
SMALL_DISK = 270_000  # bytes: room for a checkpoint of `LARGE`, which has 10,001 parameters four times, but not for two

posix = pytest.mark.skipif(os.name != "posix", reason="signals, forks and limits as POSIX has them")
root = pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="needs root")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.ckpt"


def problem():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((3, 90)).astype(np.float32)
    return X, (X[0] * X[1] + X[2] > 0).astype(int)


def fit(checkpoint=None, **options):
    common = {"hidden": 6, "epochs": 3, "batch_size": 9, "random_state": 0, "patience": None}
    return xpnet.fit(*problem(), **{**common, **options}, checkpoint=checkpoint)


def bits(net):
    """Return all that training made, bit for bit; the clock's readings are left out."""
    history = {key: values for key, values in net.history.items() if key != "seconds"}
    return [array.tobytes() for layer in net.layers for array in layer], history, net.best_epoch, net.timing["steps"]


def steps(path):
    """Return the steps that a checkpoint holds, and those of them that are of an epoch under way."""
    tensors, metadata = files.read(path, kind="checkpoint")
    return metadata["steps"], tensors["epoch.costs"].size


# Kill -9 --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    """A folder for many checkpoints: in memory, where there is one, unless they are to be seen to a real disk."""
    real = request.config.getoption("--soak") or not os.access("/dev/shm", os.W_OK)
    made = tempfile.mkdtemp(dir=tmp_path_factory.mktemp("killed") if real else "/dev/shm")
    yield made
    shutil.rmtree(made, ignore_errors=True)


def killing(folder, *arguments):
    command = [sys.executable, killed.__file__, f"{folder}/{len(arguments)}", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(xpnet.__file__).parents[1])}
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


@pytest.fixture(scope="module")
def killed_at_random(request, folder):
    if os.name != "posix":
        pytest.skip("kill -9 and fork as POSIX has them")
    return killing(folder, 15 if request.config.getoption("--soak") else 1, 0)


@pytest.fixture(scope="module")
def killed_while_writing(folder):
    if os.name != "posix":
        pytest.skip("kill -9 and fork as POSIX has them")
    return killing(folder)


@pytest.mark.parametrize("run", killed.RUNS)
def test_a_fit_that_is_killed_again_and_again_goes_on_as_if_it_never_were(run, killed_at_random):
    found = killed_at_random[run]
    print(run, found)
    assert found["kills"] >= found["networks"] == found["equal"] > 0
    assert found["left"] == ["run"]


@pytest.fixture(scope="module")
def killed_after_steps(request, folder):
    if os.name != "posix":
        pytest.skip("kill -9 and fork as POSIX has them")
    return killing(folder, 1 if request.config.getoption("--soak") else 37)


@pytest.mark.parametrize("run", killed.RUNS)
def test_a_fit_goes_on_from_the_checkpoint_of_any_step_as_if_it_never_was_killed(run, killed_after_steps):
    """The costs, too, to the last bit: the first step after a resume adds up what later ones do, in their order."""
    found = killed_after_steps[run]
    print(run, found)
    assert found["lost"] == []
    assert len(found["killed"]) == found["due"] > 0


@pytest.mark.parametrize("turn", [1, 9])
@pytest.mark.parametrize("moment", killed.MOMENTS)
def test_a_kill_within_the_writing_of_a_checkpoint_leaves_the_one_before_or_the_new_one(
    moment, turn, killed_while_writing
):
    was_killed, kept, equal, left = killed_while_writing[f"{moment}, {turn}"]
    assert was_killed
    assert kept == 9 * (turn if moment == "in place" else turn - 1)
    assert equal
    assert left == ["run"]


# When they are written ------------------------------------------------------------------------------------------------


SPELLINGS = {60: Every(seconds=60), 0.5: Every(seconds=0.5), 0: Every(seconds=0), "epoch": Every(epoch=True)}
SPELLINGS |= {"500 steps": Every(steps=500), "1 step": Every(steps=1), np.float32(2): Every(seconds=2)}


@pytest.mark.parametrize(("value", "means"), SPELLINGS.items(), ids=repr)
def test_the_distance_of_checkpoints_is_seconds_epochs_or_steps(value, means):
    assert checkpoints.every(value) == means


@pytest.mark.parametrize(
    "value", [-1, math.inf, math.nan, "60", "500", "0 steps", "500 seconds", "epochs", "", None, True]
)
def test_the_distance_of_checkpoints_is_nothing_else(value):
    with pytest.raises(ArgumentError, match="checkpoint_every must be "):
        fit(checkpoint_every=value)


@pytest.fixture
def written(monkeypatch):
    """The steps that every checkpoint held, as they were written."""
    found, write = [], checkpoints.write

    def noted(path, standing, fingerprint):
        found.append((standing.epochs, standing.steps, len(standing.costs)))
        write(path, standing, fingerprint)

    monkeypatch.setattr(checkpoints, "write", noted)
    return found


def test_checkpoints_are_so_many_steps_apart_also_within_an_epoch(written, path):
    fit(path, checkpoint_every="4 steps")
    assert written == [(0, 4, 4), (0, 8, 8), (1, 12, 2), (1, 16, 6), (1, 20, 10), (2, 24, 4), (2, 28, 8), (3, 30, 0)]


def test_checkpoints_are_an_epoch_apart(written, path):
    fit(path, checkpoint_every="epoch")
    assert written == [(1, 10, 0), (2, 20, 0), (3, 30, 0)]


def test_no_seconds_is_every_step(written, path):
    fit(path, checkpoint_every=0, epochs=1)
    assert [steps for _, steps, _ in written] == [*range(1, 11), 10]


def test_a_resumed_fit_counts_steps_from_where_it_goes_on(written, path):
    fit(path, checkpoint_every="7 steps", epochs=1)
    written.clear()
    fit(path, checkpoint_every="7 steps", epochs=2)
    assert written == [(1, 17, 7), (2, 20, 0)]


def test_a_fit_without_a_checkpoint_copies_nothing_as_it_goes_and_waits_once_an_epoch(monkeypatch):
    calls = []
    for name in ("kept", "take_costs"):
        method = getattr(Engine, name)
        monkeypatch.setattr(Engine, name, lambda *given, name=name, method=method: calls.append(name) or method(*given))
    fit()
    assert calls == ["take_costs"] * 3 + ["kept"]


def test_a_checkpoint_costs_no_copies_and_no_waits_between_two_that_are_written(monkeypatch, path):
    calls, take_costs = [], Engine.take_costs
    fit(path)
    monkeypatch.setattr(Engine, "take_costs", lambda self: calls.append("") or take_costs(self))
    fit(path, epochs=6)
    assert len(calls) == 1 + 3 + 1  # where it stands at the beginning and at the end, and the epochs


def test_a_finished_fit_is_not_written_again(written, path):
    fit(path)
    fit(path)
    assert written == [(3, 30, 0)]


# Signals --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def within_a_step(monkeypatch):
    """Have something happen in the middle of what NumPy does in place: of that gradient, or of that update."""

    @contextlib.contextmanager
    def within_a_step(event, turn):
        turns, replay = itertools.count(1), xpnet.engine.replay

        def disturbed(calls):
            half = len(calls) // 2
            replay(calls[:half])
            if next(turns) == turn:
                event()
            replay(calls[half:])

        with monkeypatch.context() as patch:
            patch.setattr(xpnet.engine, "replay", disturbed)
            yield

    return within_a_step


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def sigterm():
    signal.raise_signal(signal.SIGTERM)


every_turn = pytest.mark.parametrize("turn", [1, 2, 3, 10, 19, 20, 21, 22, 43, 60])


@posix
@every_turn
def test_ctrl_c_within_a_step_waits_until_it_is_whole(turn, within_a_step, path):
    with within_a_step(ctrl_c, turn):
        net = fit(path)
    taken = math.ceil(turn / 2)  # a gradient and an update
    assert (net.stop_reason, net.timing["steps"], net.epochs_run) == ("interrupted", taken, (taken - 1) // 10)
    assert steps(path) == (taken, taken - 10 * ((taken - 1) // 10))
    assert bits(fit(path)) == bits(fit())


@posix
def test_the_network_that_ctrl_c_returns_is_the_one_in_the_checkpoint(within_a_step, path):
    with within_a_step(ctrl_c, 30):
        net = fit(path)
    theta = files.read(path, kind="checkpoint")[0]["theta"]
    np.testing.assert_array_equal(theta, np.concatenate([array.ravel() for layer in net.layers for array in layer]))


@posix
@pytest.mark.parametrize("turn", [1, 2, 3, 10, 19, 20, 21, 22, 39, 40])
def test_an_impatient_second_ctrl_c_does_not_wait_and_spoils_nothing(turn, within_a_step, path, monkeypatch):
    monkeypatch.setattr(checkpoints, "ECHO", 0.0)
    fit(path, epochs=1)
    before = path.read_bytes()
    with within_a_step(lambda: [ctrl_c(), ctrl_c()], turn):
        assert fit(path).stop_reason == "interrupted"
    assert path.read_bytes() == before
    assert bits(fit(path)) == bits(fit())


@posix
def test_an_echo_of_ctrl_c_is_no_second_one(within_a_step, path):
    with within_a_step(lambda: [ctrl_c() for _ in range(5)], 5):
        assert fit(path).timing["steps"] == 3
    assert steps(path) == (3, 3)


@posix
@every_turn
def test_sigterm_writes_the_checkpoint_and_ends_the_process(turn, within_a_step, path):
    with within_a_step(sigterm, turn), pytest.raises(SystemExit) as ended:
        fit(path)
    assert ended.value.code == 128 + signal.SIGTERM
    assert steps(path)[0] == math.ceil(turn / 2)
    assert bits(fit(path)) == bits(fit())


@posix
@pytest.mark.parametrize("stop", [ctrl_c, sigterm])
def test_a_signal_while_a_checkpoint_is_written_waits_until_it_is(stop, path, monkeypatch):
    write = files.write

    def disturbed(*given, **options):
        stop()
        write(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", disturbed)
        with contextlib.suppress(Terminated, KeyboardInterrupt):
            fit(path, checkpoint_every="14 steps")
    assert steps(path) == (14, 4)
    assert bits(fit(path)) == bits(fit())


def handlers():
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)


@posix
def test_signals_are_listened_to_for_a_checkpoint_alone_and_are_given_back(path):
    before, during = handlers(), []
    fit(callbacks=lambda _: during.append(handlers()))
    assert during == [before] * 3
    fit(path, callbacks=lambda _: during.append(handlers()))
    assert all(ours != theirs for ours, theirs in zip(during[-1], before, strict=True))
    assert handlers() == before


@posix
def test_a_handler_of_the_users_own_is_left_alone(path):
    came, theirs = [], lambda *given: came.append(given[0])
    before = signal.signal(signal.SIGTERM, theirs)
    try:
        net = fit(path, callbacks=lambda _: sigterm())
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (came, net.stop_reason) == ([signal.SIGTERM] * 3, "epochs")


@posix
def test_what_is_kept_in_memory_goes_on_within_an_epoch_and_minds_ctrl_c_alone(within_a_step):
    kept, during = Kept(), []
    with within_a_step(ctrl_c, 30):
        net = fit(kept, callbacks=lambda _: during.append(handlers()))
    assert (net.stop_reason, kept.state[0].steps, len(kept.state[0].costs)) == ("interrupted", 15, 5)
    assert [sigterm for _, sigterm in during] == [signal.SIG_DFL]
    assert bits(fit(kept)) == bits(fit())


@posix
def test_an_epoch_under_way_is_not_gone_on_with_in_other_data(within_a_step):
    kept, (X, Y) = Kept(), problem()
    with within_a_step(ctrl_c, 30):
        fit(kept)
    net = xpnet.fit(X, 1 - Y, hidden=6, batch_size=9, patience=None, epochs=2, random_state=0, checkpoint=kept)
    assert (net.epochs_run, net.timing["steps"]) == (2, 25)


def test_a_fit_in_another_thread_has_checkpoints_too(path):
    nets = []
    thread = threading.Thread(target=lambda: nets.append(fit(path, checkpoint_every="4 steps")))
    thread.start()
    thread.join()
    assert bits(nets[0]) == bits(fit())


# One fit at a time ----------------------------------------------------------------------------------------------------


def python(code, *arguments, **options):
    """Start a Python of its own that has the arguments in `given`."""
    start = "import signal, sys, xpnet; from xpnet import checkpoint; given = sys.argv[1:]\n"
    environment = {**os.environ, "PYTHONPATH": str(Path(xpnet.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", start + textwrap.dedent(code), *map(str, arguments)],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.fixture
def another(path):
    """Another process that has the checkpoint."""
    with python("with checkpoint.locked(given[0]): print(flush=True); sys.stdin.read()", path) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_a_checkpoint_that_another_process_has_is_refused_with_its_number(another, path):
    with pytest.raises(
        CheckpointError, match=rf"run\.ckpt must be one fit's alone; process {another.pid} on .* has it"
    ):
        fit(path)


def test_a_checkpoint_whose_process_is_killed_is_free(another, path):
    another.kill()
    another.wait()
    assert os.listdir(path.parent) == ["run.ckpt.lock"]
    assert bits(fit(path)) == bits(fit())
    assert os.listdir(path.parent) == ["run.ckpt"]


def test_a_checkpoint_that_another_fit_of_this_process_has_is_refused(path):
    def once_more(_):
        with pytest.raises(CheckpointError, match="another fit of this process has it"):
            fit(path)

    assert bits(fit(path, callbacks=once_more)) == bits(fit())


def test_a_checkpoint_is_locked_under_all_its_names(another, path):
    other = path.parent / "link"
    other.symlink_to(path)
    with pytest.raises(CheckpointError, match=f"process {another.pid}"):
        fit(other)


def test_of_many_that_want_a_checkpoint_one_at_a_time_has_it(path):
    code = """
    import os, time
    for _ in range(60):
        try:
            with checkpoint.locked(given[0]):
                os.close(os.open(given[0], os.O_CREAT | os.O_EXCL))
                os.unlink(given[0])
        except xpnet.errors.CheckpointError:
            time.sleep(0.001)
    """
    processes = [python(code, path) for _ in range(3)]
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, said
    assert os.listdir(path.parent) == []


@posix
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_warned_of(number, path, monkeypatch):
    import fcntl  # POSIX has it

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(CheckpointWarning, match=r"run\.ckpt is on a disk without locks"):
        net = fit(path)
    assert bits(net) == bits(fit())


# Disks that are full, or read-only ------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder, *options):
    """Mount a disk in memory, or skip the test where that cannot be done."""
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"a disk cannot be mounted here: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for a checkpoint of `LARGE`, but not for two."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root, on Linux, may mount a disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(folder, "-o", f"size={SMALL_DISK}"):
        yield folder


def test_a_full_disk_keeps_the_checkpoint_before_and_loses_nothing_of_the_training(small_disk):
    path, kept = small_disk / "run.ckpt", []
    fit(path, **LARGE | {"epochs": 1})

    def keep(_):
        kept.append((path.read_bytes(), sorted(os.listdir(small_disk))))

    with pytest.warns(CheckpointWarning) as warned:
        net = fit(path, **LARGE, checkpoint_every="epoch", callbacks=keep)
    assert [str(warning.message).partition("ckpt ")[2] for warning in warned] == [
        "could not be written: No space left on device; nothing was changed. Training goes on and will try again: make "
        "room, or mend what is wrong with the disk.",
        "could not be written: No space left on device; nothing was changed. What was trained since the one before is "
        "in the network alone: save that.",
    ]
    assert all(Path(warning.filename).name == Path(__file__).name for warning in warned)
    assert bits(net) == bits(fit(**LARGE))
    assert all(content == path.read_bytes() for content, _ in kept)
    assert kept[-1][1] == ["run.ckpt", "run.ckpt.lock"]
    assert os.listdir(small_disk) == ["run.ckpt"]
    assert steps(path) == (10, 0)


def test_a_disk_that_has_room_again_gets_the_next_checkpoint(small_disk):
    path, ballast = small_disk / "run.ckpt", small_disk / "ballast"
    with contextlib.suppress(OSError):
        ballast.write_bytes(bytes(2 * SMALL_DISK))

    def make_room(view):
        if view.epoch == 1:
            ballast.unlink()

    with pytest.warns(CheckpointWarning, match="No space left on device") as warned:
        fit(path, checkpoint_every="epoch", callbacks=make_room)
    assert len(warned) == 1
    assert steps(path) == (30, 0)


@posix
def test_a_limit_on_the_size_of_files_keeps_the_checkpoint_before(path):
    code = """
    import resource, warnings
    warnings.simplefilter("ignore")
    X, Y = xpnet.datasets.flower()
    options = {"hidden": 200, "random_state": 0, "checkpoint": given[0], "patience": None}
    xpnet.fit(X, Y, epochs=1, **options)
    before = open(given[0], "rb").read()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    net = xpnet.fit(X, Y, epochs=3, checkpoint_every="epoch", **options)
    assert open(given[0], "rb").read() == before
    print(net.epochs_run)
    """
    assert python(code, path).communicate() == ("3\n", "")
    assert os.listdir(path.parent) == ["run.ckpt"]


@root
def test_a_disk_that_is_read_only_is_refused_before_training(tmp_path):
    with (
        mounted(tmp_path, "-o", "ro"),
        pytest.raises(ArgumentError, match=r"that can be written to; .* is not \(Read-"),
    ):
        fit(tmp_path / "run.ckpt", callbacks=lambda _: pytest.fail("trained"))


@posix
def test_a_folder_that_is_not_ones_own_is_refused_before_training():
    code = """
    import os
    X, Y = xpnet.datasets.flower()
    xpnet.fit(X, Y, epochs=1)  # all is imported, which somebody else may not
    if os.geteuid() == 0:
        os.setuid(65534)
    try:
        xpnet.fit(X, Y, checkpoint=given[0], callbacks=lambda _: print("trained"))
    except xpnet.errors.ArgumentError as error:
        print(error)
    """
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        path = os.path.join(folder, "run.ckpt")
        said = python(code, path).communicate()[0]
    assert said == (
        f"checkpoint must be a file in a folder that can be written to; {folder} is not (Permission denied). Name a "
        "file elsewhere.\n"
    )


# Torn files -----------------------------------------------------------------------------------------------------------


TORN = {
    "cut short": lambda content: content[: len(content) // 2],
    "cut by a byte": lambda content: content[:-1],
    "empty": lambda _: b"",
    "zeros at its end": lambda content: content[:-100] + bytes(100),
    "zeros alone": lambda content: bytes(len(content)),
    "a bit flipped": lambda content: content[:-9] + bytes([content[-9] ^ 8]) + content[-8:],
}


@pytest.mark.parametrize("tear", TORN.values(), ids=TORN)
def test_a_torn_checkpoint_is_refused_and_may_be_deleted(tear, path):
    fit(path)
    path.write_bytes(torn := tear(path.read_bytes()))
    with pytest.raises(FileFormatError, match=r"run\.ckpt' is damaged.*, or delete it to start anew\.$"):
        fit(path)
    assert path.read_bytes() == torn
    path.unlink()
    assert bits(fit(path)) == bits(fit())


def test_a_checkpoint_of_a_later_version_says_so(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(files, "FORMAT_VERSION", 2)
        fit(path)
    with pytest.raises(
        FileFormatError, match=r"later xpnet \(format 2\); this one reads up to 1: pip install -U xpnet"
    ):
        fit(path)


# What goes on ---------------------------------------------------------------------------------------------------------


@posix
def test_another_schedule_is_refused(path):
    fit(path, learning_rate=lambda epoch: 0.1 / (epoch + 1), optimizer="gd")
    with pytest.raises(
        CheckpointError, match=r"learning_rate was a function, 0\.1 at first, is a function, 0\.2 at first"
    ):
        fit(path, learning_rate=lambda epoch: 0.2 / (epoch + 1), optimizer="gd")


class Average(NamedTuple):
    """The state of an optimizer of one's own: numbers of each kind, and arrays of other dtypes than theta's."""

    count: int
    weight: float
    total: Any
    steps: Any


def averaging(count):
    """Return gradient descent that keeps track of what it does, in Python's numbers and in float64."""

    def init(theta, *, xp):
        return Average(0, 1.0, theta.astype(np.float64), np.zeros(2, dtype=np.int64))

    def update(theta, state, evaluate, *, learning_rate, xp):
        cost, gradient = evaluate(theta)
        total = state.total + state.weight * gradient
        theta = (theta - learning_rate * gradient - 1e-3 * (total / (state.count + 1))).astype(theta.dtype)
        count.append((type(state.count), type(state.weight), state.total.dtype, state.steps.dtype))
        return theta, Average(state.count + 1, state.weight * 0.99, total, state.steps + 1), cost

    return xpnet.optimizers.Optimizer("averaging", init, update, 0.1, full_batch=True)


def test_the_state_of_an_optimizer_of_ones_own_comes_back_in_its_own_types(path):
    seen = []
    for epochs in (2, 5):
        net = fit(path, optimizer=averaging(seen), batch_size="full", epochs=epochs)
    assert bits(net) == bits(fit(optimizer=averaging([]), batch_size="full", epochs=5))
    assert set(seen) == {(int, float, np.dtype("float64"), np.dtype("int64"))}


@pytest.mark.parametrize(
    ("optimizer", "there"), [("adam", "strict-device1"), ("lbfgs", "strict-device1"), ("adam", "torch")]
)
def test_a_checkpoint_goes_on_on_another_device(optimizer, there, path):
    backend, options = BACKENDS[there](), {"optimizer": optimizer, "epochs": 6}
    if optimizer == "lbfgs":
        options["batch_size"] = "full"
    X, Y = problem()

    def on(array, epochs):
        common = {"hidden": 6, "batch_size": 9, "random_state": 0, "patience": None, **options, "epochs": epochs}
        return xpnet.fit(array, Y, **common, checkpoint=path)

    on(X, 2)
    on(backend.asarray(X), 4)
    net, straight = on(X, 6), fit(**options)
    ours, theirs = (np.concatenate([to_host(a).ravel() for layer in n.layers for a in layer]) for n in (net, straight))
    assert np.linalg.norm(ours - theirs) <= NAMESPACES * np.linalg.norm(theirs)
    assert net.history["cost"][:2] == straight.history["cost"][:2]
    np.testing.assert_allclose(net.history["cost"], straight.history["cost"], rtol=NAMESPACES)
