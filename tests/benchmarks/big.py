"""Data larger than memory: ``python tests/benchmarks/big.py``; half an hour and 8 GB of disk.

A file of standard normal numbers is made, trained on and predicted by processes that are held to 1.5 GiB, then gone
through by training from the file and from memory in turn. Every run is a process of its own. Processes are held by a
memory cgroup, which only root can make; elsewhere by the limit of their data segment, which maps of files do not count
in. Resident memory is the greatest that the system saw, maps included, less what there was when all that is measured
had been done once with little data.
"""

import argparse
import contextlib
import datetime
import io
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import report
from workers import ROOT

N_X, N_H = 100, 64
"""The network, N_X-N_H-1 with relu, by Adam and batches of 4,096."""

KINDS = ("memmap", "memmap of columns", "list", "h5py", "zarr", "Parquet")
"""Ways to keep the smaller file."""

ACTIONS = (
    "fit",
    "fit held out",
    "fit full batch",
    "fit standardized",
    "predict",
    "predict_proba",
    "score",
    "cost",
    "xpnet fit",
    "xpnet predict",
)
"""What is done with the large file under the limit; the last two are the command, for which a feature is the target."""

QUICK = {"RUN": 256, "WINDOW": 2**18, "PERMUTED": 2**18, "READ": 2**16}
"""xpnet's sizes for ``--quick``, with which little data is large."""

CHUNK = 2**16
"""Examples that are made at a time."""


# Data -----------------------------------------------------------------------------------------------------------------


def make(folder: Path, m: int) -> None:
    """Write ``X.npy``, rows of m examples in float32, and ``Y.npy``, labels that can be learned."""
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(N_X).astype(np.float32)
    labels = np.empty(m, np.int64)
    with open(folder / "X.npy", "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (m, N_X)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, m, CHUNK):
            part = rng.standard_normal((min(CHUNK, m - start), N_X), dtype=np.float32)
            labels[start : start + len(part)] = np.sin(part @ direction / 5) > 0
            file.write(part.data)
    np.save(folder / "Y.npy", labels)


def keep(folder: Path, kind: str, m: int) -> None:
    """Write the first m examples once more, in another way."""
    rows = np.load(folder / "X.npy", mmap_mode="r")[:m]
    spans = [slice(start, min(start + CHUNK, m)) for start in range(0, m, CHUNK)]
    if kind == "memmap of columns":
        columns = np.lib.format.open_memmap(folder / "C.npy", mode="w+", dtype=np.float32, shape=(N_X, m))
        for span in spans:
            columns[:, span] = rows[span].T
    elif kind == "list":
        np.save(folder / "A.npy", rows[: m // 3])
        np.save(folder / "B.npy", rows[m // 3 :])
    elif kind == "h5py":
        import h5py

        with h5py.File(folder / "X.h5", "w") as file:
            made = file.create_dataset("X", shape=rows.shape, dtype=rows.dtype, chunks=(4_096, N_X))
            for span in spans:
                made[span] = rows[span]
    elif kind == "zarr":
        import zarr

        array = zarr.create_array(str(folder / "X.zarr"), shape=rows.shape, dtype=rows.dtype, chunks=(4_096, N_X))
        for span in spans:
            array[span] = rows[span]
    elif kind == "Parquet":
        import pyarrow
        import pyarrow.parquet

        schema = pyarrow.schema([(f"f{i}", pyarrow.float32()) for i in range(N_X)])
        with pyarrow.parquet.ParquetWriter(folder / "X.parquet", schema, use_dictionary=False) as writer:
            for span in spans:
                part = rows[span]
                columns = [np.ascontiguousarray(part[:, i]) for i in range(N_X)]
                writer.write_table(pyarrow.table(columns, schema=schema))


def opened(folder: Path, kind: str, m: int) -> Any:
    """Return X as it is kept, and which way its examples lie."""
    match kind:
        case "memory":
            return np.load(folder / "X.npy")[:m], "rows"
        case "memmap":
            return np.load(folder / "X.npy", mmap_mode="r")[:m], "rows"
        case "memmap of columns":
            return np.load(folder / "C.npy", mmap_mode="r"), "columns"
        case "list":
            return [np.load(folder / name, mmap_mode="r") for name in ("A.npy", "B.npy")], "rows"
        case "h5py":
            import h5py

            return h5py.File(folder / "X.h5")["X"], "rows"
        case "zarr":
            import zarr

            return zarr.open_array(str(folder / "X.zarr"), mode="r"), "rows"
        case "Parquet":
            import xpnet

            return xpnet.Parquet(folder / "X.parquet"), "rows"
    raise ValueError(kind)


# A measured process ---------------------------------------------------------------------------------------------------


def peak() -> int:
    """Return the most bytes that this process has had resident, those of maps included."""
    # Linux counts KiB, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def act(net: Any, what: str, X: Any, Y: Any, examples: str, epochs: int) -> Any:
    """Do what is measured and return the network that it was done with."""
    import xpnet

    common = {"examples": examples, "random_state": 0, "verbose": False, "hidden": N_H, "batch_size": 4_096}
    match what:
        case "fit":
            return xpnet.fit(X, Y, epochs=epochs, **common)
        case "fit held out":
            return xpnet.fit(X, Y, epochs=epochs, validation_fraction=0.1, **common)
        case "fit full batch":
            return xpnet.fit(X, Y, epochs=epochs, **common | {"batch_size": "full", "optimizer": "gd"})
        case "fit standardized":
            return xpnet.fit(X, Y, epochs=epochs, standardize=True, **common)
        case "xpnet fit" | "xpnet predict":
            return command(net, what, Path(X.filename), epochs)
        case "score" | "cost":
            getattr(net, what)(X, Y, examples=examples)
        case _:
            getattr(net, what)(X, examples=examples)
    return net


def command(net: Any, what: str, path: Path, epochs: int) -> Any:
    """Have the command train on a file, of which the last column is the target, or predict it."""
    from xpnet.cli import main

    kept = path.parent / "net.safetensors"
    if what == "xpnet fit":
        known = ["--epochs", str(epochs), "--hidden", str(N_H), "--random-state", "0"]
        arguments = ["fit", str(path), "--target", str(N_X - 1), *known]
    else:
        net.save(kept)
        arguments = ["predict", str(kept), str(path), "--out", str(path.parent / "predicted.parquet")]
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(arguments)
    if code:
        raise RuntimeError(f"xpnet {' '.join(arguments)} ended with code {code}")
    return net


def measured(task: dict[str, Any]) -> dict[str, Any]:
    """Do one task in this process and return what is told of it."""
    import xpnet
    from xpnet import data

    if task["quick"]:
        for name, value in QUICK.items():
            setattr(data, name, value)
    folder, m = Path(task["folder"]), task["m"]
    Y = np.load(folder / "Y.npy")[:m]
    X, examples = opened(folder, task["kind"], m)
    few = np.random.default_rng(1).standard_normal((20_000, N_X), dtype=np.float32)
    np.save(folder / "few.npy", few)
    few = np.load(folder / "few.npy", mmap_mode="r")
    net = act(None, "fit", few, (few[:, 0] > 0).astype(int), "rows", 2)
    act(net, task["what"], few, (few[:, 0] > 0).astype(int), "rows", 1)
    if task["kind"] == "Parquet":
        X.read(0, 1)
    before, begun, worked = peak(), time.perf_counter(), time.process_time()
    net = act(net, task["what"], X, Y, examples, task["epochs"])
    seconds = time.perf_counter() - begun
    fitted = task["what"].startswith("fit ") or task["what"] == "fit"
    return {
        "bytes": peak() - before,
        "before": before,
        "seconds": seconds,
        "cpu": time.process_time() - worked,
        "epochs": net.history["seconds"] if fitted else None,
        "bits": hash(net.W1.tobytes()) if fitted else None,
        "window_bytes": data.WINDOW * 4,
        "version": xpnet.__version__,
    }


@contextlib.contextmanager
def held(limit: int | None) -> Iterator[tuple[str, Callable[[], None] | None]]:
    """Yield how a process is held to so many bytes, and what it does to be so before it begins."""
    if limit is None:
        yield "not held", None
        return
    for root, name in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root) / f"xpnet-big-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / name).write_text(str(limit))
        except OSError:
            group.rmdir()
            continue

        def enter(group: Path = group) -> None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

        try:
            yield "a memory cgroup", enter
        finally:
            for _ in range(100):  # until the system has noticed that the process is gone
                try:
                    group.rmdir()
                    break
                except OSError:
                    time.sleep(0.1)
        return
    yield "a limit of the data segment", lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def run(limit: int | None = None, **task: Any) -> dict[str, Any]:
    """Do a task in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"PYTHONHASHSEED": "0", "TMPDIR": task["folder"]}
    with held(limit) as (how, enter):
        done = subprocess.run(
            [sys.executable, __file__, "--task", json.dumps(task)],
            env=environment,
            preexec_fn=enter,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return {"error": f"code {done.returncode}: {last[:160]}", "how": how}
    return json.loads(done.stdout) | {"how": how}


# Sections -------------------------------------------------------------------------------------------------------------


def memory(task: dict[str, Any], limit: int, actions: Sequence[str]) -> dict[str, Any]:
    """Return the peaks of everything that is done with the large file."""
    return {what: run(limit, **task, kind="memmap", what=what, epochs=1) for what in actions}


def sources(task: dict[str, Any], limit: int, m: int) -> dict[str, Any]:
    """Return the peak of training on the first m examples as each kind of file, and whether all give one network."""
    found: dict[str, Any] = {"memory": run(None, **task | {"m": m}, kind="memory", what="fit", epochs=1)}
    for kind in KINDS:
        try:
            keep(Path(task["folder"]), kind, m)
        except ImportError as error:
            found[kind] = {"error": str(error)}
            continue
        found[kind] = run(limit, **task | {"m": m}, kind=kind, what="fit", epochs=1)
        for name in ("C.npy", "A.npy", "B.npy", "X.h5", "X.parquet"):
            (Path(task["folder"]) / name).unlink(missing_ok=True)
        subprocess.run(["rm", "-rf", str(Path(task["folder"]) / "X.zarr")], check=True)
    return found


def throughput(task: dict[str, Any], limit: int, repeats: int) -> dict[str, Any]:
    """Return the seconds of an epoch from the file, held, and from memory, in turn, and their ratio in each pair.

    In the first epoch the file's numbers are checked besides, which those in memory were before it; so the second is
    compared, and the first told.
    """
    epochs: dict[str, list[float]] = {"memmap": [], "memory": []}
    first: dict[str, list[float]] = {"memmap": [], "memory": []}
    cpu: dict[str, list[float]] = {"memmap": [], "memory": []}
    bits = set()
    for _ in range(repeats):
        for kind, most in (("memmap", limit), ("memory", None)):
            told = run(most, **task, kind=kind, what="fit", epochs=2)
            if "error" in told:
                return told
            first[kind].append(told["epochs"][0])
            epochs[kind].append(told["epochs"][1])
            cpu[kind].append(told["cpu"])
            bits.add(told["bits"])
    ratios = [memory / file for file, memory in zip(epochs["memmap"], epochs["memory"], strict=True)]
    return epochs | {
        "first": first,
        "cpu": cpu,
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "same bits": len(bits) == 1,
    }


def growth(task: dict[str, Any], limit: int, repeats: int) -> dict[str, Any]:
    """Return the seconds of an epoch of a quarter, a half and all of the file, and the slope of their logarithms."""
    points: dict[int, list[float]] = {task["m"] // part: [] for part in (4, 2, 1)}
    for _ in range(repeats):
        for m, found in points.items():
            told = run(limit, **task | {"m": m}, kind="memmap", what="fit", epochs=1)
            if "error" in told:
                return told
            found.append(told["epochs"][-1])
    x = [math.log(m) for m in points]
    y = [math.log(statistics.median(found)) for found in points.values()]
    slope = float(np.polyfit(x, y, 1)[0])
    return {"points": {str(m): found for m, found in points.items()}, "slope": slope}


# The report -----------------------------------------------------------------------------------------------------------


def _rows(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, each in found.items():
        if "error" in each:
            rows.append([name, "", "", each["error"]])
            continue
        rows.append([name, f"{each['bytes'] / 2**20:,.0f}", report.number(each["seconds"]), each["how"]])
    return rows


def markdown(results: dict[str, Any]) -> str:
    """Return the report."""
    its, has = results["machine"], results["versions"]
    size, limit = results["bytes"] / 1e9, results["limit"] / 2**30
    head = ["", "MiB above the start", "seconds", "held by"]
    parts = [
        "# Data larger than memory",
        f"{its['cpu']}, {its['cores']} cores, {its['memory_gib']} GiB; Python {has['python']}, NumPy {has['numpy']}. "
        f"{results['date']}; the machine's load was {results['load']} before and {results['load_after']} after.",
        f"A file of {size:.1f} GB, {results['m']:,} examples of {N_X} numbers; processes held to {limit:g} GiB. "
        f"A block, which is a window, has {results['block'] / 2**20:.0f} MiB.",
        __doc__.split("\n\n", 1)[1].strip(),
    ]
    if "memory" in results:
        parts += ["## Memory, the large file", report.table(head, _rows(results["memory"]))]
    if "sources" in results:
        same = {each.get("bits") for each in results["sources"].values() if "error" not in each}
        word = "one network, bit for bit" if len(same) == 1 else "DIFFERENT networks"
        parts += [
            f"## Memory, {results['m_sources']:,} examples in other files: {word}",
            report.table(head, _rows(results["sources"])),
        ]
    if "throughput" in results:
        it = results["throughput"]
        rows = [
            [
                kind,
                report.number(results["m"] / statistics.median(it[kind]) / 1e6),
                report.ends(_ends(it[kind])),
                report.ends(_ends(it["first"][kind])),
                report.ends(_ends(it["cpu"][kind])),
            ]
            for kind in ("memmap", "memory")
        ]
        word = "the same bits" if it["same bits"] else "OTHER bits"
        parts += [
            f"## Throughput: {it['ratio']:.2f} of memory's, {word}",
            report.table(
                [
                    "from",
                    "million examples a second",
                    "seconds of the second epoch",
                    "of the first",
                    "of all cores, with loading",
                ],
                rows,
            ),
        ]
    if "growth" in results:
        it = results["growth"]
        rows = [
            [f"{int(m):,}", report.number(statistics.median(found)), report.ends(_ends(found))]
            for m, found in it["points"].items()
        ]
        parts += [f"## Growth: slope {it['slope']:.2f}", report.table(["m", "seconds of an epoch", "min–max"], rows)]
    return "\n\n".join(parts) + "\n"


def _ends(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "max": max(values)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=6.0, help="of the file (default: 6)")
    parser.add_argument("--limit", type=float, default=1.5, metavar="GIB", help="of a process (default: 1.5)")
    parser.add_argument("--repeats", type=int, default=5, help="of what is timed (default: 5)")
    parser.add_argument("--only", default="memory,sources,throughput,growth", help="sections, with commas between")
    parser.add_argument("--actions", default=",".join(ACTIONS), help="what is done with the large file")
    parser.add_argument("--folder", type=Path, help="where the file is made, and deleted (default: the temporary one)")
    parser.add_argument("--quick", action="store_true", help="a tiny file, to test the suite itself")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="a folder")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measure, print and write."""
    asked = _arguments()
    if asked.task is not None:
        print(json.dumps(measured(asked.task)))
        return 0
    m, m_sources = (int(gigabytes * 1e9) // (4 * N_X) for gigabytes in (asked.gigabytes, min(1.2, asked.gigabytes)))
    if asked.quick:
        m, m_sources = 40_000, 10_000
    limit = int(asked.limit * 2**30)
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": report.machine(),
        "versions": report.versions(),
        "load": round(os.getloadavg()[0], 2),
        "m": m,
        "m_sources": m_sources,
        "bytes": 4 * N_X * m,
        "limit": limit,
        "block": 4 * (QUICK["WINDOW"] if asked.quick else 2**24),
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / f"big-{results['date']}"
    with tempfile.TemporaryDirectory(prefix="xpnet-big-", dir=asked.folder) as folder:
        make(Path(folder), m)
        task = {"folder": folder, "m": m, "quick": asked.quick}
        sections: dict[str, Callable[[], dict[str, Any]]] = {
            "memory": lambda: memory(task, limit, asked.actions.split(",")),
            "sources": lambda: sources(task, limit, m_sources),
            "throughput": lambda: throughput(task, limit, asked.repeats),
            "growth": lambda: growth(task, limit, asked.repeats),
        }
        for name in asked.only.split(","):
            report.add(path, results, name, sections[name](), markdown)
    report.told(path, markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
