"""What a cluster costs and brings: ``python tests/benchmarks/cluster.py``; half an hour and 9 GB of disk.

Two workers, processes of one thread on this machine; what is compared is measured by turns in the same run, and ratios
are of the same round. Steps are full batches; a fit's time of a step is the median of its epochs, but for the first, in
which the equations are recorded. Sums and steps have two bare MPI ranks beside them where there are mpi4py and an MPI
(``pip install mpi4py mpich``), without which MPI is left out. The simulation takes the least disturbed times that were
measured here and a network between machines that is assumed. Large files are trained on by a process of its own; memory
is the greatest resident set of each process, imports and maps of files included.
"""

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import big
import numpy as np
import report
from workers import ROOT

sys.path.insert(0, str(ROOT))

import xpnet  # the checkout comes first
from xpnet import activations, allreduce, engine, heads, initializers, parameters
from xpnet.data import Piece
from xpnet.device import HOST

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

SUMMED = ((6_529, 500), (800_000, 30), (8_000_000, 8))
"""Vectors of float32 that are summed, by their lengths, and how often in a round."""

FILES = 8
"""Large files are so many."""

KINDS = (".npy", "Parquet")
"""What they are."""

QUICK: dict[str, Any] = {
    "NETWORKS": {"100-64-1": (100, 64, 1)},
    "WORKERS": (4, 16),
    "SUMMED": ((1_000, 5), (10_000, 5)),
}
"""What ``--quick`` is content with."""


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
    import distributed

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
    import dask.array

    import xpnet.dask

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


def mpi() -> str:
    """Return the program that starts MPI's ranks, or nothing where it or mpi4py is not there."""
    beside = Path(sys.executable).parent / "mpiexec"
    program = str(beside) if beside.exists() else shutil.which("mpiexec") or ""
    return program if importlib.util.find_spec("mpi4py") else ""


def by_mpi(what: str, **arguments: Any) -> float:
    """Return what the first of two ranks finds; see `TASKS`."""
    task = json.dumps({"what": what} | arguments)
    command = [mpi(), "-n", "2", sys.executable, __file__, "--task", task]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def rank(m: int, steps: int) -> float | None:
    """Be an MPI rank that takes steps on half of the examples; the first returns the median of their seconds."""
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
    return statistics.median(seconds[1:]) if world.rank == 0 else None


def start(sizes: tuple[int, ...]) -> np.ndarray:
    """Return parameters to start from."""
    layers = initializers.GAINS[activations.ACTIVATIONS["relu"].gain](sizes, random_state=np.random.default_rng(0))
    return parameters.flatten(layers, xp=np).astype(np.float32)


def running(sizes: tuple[int, ...], columns: int) -> Any:
    """Return an engine of one thread."""
    return engine.running(
        HOST, sizes, activations.ACTIVATIONS["relu"], heads.HEADS["sigmoid"], columns=columns, threads=1
    )


def steps(client: Any, m: int, epochs: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of steps of a cluster, one process and two MPI ranks, by turns."""
    contenders: dict[str, Callable[[], float]] = {
        "cluster": partial(of_cluster, client, m, epochs),
        "one process": partial(of_one, m, epochs),
    }
    if mpi():
        contenders["MPI"] = partial(by_mpi, "rank", m=m, steps=epochs)
    return {"columns": m} | by_turns(contenders, rounds)


def by_turns(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, Any]:
    """Return the seconds of contenders that take turns, and the first one's beside the others', round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            seconds[name].append(run())
    first, *others = contenders
    pairs = {name: list(zip(seconds[first], seconds[name], strict=True)) for name in others}
    return {
        "seconds": seconds,
        "ratios": {name: [ours / theirs for ours, theirs in each] for name, each in pairs.items()},
        "differences": {name: [ours - theirs for ours, theirs in each] for name, each in pairs.items()},
    }


# Sums -----------------------------------------------------------------------------------------------------------------


def summing(members: Any, name: str, count: int, repeats: int) -> float:
    """Be a worker that sums vectors over Dask's connections; return the median of the sums' seconds."""
    import distributed

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


def summing_by_mpi(count: int, repeats: int) -> float | None:
    """Be an MPI rank that sums vectors as xpnet does; the first returns the median of their seconds."""
    from mpi4py import MPI

    sums, seconds = allreduce.Mpi(range(MPI.COMM_WORLD.size)), []
    vector = {MPI.COMM_WORLD.rank: np.ones(count, np.float32)}
    for _ in range(repeats):
        begun = time.perf_counter()
        sums.sum(vector)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds) if MPI.COMM_WORLD.rank == 0 else None


def sums(client: Any, rounds: int) -> dict[str, Any]:
    """Return the seconds of sums of several sizes, between two processes, by turns."""
    found = {}
    for count, repeats in SUMMED:
        contenders: dict[str, Callable[[], float]] = {"star": partial(of_star, client, count, repeats)}
        if mpi():
            contenders["MPI"] = partial(by_mpi, "sum", count=count, repeats=repeats)
        found[str(4 * count)] = by_turns(contenders, rounds)
    return found


# The simulation -------------------------------------------------------------------------------------------------------


def line(measured: dict[str, Any], by: str) -> tuple[float, float]:
    """Return the seconds of a sum of nothing, and of each byte, from the least disturbed sums."""
    least = {int(size): min(each["seconds"][by]) for size, each in measured.items()}
    small, large = min(least), max(least)
    slope = (least[large] - least[small]) / (large - small)
    return max(0.0, least[small] - slope * small), slope


def column_seconds(sizes: tuple[int, ...], columns: int, repeats: int = 9) -> float:
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


def simulation(measured: dict[str, Any], m: int) -> dict[str, Any]:
    """Return where efficiency falls, for each network and way to sum that was measured."""
    found: dict[str, Any] = {}
    costs = {"star": line(measured, "star")} | ({"tree": line(measured, "MPI")} if mpi() else {})
    for name, sizes in NETWORKS.items():
        column, size = column_seconds(sizes, min(4_096, m)), 4 * (parameters.count(sizes) + 1)
        found[name] = {"bytes": size, "column_seconds": column, "by": {}}
        for by, cost in costs.items():
            low = next(
                (n for n in range(2, WORKERS[-1] + 1) if efficiency(n, m, column, size, cost, by, 20) < EFFICIENT), None
            )
            shares = {str(n): efficiency(n, m, column, size, cost, by) for n in WORKERS}
            found[name]["by"][by] = {"shares": shares, "low": low}
    return found


# Large files ----------------------------------------------------------------------------------------------------------


def large(folder: str, gigabytes: float, limit: float) -> dict[str, Any]:
    """Return what memory and time it took to train on files larger than the workers' memory, for each kind of file."""
    found = {}
    rows = int(gigabytes * 1e9 / FILES / (4 * SIZES[0]))
    for kind in KINDS:
        with tempfile.TemporaryDirectory(prefix="xpnet-cluster-", dir=folder) as there:
            for i in range(FILES):
                write(Path(there), i, kind, rows)
            found[kind] = alone("train", folder=there, kind=kind, limit=limit)
    return found


def write(folder: Path, i: int, kind: str, rows: int) -> None:
    """Write a file of X and Y, or of .npy two, a hundred thousand rows at a time."""
    spans = [(first, min(first + 100_000, rows)) for first in range(0, rows, 100_000)]
    parts = (examples(stop - first, 10**7 * i + first) for first, stop in spans)
    if kind == ".npy":
        X = np.lib.format.open_memmap(folder / f"X{i}.npy", "w+", np.float32, (rows, SIZES[0]))
        Y = np.empty(rows, np.int8)
        for first, stop in spans:
            X[first:stop], Y[first:stop] = next(parts)
        np.save(folder / f"Y{i}.npy", Y)
        return
    import pyarrow
    import pyarrow.parquet

    names = [f"f{j}" for j in range(SIZES[0])]
    schema = pyarrow.schema([(name, pyarrow.float32()) for name in names] + [("y", pyarrow.int8())])
    with pyarrow.parquet.ParquetWriter(folder / f"{i}.parquet", schema, use_dictionary=False) as writer:
        for X, Y in parts:
            columns = [*np.ascontiguousarray(X.T), Y.astype(np.int8)]
            writer.write_table(pyarrow.table(columns, schema=schema))


def train(folder: str, kind: str, limit: float) -> dict[str, Any]:
    """Train on the files of a folder; return the seconds, and what memory the workers and this process had at most."""
    import xpnet.dask

    X: Any = [f"{folder}/X{i}.npy" for i in range(FILES)]
    Y: Any = [f"{folder}/Y{i}.npy" for i in range(FILES)]
    if kind == "Parquet":
        X, Y = [f"{folder}/{i}.parquet" for i in range(FILES)], "y"
    with cluster(memory_limit=f"{limit}GiB") as client:
        before, begun = client.run(peak), time.perf_counter()
        net = xpnet.dask.fit(X, Y, client=client, **how(2) | {"batch_size": 4_096, "optimizer": "adam"})
        return {
            "seconds": time.perf_counter() - begun,
            "epochs": net.history["seconds"],
            "bits": zlib.crc32(net.W1.tobytes()),
            "before": max(before.values()),
            "workers": list(client.run(peak).values()),
            "client": peak(),
        }


def peak() -> int:
    """Return the most bytes that this process has had in memory."""
    # `getrusage` begins with what the process had that started this one.
    kilobytes = report.field("/proc/self/status", "VmHWM").split()
    return int(kilobytes[0]) * 1024 if kilobytes else big.peak()


def alone(what: str, **arguments: Any) -> dict[str, Any]:
    """Return what a process of its own finds; see `TASKS`."""
    task = json.dumps({"what": what} | arguments)
    done = subprocess.run([sys.executable, __file__, "--task", task], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": f"code {done.returncode}: {(done.stderr.strip().splitlines() or ['no word'])[-1][:160]}"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


TASKS: dict[str, Callable[..., Any]] = {"rank": rank, "sum": summing_by_mpi, "train": train}
"""What processes of their own do."""


# The report -----------------------------------------------------------------------------------------------------------


def _spread(values: list[float], unit: float = 1.0) -> list[str]:
    """Return the median and the ends."""
    scaled = [unit * value for value in values]
    return [report.number(statistics.median(scaled)), report.ends({"min": min(scaled), "max": max(scaled)})]


def _of_steps(title: str, it: dict[str, Any]) -> Iterator[str]:
    yield f"## {title}: a step over {it['columns']:,} columns of {'-'.join(map(str, SIZES))}, full batch"
    rows = [[name, *_spread(seconds, 1e3)] for name, seconds in it["seconds"].items()]
    yield report.table(["", "ms", "min–max"], rows)
    rows = [
        [f"cluster and {name}", *_spread(ratios), *_spread(it["differences"][name], 1e3)]
        for name, ratios in it["ratios"].items()
    ]
    yield report.table(["of the same round", "ratio", "min–max", "ms more", "min–max"], rows)


def _of_sums(it: dict[str, Any]) -> Iterator[str]:
    yield "## Sums between two processes"
    names = {"star": "Dask's connections", "MPI": "MPI"}
    rows = [
        [f"{int(size):,} bytes, {names[by]}", *_spread(seconds, 1e3)]
        for size, each in it.items()
        for by, seconds in each["seconds"].items()
    ]
    yield report.table(["", "ms", "min–max"], rows)
    rows = [
        [f"{int(size):,} bytes", *_spread(each["ratios"]["MPI"])]
        for size, each in it.items()
        if "MPI" in each["ratios"]
    ]
    if rows:
        yield report.table(["Dask's connections and MPI, of the same round", "ratio", "min–max"], rows)


def _of_simulation(it: dict[str, Any], m: int) -> Iterator[str]:
    yield f"## Simulated: the share of workers made use of, for steps over {m:,} columns"
    yield (
        f"Between machines {8 * WIRE[1] / 1e9:.0f} Gbit/s and {WIRE[0] * 1e6:.0f} µs a message are assumed, and that a "
        f"worker's times spread by {SPREAD:.0%}."
    )
    rows = [
        [
            f"{name} ({each['bytes'] / 2**20:.2f} MiB), {by}",
            *(f"{share:.0%}" for share in found["shares"].values()),
            str(found["low"] or f"more than {max(map(int, found['shares'])):,}"),
        ]
        for name, each in it.items()
        for by, found in each["by"].items()
    ]
    shares = next(iter(next(iter(it.values()))["by"].values()))["shares"]
    head = ["network, sums", *(f"{int(n):,} workers" for n in shares), f"under {EFFICIENT:.0%} from"]
    yield report.table(head, rows)


def _of_large(it: dict[str, Any], results: dict[str, Any]) -> Iterator[str]:
    same = len({each.get("bits") for each in it.values()}) == 1
    yield (
        f"## Files of {results['gigabytes']:g} GB, {FILES} of them, two workers of {results['limit']:g} GiB each: two "
        f"epochs in batches of 4,096; {'one network, bit for bit' if same else 'DIFFERENT networks'}"
    )
    rows = []
    for kind, each in it.items():
        if "error" in each:
            rows.append([kind, "", "", "", "", each["error"]])
            continue
        mib = [f"{size / 2**20:,.0f}" for size in (each["before"], max(each["workers"]), each["client"])]
        rows.append([kind, report.number(each["seconds"]), ", ".join(map(report.number, each["epochs"])), *mib])
    head = ["files", "seconds", "of its epochs", "MiB of a worker before", "at most", "MiB of the client at most"]
    yield report.table(head, rows)


def markdown(results: dict[str, Any]) -> str:
    """Return the report."""
    its, has = results["machine"], results["versions"]
    named = ", ".join(f"{name} {has[name] or 'absent'}" for name in ("dask", "distributed", "mpi4py", "mpich", "numpy"))
    parts = [
        "# A cluster",
        f"{its['cpu']}, {its['cores']} cores, {its['memory_gib']} GiB; Python {has['python']}, {named}. "
        f"{results['date']}; the machine's load was {results['load']} before and {results['load_after']} after.",
        *(["**Quick sizes, for a test of the suite: the numbers mean nothing.**"] if results["quick"] else []),
        __doc__.split("\n\n", 1)[1].strip(),
        f"Medians and ends of {results['rounds']} rounds.",
    ]
    sections: dict[str, Callable[[Any], Iterator[str]]] = {
        "steps": partial(_of_steps, "Steps"),
        "small": partial(_of_steps, "Small steps"),
        "sums": _of_sums,
        "simulation": partial(_of_simulation, m=results["columns"]),
        "large": partial(_of_large, results=results),
    }
    parts += [part for name, told in sections.items() if name in results for part in told(results[name])]
    return "\n\n".join(parts) + "\n"


def _versions() -> dict[str, Any]:
    """Return the report's versions, and those that matter here."""
    found = report.versions()
    for name in ("dask", "distributed", "mpi4py", "mpich"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="steps,small,sums,simulation,large", help="sections, with commas between")
    parser.add_argument("--columns", type=int, default=400_000, help="of a step (default: 400000)")
    parser.add_argument("--steps", type=int, default=20, help="of a fit (default: 20)")
    parser.add_argument("--rounds", type=int, default=5, help="of what is timed (default: 5)")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of large files (default: 4)")
    parser.add_argument("--limit", type=float, default=1.0, metavar="GIB", help="of a worker then (default: 1)")
    parser.add_argument("--folder", help="where large files are made, and deleted (default: the temporary one)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test the suite itself")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="a folder")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.quick:
        asked.columns, asked.steps, asked.rounds, asked.gigabytes = 2_000, 3, 1, 0.004
        globals().update(QUICK)
    return asked


def _found(asked: argparse.Namespace, results: dict[str, Any]) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the sections, each with what measures it."""
    with cluster() as client:
        yield "steps", partial(steps, client, asked.columns, asked.steps, asked.rounds)
        yield "small", partial(steps, client, 400, 30 * asked.steps, asked.rounds)
        yield "sums", partial(sums, client, asked.rounds)
    yield "simulation", lambda: simulation(results["sums"], asked.columns)
    folder = asked.folder or tempfile.gettempdir()
    yield "large", partial(large, folder, asked.gigabytes, asked.limit)


def main() -> int:
    """Measure, print and write."""
    asked = _arguments()
    if asked.task is not None:
        found = TASKS[asked.task.pop("what")](**asked.task)
        if found is not None:
            print(json.dumps(found))
        return 0
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "quick": asked.quick,
        "machine": report.machine(),
        "versions": _versions(),
        "load": round(os.getloadavg()[0], 2),
        "columns": asked.columns,
        "rounds": asked.rounds,
        "gigabytes": asked.gigabytes,
        "limit": asked.limit,
    }
    only = asked.only.split(",")
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / f"cluster-{results['date']}"
    for name, found in _found(asked, results):
        if name in only or (name == "sums" and "simulation" in only):
            report.add(path, results, name, found(), markdown)
    report.told(path, markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
