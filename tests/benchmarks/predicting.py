"""Who predicts: a network's probabilities for one row, for a million; and who first reaches a score from its defaults.

Networks have the parameters of `workloads.start`, so that all must answer alike.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from peers import Job, Task, sklearn_model, torch_model
from workloads import Array, Workload, data, start

CHUNKS = {f"{rows:,} rows at a time": rows for rows in (2_048, 8_192, 65_536)}
"""What the peers are given in `throughput`, whichever is the fastest: all rows at once are slower for them."""

TARGET, MOST_EPOCHS, HELD_OUT = 0.97, 200, 450
"""The accuracy to reach on scikit-learn's digits, the epochs it may take, and the examples it is measured on."""

SCALES = {"pixels 0 to 16": 1, "pixels 0 to 1": 16}
"""What the digits are divided by: each contender has them in the way that brings it to the score in fewer epochs."""

Predict = Callable[[Array], Any]
"""``rows (k, n_x) -> probabilities``, NumPy's or PyTorch's."""


# Networks that are not trained ----------------------------------------------------------------------------------------


def _xpnet(job: Job) -> Predict:
    import xpnet

    rows, labels = data(job.workload)
    W1, b1, W2, b2 = start(job.workload)
    # An epoch at a rate too small to change a float32 parameter: fit is the public way to a Network.
    net = xpnet.fit(
        rows[:512].T,
        labels[:512],
        hidden=job.workload.n_h,
        activation="tanh",
        initial=[(W1, b1), (W2, b2)],
        optimizer="gd",
        learning_rate=1e-12,
        epochs=1,
        verbose=False,
    )
    return lambda rows: net.predict_proba(rows.T)[0]


def _pytorch(job: Job) -> Predict:
    import torch

    torch.set_num_threads(job.threads)
    model = torch_model(job.workload).eval()

    def predict(rows: Array) -> Any:
        with torch.inference_mode():
            return torch.sigmoid(model(torch.from_numpy(rows)))[:, 0]

    return predict


def _scikit_learn(job: Job) -> Predict:
    model = sklearn_model(job.workload, "gd")
    return lambda rows: model.predict_proba(rows)[:, 1]


PREDICT: dict[str, Callable[[Job], Predict]] = {
    "xpnet": _xpnet,
    "PyTorch": _pytorch,
    "scikit-learn": _scikit_learn,
}


def latency(job: Job) -> Task:
    """Predict one row, again and again."""
    predict, row = PREDICT[job.contender](job), data(job.workload)[0][:1].copy()

    def run(_: Any, calls: int) -> dict[str, Any]:
        for _call in range(calls):
            found = predict(row)
        return {"value": float(found[0])}

    return Task(run)


def throughput(job: Job) -> Task:
    """Predict all rows: xpnet in one call, the peers in chunks."""
    predict, rows = PREDICT[job.contender](job), data(job.workload)[0]
    chunk = CHUNKS.get(job.variant, len(rows))

    def run(_: Any, calls: int) -> dict[str, Any]:
        for _call in range(calls):
            parts = [np.asarray(predict(rows[i : i + chunk])) for i in range(0, len(rows), chunk)]
            found = np.concatenate(parts)
        return {"value": float(found.mean(dtype=np.float64))}

    return Task(run)


# Time to a score ------------------------------------------------------------------------------------------------------


def digits(scale: str) -> tuple[Array, Array, Array, Array]:
    """Return scikit-learn's digits as float32 rows and labels: to train on, and held out."""
    from sklearn.datasets import load_digits

    rows, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    rows, labels = (rows[order] / SCALES[scale]).astype(np.float32), labels[order]
    return rows[HELD_OUT:], labels[HELD_OUT:], rows[:HELD_OUT], labels[:HELD_OUT]


def _task(train: Callable[[int, int | None], Any], tell: Callable[[Any], dict[str, Any]]) -> Task:
    """Make a task of ``train(seed, epochs)``: with None for epochs it goes on until the score is reached.

    Timed runs have as many epochs as that took, and no scoring inside the clock.
    """
    return Task(lambda _, seed, epochs: train(seed, epochs), tell=tell)


def score_xpnet(job: Job) -> Task:
    """Train by `xpnet.fit` with its defaults."""
    import xpnet

    rows, labels, held_rows, held_labels = digits(job.variant)

    def reached(view: Any) -> bool:
        return bool(view.network().score(held_rows.T, held_labels) >= TARGET)

    def train(seed: int, epochs: int | None) -> Any:
        if epochs is None:
            return xpnet.fit(rows.T, labels, random_state=seed, verbose=False, epochs=MOST_EPOCHS, callbacks=reached)
        return xpnet.fit(rows.T, labels, random_state=seed, verbose=False, epochs=epochs, threads=job.threads)

    def tell(net: Any) -> dict[str, Any]:
        return {"epochs": net.epochs_run, "score": net.score(held_rows.T, held_labels)}

    return _task(train, tell)


def score_scikit_learn(job: Job) -> Task:
    """Train scikit-learn's classifier with its defaults."""
    from sklearn.neural_network import MLPClassifier

    warnings.simplefilter("ignore")  # ConvergenceWarning
    rows, labels, held_rows, held_labels = digits(job.variant)

    class ReachedError(Exception):
        pass

    class Watched(MLPClassifier):
        # scikit-learn has no callbacks, and partial_fit shuffles differently; this is called once an epoch.
        def _update_no_improvement_count(self, *arguments: Any, **options: Any) -> None:
            super()._update_no_improvement_count(*arguments, **options)
            if self.score(held_rows, held_labels) >= TARGET:
                raise ReachedError

    def train(seed: int, epochs: int | None) -> Any:
        model = MLPClassifier(random_state=seed, max_iter=epochs) if epochs else Watched(random_state=seed)
        with suppress(ReachedError):
            model.fit(rows, labels)
        return model

    def tell(model: Any) -> dict[str, Any]:
        return {"epochs": model.n_iter_, "score": model.score(held_rows, held_labels)}

    return _task(train, tell)


def score_pytorch(job: Job) -> Task:
    """Train 64-100-10, relu, Adam at 0.001, 32 examples a step: what a tutorial writes."""
    import torch

    torch.set_num_threads(job.threads)
    rows, labels, held_rows, held_labels = (torch.from_numpy(array) for array in digits(job.variant))

    def score(model: Any) -> float:
        with torch.inference_mode():
            return float((model(held_rows).argmax(1) == held_labels).double().mean())

    def train(seed: int, epochs: int | None) -> tuple[Any, int]:
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(64, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        taken = 0
        while taken < (epochs or MOST_EPOCHS):
            for chosen in torch.randperm(len(rows)).split(32):
                optimizer.zero_grad()
                outputs = model(rows.index_select(0, chosen))
                torch.nn.functional.cross_entropy(outputs, labels.index_select(0, chosen)).backward()
                optimizer.step()
            taken += 1
            if epochs is None and score(model) >= TARGET:
                break
        return model, taken

    return _task(train, lambda made: {"epochs": made[1], "score": score(made[0])})


TASKS: dict[str, dict[str, Callable[[Job], Task]]] = {
    "latency": dict.fromkeys(PREDICT, latency),
    "throughput": dict.fromkeys(PREDICT, throughput),
    "score": {"xpnet": score_xpnet, "PyTorch": score_pytorch, "scikit-learn": score_scikit_learn},
}

# Only the digits' shape is told by it; each contender trains its own network.
DIGITS = Workload("digits of scikit-learn", 64, 100, 10, 1797 - HELD_OUT, 32, "float32", MOST_EPOCHS)
