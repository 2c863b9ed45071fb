"""The GPU benchmarks: ``python tests/benchmarks/gpu.py``; with ``--repeats 3`` about five minutes.

NOT YET RUN ON A GPU. ``--device cpu --quick`` goes through the same code on a CPU, where a test runs it: peers train on
CPU tensors, and what needs a GPU is skipped with a word.

Sections: `parity`, the first epoch's cost against NumPy's; `float32`, all with exact products; `tf32`, all with
products rounded to TF32; `large`, ten million examples resident and streamed through pinned memory.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import report
from contests import GPU_PEERS, Entrant, Plan, always, contest, enter, in_turn
from cpu import ended, measure, some_of
from peers import MOVED, Job
from sections import Section, check
from workers import Pool
from workloads import Workload

SECTIONS = ("parity", "float32", "tf32", "large")

_WORKLOADS = (
    Workload("planar", 2, 4, 1, 400, 400, "float32", 2_000),
    Workload("digits", 784, 128, 10, 12_800, 128, "float32", 20),
    Workload("digits, batch 1,024", 784, 128, 10, 51_200, 1_024, "float32", 20),
    Workload("tabular", 28, 256, 1, 1_048_576, 65_536, "float32", 20),
)
WORKLOADS = {workload.name.replace(", batch ", "-").replace(",", ""): workload for workload in _WORKLOADS}

LARGE = Workload("large", 28, 256, 1, 10_000_000, 50_000, "float32", 1)

PARITY = {"float32": 1e-5, "float64": 1e-12}
"""How far the first epoch's cost may be from NumPy's, relative to it: what is promised."""

METHOD = """\
Ratios are a contender's time divided by xpnet's in the same round, so above 1 xpnet is faster; the median of the
rounds, and the ends. Contenders take turns, one run each a round, each in a process of its own, after an unmeasured run
in which they compile and load. xpnet is timed by the whole of `xpnet.fit`, from NumPy arrays to the network, the upload
included; the others by their loop alone, on tensors that are on the GPU beforehand. Everyone starts from the same
parameters, feeds itself its batches in a new random order every epoch, and records every epoch's mean cost as a float.
The clock stops when the device is done. PyTorch has whichever of its default and its fused optimizer was faster in a
first short pass, JAX whichever of a jitted step and a jitted `lax.scan`; "CUDA graph" is PyTorch's whole step captured
by hand.
"""

UNTRIED = "**Not yet run on a GPU: this benchmark is as untried as the code that it measures.**"


# The sections ---------------------------------------------------------------------------------------------------------


def _job(contender: str, workload: Workload, device: str, **how: Any) -> Job:
    return Job("train", contender, workload, how.pop("optimizer", "gd"), device=device, **how)


def train(pool: Pool, plan: Plan, names: list[str], device: str, *, tf32: bool) -> Section:
    """Time a step of each workload by each optimizer, the loop, the feeding and the history of costs included."""
    for name in names:
        workload = WORKLOADS[name].small() if plan.quick else WORKLOADS[name]
        _, told = pool.ready(Job("start", "plain NumPy", workload)).run()
        warm = {"epochs": 1 if workload.steps > 1 else min(workload.epochs, 3)}
        short = {"epochs": max(1, workload.epochs // 4)}
        for optimizer in ("gd", "adam"):
            jobs = [_job(who, workload, device, optimizer=optimizer, tf32=tf32) for who in GPU_PEERS]
            entrants = [Entrant("xpnet", _job("xpnet", workload, device, optimizer=optimizer, tf32=tf32))]
            entrants += [enter(pool, plan, job, warm=warm, short=short) for job in jobs]
            in_turn(pool, entrants, plan.repeats, warm=warm, arguments=always(epochs=workload.epochs))
            steps = workload.epochs * workload.steps
            title = f"{workload.title}, {optimizer}"
            table = contest(title, entrants, unit="µs per step", divisor=steps * 1e-6)
            check(table, entrants, workload, told["cost"])
            loop = [each["train"] / steps * 1e6 for each in entrants[0].told]
            table["contenders"]["xpnet"]["note"] += f"; {min(loop):.4g} µs per step without loading"
            yield f"{name}, {optimizer}", table | {"epochs": workload.epochs, "steps": workload.steps}


def parity(pool: Pool, plan: Plan, names: list[str], device: str) -> Section:
    """Compare the first epoch's cost with that of the same fit by NumPy, whose steps are the same."""
    for name in names:
        for dtype, allowed in PARITY.items():
            workload = replace(WORKLOADS[name].small() if plan.quick else WORKLOADS[name], dtype=dtype)
            (_, here), (seconds, there) = (
                pool.ready(_job("xpnet", workload, at, optimizer="adam")).run(epochs=1) for at in ("cpu", device)
            )
            off = abs(there["first"] - here["first"]) / abs(here["first"])
            wrong = "" if off <= allowed else f"{off:.2g} from NumPy's cost, {allowed:g} is allowed"
            row = {"off": off, "allowed": allowed, "wrong": wrong, "cost": there["first"], "seconds": [seconds]}
            yield f"{name}, {dtype}", {"title": workload.title, "contenders": {"xpnet": row}}


def large(pool: Pool, plan: Plan, device: str) -> Section:
    """Time an epoch over ten million examples, kept on the GPU and streamed to it."""
    workload = replace(LARGE.small(), m=4 * 64) if plan.quick else LARGE
    job = _job("xpnet", workload, device, optimizer="adam")
    entrants = [Entrant("xpnet", job), Entrant("xpnet, streamed", replace(job, variant="streamed"))]
    # In one process after another: the setting that streams is the process's.
    for entrant in entrants:
        worker = pool.new("xpnet", None, device)
        try:
            worker.prepare(entrant.job)
            worker.run(epochs=1)
            runs = [worker.run(epochs=1) for _ in range(min(plan.repeats, 3))]
        finally:
            worker.close()
        entrant.seconds, entrant.told = [each[0] for each in runs], [each[1] for each in runs]
    table = contest(workload.title, entrants, unit="s per epoch", divisor=1.0)
    for entrant in entrants:
        told = entrant.told[-1]
        table["contenders"][entrant.name] |= {"told": told, "note": _moved(told)}
    yield "epoch", table


def _moved(told: dict[str, Any]) -> str:
    if "bytes_moved" not in told:
        return f"loading {told['load']:.3g} s, training {told['train']:.3g} s"
    moved, hidden, exposed, computing = (told[key] for key in MOVED)
    return f"{moved / 1e9:.3g} GB; copying {hidden:.3g} s hidden, {exposed:.3g} s exposed; computing {computing:.3g} s"


# The report -----------------------------------------------------------------------------------------------------------


def hardware(device: str) -> dict[str, Any]:
    """Return what is said of the GPU: its name, driver and memory; and CUDA's libraries."""
    if device == "cpu":
        return {"name": "none: this ran on the CPU, to test the benchmark itself"}
    asked = "name,driver_version,memory.total,clocks.max.sm,power.limit"
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader", "--id=0"],
        capture_output=True,
        text=True,
        check=False,
    )
    found = dict(zip(asked.split(","), done.stdout.strip().split(", "), strict=False))
    ask = "import cupy, json; r = cupy.cuda.runtime; print(json.dumps([cupy.__version__, r.runtimeGetVersion()]))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    cupy, runtime = json.loads(done.stdout) if done.returncode == 0 else (None, None)
    return found | {"cupy": cupy, "cuda": runtime}


def _parity(found: dict[str, Any]) -> str:
    rows = [
        [
            key,
            f"{row['off']:.2g}",
            f"{row['allowed']:g}",
            f"{row['cost']:.6g}",
            row["wrong"] and f"WRONG: {row['wrong']}",
        ]
        for key, each in found.items()
        for row in each["contenders"].values()
    ]
    return report.table(["workload", "off by", "allowed", "cost", "notes"], rows)


def markdown(results: dict[str, Any]) -> str:
    """Return the whole report."""
    named = ", ".join(f"{key} {value}" for key, value in results["versions"].items() if key != "blas")
    where = ", ".join(f"{key} {value}" for key, value in results["gpu"].items())
    parts = [
        f"# GPU benchmarks, {results['date']}",
        f"GPU: {where}. {named}.",
        UNTRIED,
        *(["**Quick sizes, for a test of the suite: the numbers mean nothing.**"] if results["quick"] else []),
        METHOD.strip(),
    ]
    for name, found in results["sections"].items():
        shown = _parity(found["tables"]) if name == "parity" else report.tables(name, found["tables"])
        parts.append(f"{report.heading(name, found)}\n\n{shown}")
    return "\n\n".join(parts) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = tuple(WORKLOADS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is to test the suite itself")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test the suite itself")
    parser.add_argument("--only", type=some_of(SECTIONS), default=SECTIONS, help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--workloads", type=some_of(names), default=names, help=f"of {','.join(names)}")
    parser.add_argument("--peers", type=some_of(GPU_PEERS), default=GPU_PEERS, help=f"of {','.join(GPU_PEERS)}")
    parser.add_argument("--repeats", type=int, default=None, help="measured runs of each: 7, with --quick 2")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="a folder, or a .json file")
    return parser.parse_args()


def _sections(pool: Pool, plan: Plan, names: list[str], device: str) -> dict[str, Callable[[], Section]]:
    return {
        "parity": lambda: parity(pool, plan, names, device),
        "float32": lambda: train(pool, plan, names, device, tf32=False),
        "tf32": lambda: train(pool, plan, names, device, tf32=True),
        "large": lambda: large(pool, plan, device),
    }


def main() -> int:
    """Measure, print and write."""
    asked = _arguments()
    today = datetime.date.today().isoformat()
    path = asked.out if asked.out.suffix == ".json" else asked.out / f"gpu-{today}.json"
    plan = Plan(asked.repeats or (2 if asked.quick else 7), asked.quick, asked.peers)
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    results: dict[str, Any] = {"date": today, "quick": asked.quick, "untried": UNTRIED, "gpu": hardware(asked.device)}
    results |= {"machine": report.machine(), "versions": report.versions(), "sections": {}}
    print(UNTRIED, end="\n\n", flush=True)

    def keep() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        report.write(path, results, markdown(results))

    with Pool() as pool:
        known = _sections(pool, plan, list(asked.workloads), asked.device)
        for name in (name for name in SECTIONS if name in asked.only):
            found: dict[str, Any] = {"date": today, "load": load, "tables": {}}
            results["sections"][name] = found
            print(report.heading(name, found), end="\n\n", flush=True)
            shown = _parity if name == "parity" else None
            measure(name, known[name](), found, keep, shown=shown)
    return ended(path, results)


if __name__ == "__main__":
    sys.exit(main())
