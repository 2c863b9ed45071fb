"""Steps as launches are the steps that are taken without: here on the host, by the kernels' own sources."""

import numpy as np
import pytest
from host_cuda import HostLauncher
from test_cuda import SUMS, Dressed, M, X, Y, apart, bits, dressed, fit, theta  # noqa: F401  # a fixture

import xpnet
from xpnet import engine, optimizers
from xpnet.cuda import steps
from xpnet.errors import DeviceSpeedWarning


def made(launcher):
    """Return how many arrays were made, but for those of the costs of steps."""
    return sum(len(shape) != 1 or shape[0] > steps.TOGETHER for shape, _ in launcher.made)


OPTIMIZERS = ["gd", "momentum", "adam"]
EPS = float(np.finfo("float64").eps)


@pytest.fixture
def launchers(request, monkeypatch):
    """Return the launchers that fits on the dressed device make, in order."""
    request.getfixturevalue("dressed")
    made = []

    def make(place, **options):
        made.append(HostLauncher(place, **options))
        return made[-1]

    monkeypatch.setattr(engine, "CudaLauncher", make)
    return made


def on_both(**arguments):
    """Return what training gives on the dressed device and on the CPU, in float64."""
    settings = {"dtype": "float64", "epochs": 4, **arguments}
    return fit(**settings), fit(**settings, **{"device": "cpu"})


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("batch_size", [16, 50, "full"])
def test_steps_as_launches_train_the_same_network(launchers, optimizer, batch_size):
    ours, plain = on_both(optimizer=optimizer, batch_size=batch_size)
    assert launchers[0].launches > 0
    assert apart(theta(ours), theta(plain)) <= SUMS * EPS
    assert np.allclose(ours.history["cost"], plain.history["cost"], rtol=SUMS * EPS)


@pytest.mark.parametrize(
    "arguments",
    [
        {"l2": 0.3},
        {"sample_weight": np.linspace(0.5, 2, M), "class_weight": "balanced"},
        {"standardize": True},
        {"hidden": (6, 4), "activation": "gelu"},
        {"hidden": ()},
        {"learning_rate": lambda epoch: 0.01 * 0.9**epoch},
        {"validation_fraction": 0.2},
    ],
    ids=["l2", "weights", "standardized", "deeper", "no hidden layer", "schedule", "validation"],
)
def test_whatever_the_fit(launchers, arguments):
    ours, plain = on_both(**arguments)
    assert launchers[0].launches > 0
    assert apart(theta(ours), theta(plain)) <= SUMS * EPS
    for name in ("cost", "validation_cost"):
        assert np.allclose(ours.history[name], plain.history[name], rtol=SUMS * EPS)


def test_steps_wait_for_each_other_and_go_as_one(launchers, monkeypatch):
    groups = []
    graph = HostLauncher.graph

    def counted(self, calls):
        launch, size = graph(self, calls), len(calls)
        return lambda: (groups.append(size), launch())[1]

    monkeypatch.setattr(HostLauncher, "graph", counted)
    fit(epochs=1, batch_size=16)  # 38 whole batches and one of 3
    one = min(groups)
    assert groups.count(steps.TOGETHER * one) == 38 // steps.TOGETHER
    assert len(groups) == 38 // steps.TOGETHER + 38 % steps.TOGETHER + 1


def test_however_many_go_together_the_bits_are_the_same(launchers, monkeypatch):
    together = bits(fit(batch_size=16))
    monkeypatch.setattr(steps, "TOGETHER", 3)
    assert bits(fit(batch_size=16)) == together
    monkeypatch.setattr(HostLauncher, "captures", False)
    assert bits(fit(batch_size=16)) == together


def test_a_callback_sees_the_network_with_all_steps_taken(launchers):
    seen = []
    net = fit(epochs=2, batch_size=50, callbacks=lambda view: seen.append(view.network()))
    assert np.array_equal(seen[-1].W1, net.W1)
    assert not np.array_equal(seen[0].W1, net.W1)  # a copy: later steps leave it as it is


def test_ctrl_c_gives_the_network_with_the_steps_that_waited(launchers):
    def schedule(epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        return 0.1

    net = fit(epochs=3, batch_size=50, learning_rate=schedule, optimizer="gd")
    assert net.stop_reason == "interrupted"
    whole = fit(epochs=1, batch_size=50, learning_rate=0.1, optimizer="gd")
    assert np.array_equal(net.W1, whole.W1)


def test_ctrl_c_amid_an_epoch_keeps_the_steps_that_were_taken(launchers, monkeypatch):
    def interrupted(device):
        with monkeypatch.context() as patch:
            step, calls = engine.Engine.step, []

            def until(self, *arguments, **options):
                calls.append(None)
                if len(calls) == 22:
                    raise KeyboardInterrupt
                return step(self, *arguments, **options)

            patch.setattr(engine.Engine, "step", until)
            return fit(batch_size=16, dtype="float64", device=device)

    ours, plain = interrupted("cuda"), interrupted("cpu")
    assert ours.stop_reason == "interrupted"
    assert apart(theta(ours), theta(plain)) <= SUMS * EPS


def test_a_checkpoint_resumes_steps_bit_for_bit(launchers, tmp_path):
    def interrupt(view):
        if view.epoch == 1:
            raise KeyboardInterrupt

    whole = bits(fit(epochs=4, batch_size=16))
    fit(epochs=4, batch_size=16, checkpoint=tmp_path / "run", callbacks=interrupt)
    assert bits(fit(epochs=4, batch_size=16, checkpoint=tmp_path / "run")) == whole


def test_memory_is_made_once_for_all_epochs(launchers):
    sizes = []
    fit(epochs=5, batch_size=50, callbacks=lambda _: sizes.append(made(launchers[0])))
    assert len(set(sizes)) == 1


def test_batches_through_the_ring_share_one_program(launchers, monkeypatch):
    monkeypatch.setattr(Dressed, "free", 4 * X.size)
    sizes = []
    streamed = fit(epochs=5, batch_size=50, callbacks=lambda _: sizes.append(made(launchers[0])))
    assert streamed.timing["bytes_moved"] > 0
    assert len(set(sizes)) == 1


# --- what cannot be launches


def looking(theta, state, evaluate, *, learning_rate, xp):
    """An optimizer whose steps are as long as the cost is high."""
    cost, gradient = evaluate(theta)
    return theta - learning_rate * cost * gradient, state, cost


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_an_update_that_uses_the_cost_gets_the_cost(launchers, device):
    mine = optimizers.Optimizer("mine", optimizers.gd().init, looking, 0.1)
    net = fit(optimizer=mine, device=device, batch_size="full", epochs=1, dtype="float64")
    plain = fit(optimizer="gd", learning_rate=0.1, device="cpu", batch_size="full", epochs=1, dtype="float64")
    start = fit(optimizer="gd", learning_rate=1e-300, device="cpu", batch_size="full", epochs=1, dtype="float64")
    step = theta(start) + plain.history["cost"][0] * (theta(plain) - theta(start))
    assert apart(theta(net), step) <= SUMS * EPS


def test_an_activation_that_no_kernel_has_is_called_plainly(launchers):
    def g(Z):
        return np.arcsinh(Z)

    mine = xpnet.Activation(g, lambda Z, _: 1 / np.hypot(Z, 1.0), name="arcsinh")
    ours, plain = on_both(activation=mine)
    assert apart(theta(ours), theta(plain)) <= SUMS * EPS


def test_an_activation_that_breaks_on_what_is_recorded_is_said_to_be_slow(launchers):
    mine = xpnet.Activation(lambda Z: Z * float(Z.sum() * 0 + 1), lambda Z, _: np.ones(Z.shape, Z.dtype), name="odd")
    with pytest.warns(DeviceSpeedWarning, match="one operation at a time"):
        ours = fit(activation=mine, dtype="float64", epochs=2)
    plain = fit(activation=mine, dtype="float64", epochs=2, device="cpu")
    assert apart(theta(ours), theta(plain)) <= SUMS * EPS


@pytest.mark.parametrize("nth", [1, 2, 5, 9, 20])
def test_when_memory_runs_out_for_the_buffers_the_steps_go_on_without(launchers, monkeypatch, nth):
    empty = HostLauncher.empty

    def scarce(self, shape, dtype):
        if len(self.made) >= nth and np.prod(shape) > steps.TOGETHER:  # there is always room for a few numbers
            raise MemoryError("no room")
        return empty(self, shape, dtype)

    monkeypatch.setattr(HostLauncher, "empty", scarce)
    ours, plain = on_both(batch_size=50)
    assert type(ours.place).released > 0
    assert apart(theta(ours), theta(plain)) <= SUMS * EPS


def test_when_memory_runs_out_for_the_last_batch_no_step_is_lost(launchers, monkeypatch):
    empty = HostLauncher.empty

    def scarce(self, shape, dtype):
        if len(shape) == 2 and shape[0] == M % 16:
            raise MemoryError("no room")
        return empty(self, shape, dtype)

    monkeypatch.setattr(HostLauncher, "empty", scarce)
    ours, plain = on_both(batch_size=16)
    assert launchers[0].launches > 0
    assert apart(theta(ours), theta(plain)) <= SUMS * EPS
    assert np.allclose(ours.history["cost"], plain.history["cost"], rtol=SUMS * EPS)


def test_tf32_is_handed_on(launchers):
    fit(epochs=1, tf32=True)
    fit(epochs=1)
    assert [launcher.tf32 for launcher in launchers] == [True, False]


@pytest.mark.parametrize("value", [1, "yes", None])
def test_tf32_is_true_or_false(value):
    with pytest.raises(xpnet.errors.ArgumentError, match="tf32 must be True or False"):
        xpnet.fit(X, Y, tf32=value)
