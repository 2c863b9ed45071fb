"""What to run first on a machine with a GPU: ``python tests/benchmarks/first_gpu.py``, within eight minutes.

NOT YET RUN ON A GPU. In this order, each step with a limit of its own and whatever became of those before:

1. ``xpnet doctor``;
2. the tests of the GPU, then the suite, with ``XPNET_REQUIRE_CUDA=1``;
3. `compute-sanitizer`, where it is installed, on a fit, resident and streamed;
4. ``gpu.py`` with few repeats.

What each printed is in ``results/first-gpu-DATE.txt``, the benchmark's tables beside it.
"""

import argparse
import datetime
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from workers import ROOT, cores

FOLDER = Path(__file__).resolve().parent

FIT = """
import numpy as np
import xpnet
X = np.random.default_rng(0).standard_normal((28, 5_000)).astype(np.float32)
for share in (0.8, 0.0):
    xpnet.data.RESIDENT = share
    print(xpnet.fit(X, X[0] > 0, hidden=64, epochs=2, batch_size=512, device="{device}"))
"""


class Step(NamedTuple):
    """A command, and the seconds that it may take."""

    name: str
    command: list[str]
    seconds: float


def steps(device: str, out: Path) -> list[Step]:
    """Return what is run, in order."""
    python = sys.executable
    at_once = ["-n", str(min(4, cores()))] if importlib.util.find_spec("xdist") else []
    pytest = [python, "-m", "pytest", "-q", "-rfE"]
    wanted = [
        Step("doctor", [python, "-m", "xpnet", "doctor"], 60),
        Step("tests of the GPU", [*pytest, "-m", "cuda", "tests"], 120),
        Step("sanitizer", _sanitized([python, "-c", FIT.format(device=device)]), 60),
        Step("benchmark", _benchmark(device, out), 180),
        Step("suite", [*pytest, *at_once, "tests"], 180),
    ]
    return [step for step in wanted if step.command]


def _sanitized(command: list[str]) -> list[str]:
    sanitizer = shutil.which("compute-sanitizer")
    # Ends with 1 if it finds anything; cuBLAS and the driver ask about what may fail, which is not an error.
    return [sanitizer, "--error-exitcode", "1", "--report-api-errors", "no", *command] if sanitizer else []


def _benchmark(device: str, out: Path) -> list[str]:
    quick = ["--quick", "--workloads", "planar", "--peers", "PyTorch"] if device == "cpu" else []
    return [sys.executable, str(FOLDER / "gpu.py"), "--device", device, "--repeats", "3", "--out", str(out), *quick]


def run(step: Step) -> tuple[str, str]:
    """Return what became of a step in a word, and what it printed."""
    begun = time.perf_counter()
    environment = os.environ | {"XPNET_REQUIRE_CUDA": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            step.command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=step.seconds,
            check=False,
        )
        word, text = "passed" if done.returncode == 0 else f"FAILED with code {done.returncode}", done.stdout
    except subprocess.TimeoutExpired as error:
        text = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        word = "LEFT UNFINISHED"
    return f"{word} after {time.perf_counter() - begun:.0f} s", text


def main() -> int:
    """Run all of it, and write down what came of it as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is to test this script itself")
    parser.add_argument("--only", nargs="*", default=None, metavar="STEP", help="the steps to run")
    parser.add_argument("--out", type=Path, default=FOLDER / "results", help="a folder")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / f"first-gpu-{datetime.date.today().isoformat()}.txt"
    words = []
    with path.open("w") as file:
        for step in steps(asked.device, asked.out):
            if asked.only is not None and step.name not in asked.only:
                continue
            word, text = run(step)
            words.append(word)
            print(f"{step.name}: {word}", flush=True)
            file.write(f"== {step.name}: {word}\n{text.replace(str(ROOT), '.')}\n")
            file.flush()
    print(f"Written to {path.name}.")
    return 0 if all(word.startswith("passed") for word in words) else 1


if __name__ == "__main__":
    sys.exit(main())
