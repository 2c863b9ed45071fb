"""What a GPU computes: the numbers that NumPy does, wherever the data is, however little memory there is.

Skipped where there is none; ``XPNET_REQUIRE_CUDA=1`` makes that a failure. Not yet run on a GPU.
"""

import gc
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

import xpnet
from xpnet import activations, data, device, engine, equations, heads, initializers
from xpnet.data import Piece
from xpnet.errors import DeviceMemoryWarning
from xpnet.typing import Layer

pytestmark = pytest.mark.cuda

RNG = np.random.default_rng(5)
N_X, M = 28, 5_000
X = RNG.standard_normal((N_X, M)).astype(np.float32)
SCORE = np.tanh(X[0] * X[1] + X[2])
LABELS = {
    "binary": (SCORE > 0).astype(int),
    "multiclass": np.digitize(SCORE, (-0.5, 0.0, 0.5)),
    "regression": SCORE.astype(np.float64),
}

FIRST = {"float32": 1e-5, "float64": 1e-12}
"""How far the first epoch's costs may be apart, relative to NumPy's: what is promised."""

SUMS = 100
"""Epsilons by which gradients may differ on sums taken in another order, relative to their norm."""


def fit(labels="binary", X=X, **arguments):
    settings = {"hidden": 64, "epochs": 3, "batch_size": 512, "random_state": 3, "device": "cuda", "patience": None}
    return xpnet.fit(X, LABELS[labels], **settings | arguments)


def flat(layers):
    return np.concatenate([device.to_host(array).ravel() for layer in layers for array in layer]).astype(float)


def apart(left, right):
    return np.linalg.norm(left - right) / np.linalg.norm(right)


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    return request.param


@pytest.fixture
def streaming(monkeypatch):
    """Leave no share of the GPU's memory to the examples, so that they go through the ring."""
    monkeypatch.setattr(data, "RESIDENT", 0.0)


@pytest.fixture
def limited(cuda):
    """Return a function that leaves CuPy's pool so many bytes beside what it holds."""
    pool = cuda.xp.get_default_memory_pool()

    def limit(size):
        with cuda.active():
            pool.free_all_blocks()
            pool.set_limit(size=int(pool.total_bytes()) + size)

    yield limit
    with cuda.active():
        pool.set_limit(size=0)
        pool.free_all_blocks()


# --- the numbers


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu", "gelu", "silu", "elu", "softplus", "leaky_relu"])
@pytest.mark.parametrize("hidden", [(), (64,), (64, 33)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_is_numpys(cuda, precision, activation, hidden, weighted):
    sizes, g, head = (N_X, *hidden, 1), activations.resolve(activation), heads.HEADS["sigmoid"]
    layers = [
        Layer(*(np.asarray(array, precision) for array in layer))
        for layer in initializers.GAINS[g.gain](sizes, random_state=np.random.default_rng(0))
    ]
    arrays = [X.T.astype(precision), LABELS["binary"][:, None].astype(precision)]
    arrays.append(np.linspace(0.5, 1.5, M, dtype=precision)[:, None] if weighted else None)
    find = partial(equations.gradient, activation=g, head=head)
    Xc, Y, weight = Piece(*arrays).taken(device.HOST)
    cost, gradients = find(layers, Xc, Y, sample_weight=weight, xp=np)
    with cuda.active():
        there = [None if array is None else cuda.asarray(array) for array in arrays]
        Xc, Y, weight = Piece(*there).taken(cuda)
        on_gpu = [Layer(*map(cuda.asarray, layer)) for layer in layers]
        found, theirs = find(on_gpu, Xc, Y, sample_weight=weight, xp=cuda.xp)
    tolerance = SUMS * float(np.finfo(precision).eps)
    assert float(found) == pytest.approx(float(cost), rel=tolerance)
    assert apart(flat(theirs), flat(gradients)) <= tolerance


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("optimizer", ["gd", "momentum", "adam"])
@pytest.mark.parametrize("batch_size", [512, "full"])
def test_the_first_epochs_cost_is_numpys(cuda, precision, labels, optimizer, batch_size):
    there, here = (
        fit(labels, optimizer=optimizer, dtype=precision, batch_size=batch_size, device=at) for at in ("cuda", "cpu")
    )
    assert there.device == "cuda:0"
    assert there.history["cost"][0] == pytest.approx(here.history["cost"][0], rel=FIRST[precision])


def test_lbfgs_comes_to_numpys_cost(cuda):
    arguments = {"optimizer": "lbfgs", "batch_size": "auto", "dtype": "float64", "epochs": 10}
    there, here = (fit(device=at, **arguments) for at in ("cuda", "cpu"))
    assert there.history["cost"][:3] == pytest.approx(here.history["cost"][:3], rel=1e-9)  # steps amplify roundings


def test_tf32_rounds_and_nothing_else_does(cuda):
    exact, again, rounded = (fit(epochs=1, tf32=tf32, hidden=256) for tf32 in (False, False, True))
    assert exact.history["cost"] == again.history["cost"]
    assert rounded.history["cost"] == pytest.approx(exact.history["cost"], rel=1e-2)


def test_one_seed_gives_the_same_bits(cuda, precision):
    left, right = (fit(dtype=precision) for _ in range(2))
    assert np.array_equal(flat(left.layers), flat(right.layers))


# --- data larger than the GPU's share


@pytest.mark.parametrize("optimizer", ["gd", "adam"])
@pytest.mark.parametrize("arguments", [{}, {"validation_fraction": 0.2, "standardize": True}])
def test_what_is_streamed_trains_as_what_is_resident(cuda, monkeypatch, precision, optimizer, arguments):
    resident = fit(optimizer=optimizer, dtype=precision, **arguments)
    monkeypatch.setattr(data, "RESIDENT", 0.0)
    streamed = fit(optimizer=optimizer, dtype=precision, **arguments)
    assert "bytes_moved" not in resident.timing
    assert streamed.timing["bytes_moved"] > 3 * X.size
    tolerance = SUMS * float(np.finfo(precision).eps)
    assert apart(flat(streamed.layers), flat(resident.layers)) <= tolerance
    assert streamed.history["cost"] == pytest.approx(resident.history["cost"], rel=tolerance)


def test_a_loader_streams_what_numpy_gives(cuda, streaming):
    here = list(xpnet.Loader(X, LABELS["binary"], batch_size=700, device="cpu"))
    there = [
        tuple(map(device.to_host, batch)) for batch in xpnet.Loader(X, LABELS["binary"], batch_size=700, device="cuda")
    ]
    assert len(here) == len(there)
    assert all(
        np.array_equal(a, b) for left, right in zip(here, there, strict=True) for a, b in zip(left, right, strict=True)
    )


# --- memory


def test_with_little_memory_fewer_columns_are_taken_and_the_network_is_the_same(cuda, limited):
    arguments = {"hidden": 512, "batch_size": "full", "dtype": "float64", "optimizer": "gd", "epochs": 2}
    plenty = fit(**arguments)
    # X, and half of one of the arrays of 512 by 5,000 that a step makes.
    limited(X.size * 8 + 512 * M * 8 // 2)
    with pytest.warns(DeviceMemoryWarning) as told:
        scarce = fit(**arguments)
    assert len(told) <= 2
    assert apart(flat(scarce.layers), flat(plenty.layers)) <= SUMS * float(np.finfo("float64").eps)


def test_with_no_memory_the_error_says_what_to_do(cuda, limited):
    limited(4_096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeviceMemoryWarning)
        with pytest.raises(MemoryError, match="End what else uses that memory") as raised:
            fit()
    assert isinstance(raised.value, xpnet.errors.DeviceError)


def test_after_a_lack_of_memory_the_next_fit_has_it_all(cuda, limited):
    limited(4_096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeviceMemoryWarning)
        with pytest.raises(MemoryError):
            fit()
    limited(2**30)
    assert fit().epochs_run == 3


# --- threads and devices


@pytest.mark.parametrize("share", [data.RESIDENT, 0.0])
def test_fits_on_two_threads_give_what_each_gives_alone(cuda, monkeypatch, share):
    monkeypatch.setattr(data, "RESIDENT", share)

    def one(seed):
        return flat(fit(random_state=seed).layers)

    alone = [one(seed) for seed in range(4)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(one, range(4)))
    assert all(np.array_equal(left, right) for left, right in zip(together, alone, strict=True))


def test_a_fit_in_a_stream_of_the_callers_is_the_same(cuda):
    alone = flat(fit().layers)
    with cuda.active(), cuda.xp.cuda.Stream(non_blocking=True) as stream:
        found = flat(fit().layers)
        stream.synchronize()
    assert np.array_equal(found, alone)


def test_on_the_last_gpu_everything_is_done_there(cuda):
    last = cuda.xp.cuda.runtime.getDeviceCount() - 1
    if last == 0:
        pytest.skip("there is one GPU")
    net = fit(device=f"cuda:{last}")
    assert net.device == f"cuda:{last}"
    assert net.history["cost"] == pytest.approx(fit().history["cost"], rel=FIRST["float32"])
    assert device.place_of(net.W1).name == f"cuda:{last}"


# --- a network on the GPU


def test_a_network_on_the_gpu_predicts_is_saved_and_moves(cuda, tmp_path):
    net = fit(device="cuda:0", standardize=True, validation_fraction=0.1)
    home = net.to("cpu")
    assert (net.device, home.device) == ("cuda:0", "cpu")
    tolerance = FIRST["float32"]
    for given in (X, cuda.asarray(X)):
        A = net.predict_proba(given)
        assert device.place_of(A) == device.place_of(given)
        assert np.allclose(device.to_host(A), home.predict_proba(X), atol=tolerance)
        labels = device.to_host(net.predict(given))
        assert np.mean(labels == home.predict(X)) >= 1 - 1e-3  # a probability of ½ may fall on either side
    assert net.cost(X, LABELS["binary"]) == pytest.approx(home.cost(X, LABELS["binary"]), rel=tolerance)
    net.save(tmp_path / "net.safetensors")
    for at in ("cuda:0", "cpu"):
        loaded = xpnet.load(tmp_path / "net.safetensors", device=at)
        assert loaded.device == at
        assert np.array_equal(flat(loaded.layers), flat(net.layers))
    assert np.array_equal(flat(home.to("cuda").layers), flat(net.layers))


def test_x_on_the_gpu_is_trained_on_there(cuda):
    net = fit(X=cuda.asarray(X), device=None)
    assert net.device == "cuda:0"
    assert net.history["cost"] == pytest.approx(fit().history["cost"], rel=FIRST["float32"])


def test_a_checkpoint_of_the_gpus_goes_on_to_the_same_bits(cuda, tmp_path):
    def interrupt(view):
        if view.epoch == 1:
            raise KeyboardInterrupt

    uninterrupted = fit(epochs=4)
    fit(epochs=4, checkpoint=tmp_path / "run", callbacks=interrupt)
    assert np.array_equal(flat(fit(epochs=4, checkpoint=tmp_path / "run").layers), flat(uninterrupted.layers))


def test_the_memory_of_a_fit_is_given_back(cuda):
    pool = cuda.xp.get_default_memory_pool()
    fit()
    with cuda.active():
        before = pool.used_bytes()
        for _ in range(3):
            fit()
        gc.collect()  # an engine and its steps know each other
        assert pool.used_bytes() <= before


def test_the_engine_is_given_launches(cuda):
    """Else all of the above would be about the equations called plainly."""
    with (
        cuda.active(),
        engine.running(
            cuda, (N_X, 8, 1), activations.resolve("tanh"), heads.HEADS["sigmoid"], columns=512, threads=None
        ) as run,
    ):
        assert run._launches
