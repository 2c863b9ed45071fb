"""The CPU benchmarks: ``python tests/benchmarks/cpu.py``; a quarter of an hour on two cores.

Sections can be measured one at a time with ``--only``; results are merged into the file of the day, or the one that
``--out`` names. They mean something on a machine that does nothing else.
"""

import argparse
import datetime
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
from contests import PEERS, Plan
from sections import Section, means, sections
from workers import Pool, WorkerError
from workloads import WORKLOADS

SECTIONS = ("import", "gd", "adam", "predict", "time-to-score", "memory", "growth", "threads")


def some_of(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is not among {', '.join(known)}")
        return chosen

    return read


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = tuple(WORKLOADS)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test the suite itself")
    parser.add_argument("--only", type=some_of(SECTIONS), default=SECTIONS, help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--workloads", type=some_of(names), default=names, help=f"of {','.join(names)}")
    parser.add_argument("--peers", type=some_of(PEERS), default=PEERS, help=f"of {','.join(PEERS)}")
    parser.add_argument("--repeats", type=int, default=None, help="measured runs of each: 7, with --quick 2")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="a folder, or a .json file")
    return parser.parse_args()


def _file(out: Path) -> Path:
    return out if out.suffix == ".json" else out / f"cpu-{datetime.date.today().isoformat()}.json"


def _opened(path: Path, quick: bool) -> dict[str, Any]:
    """Return the results so far, with today's machine and versions."""
    new = {
        "date": datetime.date.today().isoformat(),
        "quick": quick,
        "machine": report.machine(),
        "versions": report.versions(),
        "sections": {},
        "means": {},
    }
    if not path.exists():
        return new
    old = json.loads(path.read_text())
    for key in ("quick", "machine"):
        if old[key] != new[key]:
            sys.exit(f"{path.name} was measured with another {key}: {old[key]}, not {new[key]}. Name another --out.")
    return new | {"sections": old["sections"]}


def _write(path: Path, results: dict[str, Any]) -> None:
    results["sections"] = {name: results["sections"][name] for name in SECTIONS if name in results["sections"]}
    results["means"] = means(results["sections"])
    path.parent.mkdir(parents=True, exist_ok=True)
    report.write(path, results, report.markdown(results))


def measure(
    name: str,
    measured: Section,
    found: dict[str, Any],
    keep: Callable[[], None],
    shown: Callable[[dict[str, Any]], str] | None = None,
) -> None:
    """Run one section, keeping every table as soon as it is known."""
    try:
        for key, each in measured:
            found["tables"][key] = each
            print(shown({key: each}) if shown else report.tables(name, {key: each}), end="\n\n", flush=True)
            keep()
    except WorkerError as error:
        found["error"] = str(error)
        print(f"error: {error}\n", flush=True)
        keep()


def problems(results: dict[str, Any]) -> list[str]:
    """Return what must not be: sections that ended by an error, contenders that computed something else."""
    found = [f"{name}: {each['error']}" for name, each in results["sections"].items() if "error" in each]
    for name, each in results["sections"].items():
        for key, table in each["tables"].items():
            rows = table.get("contenders", {})
            found += [f"{name}, {key}, {who}: {row['wrong']}" for who, row in rows.items() if row.get("wrong")]
    return found


def ended(path: Path, results: dict[str, Any]) -> int:
    """Tell where the results are and what is wrong with them, and return the exit code."""
    print(f"Written to {path.name} and {path.with_suffix('.md').name}.")
    wrong = problems(results)
    for problem in wrong:
        print(f"WRONG: {problem}")
    return 1 if wrong else 0


def main() -> int:
    """Measure, print and write."""
    asked = _arguments()
    path = _file(asked.out)
    results = _opened(path, asked.quick)
    plan = Plan(asked.repeats or (2 if asked.quick else 7), asked.quick, asked.peers)
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    with Pool() as pool:
        known = sections(pool, plan, list(asked.workloads))
        for name in (name for name in SECTIONS if name in asked.only):
            before = results["sections"].get(name, {}).get("tables", {})
            found = {
                "date": datetime.date.today().isoformat(),
                "load": load,
                "tables": before,
            }
            results["sections"][name] = found
            print(report.heading(name, found), end="\n\n", flush=True)
            measure(name, known[name](), found, lambda: _write(path, results))
    print(report.summary(results))
    print()
    return ended(path, results)


if __name__ == "__main__":
    sys.exit(main())
