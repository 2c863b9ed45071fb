"""Contenders in turn: A, B, C, D, A, B, C, D, … so that what disturbs the machine disturbs all of them.

A contest is a table: for each contender the seconds of every run, and their ratios to xpnet's in the same rounds.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from peers import Job
from predicting import CHUNKS
from workers import Pool, Worker, WorkerError, absent, cores
from workloads import Workload

PEERS = ("PyTorch", "torch.compile", "JAX", "scikit-learn")
GPU_PEERS = ("PyTorch", "torch.compile", "CUDA graph", "JAX")

PAUSE = 0.05
"""Seconds between runs, in which the threads of the last contender cease to spin."""

Arguments = dict[str, Any]


@dataclass
class Plan:
    """How much to measure.

    Attributes
    ----------
    repeats : int
        Measured runs of each contender.
    quick : bool
        Small sizes and no search for the best thread count: for tests of the suite.
    peers : tuple of str
        The peers asked for.
    """

    repeats: int = 7
    quick: bool = False
    peers: tuple[str, ...] = PEERS


@dataclass
class Entrant:
    """A contender as it enters a contest: with its best setting, or with the word why it does not."""

    name: str
    job: Job | None = None
    worker: Worker | None = None
    word: str = ""
    tried: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)

    def fail(self, word: object) -> None:
        """Leave the contest."""
        self.word, self.job, self.worker = str(word), None, None


def stats(values: list[float]) -> dict[str, float]:
    """Return the median and the ends."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def geometric_mean(values: list[float]) -> float:
    """Return the mean of ratios."""
    return math.exp(sum(map(math.log, values)) / len(values))


def missing(plan: Plan, contender: str) -> str:
    """Return why a contender does not take part, or nothing."""
    known = {*PEERS, *GPU_PEERS}
    return "not asked for" if contender in known and contender not in plan.peers else absent(contender)


def settings(job: Job, quick: bool) -> list[Job]:
    """Return the ways in which a peer may do a job: thread counts of 1 and all, and its variants."""
    threads = [1] if quick else sorted({1, cores()}) if job.device == "cpu" else [cores()]
    variants = [job.variant]
    if job.kind == "throughput":
        variants = list(CHUNKS)
    if job.kind == "train" and job.contender == "PyTorch":
        variants = ["", "fused"]
    if job.kind == "train" and job.contender == "JAX" and not job.workload.full:
        variants = ["step", "scan"]
    return [replace(job, threads=count, variant=variant) for variant in variants for count in threads]


def enter(pool: Pool, plan: Plan, job: Job, *, warm: Arguments, short: Arguments) -> Entrant:
    """Return a contender with whichever of its settings is the fastest in two short runs."""
    entrant = Entrant(job.contender)
    if word := missing(plan, job.contender):
        entrant.fail(word)
        return entrant
    tried: dict[Job, float] = {}
    jobs = settings(job, plan.quick)
    for setting in jobs:
        try:
            worker = pool.ready(setting)
            worker.run(**warm)
            tried[setting] = 0.0 if len(jobs) == 1 else min(worker.run(**short)[0] for _ in range(2))
        except WorkerError as error:
            word = str(error)
    if not tried:
        entrant.fail(word)
        return entrant
    entrant.tried = [
        {"threads": setting.threads, "variant": setting.variant, "seconds": taken} for setting, taken in tried.items()
    ]
    entrant.job = min(tried, key=tried.__getitem__)
    return entrant


def _ready(pool: Pool, entrants: Iterable[Entrant], warm: Arguments | None) -> None:
    for entrant in entrants:
        if entrant.job is None:
            continue
        try:
            entrant.worker = pool.ready(entrant.job)
            if warm is not None:
                entrant.worker.run(**warm)
        except WorkerError as error:
            entrant.fail(error)
    pool.release([entrant.worker for entrant in entrants])


def always(**arguments: Any) -> Callable[[Entrant, int], Arguments]:
    """Return the same arguments for everyone in every round."""
    return lambda *_: arguments


def in_turn(
    pool: Pool,
    entrants: list[Entrant],
    repeats: int,
    *,
    warm: Arguments | None,
    arguments: Callable[[Entrant, int], Arguments],
) -> None:
    """Run everyone once unmeasured, then all of them in turn as often as `repeats`; results stay in the entrants."""
    _ready(pool, entrants, warm)
    for number in range(repeats):
        for entrant in entrants:
            if entrant.worker is None:
                continue
            time.sleep(PAUSE)
            try:
                seconds, told = entrant.worker.run(**arguments(entrant, number))
            except WorkerError as error:
                entrant.fail(error)
                continue
            entrant.seconds.append(seconds)
            entrant.told.append(told)


def threads_of(job: Job) -> int:
    """Return the number of threads that a contender had."""
    return cores() if job.threads is None else job.threads


def contest(title: str, entrants: list[Entrant], *, unit: str, divisor: float) -> dict[str, Any]:
    """Return the table of a contest that has been run; the first entrant is the one that ratios compare with.

    Parameters
    ----------
    title : str
    entrants : list of Entrant
    unit : str
        What a number is, ``"µs per step"`` or ``"s"``.
    divisor : float
        Seconds of a run in one unit.
    """
    reference = entrants[0]
    if reference.word:
        raise WorkerError(f"{reference.name}: {reference.word}")
    table: dict[str, Any] = {}
    for entrant in entrants:
        if entrant.word:
            table[entrant.name] = {"skipped": entrant.word}
            continue
        assert entrant.job is not None
        ratios = [theirs / ours for theirs, ours in zip(entrant.seconds, reference.seconds, strict=True)]
        table[entrant.name] = {
            "threads": threads_of(entrant.job),
            "variant": entrant.job.variant,
            "seconds": entrant.seconds,
            "time": stats([seconds / divisor for seconds in entrant.seconds]),
            "ratio": stats(ratios),
            "tried": entrant.tried,
        }
    rivals = [name for name in dict.fromkeys((*PEERS, *GPU_PEERS)) if "ratio" in table.get(name, {})]
    fastest = min(rivals, key=lambda name: table[name]["ratio"]["median"], default=None)
    runs = len(reference.seconds)
    return {"title": title, "unit": unit, "runs": runs, "fastest_peer": fastest, "contenders": table}


def fixed(name: str, kind: str, workload: Workload, optimizer: str = "gd", threads: int | None = None) -> Entrant:
    """Return an entrant that has no setting to choose: xpnet, or one of NumPy's."""
    contender = "xpnet" if name.startswith("xpnet") else name
    return Entrant(name, Job(kind, contender, workload, optimizer, threads))
