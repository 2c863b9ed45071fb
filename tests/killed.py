"""Fits that are killed and begun again until they end: a process of its own, which forks them in a millisecond each.

``python tests/killed.py FOLDER CHAINS SEED`` kills at random moments, ``python tests/killed.py FOLDER`` at the worst
ones, within the writing of a checkpoint, and ``python tests/killed.py FOLDER STRIDE`` after every so many steps. All
print what came of it as JSON.
"""

import hashlib
import io
import json
import os
import shutil
import signal
import sys
import time
from itertools import count

import numpy as np

import xpnet
from xpnet import data, files, training

TOGETHER = {
    "optimizer": xpnet.optimizers.adam(lambda epoch: 0.01 * 0.9**epoch),
    "validation_fraction": 0.2,
    "sample_weight": np.linspace(0.5, 2.0, 600),
    "l2": 0.5,
    "standardize": True,
    "batch_size": 32,
    "epochs": 25,
    "patience": 4,
    "tol": 2e-2,
    "callbacks": lambda view: view.network() is None,
}
RUNS = {
    "gd": {"optimizer": "gd", "batch_size": "full", "epochs": 150},
    "momentum": {"optimizer": "momentum", "batch_size": 50, "epochs": 15},
    "adam": {"optimizer": "adam", "batch_size": 7, "epochs": 3},
    "lbfgs": {"optimizer": "lbfgs", "epochs": 40},
    "schedule, weights, penalty, validation, patience, callback": TOGETHER,
    "adam, streamed": {"optimizer": "adam", "batch_size": 16, "epochs": 4},
    "lbfgs, streamed": {"optimizer": "lbfgs", "epochs": 5},
}
"""A few tenths of a second each."""

EVERY = (0, "epoch", "7 steps", 0.02)


def problem(folder):
    """Return 600 examples in memory, and as a file."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((5, 600)).astype(np.float32)
    Y = (X[0] * X[1] + X[2] > 0).astype(int)
    if not os.path.exists(f"{folder}/X.npy"):
        np.save(f"{folder}/X.npy", X.T)
    return X, Y


def bits(name, folder, **checkpoint):
    """Train and return all that was made, but for the clock's readings."""
    X, Y = problem(folder)
    options = {"hidden": 8, "patience": None, "random_state": 0, "verbose": False, **checkpoint, **RUNS[name]}
    if "streamed" in name:
        # Limits so low that the file is read in many windows.
        data.PERMUTED, data.RUN, data.WINDOW, data.READ, data.MAPPED = 0, 32, 400, 200, 64
        net = xpnet.fit(np.load(f"{folder}/X.npy", mmap_mode="r"), Y, examples="rows", **options)
    else:
        net = xpnet.fit(X, Y, **options)
    arrays = [array.tobytes() for layer in net.layers for array in layer]
    history = {key: values for key, values in net.history.items() if key != "seconds"}
    return [hashlib.sha256(b"".join(arrays)).hexdigest(), history, net.epochs_run, net.best_epoch, net.timing["steps"]]


def forked(name, folder, prepare=lambda: None, **checkpoint):
    """Start a fit in a process, which leaves what it made in a file."""
    if (process := os.fork()) == 0:
        try:
            prepare()
            made = bits(name, folder, **checkpoint)
            with open(f"{folder}/made", "w") as file:
                json.dump(made, file)
        finally:
            os._exit(1 if sys.exc_info()[0] else 0)
    return process


def made(process, folder):
    """Wait for a fit and return what it made."""
    _, status = os.waitpid(process, 0)
    assert status == 0, f"a fit ended with status {status}"
    with open(f"{folder}/made") as file:
        return json.load(file)


def straight(name, folder, **checkpoint):
    begun = time.monotonic()
    return made(forked(name, folder, **checkpoint), folder), time.monotonic() - begun


def left(folder):
    """Return what checkpoints leave in the folder, and remove it."""
    names = sorted(name for name in os.listdir(folder) if name.startswith("run"))
    for name in names:
        os.unlink(f"{folder}/{name}")
    return names


def within_an_epoch(checkpoint):
    if not os.path.exists(checkpoint):
        return False
    tensors, _ = files.read(checkpoint, kind="checkpoint")
    return tensors["epoch.costs"].size > 0


def at_random(name, chains, folder, rng):
    """Kill fits at random moments, each several times in a row; return what was killed and whether nothing was lost."""
    expected, _ = straight(name, folder)
    found = {"networks": 0, "equal": 0, "kills": 0, "kills within a write": 0, "kills within an epoch": 0, "left": []}
    for chain in range(chains):
        how = {"checkpoint": f"{folder}/run", "checkpoint_every": EVERY[chain % len(EVERY)]}
        _, seconds = straight(name, folder, **how)
        left(folder)
        kills, wanted = 0, rng.integers(1, 4)
        while kills < wanted:
            process = forked(name, folder, **how)
            time.sleep(rng.uniform(0, 0.8 * seconds))
            os.kill(process, signal.SIGKILL)
            if os.waitpid(process, 0)[1] == signal.SIGKILL:
                kills += 1
                found["kills within a write"] += os.path.exists(f"{folder}/run.tmp")
                found["kills within an epoch"] += within_an_epoch(f"{folder}/run")
            elif kills:
                break  # what was left of it was soon done
            else:
                left(folder)
        found["kills"] += kills
        found["networks"] += 1
        found["equal"] += made(forked(name, folder, **how), folder) == expected
        found["left"] = sorted({*found["left"], *left(folder)})
    return found


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Half(io.FileIO):
    """A file of which half is written when the process is killed."""

    def write(self, content):
        super().write(content[: len(content) // 2])
        die()


def the_nth(call, then, turn):
    """Return a function that does `then` in place of its `turn`-th call."""
    turns = count(1)
    return lambda *given: then(*given) if next(turns) == turn else call(*given)


def half_written(turn):
    files.open = the_nth(open, Half, turn)


def before(name):
    def prepare(turn):
        setattr(os, name, the_nth(getattr(os, name), lambda *_: die(), turn))

    return prepare


def after(name):
    def prepare(turn):
        call = getattr(os, name)
        setattr(os, name, the_nth(call, lambda *given: (call(*given), die()), turn))

    return prepare


MOMENTS = {
    "half written": half_written,
    "written, not on the disk": before("fsync"),
    "on the disk, not in place": before("replace"),
    "in place": after("replace"),
}


def at_the_worst_moments(folder):
    """Kill a fit within the writing of its first and its ninth checkpoint; return whether nothing was lost."""
    name, how, found = "adam", {"checkpoint": f"{folder}/run", "checkpoint_every": "9 steps"}, {}
    expected, _ = straight(name, folder)
    for moment, prepare in MOMENTS.items():
        for turn in (1, 9):
            # A file and its folder are each seen to the disk.
            turns = 2 * turn - 1 if moment == "written, not on the disk" else turn
            process = forked(name, folder, lambda prepare=prepare, turns=turns: prepare(turns), **how)
            killed = os.waitpid(process, 0)[1] == signal.SIGKILL
            there = os.path.exists(f"{folder}/run")
            steps = files.read(f"{folder}/run", kind="checkpoint")[1]["steps"] if there else 0
            equal = made(forked(name, folder, **how), folder) == expected
            found[f"{moment}, {turn}"] = [killed, steps, equal, left(folder)]
    return found


def after_every(stride, name, folder):
    """Kill a fit once it has written the checkpoint of a step, for every so many; return where something was lost.

    Of a short fit it is a quarter of its steps.
    """
    how = {"checkpoint": f"{folder}/run", "checkpoint_every": "100000 steps"}
    expected, _ = straight(name, folder)
    total = expected[-1]
    stride = max(1, min(stride, total // 4))
    found = {"due": (total - 1) // stride, "killed": [], "lost": []}

    def prepare(step):
        training._Training._is_due = lambda self: self.steps == step
        after("replace")(1)

    for step in range(stride, total, stride):
        process = forked(name, folder, lambda step=step: prepare(step), **how)
        if os.waitpid(process, 0)[1] == signal.SIGKILL:
            found["killed"].append(step)
        if made(forked(name, folder, **how), folder) != expected:
            found["lost"].append(step)
        left(folder)
    return found


def main(folder, number=None, seed=None):
    os.makedirs(folder, exist_ok=True)
    if number is None:
        found = at_the_worst_moments(folder)
    elif seed is None:
        found = {name: after_every(int(number), name, folder) for name in RUNS}
    else:
        found = {}
        for i, name in enumerate(RUNS):
            found[name] = at_random(name, int(number), folder, np.random.default_rng([int(seed), i]))
    print(json.dumps(found))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
