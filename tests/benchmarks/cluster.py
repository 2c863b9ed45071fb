"""What a cluster costs and brings: steps beside bare MPI ranks and one process, sums, large files, and a simulation.

    python tests/benchmarks/cluster.py --only steps,small,sums,simulation

Two workers, processes of one thread on this machine; what is compared is measured by turns in the same run. ``steps``
and ``sums`` need mpi4py and an MPI (``pip install mpi4py mpich``) for their peers.
"""

import argparse
import contextlib
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import dask.array  # noqa: E402  # the checkout comes first
import distributed  # noqa: E402

import xpnet.dask  # noqa: E402
from xpnet import activations, allreduce, engine, heads, initializers, parameters  # noqa: E402
from xpnet.data import Piece  # noqa: E402
from xpnet.device import HOST  # noqa: E402

SIZES = (100, 64, 1)
"""Of the network whose steps are measured."""

NETWORKS = {"100-64-1": (100, 64, 1), "784-1024-10": (784, 1024, 10), "1000-2000-2000-10": (1000, 2000, 2000, 10)}
"""Those that are simulated."""

WORKERS = (4, 16, 64, 256, 1024)
"""How many workers are simulated."""

WIRE = (30e-6, 1.25e9)
"""Of the network between simulated machines: seconds of a message, and bytes a second (10 Gbit/s). An assumption."""

SPREAD = 0.03
"""Standard deviation of a simulated worker's seconds for its columns, as a share of them. An assumption."""

EFFICIENT = 0.8
"""What is called efficient."""


def examples(m: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return X (m, n_x) float32 and Y (m,); rows of any two calls go together."""
    X = np.random.default_rng(first).standard_normal((m, SIZES[0]), dtype=np.float32)
    return X, (X[:, 0] * X[:, 1] > 0).astype(np.int64)


def piece(first: int, stop: int) -> Piece:
    """Return the examples from `first` to `stop` as a step takes them."""
    X, Y = examples(stop - first, first)
    return Piece(X, Y[:, None].astype(np.float32))


@contextlib.contextmanager
def cluster(workers: int = 2, **options: Any) -> Any:
    """Make a cluster of processes with a thread each."""
    settings = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50}
    with distributed.LocalCluster(**settings | options) as made, distributed.Client(made) as client:
        yield client


# Steps ----------------------------------------------------------------------------------------------------------------


def of_one(m: int, epochs: int) -> float:
    """Return the seconds of a step of one process with one thread."""
    X, Y = (np.concatenate(both) for both in zip(*(examples(m // 2, i * (m // 2)) for i in range(2)), strict=True))
    return typical(xpnet.fit(X, Y, threads=1, **how(epochs)))


def of_cluster(client: Any, m: int, epochs: int) -> float:
    """Return the seconds of a step of a cluster of two."""
    blocks = [dask.delayed(examples)(m // 2, i * (m // 2)) for i in range(2)]
    X = dask.array.concatenate([dask.array.from_delayed(b[0], (m // 2, SIZES[0]), np.float32) for b in blocks])
    Y = dask.array.concatenate([dask.array.from_delayed(b[1], (m // 2,), np.int64) for b in blocks])
    return typical(xpnet.dask.fit(X, Y, client=client, **how(epochs)))


def how(epochs: int) -> dict[str, Any]:
    """Return the arguments of a full-batch fit."""
    return {
        "examples": "rows",
        "hidden": SIZES[1],
        "optimizer": "gd",
        "batch_size": "full",
        "epochs": epochs,
        "patience": None,
        "random_state": 0,
        "verbose": False,
    }


def typical(net: Any) -> float:
    """Return the median of a fit's epochs, which are steps, but for the first, in which the equations are recorded."""
    return statistics.median(net.history["seconds"][1:])


def of_mpi(m: int, steps: int) -> float:
    """Return the seconds of a step of two bare MPI ranks."""
    return float(json.loads(mpiexec("--rank", str(m), "--steps", str(steps))))


def mpiexec(*arguments: str) -> str:
    """Return the last line that two ranks of this script print."""
    program = Path(sys.executable).parent / "mpiexec"
    command = [str(program) if program.exists() else "mpiexec", "-n", "2", sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def rank(m: int, steps: int) -> None:
    """Be an MPI rank that takes steps on half of the examples; the first prints the median of their seconds."""
    from mpi4py import MPI

    world, half = MPI.COMM_WORLD, m // 2
    pieces = [piece(world.rank * half, (world.rank + 1) * half)]
    theta = start(SIZES)
    total = np.empty(theta.size + 1, theta.dtype)
    seconds = []
    with running(SIZES, half) as run:
        for _ in range(steps):
            begun = time.perf_counter()
            cost, gradient = run.gradient(theta, pieces)
            total[:-1], total[-1] = gradient, cost
            world.Allreduce(MPI.IN_PLACE, total)
            theta = theta - np.float32(0.1 / m) * total[:-1]
            seconds.append(time.perf_counter() - begun)
    if world.rank == 0:
        print(json.dumps(statistics.median(seconds[1:])))


def start(sizes: tuple[int, ...]) -> np.ndarray:
    """Return parameters to start from."""
    layers = initializers.GAINS[activations.ACTIVATIONS["relu"].gain](sizes, random_state=np.random.default_rng(0))
    return parameters.flatten(layers, xp=np).astype(np.float32)


def running(sizes: tuple[int, ...], columns: int) -> Any:
    """Return an engine of one thread."""
    return engine.running(
        HOST, sizes, activations.ACTIVATIONS["relu"], heads.HEADS["sigmoid"], columns=columns, threads=1
    )


def steps(client: Any, m: int, epochs: int, rounds: int) -> None:
    """Print the steps of one process, two MPI ranks and a cluster, by turns."""
    found: dict[str, list[float]] = {"one process": [], "MPI": [], "cluster": []}
    for _ in range(rounds):
        found["one process"].append(of_one(m, epochs))
        found["MPI"].append(of_mpi(m, epochs))
        found["cluster"].append(of_cluster(client, m, epochs))
    print(f"\nA step over {m:,} columns of {'-'.join(map(str, SIZES))}, full batch, ms (medians of {rounds} rounds):\n")
    for name, seconds in found.items():
        print(f"| {name} | {1e3 * statistics.median(seconds):.3f} |", flush=True)
    for peer in ("MPI", "one process"):
        ratios = sorted(a / b for a, b in zip(found["cluster"], found[peer], strict=True))
        print(f"cluster / {peer}: {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
    apart = [a - b for a, b in zip(found["cluster"], found["one process"], strict=True)]
    print(f"cluster - one process: {1e3 * statistics.median(apart):.3f} ms")


# Sums -----------------------------------------------------------------------------------------------------------------


def summing(members: Any, name: str, count: int, repeats: int) -> float:
    """Be a worker that sums vectors over Dask's connections; return the median of the sums' seconds."""
    worker = distributed.get_worker()
    star = allreduce.Star(worker, members, name, lambda: True)
    (number,) = members[star.rank].parts
    vector, seconds = np.ones(count, np.float32), []
    try:
        for _ in range(repeats):
            begun = time.perf_counter()
            star.sum({number: vector})
            seconds.append(time.perf_counter() - begun)
    finally:
        star.close()
    return statistics.median(seconds)


def of_star(client: Any, count: int, repeats: int) -> float:
    """Return the seconds of a sum of two workers."""
    addresses = sorted(client.scheduler_info(n_workers=-1)["workers"])[:2]
    members = [allreduce.Member(address, (i,)) for i, address in enumerate(addresses)]
    name = f"sums-{time.monotonic_ns()}"
    futures = [client.submit(summing, members, name, count, repeats, workers=[a], pure=False) for a in addresses]
    return float(client.gather(futures)[0])


def summing_by_mpi(count: int, repeats: int) -> None:
    """Be an MPI rank that sums vectors as xpnet does; the first prints the median of their seconds."""
    from mpi4py import MPI

    sums, seconds = allreduce.Mpi(range(MPI.COMM_WORLD.size)), []
    vector = {MPI.COMM_WORLD.rank: np.ones(count, np.float32)}
    for _ in range(repeats):
        begun = time.perf_counter()
        sums.sum(vector)
        seconds.append(time.perf_counter() - begun)
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(statistics.median(seconds)))


def sums(client: Any, rounds: int) -> dict[str, list[tuple[int, float]]]:
    """Print, and return, what sums of several sizes take."""
    found: dict[str, list[tuple[int, float]]] = {"star": [], "MPI": []}
    print("\nA sum between two processes, ms:\n\n| bytes | Dask's connections | MPI |\n|---|---|---|")
    for count, repeats in ((6_529, 500), (800_000, 30), (8_000_000, 8)):
        # The least disturbed.
        star = min(of_star(client, count, repeats) for _ in range(rounds))
        mpi = min(float(json.loads(mpiexec("--sum", str(count), "--steps", str(repeats)))) for _ in range(rounds))
        found["star"].append((4 * count, star))
        found["MPI"].append((4 * count, mpi))
        print(f"| {4 * count:,} | {1e3 * star:.3f} | {1e3 * mpi:.3f} |", flush=True)
    return found


# The simulation -------------------------------------------------------------------------------------------------------


def line(measured: list[tuple[int, float]]) -> tuple[float, float]:
    """Return the seconds of a sum of nothing, and of each byte."""
    (small, first), *_, (large, last) = measured
    slope = (last - first) / (large - small)
    return max(0.0, first - slope * small), slope


def column_seconds(sizes: tuple[int, ...], columns: int = 4_096, repeats: int = 9) -> float:
    """Return what a column's gradient takes in one thread, when it is least disturbed."""
    rng = np.random.default_rng(0)
    given = Piece(
        rng.standard_normal((columns, sizes[0]), dtype=np.float32),
        rng.integers(0, 2, (columns, sizes[-1])).astype(np.float32),
    )
    theta, seconds = start(sizes), []
    with running(sizes, columns) as run:
        for _ in range(repeats + 1):
            begun = time.perf_counter()
            run.gradient(theta, [given])
            seconds.append((time.perf_counter() - begun) / columns)
    return min(seconds[1:])


def efficiency(
    workers: int, m: int, column: float, size: int, cost: tuple[float, float], by: str, steps: int = 200
) -> float:
    """Return the simulated share of `workers` that a step of m columns makes use of.

    A step lasts as long as the slowest worker, whose seconds are spread about what was measured, and the sum: through
    one worker (``"star"``), which hears and tells one after another; or in a tree (``"tree"``), log2 of the workers
    deep both ways, as MPI and NCCL have it. A message costs what it cost on this machine, and the wire.
    """
    drawn = np.random.default_rng(workers).normal(1.0, SPREAD, (steps, workers))
    slowest = drawn.max(axis=1) * column * m / workers
    hop = cost[0] / 2 + size * cost[1] / 2 + WIRE[0] + size / WIRE[1]
    hops = 2 * (workers - 1) if by == "star" else 2 * np.ceil(np.log2(workers))
    return float(column * m / (workers * (slowest + hops * hop).mean()))


def simulation(measured: dict[str, list[tuple[int, float]]], m: int) -> None:
    """Print where efficiency falls, for each network and way to sum."""
    print(
        f"\nSimulated: efficiency of a step over {m:,} columns, by workers; measured here, wires of "
        f"{8 * WIRE[1] / 1e9:.0f} Gbit/s assumed.\n"
    )
    print(f"| network | sum | {' | '.join(f'{n:,}' for n in WORKERS)} | under {EFFICIENT:.0%} from |")
    print("|---|---|" + "---|" * (len(WORKERS) + 1))
    costs = {"star": line(measured["star"]), "tree": line(measured["MPI"])}
    for name, sizes in NETWORKS.items():
        column, size = column_seconds(sizes), 4 * (parameters.count(sizes) + 1)
        for by, cost in costs.items():
            row = [efficiency(n, m, column, size, cost, by) for n in WORKERS]
            low = next((n for n in range(2, 1025) if efficiency(n, m, column, size, cost, by, 20) < EFFICIENT), None)
            shares = " | ".join(f"{share:.0%}" for share in row)
            print(f"| {name} ({size / 2**20:.2f} MiB) | {by} | {shares} | {low or 'more than 1,024'} |", flush=True)


# Large files ----------------------------------------------------------------------------------------------------------


def large(folder: str, gigabytes: float) -> None:
    """Train on files larger than the workers' memory, and print what memory it took."""
    with tempfile.TemporaryDirectory(dir=folder) as there, cluster(memory_limit="2GiB") as client:
        rows = int(gigabytes * 1e9 / 8 / (4 * SIZES[0]))
        futures = client.map(write, range(8), there=there, rows=rows, pure=False)
        Xs, Ys = (list(paths) for paths in zip(*client.gather(futures), strict=True))
        client.restart()
        begun = time.perf_counter()
        net = xpnet.dask.fit(Xs, Ys, client=client, **how(2) | {"batch_size": 4_096, "optimizer": "adam"})
        peaks = client.run(peak)
        print(f"\n{gigabytes:g} GB in 8 files, two workers of 2 GiB each: {time.perf_counter() - begun:.0f} s, {net}")
        print(f"epochs {[round(seconds, 1) for seconds in net.history['seconds']]} s")
        print(
            f"peak memory: workers {[f'{p / 2**20:.0f} MiB' for p in peaks.values()]}, client {peak() / 2**20:.0f} MiB"
        )


def write(i: int, *, there: str, rows: int) -> tuple[str, str]:
    """Write a file of X and one of Y, a hundred thousand rows at a time."""
    paths = f"{there}/X{i}.npy", f"{there}/Y{i}.npy"
    X = np.lib.format.open_memmap(paths[0], "w+", np.float32, (rows, SIZES[0]))
    Y = np.empty(rows, np.int8)
    for first in range(0, rows, 100_000):
        stop = min(first + 100_000, rows)
        X[first:stop], Y[first:stop] = examples(stop - first, 10**7 * i + first)
    del X
    np.save(paths[1], Y)
    return paths


def peak() -> int:
    """Return the most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run the sections that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="steps,small,sums,simulation", help="and large, for which there must be disk")
    parser.add_argument("--columns", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--folder", help="where large files go for a while")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--sum", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    if options.rank is not None:
        rank(options.rank, options.steps)
        return
    if options.sum is not None:
        summing_by_mpi(options.sum, options.steps)
        return
    only = options.only.split(",")
    with cluster() as client:
        if "steps" in only:
            steps(client, options.columns, options.steps, options.rounds)
        if "small" in only:
            steps(client, 400, 30 * options.steps, options.rounds)
        if "sums" in only or "simulation" in only:
            measured = sums(client, options.rounds)
    if "simulation" in only:
        simulation(measured, options.columns)
    if "large" in only:
        large(options.folder or tempfile.gettempdir(), options.gigabytes)


if __name__ == "__main__":
    if not shutil.which("mpiexec") and not (Path(sys.executable).parent / "mpiexec").exists():
        print("without mpiexec the sections steps, small, sums and simulation cannot run", file=sys.stderr)
    main()
