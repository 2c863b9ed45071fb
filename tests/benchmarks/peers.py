"""Who trains: xpnet, the equations in plain NumPy, and the loop that a competent user of each peer writes.

Each function takes a `Job` and returns a `Task`. What `Task.fresh` does, such as cutting tensors or setting the
parameters, is outside the clock, which favors the peers: xpnet is measured by the whole of the public `fit`, from NumPy
arrays to a trained network, and scikit-learn likewise. All start from the same parameters, meet the examples in a new
random order every epoch (full batch: as they lie), and record every epoch's mean cost as a Python float.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from workloads import RATES, Array, Workload, data, start, targets

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's constants, everyone's default."""


MOVED = ("bytes_moved", "hidden_copy_seconds", "exposed_copy_seconds", "compute_seconds")
"""What xpnet tells of data that went through its ring."""


@dataclass(frozen=True)
class Job:
    """What a worker is to do: `kind` is ``"train"``, ``"latency"``, ``"throughput"``, ``"score"`` …

    `threads` is None where the contender chooses; `variant` is one of its ways, where it has several. On `device`
    ``"cuda"`` products of float32 may be rounded to TF32 where `tf32` says so, and are exact where not.
    """

    kind: str
    contender: str
    workload: Workload
    optimizer: str = "gd"
    threads: int | None = None
    variant: str = ""
    device: str = "cpu"
    tf32: bool = False


class Task(NamedTuple):
    """``run(fresh(), **arguments)`` is the work, and the only part that is timed; ``tell`` says what came of it."""

    run: Callable[..., Any]
    fresh: Callable[[], Any] = lambda: None
    tell: Callable[[Any], dict[str, Any]] = lambda result: result


def outcome(costs: list[float]) -> dict[str, Any]:
    """Return what a run of training tells of itself."""
    return {"epochs": len(costs), "first": costs[0], "last": costs[-1]}


# xpnet ----------------------------------------------------------------------------------------------------------------


def xpnet_fit(job: Job) -> Task:
    """Train by the public `xpnet.fit`, timed whole."""
    import xpnet

    it = job.workload
    rows, labels = data(it)
    W1, b1, W2, b2 = start(it)
    if job.variant == "streamed":
        xpnet.data.RESIDENT = 0.0
    on_gpu = {} if job.device == "cpu" else {"device": job.device, "tf32": job.tf32}

    def run(_: Any, epochs: int) -> dict[str, Any]:
        net = xpnet.fit(
            rows.T,
            labels,
            hidden=it.n_h,
            activation="tanh",
            optimizer=job.optimizer,
            learning_rate=RATES[job.optimizer],
            batch_size="full" if it.full else it.batch,
            epochs=epochs,
            patience=None,
            dtype=it.dtype,
            initial=[(W1, b1), (W2, b2)],
            random_state=0,
            threads=job.threads,
            verbose=False,
            **on_gpu,
        )
        moved = {key: net.timing[key] for key in MOVED if key in net.timing}
        told = {"steps": net.timing["steps"], "load": net.timing["load_seconds"], "train": net.timing["train_seconds"]}
        return outcome(net.history["cost"]) | told | moved

    return Task(run)


# Plain NumPy ----------------------------------------------------------------------------------------------------------


def _cost(A2: Array, Y: Array) -> float:
    tiny = np.finfo(A2.dtype).eps  # a float32 sigmoid is 1 from 17 on
    A2 = np.clip(A2, tiny, 1 - tiny)
    terms = Y * np.log(A2) if Y.shape[0] > 1 else Y * np.log(A2) + (1 - Y) * np.log(1 - A2)
    return -float(terms.sum()) / Y.shape[1]


def _forward(layers: list[Array], X: Array) -> tuple[Array, Array]:
    W1, b1, W2, b2 = layers
    A1 = np.tanh(W1 @ X + b1)  # (1) (2)
    Z2 = W2 @ A1 + b2  # (3)
    if W2.shape[0] == 1:
        return A1, 1 / (1 + np.exp(-Z2))  # (4)
    E = np.exp(Z2 - Z2.max(axis=0))
    return A1, E / E.sum(axis=0)  # (4)


def _gradient(layers: list[Array], X: Array, Y: Array) -> tuple[float, list[Array]]:
    """Return the cost and dW1, db1, dW2, db2: the ten equations, as the course transcribes them."""
    m = X.shape[1]
    A1, A2 = _forward(layers, X)
    dZ2 = A2 - Y  # (5)
    dW2 = (dZ2 @ A1.T) / m  # (6)
    db2 = dZ2.sum(axis=1, keepdims=True) / m  # (7)
    dZ1 = (layers[2].T @ dZ2) * (1 - A1**2)  # (8)
    dW1 = (dZ1 @ X.T) / m  # (9)
    db1 = dZ1.sum(axis=1, keepdims=True) / m  # (10)
    return _cost(A2, Y), [dW1, db1, dW2, db2]


def _descend(layers: list[Array]) -> Callable[[list[Array]], None]:
    def step(gradient: list[Array]) -> None:
        for i, slope in enumerate(gradient):
            layers[i] -= RATES["gd"] * slope

    return step


def _adam(layers: list[Array]) -> Callable[[list[Array]], None]:
    v, s, t = [np.zeros_like(layer) for layer in layers], [np.zeros_like(layer) for layer in layers], 0

    def step(gradient: list[Array]) -> None:
        nonlocal t
        t += 1
        for i, slope in enumerate(gradient):
            v[i] = BETA1 * v[i] + (1 - BETA1) * slope
            s[i] = BETA2 * s[i] + (1 - BETA2) * slope**2
            root = np.sqrt(s[i] / (1 - BETA2**t)) + EPSILON
            layers[i] -= RATES["adam"] * (v[i] / (1 - BETA1**t)) / root

    return step


def plain_numpy(job: Job) -> Task:
    """Train by the ten equations as the course transcribes them, in a loop."""
    it = job.workload
    rows, Y = data(it)[0], targets(it)
    rng = np.random.default_rng(0)

    def batches() -> Iterator[tuple[Array, Array]]:
        if it.full:
            yield rows.T, Y.T
            return
        for chosen in rng.permutation(it.m).reshape(it.steps, it.batch):
            yield rows[chosen].T, Y[chosen].T

    def run(layers: list[Array], epochs: int) -> dict[str, Any]:
        step = (_descend if job.optimizer == "gd" else _adam)(layers)
        costs = []
        for _ in range(epochs):
            total = 0.0
            for X_batch, Y_batch in batches():
                cost, gradient = _gradient(layers, X_batch, Y_batch)
                step(gradient)
                total += cost
            costs.append(total / it.steps)
        return outcome(costs)

    return Task(run, lambda: list(start(it)))


def start_cost(job: Job) -> Task:
    """Tell the mean cost of the parameters that everyone starts from."""
    it = job.workload
    rows, Y = data(it)[0], targets(it)

    def run(_: Any) -> dict[str, Any]:
        parts = [slice(i, i + it.batch) for i in range(0, it.m, it.batch)]
        costs = [_cost(_forward(list(start(it)), rows[part].T)[1], Y[part].T) for part in parts]
        return {"cost": sum(costs) / len(costs)}

    return Task(run)


def products(job: Job) -> Task:
    """Multiply matrices as a step must, and do nothing else: the floor under every contender that calls this BLAS."""
    it = job.workload
    X, Y = data(it)[0][: it.batch].T, targets(it)[: it.batch].T
    W1, _, W2, _ = start(it)
    A1, A2 = np.ones((it.n_h, it.batch), it.dtype), np.ones((it.n_y, it.batch), it.dtype)
    dZ1, dW1, dW2 = np.empty_like(A1), np.empty_like(W1), np.empty_like(W2)

    def run(_: Any, epochs: int) -> dict[str, Any]:
        for _step in range(epochs * it.steps):
            np.matmul(W1, X, out=A1)
            np.matmul(W2, A1, out=A2)
            np.matmul(Y, A1.T, out=dW2)
            np.matmul(W2.T, Y, out=dZ1)
            np.matmul(dZ1, X.T, out=dW1)
        return {}

    return Task(run)


# PyTorch --------------------------------------------------------------------------------------------------------------


def torch_start(workload: Workload, device: str = "cpu") -> list[Any]:
    """Return the parameters as tensors: biases are vectors there."""
    import torch

    W1, b1, W2, b2 = start(workload)
    return [torch.from_numpy(array).to(device) for array in (W1, b1[:, 0], W2, b2[:, 0])]


def torch_model(workload: Workload, device: str = "cpu") -> Any:
    """Return the network as a module without its last function, which the loss brings."""
    import torch

    it = workload
    model = torch.nn.Sequential(torch.nn.Linear(it.n_x, it.n_h), torch.nn.Tanh(), torch.nn.Linear(it.n_h, it.n_y))
    model = model.to(device, getattr(torch, it.dtype))
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), torch_start(it), strict=True):
            parameter.copy_(value)
    return model


def _torch_ready(job: Job) -> tuple[Any, Any]:
    """Set PyTorch up for a job, and return its X and y, on the device."""
    import torch

    torch.set_num_threads(job.threads)
    torch.set_float32_matmul_precision("high" if job.tf32 else "highest")
    torch.manual_seed(0)
    rows, labels = data(job.workload)
    y = torch.from_numpy(targets(job.workload) if job.workload.n_y == 1 else labels)
    return torch.from_numpy(rows).to(job.device), y.to(job.device)


def _torch_loss(workload: Workload) -> Callable[[Any, Any], Any]:
    from torch.nn import functional

    return functional.binary_cross_entropy_with_logits if workload.n_y == 1 else functional.cross_entropy


def _torch_epochs(workload: Workload, step: Callable[[Any], Any], epochs: int, device: str = "cpu") -> dict[str, Any]:
    """Go through the epochs by ``step(chosen) -> cost``; None chooses all examples."""
    import torch

    costs = []
    for _ in range(epochs):
        if workload.full:
            costs.append(step(None).item())
            continue
        total = torch.zeros((), device=device)
        for chosen in torch.randperm(workload.m, device=device).split(workload.batch):
            total += step(chosen)
        costs.append(total.item() / workload.steps)
    if device != "cpu":
        torch.cuda.synchronize()  # the last cost is there before the last update
    return outcome(costs)


def _chosen(X: Any, y: Any, chosen: Any) -> tuple[Any, Any]:
    return (X, y) if chosen is None else (X.index_select(0, chosen), y.index_select(0, chosen))


def pytorch(job: Job) -> Task:
    """Train by PyTorch, eager, with the optimizer as it comes or, the variant, with ``fused=True``."""
    import torch

    loss_of, (X, y) = _torch_loss(job.workload), _torch_ready(job)
    algorithm = torch.optim.SGD if job.optimizer == "gd" else torch.optim.Adam

    def fresh() -> tuple[Any, Any]:
        model = torch_model(job.workload, job.device)
        fused = True if job.variant == "fused" else None
        return model, algorithm(model.parameters(), lr=RATES[job.optimizer], fused=fused)

    def run(made: tuple[Any, Any], epochs: int) -> dict[str, Any]:
        model, optimizer = made

        def step(chosen: Any) -> Any:
            X_batch, y_batch = _chosen(X, y, chosen)
            optimizer.zero_grad()
            loss = loss_of(model(X_batch), y_batch)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return _torch_epochs(job.workload, step, epochs, job.device)

    return Task(run, fresh)


def torch_compile(job: Job) -> Task:
    """Train by one compiled graph that is the whole step: loss, gradient and update, in place."""
    import torch
    from torch.nn.functional import linear

    torch._dynamo.reset()
    loss_of, (X, y) = _torch_loss(job.workload), _torch_ready(job)
    rate = RATES[job.optimizer]

    def cost_of(parameters: list[Any], X_batch: Any, y_batch: Any) -> Any:
        W1, b1, W2, b2 = parameters
        return loss_of(linear(torch.tanh(linear(X_batch, W1, b1)), W2, b2), y_batch)

    def descend(parameters: list[Any], memory: Any, X: Any, y: Any, chosen: Any) -> Any:
        gradient, cost = torch.func.grad_and_value(cost_of)(parameters, *_chosen(X, y, chosen))
        for parameter, slope in zip(parameters, gradient, strict=True):
            parameter.sub_(slope, alpha=rate)
        return cost

    def adam(parameters: list[Any], memory: Any, X: Any, y: Any, chosen: Any) -> Any:
        gradient, cost = torch.func.grad_and_value(cost_of)(parameters, *_chosen(X, y, chosen))
        v, s, t = memory
        t.add_(1)
        for i, slope in enumerate(gradient):
            v[i].lerp_(slope, 1 - BETA1)
            s[i].mul_(BETA2).add_(slope * slope, alpha=1 - BETA2)
            root = torch.sqrt(s[i] / (1 - BETA2**t)) + EPSILON
            parameters[i].sub_(rate * (v[i] / (1 - BETA1**t)) / root)
        return cost

    compiled = torch.compile(descend if job.optimizer == "gd" else adam, fullgraph=True)

    def fresh() -> tuple[Any, Any]:
        parameters = torch_start(job.workload, job.device)
        if job.optimizer == "gd":
            return parameters, None
        v, s = [torch.zeros_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters]
        # The steps so far, not 0-D: PyTorch 2.13 compiles away a change to a 0-D float64 tensor.
        return parameters, (v, s, torch.zeros(1, dtype=parameters[0].dtype, device=job.device))

    def run(made: tuple[Any, Any], epochs: int) -> dict[str, Any]:
        return _torch_epochs(job.workload, partial(compiled, *made, X, y), epochs, job.device)

    return Task(run, fresh)


def cuda_graph(job: Job) -> Task:
    """Train by one CUDA graph, captured by hand, that is PyTorch's whole step: loss, gradient and fused update.

    Not yet run on a GPU.
    """
    import torch

    if job.device == "cpu":
        raise RuntimeError("a CUDA graph needs a GPU")
    it, loss_of, (X, y) = job.workload, _torch_loss(job.workload), _torch_ready(job)
    model = torch_model(it, job.device)
    if job.optimizer == "gd":
        optimizer = torch.optim.SGD(model.parameters(), lr=RATES["gd"], fused=True)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=RATES["adam"], fused=True, capturable=True)
    chosen = None if it.full else torch.zeros(it.batch, dtype=torch.int64, device=job.device)

    def whole_step() -> Any:
        X_batch, y_batch = _chosen(X, y, chosen)
        optimizer.zero_grad(set_to_none=False)
        loss = loss_of(model(X_batch), y_batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # what is loaded and allocated at first may not be while a stream is captured
            whole_step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cost = whole_step()

    def fresh() -> None:
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), torch_start(it, job.device), strict=True):
                parameter.copy_(value)
            for state in optimizer.state.values():
                for value in state.values():
                    if torch.is_tensor(value):
                        value.zero_()

    def step(numbers: Any) -> Any:
        if numbers is not None:
            chosen.copy_(numbers)
        graph.replay()
        return cost

    return Task(lambda _, epochs: _torch_epochs(it, step, epochs, job.device), fresh)


# JAX ------------------------------------------------------------------------------------------------------------------


def _jax_loss(workload: Workload) -> Callable[..., Any]:
    import jax
    from jax import numpy as jnp

    def cost_of(parameters: list[Any], X: Any, y: Any) -> Any:
        W1, b1, W2, b2 = parameters
        Z = jnp.tanh(X @ W1 + b1) @ W2 + b2
        if workload.n_y == 1:
            return jnp.mean(jax.nn.softplus(Z[:, 0]) - y * Z[:, 0])
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(Z), y[:, None], axis=1))

    return cost_of


def _jax_update(optimizer: str) -> Callable[..., Any]:
    import jax
    from jax import numpy as jnp

    rate = RATES[optimizer]

    def descend(parameters: Any, memory: Any, gradient: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda p, slope: p - rate * slope, parameters, gradient), memory

    def adam(parameters: Any, memory: Any, gradient: Any) -> tuple[Any, Any]:
        v, s, t = memory
        t = t + 1
        v = jax.tree.map(lambda a, slope: BETA1 * a + (1 - BETA1) * slope, v, gradient)
        s = jax.tree.map(lambda a, slope: BETA2 * a + (1 - BETA2) * slope**2, s, gradient)
        step, spread = rate / (1 - BETA1**t), 1 / (1 - BETA2**t)
        new = jax.tree.map(lambda p, a, b: p - step * a / (jnp.sqrt(b * spread) + EPSILON), parameters, v, s)
        return new, (v, s, t)

    return descend if optimizer == "gd" else adam


def jax_jit(job: Job) -> Task:
    """Train by JAX: a jitted step in a Python loop or, the variant, a jitted ``lax.scan`` over the epoch's batches.

    The order comes from the host, which is faster than `jax.random.permutation` on a CPU.
    """
    import jax
    from jax import numpy as jnp

    it = job.workload
    jax.config.update("jax_enable_x64", it.dtype == "float64")
    if job.device != "cpu":
        jax.config.update("jax_default_matmul_precision", "tensorfloat32" if job.tf32 else "highest")
        if jax.default_backend() != "gpu":
            raise RuntimeError("JAX has no GPU here")
    rows, labels = data(it)
    X, y = jnp.asarray(rows), jnp.asarray(labels if it.n_y > 1 else labels.astype(it.dtype))
    cost_of, update, rng = _jax_loss(it), _jax_update(job.optimizer), np.random.default_rng(0)

    def whole(state: Any, X: Any, y: Any) -> tuple[Any, Any]:
        cost, gradient = jax.value_and_grad(cost_of)(state[0], X, y)
        return update(*state, gradient), cost

    def some(state: Any, X: Any, y: Any, chosen: Any) -> tuple[Any, Any]:
        return whole(state, jnp.take(X, chosen, axis=0, mode="clip"), jnp.take(y, chosen, axis=0, mode="clip"))

    def epoch(state: Any, X: Any, y: Any, order: Any) -> tuple[Any, Any]:
        state, costs = jax.lax.scan(lambda state, chosen: some(state, X, y, chosen), state, order)
        return state, jnp.mean(costs)

    compiled = jax.jit(whole if it.full else epoch if job.variant == "scan" else some, donate_argnums=0)

    def one_epoch(state: Any) -> tuple[Any, float]:
        if it.full:
            state, cost = compiled(state, X, y)
            return state, float(cost)
        order = rng.permutation(it.m).reshape(it.steps, it.batch).astype(np.int32)
        if job.variant == "scan":
            state, cost = compiled(state, X, y, order)
            return state, float(cost)
        total = 0.0
        for chosen in order:
            state, cost = compiled(state, X, y, chosen)
            total = total + cost
        return state, float(total) / it.steps

    def fresh() -> Any:
        W1, b1, W2, b2 = start(it)
        parameters = [jnp.array(array) for array in (W1.T, b1[:, 0], W2.T, b2[:, 0])]
        if job.optimizer == "gd":
            return jax.block_until_ready((parameters, None))
        v, s = [jnp.zeros_like(p) for p in parameters], [jnp.zeros_like(p) for p in parameters]
        return jax.block_until_ready((parameters, (v, s, jnp.zeros((), it.dtype))))

    def run(state: Any, epochs: int) -> dict[str, Any]:
        costs = []
        for _ in range(epochs):
            state, cost = one_epoch(state)
            costs.append(cost)
        jax.block_until_ready(state)
        return outcome(costs)

    return Task(run, fresh)


# scikit-learn ---------------------------------------------------------------------------------------------------------


def sklearn_model(workload: Workload, optimizer: str) -> Any:
    """Return a classifier that has seen the data once, so that it can go on from parameters that it is given."""
    from sklearn.neural_network import MLPClassifier

    warnings.simplefilter("ignore")  # ConvergenceWarning: it is not meant to converge
    model = MLPClassifier(
        (workload.n_h,),
        activation="tanh",
        solver="sgd" if optimizer == "gd" else "adam",
        alpha=0,
        batch_size=workload.batch,
        learning_rate_init=RATES[optimizer],
        momentum=0,
        nesterovs_momentum=False,
        shuffle=not workload.full,
        tol=0,
        n_iter_no_change=10**9,
        max_iter=1,
        warm_start=True,
        random_state=0,
    )
    model.fit(*data(workload))
    W1, b1, W2, b2 = start(workload)
    model.coefs_ = [np.ascontiguousarray(W.T) for W in (W1, W2)]
    model.intercepts_ = [b1[:, 0], b2[:, 0]]
    model.n_iter_, model.t_, model.loss_curve_, model.best_loss_ = 0, 0, [], np.inf
    return model


def scikit_learn(job: Job) -> Task:
    """Train by scikit-learn's `MLPClassifier.fit`, timed whole."""
    from copy import deepcopy

    untrained = sklearn_model(job.workload, job.optimizer)
    rows, labels = data(job.workload)

    def run(model: Any, epochs: int) -> dict[str, Any]:
        model.set_params(max_iter=epochs).fit(rows, labels)
        return outcome(model.loss_curve_)

    return Task(run, lambda: deepcopy(untrained))


def only_data(job: Job) -> Task:
    """Make the data and do nothing with it: what everyone's memory is compared with."""
    data(job.workload)
    return Task(lambda _: {})


_TRAIN: dict[str, Callable[[Job], Task]] = {
    "xpnet": xpnet_fit,
    "plain NumPy": plain_numpy,
    "products": products,
    "PyTorch": pytorch,
    "torch.compile": torch_compile,
    "CUDA graph": cuda_graph,
    "JAX": jax_jit,
    "scikit-learn": scikit_learn,
}
TASKS: dict[str, dict[str, Callable[[Job], Task]]] = {
    "train": _TRAIN,
    "data": dict.fromkeys(_TRAIN, only_data),
    "start": {"plain NumPy": start_cost},
}
