"""Results as people read them, and the machine and versions that they were measured with."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from workers import ROOT, cores

METHOD = """\
Ratios are a contender's time divided by xpnet's in the same round, so above 1 xpnet is faster; the median of the
rounds, and the ends. Contenders take turns, one run each a round, each in a process of its own, after an unmeasured
run in which they compile. xpnet is timed by the whole of `xpnet.fit` (scikit-learn: of `fit`), from NumPy arrays to
the network, with its default threads; PyTorch and JAX by their loop alone, on tensors made beforehand. Everyone
starts from the same parameters, feeds itself its batches in a new random order every epoch, and records every
epoch's mean cost as a float. Peers and plain NumPy have whichever of 1 and all threads was faster in a first short
pass, PyTorch whichever of its default and its fused optimizer, JAX whichever of a jitted step and a jitted
`lax.scan` over the epoch's batches; in `throughput`, whichever number of rows at a time. Memory is the process's
greatest resident set.
"""

_ASK = """
import json, numpy, threadpoolctl, xpnet
keys = ("internal_api", "version", "architecture", "num_threads")
pools = [{key: pool.get(key) for key in keys} for pool in threadpoolctl.threadpool_info()]
print(json.dumps({"xpnet": xpnet.__version__, "blas": pools}))
"""


# The machine ----------------------------------------------------------------------------------------------------------


def field(path: str, name: str) -> str:
    """Return a field of one of Linux's ``name : value`` files; elsewhere nothing."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def machine() -> dict[str, Any]:
    """Return what is said of the machine: neither its name nor its paths."""
    kilobytes = field("/proc/meminfo", "MemTotal").split()
    return {
        "cpu": field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "family": field("/proc/cpuinfo", "cpu family"),
        "model": field("/proc/cpuinfo", "model\t"),
        "cores": cores(),
        "memory_gib": round(int(kilobytes[0]) / 2**20, 1) if kilobytes else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, Any]:
    """Return the versions of Python, the contenders and BLAS."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in ("numpy", "torch", "jax", "scikit-learn", "threadpoolctl"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    done = subprocess.run(
        [sys.executable, "-c", _ASK], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True
    )
    return found | json.loads(done.stdout)


# Tables ---------------------------------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table with its columns aligned, which reads as plain text too; the first column is words."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(row: list[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        return f"| {' | '.join([*cells, row[-1].ljust(widths[-1])])} |"

    rule = (
        f"|{'|'.join(['-' * (widths[0] + 2), *('-' * (w + 1) + ':' for w in widths[1:-1]), '-' * (widths[-1] + 2)])}|"
    )
    return "\n".join([line(head), rule, *map(line, rows)])


def number(value: float) -> str:
    """Return a number with three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3g}"


def ends(stats: dict[str, float]) -> str:
    """Return the ends of the spread."""
    return f"{number(stats['min'])}–{number(stats['max'])}"


def _contest(key: str, found: dict[str, Any]) -> str:
    if "skipped" in found:
        return f"{key}: skipped, {found['skipped']}."
    head = ["contender", "threads", found["unit"], "min–max", "ratio", "min–max", "notes"]
    rows = []
    for name, row in found["contenders"].items():
        if "skipped" in row:
            rows.append([name, "", "", "", "", "", f"skipped: {row['skipped']}"])
            continue
        notes = [row.get("variant", ""), row.get("note", ""), f"WRONG: {row['wrong']}" if row.get("wrong") else ""]
        time, ratio = row["time"], row["ratio"]
        numbers = [number(time["median"]), ends(time), number(ratio["median"]), ends(ratio)]
        rows.append([name, str(row["threads"]), *numbers, "; ".join(filter(None, notes))])
    return f"{found['title']}: median of {found['runs']} runs\n\n{table(head, rows)}"


def _memory(key: str, found: dict[str, Any]) -> str:
    head = ["contender", "threads", "MiB", "of it import", "of it training", "notes"]
    rows = []
    for name, row in found["contenders"].items():
        if "skipped" in row:
            rows.append([name, "", "", "", "", f"skipped: {row['skipped']}"])
            continue
        sizes = [f"{row[part] / 2**20:,.0f}" for part in ("bytes", "of_which_import", "training")]
        rows.append([name, str(row["threads"]), *sizes, ""])
    less = f"{found['data_only_bytes'] / 2**20:,.0f} MiB of a process that only makes the data"
    return f"{found['title']}: peak resident memory less the {less}, one run\n\n{table(head, rows)}"


def _imports(key: str, found: dict[str, Any]) -> str:
    head = ["package", "ms", "min–max", "over NumPy", "ratio", "notes"]
    rows = []
    for name, row in found["contenders"].items():
        if "skipped" in row:
            rows.append([name, "", "", "", "", f"skipped: {row['skipped']}"])
            continue
        time, over = row["time"], f"{row['over_numpy']:.0f}"
        rows.append([name, number(time["median"]), ends(time), over, number(row["ratio"]["median"]), ""])
    return f"{found['title']}: median of {found['runs']} runs\n\n{table(head, rows)}"


def _growth(key: str, found: dict[str, Any]) -> str:
    points = found["points"]
    rows = [
        [f"{point[found['letter']]:,}", number(point["time"]["median"]), ends(point["time"]), point["title"]]
        for point in points
    ]
    grown = table([found["letter"], found["unit"], "min–max", "workload"], rows)
    return f"{found['title']}: slope {found['slope']:.2f}, medians of {found['runs']} runs\n\n{grown}"


_RENDER = {"memory": _memory, "import": _imports, "growth": _growth}

_TITLES = {
    "gd": "Training by gradient descent",
    "adam": "Training by Adam",
    "predict": "Prediction",
    "time-to-score": "Time to a score",
    "memory": "Memory",
    "import": "Import",
    "growth": "Growth",
    "threads": "Threads",
    "parity": "The first epoch's cost against NumPy's",
    "float32": "Training on a GPU, float32",
    "tf32": "Training on a GPU, float32 with products in TF32",
    "large": "Ten million examples on a GPU",
}


def heading(name: str, found: dict[str, Any]) -> str:
    """Return what stands above one section's tables."""
    error = f"\n\nEnded by an error: {found['error']}" if "error" in found else ""
    return f"## {_TITLES[name]}\n\n{found['date']}; the machine's load before the run was {found['load']}.{error}"


def tables(name: str, found: dict[str, dict[str, Any]]) -> str:
    """Return one section's tables."""
    return "\n\n".join(_RENDER.get(name, _contest)(key, each) for key, each in found.items())


def _cell(row: dict[str, Any]) -> str:
    if "ratio" not in row:
        return "–"
    return f"{number(row['time']['median'])} ({number(row['ratio']['median'])}×, {row['threads']})"


def _overview(results: dict[str, Any]) -> list[str]:
    """Return, for each optimizer, the workloads against the contenders."""
    parts = []
    for name in ("gd", "adam"):
        tables = results["sections"].get(name, {}).get("tables", {})
        if not tables:
            continue
        contenders = list(dict.fromkeys(who for each in tables.values() for who in each["contenders"]))
        rows = [
            [key, *(_cell(each["contenders"].get(who, {})) for who in contenders), each["fastest_peer"] or "–"]
            for key, each in tables.items()
        ]
        grid = table(["workload", *contenders, "fastest peer"], rows)
        parts.append(f"{_TITLES[name]}: µs per step (ratio to xpnet, threads)\n\n{grid}")
    return parts


def _means(results: dict[str, Any]) -> str:
    rows = [
        [f"{name}, {rival}", number(mean["mean"]), str(mean["tables"])]
        for name, rivals in results["means"].items()
        for rival, mean in rivals.items()
    ]
    return f"Geometric means of the ratios\n\n{table(['optimizer and rival', 'ratio', 'tables'], rows)}" if rows else ""


def write(path: Path, results: dict[str, Any], text: str) -> None:
    """Write results as JSON, and the report of them beside it."""
    path.with_suffix(".json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".md").write_text(text)


def add(path: Path, results: dict[str, Any], name: str, found: Any, markdown: Callable[[dict[str, Any]], str]) -> None:
    """Add a section to results, and write them as they are by then."""
    results[name], results["load_after"] = found, round(os.getloadavg()[0], 2)
    write(path, results, markdown(results))


def told(path: Path, text: str) -> None:
    """Print the report, and where it was written."""
    print(text)
    print(f"Written to {path.name}.json and {path.name}.md.")


def summary(results: dict[str, Any]) -> str:
    """Return the tables that tell most: times and ratios side by side, and their means."""
    return "\n\n".join(filter(None, [*_overview(results), _means(results)]))


def markdown(results: dict[str, Any]) -> str:
    """Return the whole report."""
    its, has = results["machine"], results["versions"]
    blas = ", ".join(f"{pool['internal_api']} {pool['version']} ({pool['architecture']})" for pool in has["blas"])
    named = ", ".join(f"{name} {version or 'absent'}" for name, version in has.items() if name != "blas")
    where = (
        f"{its['cpu']} (family {its['family']}, model {its['model']}), {its['cores']} cores, {its['memory_gib']} GiB"
    )
    parts = [
        f"# CPU benchmarks, {results['date']}",
        f"{where}, {its['system']}. {named}; BLAS of NumPy: {blas}.",
        *(["**Quick sizes, for a test of the suite: the numbers mean nothing.**"] if results["quick"] else []),
        METHOD.strip(),
        summary(results),
        *(f"{heading(name, found)}\n\n{tables(name, found['tables'])}" for name, found in results["sections"].items()),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"
