"""What is measured, section by section; each returns a dictionary that is written as JSON."""

import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from contests import PEERS, Entrant, Plan, always, contest, enter, fixed, geometric_mean, in_turn, missing, stats
from peers import Job
from predicting import DIGITS, HELD_OUT, SCALES, TARGET
from workers import MODULES, ROOT, Pool, WorkerError, absent, cores
from workloads import ROW, TABLE, WORKLOADS, Workload

SAME_STEPS = 1e-3
"""Full batch, all take the same steps: relative difference of last costs, for float32 and where Adam's ε stands."""

OTHER_ORDER = 0.02
"""Orders of the examples differ: difference of last costs, relative to the first epoch's."""

SAME_ANSWER = 1e-4
"""Difference of probabilities of the same network."""

PREDICTING = ("PyTorch", "scikit-learn")
"""The peers of the sections that are not about training alone."""

Section = Iterator[tuple[str, dict[str, Any]]]
"""Pairs of a table's key and the table, as they become known."""


# Training -------------------------------------------------------------------------------------------------------------


def _wrong(workload: Workload, told: dict[str, Any], ours: dict[str, Any], start: float) -> str:
    """Return what is wrong with a contender's costs, or nothing."""
    last, agreed = told["last"], ours["last"]
    if not math.isfinite(last) or last >= start:
        return f"cost {last:.4g} is not below {start:.4g}, where it started"
    allowed = SAME_STEPS * agreed if workload.full else OTHER_ORDER * ours["first"]
    if abs(last - agreed) > allowed:
        return f"cost {last:.4g} is not xpnet's {agreed:.4g}"
    if told.get("steps", workload.steps * told["epochs"]) != workload.steps * told["epochs"]:
        return f"{told['steps']} steps in {told['epochs']} epochs"
    return ""


def check(table: dict[str, Any], entrants: list[Entrant], workload: Workload, start: float) -> None:
    """Add to each contender's row its last cost and what is wrong with it."""
    ours = entrants[0].told[-1]
    for entrant in entrants:
        if entrant.told and "last" in entrant.told[-1] and not entrant.word:
            told = entrant.told[-1]
            wrong = _wrong(workload, told, ours, start)
            note = f"cost {start:.4g} → {told['last']:.4g}"
            table["contenders"][entrant.name] |= {"told": told, "wrong": wrong, "note": note}


def train(pool: Pool, plan: Plan, names: list[str], optimizer: str) -> Section:
    """Time a step of each workload, the loop, the feeding of batches and the history of costs included."""
    for name in names:
        workload = WORKLOADS[name].small() if plan.quick else WORKLOADS[name]
        warm = {"epochs": 1 if workload.steps > 1 else min(workload.epochs, 3)}
        short = {"epochs": max(1, workload.epochs // 4)}
        _, told = pool.ready(Job("start", "plain NumPy", workload)).run()
        others = ("plain NumPy", *PEERS)
        entrants = [
            fixed("xpnet", "train", workload, optimizer),
            fixed("xpnet, 1 thread", "train", workload, optimizer, 1),
            *(enter(pool, plan, Job("train", who, workload, optimizer), warm=warm, short=short) for who in others),
        ]
        if name == "wide":
            entrants.append(fixed("products", "train", workload, optimizer))
        in_turn(pool, entrants, plan.repeats, warm=warm, arguments=always(epochs=workload.epochs))
        steps = workload.epochs * workload.steps
        table = contest(workload.title, entrants, unit="µs per step", divisor=steps * 1e-6)
        check(table, entrants, workload, told["cost"])
        if "ratio" in table["contenders"].get("products", {}):
            table["contenders"]["products"]["note"] = "the five matrix products alone; its ratio is xpnet's efficiency"
        yield name, table | {"epochs": workload.epochs, "steps": workload.steps}


# Prediction -----------------------------------------------------------------------------------------------------------


def predict(pool: Pool, plan: Plan) -> Section:
    """Time the probabilities of one row, and of a million."""
    row, table = (ROW, TABLE) if not plan.quick else (ROW, replace(TABLE, m=20_000, batch=20_000))
    kinds: tuple[tuple[str, Workload, int, str, float], ...] = (
        ("latency", row, 50 if plan.quick else 3_000, "µs per call", 1e-6),
        ("throughput", table, 1, "ns per row", table.m * 1e-9),
    )
    for kind, workload, calls, unit, divisor in kinds:
        short = {"calls": max(1, calls // 4)}
        others = [enter(pool, plan, Job(kind, who, workload), warm=short, short=short) for who in PREDICTING]
        entrants = [fixed("xpnet", kind, workload), *others]
        in_turn(pool, entrants, plan.repeats, warm=short, arguments=always(calls=calls))
        title = f"{kind}: {workload.n_x}-{workload.n_h}-{workload.n_y}, {workload.name}, float32"
        found = contest(title, entrants, unit=unit, divisor=divisor * calls)
        for entrant in entrants:
            if not entrant.word:
                value, ours = entrant.told[-1]["value"], entrants[0].told[-1]["value"]
                wrong = "" if abs(value - ours) <= SAME_ANSWER else f"answers {value:.6f}, xpnet {ours:.6f}"
                found["contenders"][entrant.name] |= {
                    "told": entrant.told[-1],
                    "wrong": wrong,
                    "note": f"A2 {value:.4f}",
                }
        yield kind, found


# Time to a score ------------------------------------------------------------------------------------------------------


def time_to_score(pool: Pool, plan: Plan) -> Section:
    """Time training from defaults until a held-out accuracy; each round has another seed."""
    if word := absent("scikit-learn"):
        yield "digits", {"skipped": f"{word}, and it has the digits"}
        return
    epochs: dict[str, list[int]] = {}
    entrants = [_starter(pool, plan, who, epochs) for who in ("xpnet", *PREDICTING)]
    in_turn(
        pool,
        entrants,
        plan.repeats,
        warm=None,
        arguments=lambda entrant, number: {"seed": number, "epochs": epochs[entrant.name][number]},
    )
    title = f"scikit-learn's digits, 64-100-10, from defaults until {TARGET:g} of {HELD_OUT} held-out digits are right"
    found = contest(title, entrants, unit="ms", divisor=1e-3)
    for entrant in entrants:
        if not entrant.word:
            needed, scores = epochs[entrant.name], [told["score"] for told in entrant.told]
            short = sum(score < TARGET for score in scores)
            note = (
                f"{min(needed)}–{max(needed)} epochs{f', {short} of {len(scores)} seeds end short of it' * bool(short)}"
            )
            found["contenders"][entrant.name] |= {"epochs": needed, "scores": scores, "note": note}
    yield "digits", found


def _starter(pool: Pool, plan: Plan, contender: str, epochs: dict[str, list[int]]) -> Entrant:
    """Return a contender with the data in its better scale, having put into `epochs` what each seed needs."""
    entrant = Entrant(contender)
    if word := missing(plan, contender):
        entrant.fail(word)
        return entrant
    threads = None if contender == "xpnet" else 1
    jobs = [Job("score", contender, DIGITS, threads=threads, variant=scale) for scale in SCALES]
    told: dict[Job, list[dict[str, Any]]] = {}
    for job in jobs:
        try:
            told[job] = [pool.ready(job).run(seed=seed, epochs=None)[1] for seed in range(plan.repeats)]
        except WorkerError as error:
            entrant.fail(error)
    if not told:
        return entrant
    best = min(told, key=lambda job: _slowness(told[job]))
    epochs[contender] = [each["epochs"] for each in told[best]]
    if contender == "xpnet":
        return Entrant(contender, best)
    short = {"seed": 0, "epochs": 2}
    return enter(pool, plan, best, warm=short, short=short)


def _slowness(told: list[dict[str, Any]]) -> tuple[int, float]:
    """Return how many seeds end before they reach the score, and after how many epochs one typically ends."""
    return sum(each["score"] < TARGET for each in told), statistics.median(each["epochs"] for each in told)


# Memory ---------------------------------------------------------------------------------------------------------------


def _peaks(pool: Pool, job: Job, epochs: int) -> tuple[int, int]:
    """Return a new process's peak with the library imported and the data made, and after training."""
    worker = pool.new(job.contender, job.threads)
    try:
        worker.load(MODULES[job.contender])
        worker.prepare(replace(job, kind="data"))
        imported = worker.peak()
        worker.prepare(job)
        worker.run(epochs=epochs)
        return imported, worker.peak()
    finally:
        worker.close()


def memory(pool: Pool, plan: Plan) -> Section:
    """Tell the peak of resident memory of training `full`, less that of a process that only makes the data."""
    workload = WORKLOADS["full"].small() if plan.quick else WORKLOADS["full"]
    base = _peak_of_data(pool, workload)
    rows: dict[str, Any] = {}
    for contender in ("xpnet", "plain NumPy", *PEERS):
        threads = None if contender == "xpnet" else cores()
        try:
            if word := missing(plan, contender):
                raise WorkerError(word)
            imported, trained = _peaks(pool, Job("train", contender, workload, "gd", threads), epochs=2)
        except WorkerError as error:
            rows[contender] = {"skipped": str(error)}
            continue
        rows[contender] = {
            "threads": cores(),
            "bytes": trained - base,
            "of_which_import": imported - base,
            "training": trained - imported,
        }
    yield "full", {"title": workload.title, "data_only_bytes": base, "contenders": rows}


def _peak_of_data(pool: Pool, workload: Workload) -> int:
    worker = pool.new("plain NumPy", None)
    try:
        worker.prepare(Job("data", "plain NumPy", workload))
        return worker.peak()
    finally:
        worker.close()


# Imports --------------------------------------------------------------------------------------------------------------

IMPORTED = {
    "NumPy": ("numpy", "plain NumPy"),
    "xpnet": ("xpnet", "xpnet"),
    "scikit-learn": ("sklearn.neural_network", "scikit-learn"),
    "JAX": ("jax.numpy", "JAX"),
    "PyTorch": ("torch", "PyTorch"),
}
"""What is imported, and the contender that it comes from."""

_IMPORT = "import time; begun = time.perf_counter(); import {}; print(time.perf_counter() - begun)"


def _import_seconds(module: str, environment: dict[str, str]) -> float:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT.format(module)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise WorkerError((done.stderr.strip().splitlines() or ["no word"])[-1][:160])
    return float(done.stdout)


def imports(plan: Plan) -> Section:
    """Time the imports in new processes, their bytecode cached by a first, unmeasured run."""
    repeats = plan.repeats if plan.quick else max(11, plan.repeats)
    with tempfile.TemporaryDirectory(prefix="xpnet-benchmarks-") as cache:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
        if not plan.quick:  # compiling all of PyTorch once is the larger part of the section
            environment["PYTHONPYCACHEPREFIX"] = cache
        seconds: dict[str, list[float]] = {}
        skipped: dict[str, dict[str, Any]] = {}
        for number in range(repeats + 1):
            for name, (module, contender) in IMPORTED.items():
                if name in skipped:
                    continue
                try:
                    if word := missing(plan, contender):
                        raise WorkerError(word)
                    taken = _import_seconds(module, environment)
                except WorkerError as error:
                    skipped[name] = {"skipped": str(error)}
                    continue
                if number:
                    seconds.setdefault(name, []).append(taken)
    yield "import", _import_table(seconds, skipped)


def _import_table(seconds: dict[str, list[float]], skipped: dict[str, dict[str, Any]]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name in IMPORTED:
        if name in skipped:
            rows[name] = skipped[name]
            continue
        over = statistics.median(seconds[name]) - statistics.median(seconds["NumPy"])
        rows[name] = {
            "seconds": seconds[name],
            "time": stats([taken * 1e3 for taken in seconds[name]]),
            "over_numpy": over * 1e3,
            "ratio": stats([a / b for a, b in zip(seconds[name], seconds["xpnet"], strict=True)]),
        }
    runs = len(seconds["xpnet"])
    return {"title": "import in a new process", "unit": "ms", "runs": runs, "contenders": rows}


# Growth ---------------------------------------------------------------------------------------------------------------


def _growing() -> dict[str, tuple[str, list[Workload]]]:
    """Return the series: what grows, and the workloads."""
    # So many epochs that the 10 to 20 ms of beginning a fit, whatever its m, do not bend the slope.
    base = Workload("growth", 100, 64, 1, 40_960, 4_096, "float32", 16)
    columns = (100_000, 200_000, 400_000)
    return {
        "m, full batch": ("m", [replace(base, m=m, batch=m) for m in columns]),
        "m, batch 4,096": ("m", [replace(base, m=m) for m in columns]),
        "n_x": ("n_x", [replace(base, n_x=n_x) for n_x in (64, 256, 1024)]),
        "n_h": ("n_h", [replace(base, n_h=n_h) for n_h in (64, 256, 1024)]),
    }


def _slope(x: list[float], y: list[float]) -> float:
    """Return the slope of the least-squares line through the logarithms."""
    X, Y = [math.log(value) for value in x], [math.log(value) for value in y]
    X_mean, Y_mean = statistics.fmean(X), statistics.fmean(Y)
    over = sum((a - X_mean) * (b - Y_mean) for a, b in zip(X, Y, strict=True))
    return over / sum((a - X_mean) ** 2 for a in X)


def growth(pool: Pool, plan: Plan) -> Section:
    """Time an epoch of xpnet as m, n_x and n_h grow; a slope of 1 is in proportion."""
    for key, (letter, workloads) in _growing().items():
        points = []
        for workload in workloads:
            it = replace(workload, m=workload.m // 50, batch=min(workload.batch, workload.m // 50), epochs=1)
            it = it if plan.quick else workload
            entrant = fixed("xpnet", "train", it)
            in_turn(pool, [entrant], plan.repeats, warm={"epochs": 1}, arguments=always(epochs=it.epochs))
            if entrant.word:
                raise WorkerError(entrant.word)
            times = stats([seconds / it.epochs * 1e3 for seconds in entrant.seconds])
            points.append({letter: getattr(it, letter), "title": it.title, "seconds": entrant.seconds, "time": times})
        slope = _slope([point[letter] for point in points], [point["time"]["median"] for point in points])
        title = f"xpnet against {key}"
        grown = {"title": title, "letter": letter, "unit": "ms per epoch", "runs": plan.repeats}
        yield key, grown | {"points": points, "slope": slope}


def threads(pool: Pool, plan: Plan, names: list[str]) -> Section:
    """Time a step of xpnet against its threads, 1, 2, 4 … and all; ratios compare with what it chooses by itself."""
    counts = sorted({2**i for i in range(cores().bit_length()) if 2**i <= cores()} | {cores()})
    for name in names:
        workload = WORKLOADS[name].small() if plan.quick else WORKLOADS[name]
        entrants = [fixed("xpnet", "train", workload)]
        entrants += [fixed(f"xpnet, threads={count}", "train", workload, threads=count) for count in counts]
        warm = {"epochs": 1}
        in_turn(pool, entrants, plan.repeats, warm=warm, arguments=always(epochs=workload.epochs))
        steps = workload.epochs * workload.steps
        yield name, contest(workload.title, entrants, unit="µs per step", divisor=steps * 1e-6)


# All of them ----------------------------------------------------------------------------------------------------------


def sections(pool: Pool, plan: Plan, names: list[str]) -> dict[str, Callable[[], Section]]:
    """Return the sections by name, in the order in which they run."""
    return {
        "import": lambda: imports(plan),
        "gd": lambda: train(pool, plan, names, "gd"),
        "adam": lambda: train(pool, plan, names, "adam"),
        "predict": lambda: predict(pool, plan),
        "time-to-score": lambda: time_to_score(pool, plan),
        "memory": lambda: memory(pool, plan),
        "growth": lambda: growth(pool, plan),
        "threads": lambda: threads(pool, plan, names),
    }


RIVALS = ("fastest peer", "PyTorch", "scikit-learn", "plain NumPy")


def _ratios(tables: Iterable[dict[str, Any]], rival: str) -> list[float]:
    rows = [
        table["contenders"].get(table["fastest_peer"] if rival == "fastest peer" else rival, {}) for table in tables
    ]
    return [row["ratio"]["median"] for row in rows if "ratio" in row]


def means(measured: dict[str, Any]) -> dict[str, Any]:
    """Return the geometric means of rivals' ratios over what was trained, by each optimizer and by both."""
    trained = {name: list(measured[name]["tables"].values()) for name in ("gd", "adam") if name in measured}
    if len(trained) == 2:
        trained["both"] = [*trained["gd"], *trained["adam"]]
    found: dict[str, Any] = {}
    for name, tables in trained.items():
        ratios = {rival: _ratios(tables, rival) for rival in RIVALS}
        found[name] = {
            rival: {"mean": geometric_mean(some), "tables": len(some)} for rival, some in ratios.items() if some
        }
    return found
