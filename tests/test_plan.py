"""The kernels that are written for a GPU compute what the recorded functions do: compiled for the host, and run."""

import os
import re
import subprocess
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from host_cuda import launched

from xpnet import optimizers
from xpnet.activations import ACTIVATIONS, Activation
from xpnet.cuda.kernels import gather
from xpnet.cuda.plan import Plan
from xpnet.engine import _launched_gradient, _launched_update
from xpnet.heads import HEADS
from xpnet.record import UnrecordableError, record

ROUNDINGS = 200
"""Epsilons, relative to the largest number: sums over 70 columns in another order, and C's functions for NumPy's."""

COLUMNS = 70


def arrays(shapes, rng, dtype):
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def planned(function, arguments):
    return Plan(record(function, arguments))


def run(plan, arguments, results):
    buffers = plan.buffers(lambda shape, dtype: np.full(shape, np.nan if dtype.kind == "f" else True, dtype))
    for bound in plan.bind(arguments, results, buffers):
        if bound.kernel is None:
            assert not any(np.shares_memory(factor, bound.outputs[0]) for factor in bound.inputs)
            np.matmul(*bound.inputs, *bound.outputs)
        else:
            launched(bound.kernel, bound.inputs, bound.outputs)
    return results


def check(function, arguments, *, results=None):
    """See that a function as launches gives what it gives on NumPy, and leaves its arguments alone."""
    expected = [np.array(value) for value in function(*arguments)]
    kept = [None if argument is None else argument.copy() for argument in arguments]
    plan = planned(function, arguments)
    made = run(plan, arguments, results or [np.full_like(value, np.nan) for value in expected])
    for got, wanted in zip(made, expected, strict=True):
        largest = np.abs(wanted).max(initial=1.0)
        assert np.abs(got - wanted).max() <= ROUNDINGS * np.finfo(wanted.dtype).eps * largest
    if results is None:
        assert all(before is None or np.array_equal(before, now) for before, now in zip(kept, arguments, strict=True))
    return plan


def equations(activation, head, hidden, *, weighted, l2=0.0, dtype="float32", rng=None):
    """Return the recorded gradient's function and arguments for it."""
    sizes = (5, *hidden, 3 if head == "softmax" else 1)
    rng = np.random.default_rng(3) if rng is None else rng
    gradient = _launched_gradient(ACTIVATIONS.get(activation, activation), HEADS[head], l2)
    rows = rng.standard_normal((COLUMNS, 5)).astype(dtype)
    Y = rng.uniform(0, 1, (COLUMNS, sizes[-1])).astype(dtype)
    weight = rng.uniform(0.5, 2, (COLUMNS, 1)).astype(dtype) if weighted else None
    shapes = [shape for a, b in pairwise(sizes) for shape in ((b, a), (b, 1))]
    return gradient, [rows, Y, weight, *arrays(shapes, rng, dtype)]


@pytest.mark.parametrize("hidden", [(), (4,), (6, 4)])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_equations_as_launches_give_what_they_give(activation, head, hidden):
    check(*equations(activation, head, hidden, weighted=len(hidden) == 1))


@pytest.mark.parametrize("head", HEADS)
def test_in_float64_and_with_a_penalty_too(head):
    check(*equations("gelu", head, (4,), weighted=True, l2=0.7, dtype="float64"))


@pytest.mark.parametrize("optimizer", ["gd", "momentum", "adam"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_update_as_launches_takes_its_steps_in_place(rng, optimizer, dtype):
    how = optimizers.OPTIMIZERS[optimizer]()
    theta = rng.standard_normal(501).astype(dtype)
    memory = how.init(theta, xp=np)
    state = [np.array(part) for part in memory]
    rate = np.asarray(0.1, dtype)
    expected, kept = theta.copy(), memory
    plan = None
    for _ in range(3):
        gradient = rng.standard_normal(501).astype(dtype)
        expected, kept, _ = how.update(expected, kept, lambda _, g=gradient: (0.0, g / 7), learning_rate=rate, xp=np)
        arguments = [theta, rate, gradient, *state]
        plan = plan or planned(partial(_launched_update, how, type(memory), 1 / 7), arguments)
        run(plan, arguments, [theta, *state])
    tolerance = ROUNDINGS * np.finfo(dtype).eps
    assert np.abs(theta - expected).max() <= tolerance * np.abs(expected).max()
    for ours, theirs in zip(state, kept, strict=True):
        assert np.abs(ours - theirs).max() <= tolerance * max(1.0, np.abs(theirs).max())


@pytest.mark.parametrize("optimizer", ["gd", "momentum"])
def test_an_update_is_one_kernel(rng, optimizer):
    how = optimizers.OPTIMIZERS[optimizer]()
    theta = rng.standard_normal(9)
    memory = how.init(theta, xp=np)
    plan = planned(partial(_launched_update, how, type(memory), 0.5), [theta, np.zeros(()), theta, *memory])
    assert len(plan.launches) == 1


def test_adams_update_is_two_kernels_for_its_count_is_one_number(rng):
    how, theta = optimizers.adam(), rng.standard_normal(9)
    memory = how.init(theta, xp=np)
    plan = planned(partial(_launched_update, how, type(memory), 0.5), [theta, np.zeros(()), theta, *memory])
    assert sorted(launch.kernel.shape for launch in plan.launches) == [(1, 1), (1, 9)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_chain_of_operations_is_one_kernel_of_its_dtype(activation, rng):
    it = ACTIVATIONS[activation]

    def function(Z):
        A = it.g(Z, xp=np)
        return [A + 0.0, it.dg(Z, A, xp=np) * 1.0]

    for dtype, name in (("float32", "float"), ("float64", "double")):
        plan = planned(function, arrays([(4, 6)], rng, dtype))
        (launch,) = plan.launches
        made = re.findall(r"const (\w+) [vx]\d+ =", launch.kernel.source)
        assert set(made) - {"bool"} == {name}  # no number in between of another type


@pytest.mark.parametrize(("head", "most"), [("sigmoid", 9), ("identity", 9), ("exp", 9), ("softmax", 11)])
def test_a_step_is_few_launches(head, most):
    assert len(planned(*equations("tanh", head, (4,), weighted=False)).launches) <= most


@pytest.mark.parametrize("shape", [(7, 5), (1, 5), (7, 1), (1, 1), (3, 700), (40, 5), (17, 1)])
def test_sums_and_maxima_over_any_axis(rng, shape):
    def function(A):
        total, rows, columns = (np.sum(A, axis=(-2, -1)), np.sum(A, axis=-1, keepdims=True), np.sum(A, axis=-2))
        return [total + 0.0, rows * 1.0, columns * 1.0, np.max(A, axis=-2, keepdims=True) * 1.0]

    check(function, arrays([shape], rng, "float64"))


@pytest.mark.parametrize("threads", [2, 8, 64])
@pytest.mark.parametrize("columns", [1, 63, 64, 1_000])
def test_the_threads_of_a_block_add_up_all_columns(rng, threads, columns):
    plan = planned(lambda A: [np.sum(A, axis=-1, keepdims=True)], [np.zeros((3, max(columns, 2)))])
    (launch,) = plan.launches
    kernel = launch.kernel._replace(shape=(3, columns))
    A, sums = rng.standard_normal((3, columns)), np.zeros((3, 1))
    launched(kernel, [A], [sums], threads=threads)
    assert np.allclose(sums, A.sum(axis=1, keepdims=True), rtol=1e-12, atol=1e-12)


def test_a_transpose_costs_no_launch(rng):
    def function(A, B):
        return [np.matrix_transpose(A) * B, np.matrix_transpose(B) @ B]

    plan = check(function, arrays([(4, 6), (6, 4)], rng, "float64"))
    assert len(plan.launches) == 2


def test_a_chain_waits_for_all_of_what_it_reads_transposed(rng):
    def function(A):
        B = A * 2.0
        return [B + np.matrix_transpose(B)]

    plan = check(function, arrays([(5, 5)], rng, "float64"))
    assert len(plan.launches) == 2


def test_a_column_times_a_row_is_part_of_its_chain(rng):
    plan = check(lambda a, r, D: [(a @ r) * D], arrays([(6, 1), (1, 9), (6, 9)], rng, "float64"))
    assert len(plan.launches) == 1


def test_nan_goes_through_maxima_as_on_numpy():
    Z = np.asarray([[np.nan, 1.0, -1.0]])
    (got,) = run(planned(lambda Z: [np.maximum(Z, 0.0)], [Z]), [Z], [np.zeros_like(Z)])
    assert np.array_equal(got, [[np.nan, 1.0, 0.0]], equal_nan=True)


def test_what_leads_to_no_result_is_not_done(rng):
    def function(A):
        np.exp(A)
        return [A + 1.0]

    (launch,) = planned(function, arrays([(2, 3)], rng, "float64")).launches
    assert "exp" not in launch.kernel.source


def test_buffers_are_used_again(rng):
    def function(A, B):
        for _ in range(6):
            A = np.tanh(A) @ B
        return [A + 0.0]

    plan = check(function, arrays([(6, 6), (6, 6)], rng, "float64"))
    assert len(plan.buffers(np.zeros)) <= 2


def test_a_buffer_is_not_written_over_while_its_transpose_is_read(rng):
    def function(A):
        B = A @ A
        return [(B + np.matrix_transpose(B)) @ A]

    check(function, arrays([(5, 5)], rng, "float64"))


def test_a_column_is_not_written_over_while_all_columns_read_it(rng):
    def function(A):
        b = A @ np.sum(A, axis=-1, keepdims=True)
        return [(b * np.matrix_transpose(b)) @ A]

    check(function, arrays([(5, 5)], rng, "float64"))


def test_a_source_has_no_sizes_in_it():
    sources = []
    for columns in (70, 33):
        function, arguments = equations("tanh", "softmax", (4,), weighted=True)
        arguments[:3] = [array[:columns] for array in arguments[:3]]
        sources.append([launch.kernel and launch.kernel.source for launch in planned(function, arguments).launches])
    assert sources[0] == sources[1]


@pytest.mark.parametrize(
    "function",
    [
        lambda A: [np.matrix_transpose(A)],
        lambda A: [A],
        lambda A: [A + 1.0] * 2,
        lambda A: [np.hypot(A, A)],
        lambda A: [np.sum(A, axis=0)],
        lambda A: [np.sum(np.sum(A, axis=-1, keepdims=True), axis=-1) + 1.0],
        lambda A: [np.max(A, axis=-1)],
        lambda A: [np.astype(A, np.int32) * 2],
        lambda A: [A + math_nan()],
    ],
    ids=[
        "a view",
        "an argument",
        "twice the same",
        "hypot",
        "an axis from the front",
        "a column as a vector",
        "max",
        "integers",
        "nan",
    ],
)
def test_what_no_kernel_can_do_is_refused(function, rng):
    with pytest.raises(UnrecordableError):
        planned(function, arrays([(4, 6)], rng, "float64"))


def math_nan():
    return float("nan")


def test_a_result_does_not_replace_an_argument_that_is_read_later(rng):
    A = rng.standard_normal((4, 4))
    plan = planned(lambda A: [A + 1.0, (A + 1.0) @ A], [A])
    with pytest.raises(UnrecordableError):
        plan.bind([A], [A, np.zeros_like(A)], plan.buffers(np.zeros))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [1, 5, 300])
def test_rows_are_picked_out(rng, dtype, width):
    array = rng.standard_normal((50, width)).astype(dtype)
    numbers, out = rng.permutation(50)[:20].astype(np.int64), np.zeros((20, width), dtype)
    launched(gather(array, 20), [array, numbers], [out])
    assert np.array_equal(out, array[numbers])


def test_a_users_own_activation_becomes_a_kernel_too():
    cube = Activation(lambda Z: Z**3, lambda Z, _: 3 * Z**2, name="cube")
    check(*equations(cube, "sigmoid", (4,), weighted=False))


COMPILE = """
import sys
from cupy.cuda import nvrtc
for source in sys.stdin.read().split("\\0"):
    program = nvrtc.createProgram(source, "launch.cu", (), ())
    try:
        nvrtc.compileProgram(program, ("--gpu-architecture=sm_90", "-std=c++17"))
    except nvrtc.NVRTCError:
        sys.exit(nvrtc.getProgramLog(program) + source)
    assert len(nvrtc.getCUBIN(program)) > 1000
print("compiled")
"""


def test_every_kernel_compiles_for_a_gpu():
    python = os.environ.get("XPNET_CUPY_PYTHON")
    if python is None:
        pytest.skip("XPNET_CUPY_PYTHON names no interpreter that has CuPy and NVRTC")
    sources = {gather(np.zeros((2, 2), "float32"), 1).source}
    for activation in ACTIVATIONS:
        for head in HEADS:
            for dtype in ("float32", "float64"):
                plan = planned(*equations(activation, head, (4,), weighted=True, l2=0.1, dtype=dtype))
                sources |= {launch.kernel.source for launch in plan.launches if launch.kernel}
    for name in ("gd", "momentum", "adam"):
        how, theta = optimizers.OPTIMIZERS[name](), np.zeros(5, "float32")
        memory = how.init(theta, xp=np)
        zero = np.zeros((), "float32")
        plan = planned(partial(_launched_update, how, type(memory), 0.5), [theta, zero, theta, *memory])
        sources |= {launch.kernel.source for launch in plan.launches}
    run = subprocess.run([python, "-c", COMPILE], input="\0".join(sources), capture_output=True, text=True, check=False)
    if "cannot be loaded" in run.stderr or "libnvrtc" in run.stderr:
        pytest.skip(f"there is no NVRTC: {run.stderr.splitlines()[-1]}")
    assert run.stdout == "compiled\n", run.stderr[-3_000:]
