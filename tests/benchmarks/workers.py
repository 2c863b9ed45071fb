"""Every contender in a process of its own, which stays alive and does what it is told over a pipe.

So one runtime's threads, allocator and settings do not disturb another's, and thread counts can be given in the
environment, where some runtimes alone read them. Run as a script, this file is the worker.
"""

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, whose xpnet is measured."""

LIMIT = 600.0
"""Seconds that one command to a worker may take."""

MODULES = {
    "xpnet": "xpnet",
    "plain NumPy": "numpy",
    "products": "numpy",
    "PyTorch": "torch",
    "torch.compile": "torch",
    "CUDA graph": "torch",
    "JAX": "jax",
    "scikit-learn": "sklearn",
}
"""What each contender needs installed."""

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerError(Exception):
    """A contender could not do what it was told; the message is a word on why."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def absent(contender: str) -> str:
    """Return why a contender cannot take part, or nothing."""
    module = MODULES[contender]
    if contender == "xpnet" or importlib.util.find_spec(module):
        return ""
    return f"{module} is not installed"


def environment(contender: str, threads: int | None, cache: str, device: str = "cpu") -> dict[str, str]:
    """Return the environment of a contender held to so many threads; None leaves it to the contender."""
    ours = {key: value for key, value in os.environ.items() if key not in (*_THREADS, "XLA_FLAGS")}
    ours["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), ours.get("PYTHONPATH")]))
    ours["TORCHINDUCTOR_CACHE_DIR"] = cache
    if device == "cpu":
        ours |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    else:
        ours["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the others have the same GPU
    if threads is not None:
        ours |= dict.fromkeys(_THREADS, str(threads))
    if contender == "JAX" and threads == 1:
        ours["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return ours


class Worker:
    """A contender's process, as the measuring process sees it."""

    def __init__(self, contender: str, threads: int | None, cache: str, device: str = "cpu") -> None:
        # JAX has no setting that holds it to one thread; one core does.
        pinned = ["--pin"] if contender == "JAX" and threads == 1 else []
        self.process = subprocess.Popen(
            [sys.executable, __file__, *pinned],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(contender, threads, cache, device),
        )
        self.job: Any = None

    def prepare(self, job: Any) -> None:
        """Make ready for a job, unless that is what it is ready for."""
        if job != self.job:
            self.job = None
            self._ask("prepare", job=asdict(job))
            self.job = job

    def run(self, **arguments: Any) -> tuple[float, dict[str, Any]]:
        """Return the seconds that one run took, and what it tells of itself."""
        reply = self._ask("run", arguments=arguments)
        return reply["seconds"], reply["told"]

    def load(self, module: str) -> None:
        """Import a module there."""
        self._ask("load", module=module)

    def peak(self) -> int:
        """Return the most bytes of memory that the process has had."""
        return int(self._ask("peak")["bytes"])

    def release(self) -> None:
        """Let go of the job and its data."""
        self.job = None
        self._ask("release")

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _ask(self, what: str, **more: Any) -> dict[str, Any]:
        timer = threading.Timer(LIMIT, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps({"what": what} | more) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        finally:
            late = not timer.is_alive()
            timer.cancel()
        if not line:
            raise WorkerError(f"took more than {LIMIT:g} s" if late else f"ended with code {self.process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply


class Pool:
    """The workers that are alive, one for each contender, thread count, dtype and device."""

    def __init__(self) -> None:
        self.workers: dict[Any, Worker] = {}
        self.cache = tempfile.TemporaryDirectory(prefix="xpnet-benchmarks-", ignore_cleanup_errors=True)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            worker.close()
        self.cache.cleanup()

    def ready(self, job: Any) -> Worker:
        """Return a worker that is prepared for the job."""
        # The dtype, because JAX's float64 is a setting of the process.
        key = job.contender, job.threads, job.workload.dtype, job.device
        if key not in self.workers or self.workers[key].process.poll() is not None:
            self.workers[key] = self.new(job.contender, job.threads, job.device)
        self.workers[key].prepare(job)
        return self.workers[key]

    def new(self, contender: str, threads: int | None, device: str = "cpu") -> Worker:
        """Return a new worker, which the caller closes."""
        return Worker(contender, threads, self.cache.name, device)

    def release(self, kept: Any) -> None:
        """Let all workers but those in `kept` let go of their data."""
        for worker in self.workers.values():
            if worker not in kept and worker.job is not None and worker.process.poll() is None:
                worker.release()


# The worker's side ----------------------------------------------------------------------------------------------------


def _word(error: Exception) -> str:
    """Return an error in one line without this machine's paths."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return re.sub(r"(/[\w.+-]+){2,}", "…", f"{type(error).__name__}: {lines[0] if lines else ''}")[:160]


def _prepared(description: dict[str, Any]) -> Any:
    import peers
    import predicting
    from workloads import Workload

    job = peers.Job(**description | {"workload": Workload(**description["workload"])})
    return (peers.TASKS | predicting.TASKS)[job.kind][job.contender](job)


def _run(task: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    made = task.fresh()
    gc.collect()
    begun = time.perf_counter()
    result = task.run(made, **arguments)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "told": task.tell(result)}


def _peak() -> int:
    import resource

    # Linux counts KiB, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _answer(request: dict[str, Any], held: dict[str, Any]) -> dict[str, Any]:
    match request["what"]:
        case "prepare":
            held.clear()
            held["task"] = _prepared(request["job"])
        case "run":
            return _run(held["task"], request["arguments"])
        case "load":
            importlib.import_module(request["module"])
        case "peak":
            return {"bytes": _peak()}
        case "release":
            import workloads

            held.clear()
            workloads.data.cache_clear()
            gc.collect()
    return {}


def main() -> None:
    """Do what standard input says, until it ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for a reply
    if "--pin" in sys.argv and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    held: dict[str, Any] = {}
    for line in sys.stdin:
        try:
            reply = _answer(json.loads(line), held)
        except Exception as error:
            reply = {"error": _word(error)}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
