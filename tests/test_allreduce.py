"""Sums among processes: in the order of the parts, whoever has them, and by MPI where there is one."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xpnet import allreduce
from xpnet.device import HOST

UNDER_MPI = """
import asyncio
import numpy as np
import dask.array as da
import distributed
from mpi4py import MPI
import xpnet, xpnet.dask
from xpnet import allreduce

world = MPI.COMM_WORLD

async def serve(make):
    async with make() as server:
        if world.rank == 0:
            world.bcast(server.address)
        await server.finished()

def train(address):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4, 600)).astype(np.float32)
    Y = (X[0] > X[1] ** 2).astype(int)
    options = {"hidden": 5, "epochs": 4, "batch_size": 64, "random_state": 0, "verbose": False}
    with distributed.Client(address) as client:
        client.wait_for_workers(2)
        net = xpnet.dask.fit(da.from_array(X, chunks=(4, 300)), da.from_array(Y, chunks=300), client=client, **options)
        client.shutdown()
    one = xpnet.fit(X, Y, threads=1, **options)
    print(max(float(np.abs(a - b).max()) for ours, theirs in zip(net.layers, one.layers) for a, b in zip(ours, theirs)))

allreduce.Star = None  # no other way will do
if world.rank == 0:
    asyncio.run(serve(lambda: distributed.Scheduler(host="127.0.0.1", port=0, dashboard=False)))
else:
    address = world.bcast(None)
    if world.rank == 1:
        train(address)
    else:
        asyncio.run(serve(lambda: distributed.Worker(address, nthreads=1, dashboard=False)))
"""
"""A scheduler, a client and two workers, as dask-mpi has them."""


def test_a_sum_is_taken_in_the_order_of_the_parts(rng):
    vectors = {number: rng.normal(size=100).astype(np.float32) for number in (3, 0, 2, 1)}
    expected = vectors[0] + vectors[1] + vectors[2] + vectors[3]
    assert (allreduce.Alone().sum(vectors) == expected).all()


@pytest.mark.parametrize("count", [3, 200_000])
def test_a_vector_travels_unchanged(rng, count):
    pytest.importorskip("distributed", reason="Dask's scheduler is not installed")
    vector = rng.normal(size=count).astype(np.float32)
    message = allreduce._packed(vector)
    sent = message if isinstance(message, bytes) else [message[0].data]
    assert (allreduce._unpacked(sent, vector.dtype) == vector).all()


def test_a_process_that_nobody_launched_under_mpi_has_no_mpi():
    assert allreduce.means(HOST) == allreduce.Means()


def test_workers_that_were_launched_under_mpi_sum_by_it(tmp_path):
    pytest.importorskip("distributed", reason="Dask's scheduler is not installed")
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if importlib.util.find_spec("mpi4py") is None or not mpiexec.exists():
        pytest.skip("mpi4py with an MPI of its own is not installed: pip install mpi4py mpich")
    script = tmp_path / "launched.py"
    script.write_text(UNDER_MPI)
    command = [str(mpiexec), "-n", "4", sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    assert float(done.stdout.split()[0]) <= 1e-5
