"""The files in ``tests/files``, which every version of xpnet from the one that wrote them on must read.

``python tests/earlier.py`` writes those of this version: once, before it is released.
"""

import json
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np

import xpnet

FOLDER = Path(__file__).parent / "files"
CUBE = xpnet.Activation(lambda Z: Z**3, lambda Z, _: 3 * Z**2, name="cube")


def problem():
    """Return X (3, 60) and whole numbers (60,), which no library's generator has a hand in."""
    i = np.arange(60)
    X = np.stack([i * 7 % 13, i * 5 % 11, i % 4]).astype(np.float32) / 8 - 0.5
    return X, (i * 7 % 13 + i * 5 % 11) % 3


X, NUMBERS = problem()
WORDS = np.asarray(["bass", "café", "Ω"])[NUMBERS]
COMMON = {"random_state": 7, "verbose": False, "patience": None, "epochs": 4, "hidden": 4}


def start(sizes):
    """Return parameters that are exact in every dtype."""
    return [
        (np.arange(n_out * n_in).reshape(n_out, n_in) * 5 % 7 / 8 - 0.375, np.zeros((n_out, 1)))
        for n_in, n_out in pairwise(sizes)
    ]


class Table(dict):
    """The least that a table of named columns must have."""

    def __init__(self, columns):
        super().__init__(columns)
        self.column_names = list(self)


NETWORKS = {
    "words": (X, WORDS, {"activation": "tanh", "standardize": True, "validation_fraction": 0.2}),
    "names": (Table(zip(("ä", "b c", "d"), X, strict=True)), NUMBERS > 0, {"examples": "rows", "hidden": ()}),
    "regression": (X, np.stack([X[0] * X[1], X[2]]), {"dtype": "float64", "optimizer": "lbfgs", "hidden": (4, 3)}),
    "multilabel": (
        X,
        np.stack([NUMBERS > 0, NUMBERS > 1]).astype(int),
        {"optimizer": "momentum", "activation": "gelu"},
    ),
    "count": (X, NUMBERS, {"task": "count", "optimizer": "gd", "l2": 0.5, "activation": "softplus"}),
    "own": (X, NUMBERS - 3, {"activation": CUBE}),
}
ADAM = {
    "batch_size": 8,
    "validation_data": (X[:, ::2] + 0.125, NUMBERS[::2] > 0),
    "l2": 0.25,
    "initial": start((3, 4, 1)),
}
CHECKPOINTS = {
    "adam": (X, NUMBERS > 0, ADAM),
    "lbfgs": (X, NUMBERS, {"optimizer": "lbfgs", "initial": start((3, 4, 3)), "task": "multiclass"}),
}
"""What is written: X, Y and options; the first's checkpoint is of the middle of an epoch."""


def fit(given, **options):
    X, Y, theirs = given
    return xpnet.fit(X, Y, **{**COMMON, **theirs, **options})


def known(net):
    """Return what a later version must find in a network."""
    return {
        "task": net.task,
        "classes": None if net.classes is None else net.classes.tolist(),
        "sizes": net.sizes,
        "activation": net.activation.name,
        "dtype": net.dtype,
        "feature_names": net.feature_names,
        "history": dict(net.history),
        "epochs_run": net.epochs_run,
        "best_epoch": net.best_epoch,
        "stop_reason": net.stop_reason,
        "random_state": net.random_state,
        "predict": net.predict(X[:, :9]).tolist(),
        "predict_proba": net.predict_proba(X[:, :9]).tolist(),
    }


def main():
    FOLDER.mkdir(exist_ok=True)
    version, found = ".".join(xpnet.__version__.split(".")[:2]), {}
    for name, given in NETWORKS.items():
        net = fit(given)
        net.save(FOLDER / f"net-{version}-{name}.safetensors")
        found[name] = known(net)
    for name, given in CHECKPOINTS.items():
        with tempfile.TemporaryDirectory() as folder:
            path, kept = Path(folder) / "run", FOLDER / f"checkpoint-{version}-{name}"

            def keep(view, path=path, kept=kept):
                if view.epoch == 2:
                    shutil.copyfile(path, kept)

            net = fit(
                given, checkpoint=path, checkpoint_every="5 steps" if name == "adam" else "1 step", callbacks=keep
            )
        found[f"checkpoint {name}"] = dict(net.history)
    (FOLDER / f"known-{version}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
