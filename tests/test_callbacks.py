"""Callbacks: when each is called and with what, and those that come with xpnet."""

import csv
import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import xpnet
from xpnet.callbacks import COLUMNS, CSVLog, EarlyStopping, FitView, JSONLog, TensorBoard
from xpnet.errors import ArgumentError, DivergedError, MissingPackageError

ROOT = Path(__file__).parents[1]

FLOWER = xpnet.datasets.flower()


def fit(**options):
    """Call `xpnet.fit` on the flower for a few epochs of a small network, unless the options say otherwise."""
    return xpnet.fit(*FLOWER, **{"hidden": 6, "epochs": 3, "random_state": 0, "patience": None, **options})


class Told:
    """Writes down what it is told, and answers what it was given to answer."""

    def __init__(self, name="", told=None, **answers):
        self.name, self.told, self.answers = name, [] if told is None else told, answers

    def _tell(self, method, view):
        self.told.append((self.name, method, view))
        answer = self.answers.get(method)
        if isinstance(answer, type) and issubclass(answer, BaseException):
            raise answer(self.name)
        return answer

    def on_fit_begin(self, view):
        return self._tell("on_fit_begin", view)

    def on_epoch_end(self, view):
        return self._tell("on_epoch_end", view)

    def on_fit_end(self, view):
        return self._tell("on_fit_end", view)

    @property
    def methods(self):
        return [method for _, method, _ in self.told]


def without(*names):
    """Return a class of callbacks without those methods."""
    methods = {"on_fit_begin", "on_epoch_end", "on_fit_end"} - set(names)
    return type("Some", (), {name: vars(Told)[name] for name in methods} | {"_tell": lambda *_: None})


# When they are called -------------------------------------------------------------------------------------------------


def test_an_object_is_told_of_the_beginning_every_epoch_and_the_end():
    told = Told()
    fit(callbacks=told)
    assert told.methods == ["on_fit_begin", "on_epoch_end", "on_epoch_end", "on_epoch_end", "on_fit_end"]


@pytest.mark.parametrize("missing", [("on_fit_begin", "on_epoch_end"), ("on_epoch_end", "on_fit_end"), ("on_fit_end",)])
def test_an_object_need_not_have_all_methods(missing):
    assert fit(callbacks=without(*missing)()).stop_reason == "epochs"


def test_functions_and_objects_go_together():
    told, seen = Told(), []
    fit(callbacks=[told, seen.append])
    assert (len(told.told), len(seen)) == (5, 3)


def test_the_first_to_begin_is_the_last_to_end():
    told = []
    fit(epochs=1, callbacks=[Told("first", told), Told("second", told)])
    assert [(name, method) for name, method, _ in told if method != "on_epoch_end"] == [
        ("first", "on_fit_begin"),
        ("second", "on_fit_begin"),
        ("second", "on_fit_end"),
        ("first", "on_fit_end"),
    ]


def test_the_views_tell_of_the_fit():
    told = Told()
    net = fit(epochs=2, callbacks=told)
    (_, _, begun), *_, (_, _, ended) = told.told
    assert (begun.epochs, begun.epochs_run, begun.stop_reason, begun.random_state) == (2, 0, "", 0)
    assert (ended.epochs, ended.epochs_run, ended.stop_reason, ended.random_state) == (2, 2, "epochs", 0)
    assert np.array_equal(ended.network().W1, net.W1)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(FitView)])
def test_a_fit_view_cannot_be_changed(name):
    told = Told()
    fit(epochs=1, callbacks=told)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(told.told[0][2], name, 0)


def test_a_fit_that_a_callback_stops_at_the_beginning_returns_the_network_that_it_started_from():
    net = fit(callbacks=Told(on_fit_begin=True))
    assert (net.epochs_run, net.stop_reason, net.best_epoch) == (0, "callback", None)
    assert 0 <= net.score(*FLOWER) <= 1
    assert "Network" in repr(net) + net._repr_html_()


def test_an_object_stops_the_fit_after_an_epoch():
    net = fit(callbacks=Told(on_epoch_end=True))
    assert (net.epochs_run, net.stop_reason) == (1, "callback")


ENDS = {
    "epochs": {},
    "patience": {"patience": 1, "tol": 1e9},
    "callback": {"also": lambda _: True},
    "interrupted": {"also": Told(on_epoch_end=KeyboardInterrupt)},
}


@pytest.mark.parametrize(("reason", "options"), ENDS.items(), ids=ENDS)
def test_the_end_is_told_whatever_ended_the_fit(reason, options):
    told, options = Told(), dict(options)
    also = options.pop("also", lambda _: None)
    net = fit(callbacks=[told, also], **options)
    assert (told.methods.count("on_fit_end"), told.told[-1][2].stop_reason, net.stop_reason) == (1, reason, reason)


def test_ctrl_c_while_callbacks_begin_returns_a_network():
    told = Told()
    net = fit(callbacks=[told, Told(on_fit_begin=KeyboardInterrupt)])
    assert (net.epochs_run, net.stop_reason, told.methods) == (0, "interrupted", ["on_fit_begin", "on_fit_end"])


def test_the_end_is_told_when_training_diverges():
    told = Told()
    X, _ = FLOWER
    with pytest.raises(DivergedError):
        xpnet.fit(X, X[0], optimizer="gd", learning_rate=1e30, callbacks=told)
    assert (told.methods[-1], told.told[-1][2].stop_reason) == ("on_fit_end", "error")


@pytest.mark.parametrize("method", ["on_fit_begin", "on_epoch_end", "on_fit_end"])
def test_what_a_method_raises_comes_through_and_the_others_are_told_of_the_end(method):
    first, last = Told(), Told()
    with pytest.raises(OSError, match="disk"):
        fit(callbacks=[first, Told("disk", **{method: OSError}), last])
    assert (first.methods[-1], first.told[-1][2].stop_reason) == ("on_fit_end", "error")
    assert last.methods[-1:] in ([], ["on_fit_end"])


def test_a_callback_that_could_not_begin_is_not_ended():
    failing = Told("disk", on_fit_begin=OSError)
    with pytest.raises(OSError, match="disk"):
        fit(callbacks=failing)
    assert failing.methods == ["on_fit_begin"]


def test_a_resumed_fit_begins_where_it_was(tmp_path):
    fit(epochs=2, checkpoint=tmp_path / "run")
    told = Told()
    fit(epochs=3, checkpoint=tmp_path / "run", callbacks=told)
    assert (told.told[0][2].epochs_run, told.methods.count("on_epoch_end")) == (2, 1)


def test_a_class_in_place_of_an_object_is_refused():
    with pytest.raises(ArgumentError, match=r"EarlyStopping is a class\. Pass EarlyStopping\(\.\.\.\)"):
        fit(callbacks=EarlyStopping)


def test_an_object_without_any_of_the_methods_is_refused_with_their_names():
    class Misspelled:
        on_epoch_ends = print

    with pytest.raises(ArgumentError, match=r"any of the methods on_fit_begin, on_epoch_end, on_fit_end; <.*neither"):
        fit(callbacks=[Misspelled()])


def test_a_method_that_is_none_is_refused():
    class Wrong:
        on_fit_end = 3

    with pytest.raises(ArgumentError, match=r"on_fit_end must be a method; that of <.* is 3\."):
        fit(callbacks=Wrong())


# A network given back -------------------------------------------------------------------------------------------------


def test_the_parameters_that_on_fit_end_returns_are_those_returned():
    nets = []
    stopping = Told()
    stopping.on_fit_end = lambda _: nets[1]
    net = fit(epochs=5, callbacks=[stopping, lambda view: nets.append(view.network())])
    assert np.array_equal(net.W1, nets[1].W1)
    assert (net.epochs_run, net.best_epoch, len(net.history["cost"]), net.stop_reason) == (5, 1, 5, "epochs")


def test_a_network_of_another_fit_is_not_given_back():
    other = xpnet.fit(*FLOWER, hidden=3, epochs=1, random_state=0)
    with pytest.raises(ArgumentError, match=r"network of this fit, .* it returned <Network 2-3-1"):
        fit(callbacks=Told(on_fit_end=other))


# Early stopping -------------------------------------------------------------------------------------------------------


def scripted(scores):
    """Return a score that reads what it says off a list."""
    left = iter(scores)
    return lambda _: next(left)


def test_early_stopping_waits_as_long_as_it_is_told_to():
    stopping = EarlyStopping(scripted([0.1, 0.5, 0.4, 0.5, 0.3, 0.9]), patience=3)
    net = fit(epochs=6, callbacks=stopping)
    assert (net.stop_reason, net.epochs_run, net.best_epoch) == ("callback", 5, 1)
    assert (stopping.best_score, stopping.best_epoch, stopping.scores) == (0.5, 1, [0.1, 0.5, 0.4, 0.5, 0.3])


@pytest.mark.parametrize("restore", [True, False])
def test_the_best_network_is_given_back_when_asked_for(restore):
    stopping = EarlyStopping(scripted([0.1, 0.5, 0.4, 0.3]), patience=2, restore=restore)
    net = fit(epochs=9, callbacks=stopping)
    assert np.array_equal(net.W1, fit(epochs=2 if restore else 4).W1)
    assert np.array_equal(stopping.best_network.W1, fit(epochs=2).W1)


def test_a_gain_too_small_is_none():
    stopping = EarlyStopping(scripted([0.5, 0.54, 0.58]), patience=1, gain=0.05)
    assert fit(epochs=3, callbacks=stopping).epochs_run == 2


def test_early_stopping_forgets_the_last_fit():
    stopping = EarlyStopping(scripted([0.9, 0.1, 0.2, 0.3]))
    fit(epochs=2, callbacks=stopping)
    fit(epochs=2, callbacks=stopping)
    assert (stopping.best_score, stopping.scores) == (0.3, [0.2, 0.3])


def test_an_interrupted_fit_gives_the_best_network_back_too():
    stopping = EarlyStopping(scripted([0.9, 0.1, 0.2]))
    net = fit(callbacks=[stopping, lambda view: interrupt() if view.epoch == 2 else None])
    assert (net.stop_reason, net.best_epoch, np.array_equal(net.W1, fit(epochs=1).W1)) == ("interrupted", 0, True)


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("score", [math.nan, None, "high"])
def test_a_score_that_is_no_number_is_refused(score):
    with pytest.raises(ArgumentError, match=r"What score\(net\) returns must be a finite number"):
        fit(callbacks=EarlyStopping(lambda _: score))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": 0.5}, "score must be a function of the network"),
        ({"patience": 0}, "patience must be 1 or more"),
        ({"gain": -1}, "gain must be a finite number at least 0"),
        ({"restore": 1}, "restore must be True or False"),
    ],
)
def test_early_stoppings_settings_are_checked(options, message):
    with pytest.raises(ArgumentError, match=message):
        EarlyStopping(**{"score": len, **options})


# Logs -----------------------------------------------------------------------------------------------------------------


def rows(path):
    """Return what a log of either kind holds, as numbers."""
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    found = csv.DictReader(text.splitlines())
    return [
        {key: int(value) if key == "epoch" else float(value) if value else None for key, value in row.items()}
        for row in found
    ]


every_log = pytest.mark.parametrize(("log", "name"), [(CSVLog, "log.csv"), (JSONLog, "log.jsonl")])


@every_log
@pytest.mark.parametrize("validated", [False, True])
def test_a_log_holds_the_history_to_the_last_bit(log, name, validated, tmp_path):
    path = tmp_path / name
    net = fit(callbacks=log(path, append=False), validation_data=FLOWER if validated else None)
    assert [list(row) for row in rows(path)] == [list(COLUMNS)] * 3
    for key, values in net.history.items():
        assert [row[key] for row in rows(path)] == (values or [None] * 3)
    assert [row["epoch"] for row in rows(path)] == [0, 1, 2]


@every_log
@pytest.mark.parametrize(("append", "epochs"), [(False, [0]), (True, [0, 1, 0])])
def test_a_log_is_gone_on_with_or_begun_anew(log, name, append, epochs, tmp_path):
    path = tmp_path / name
    fit(epochs=2, callbacks=log(path, append=append))
    fit(epochs=1, callbacks=log(path, append=append))
    assert [row["epoch"] for row in rows(path)] == epochs


@every_log
def test_whether_to_append_must_be_said(log, name, tmp_path):
    with pytest.raises(TypeError, match="append"):
        log(tmp_path / name)


@every_log
def test_a_line_is_there_as_soon_as_its_epoch_has_ended(log, name, tmp_path):
    path, seen = tmp_path / name, []
    fit(callbacks=[log(path, append=False), lambda _: seen.append(len(rows(path)))])
    assert seen == [1, 2, 3]


@every_log
def test_a_log_is_closed_when_the_fit_raises_and_can_be_used_again(log, name, tmp_path):
    ours = log(tmp_path / name, append=True)
    before = len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else None
    for _ in range(2):
        with pytest.raises(OSError, match="disk"):
            fit(callbacks=[ours, Told("disk", on_epoch_end=OSError)])
    assert len(rows(tmp_path / name)) == 2
    assert before is None or len(os.listdir("/dev/fd")) == before


@every_log
def test_a_log_whose_last_line_is_broken_off_is_not_appended_to(log, name, tmp_path):
    path = tmp_path / name
    fit(callbacks=log(path, append=False))
    path.write_bytes(path.read_bytes()[:-3])
    kept, ours = path.read_bytes(), log(path, append=True)
    for _ in range(2):  # it was closed
        with pytest.raises(ArgumentError, match="its last line is broken off"):
            fit(callbacks=ours)
    assert path.read_bytes() == kept


def test_another_table_is_not_appended_to(tmp_path):
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ArgumentError, match="must begin with 'epoch,cost,validation_cost,learning_rate,seconds'"):
        fit(callbacks=CSVLog(tmp_path / "data.csv", append=True))
    assert (tmp_path / "data.csv").read_text() == "a,b\n1,2\n"


def test_a_log_in_use_is_refused(tmp_path):
    log = CSVLog(tmp_path / "log.csv", append=True)
    with pytest.raises(ArgumentError, match="is being written by another fit"):
        fit(callbacks=[log, log])


def test_a_log_in_a_folder_that_is_not_there_ends_the_fit_before_it_trains(tmp_path):
    epochs = []
    with pytest.raises(FileNotFoundError):
        fit(callbacks=[epochs.append, CSVLog(tmp_path / "nowhere" / "log.csv", append=False)])
    assert epochs == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk that is full, as Linux has it")
def test_a_full_disk_is_an_error():
    with pytest.raises(OSError, match="No space left"):
        fit(callbacks=JSONLog("/dev/full", append=False))


@pytest.mark.skipif(os.name != "posix", reason="limits as POSIX has them")
def test_what_a_full_disk_cuts_off_is_removed(tmp_path):
    code = f"""
import resource, signal, xpnet
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
log = xpnet.callbacks.CSVLog({str(tmp_path / "log.csv")!r}, append=False)
try:
    xpnet.fit(*xpnet.datasets.flower(40), hidden=2, epochs=100, patience=None, random_state=0, callbacks=log)
except OSError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "could not be written whole" in run.stdout or "File too large" in run.stdout
    assert 5 < len(rows(tmp_path / "log.csv")) < 30  # lines of some 60 bytes, in 1,000


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@every_log
def test_a_kill_leaves_whole_lines(log, name, tmp_path, soak):
    path = tmp_path / name
    code = f"""
import xpnet
log = xpnet.callbacks.{log.__name__}({str(path)!r}, append=True)
xpnet.fit(*xpnet.datasets.flower(40), hidden=2, epochs=10**7, patience=None, callbacks=log)
"""
    for times in range(1, 101 if soak else 2):
        child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        lines = len(rows(path)) if path.exists() else 0
        while not path.exists() or path.read_bytes().count(b"\n") < lines + 20:
            assert child.poll() is None
        child.kill()
        child.wait()
        assert len(rows(path)) >= 19 * times


# TensorBoard ----------------------------------------------------------------------------------------------------------


def scalars(folder):
    """Return what an event file holds: the value of each tag at each step."""
    proto = pytest.importorskip("tensorboardX.proto.event_pb2")
    (path,) = Path(folder).iterdir()
    content, at, found = path.read_bytes(), 0, {}
    while at < len(content):  # a record is its length (8 bytes), a checksum (4), the event, a checksum (4)
        length = int.from_bytes(content[at : at + 8], "little")
        event = proto.Event.FromString(content[at + 12 : at + 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        at += 16 + length
    return found


@pytest.mark.parametrize("validated", [False, True])
def test_tensorboard_gets_the_history(validated, tmp_path):
    pytest.importorskip("tensorboardX")
    net = fit(callbacks=TensorBoard(tmp_path / "run"), validation_data=FLOWER if validated else None)
    expected = {(key, step): value for key, values in net.history.items() for step, value in enumerate(values)}
    assert scalars(tmp_path / "run") == {key: float(np.float32(value)) for key, value in expected.items()}


def test_tensorboards_file_is_whole_when_the_fit_raises(tmp_path):
    pytest.importorskip("tensorboardX")
    with pytest.raises(OSError, match="disk"):
        fit(callbacks=[TensorBoard(tmp_path / "run"), Told("disk", on_epoch_end=OSError)])
    assert {tag for tag, _ in scalars(tmp_path / "run")} == {"cost", "learning_rate", "seconds"}


def test_tensorboard_without_a_writer_names_the_extra(tmp_path, monkeypatch):
    for name in ("tensorboardX", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=r'pip install "xpnet\[tensorboard\]"'):
        fit(callbacks=TensorBoard(tmp_path / "run"))
