"""The progress bar, as it is seen: in a terminal, in a notebook, and not in a pipe."""

import os
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

import xpnet
from xpnet import progress

ROOT = Path(__file__).parents[1]

FIT = """
import xpnet
X, Y = xpnet.datasets.flower(40)
net = xpnet.fit(X, Y, hidden=2, optimizer="gd", batch_size="full", epochs={epochs}, patience=None, random_state=0)
"""


def on_a_terminal(code):
    """Return what a program writes to a terminal of 80 columns, and how many seconds its fit took."""
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    command = [sys.executable, "-c", code + "print(net.timing['train_seconds'])"]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    said = b""
    while chunk := _read(ours):
        said += chunk
    seconds, _ = child.communicate()
    os.close(ours)
    assert child.returncode == 0
    return said.decode(), float(seconds)


def _read(descriptor):
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # what Linux says at the end
        return b""


def test_a_terminal_shows_a_bar_that_is_drawn_ten_times_a_second_at_most_and_ends_full():
    said, seconds = on_a_terminal(FIT.format(epochs=20_000))
    drawings = re.findall(r"\r[^\r]*?(\d+)/20000 ", said)
    assert drawings[0] == "0"
    assert re.search(r"100%\|█+\| 20000/20000 \[.*epoch/s, cost=0\.\d+\]", said.splitlines()[-1])
    assert len(drawings) <= seconds / progress.OFTEN + 4  # the first, and two or three at the end


def test_a_fit_that_is_over_at_once_shows_its_end():
    said, _ = on_a_terminal(FIT.format(epochs=2))
    assert re.search(r"2/2 \[.*cost=0\.\d+\]", said)


def test_a_resumed_fit_shows_where_it_goes_on(tmp_path, capsys):
    X, Y = xpnet.datasets.flower(40)
    options = {"hidden": 2, "patience": None, "random_state": 0, "checkpoint": tmp_path / "run"}
    xpnet.fit(X, Y, epochs=3, **options)
    xpnet.fit(X, Y, epochs=4, verbose=True, **options)
    assert re.search(r"3/4 .*4/4 ", capsys.readouterr().err, re.DOTALL)


def test_a_bar_is_closed_when_the_fit_raises(capsys):
    X, Y = xpnet.datasets.flower(40)
    with pytest.raises(ZeroDivisionError):
        xpnet.fit(X, Y, hidden=2, verbose=True, callbacks=lambda _: 1 / 0)
    assert re.search(r"1/200 .*\n$", capsys.readouterr().err)


def test_a_pipe_shows_nothing():
    run = subprocess.run([sys.executable, "-c", FIT.format(epochs=2)], cwd=ROOT, capture_output=True, check=True)
    assert (run.stdout, run.stderr) == (b"", b"")


def test_what_takes_long_to_draw_is_drawn_seldom(monkeypatch):
    # A clock on which every look takes a millisecond, and every drawing 20.
    now, drawn = [0.0], []

    class Bar:
        n = 0

        def __init__(self, **_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def set_postfix(self, *_, **__):
            now[0] += 0.02
            drawn.append(now[0])

        def update(self, n):
            self.n += n

    def clock():
        now[0] += 0.001
        return now[0]

    monkeypatch.setattr(progress, "_tqdm", lambda: Bar)
    monkeypatch.setattr(time, "perf_counter", clock)
    history = {"cost": [], "validation_cost": []}
    with progress.bar(100_000, history) as tell:
        for _ in range(100_000):
            history["cost"].append(1.0)
            tell()
    assert 10 < len(drawn) < 100_000 * 0.001 * progress.SHARE / 0.02 + 3


class Shell:
    def __init__(self, **config):
        self.config = config


@pytest.mark.parametrize(
    ("shell", "shown"), [(Shell(IPKernelApp={}), True), (Shell(TerminalIPythonApp={}), False), (None, False)]
)
def test_auto_is_a_bar_in_a_notebook(shell, shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(sys, "stderr", open(os.devnull, "w"))  # noqa: SIM115  # which is no terminal
    assert progress.wanted("auto") == shown
    sys.stderr.close()


def executed(code):
    """Return what a notebook's cell shows, run in a real kernel, and the state of the widgets in it."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": ROOT}}
    ).execute()
    widgets = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {"state": {}})
    return notebook.cells[0].outputs, [each["state"] for each in widgets["state"].values()]


@pytest.mark.filterwarnings("ignore")  # of Jupyter's own
def test_a_notebook_shows_a_bar_of_its_own():
    pytest.importorskip("ipywidgets")
    (output,), widgets = executed(FIT.format(epochs=2_000))
    assert "application/vnd.jupyter.widget-view+json" in output["data"]
    assert [each["value"] for each in widgets if each["_model_name"] == "FloatProgressModel"] == [2_000.0]
    assert any(re.search(r"2000/2000.*cost=0\.\d+\]", str(each.get("value"))) for each in widgets)


@pytest.mark.filterwarnings("ignore")
def test_a_notebook_without_widgets_shows_a_bar_of_text():
    outputs, _ = executed("import sys; sys.modules['ipywidgets'] = None\n" + FIT.format(epochs=2_000))
    assert {output.get("name") for output in outputs} == {"stderr"}
    assert re.search(r"2000/2000 \[.*cost=0\.\d+\]", "".join(output["text"] for output in outputs))
