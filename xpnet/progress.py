"""The progress bar, tqdm's: in a terminal and in a notebook, not in a pipe, so seldom that it costs next to nothing.

An epoch may take 30 µs, which is less than tqdm needs to be told of it. So the clock is looked at here, once an epoch,
and tqdm is called only when it is time to draw: after a tenth of a second, and after so much longer that drawing, which
takes a notebook milliseconds and a slow line more, stays below `SHARE` of the time.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from xpnet.errors import ArgumentError

OFTEN, SELDOM = 0.1, 5.0
"""Seconds from one drawing to the next, at least and at most."""

SHARE = 1 / 256
"""Of the time, what drawing may take."""

SHOWN = {"cost": "cost", "validation_cost": "validation"}
"""What the bar shows the last of, and under which name."""


def wanted(verbose: Any) -> bool:
    """Return whether to show a bar: as one says, and ``"auto"`` on a terminal and in a notebook.

    Raises
    ------
    ArgumentError
        `verbose` is neither a bool nor ``"auto"``.
    """
    if isinstance(verbose, str) and verbose == "auto":
        return in_notebook() or (sys.stderr is not None and sys.stderr.isatty())
    if not isinstance(verbose, bool | int):
        raise ArgumentError(f'verbose must be True, False or "auto"; it is {verbose!r}.')
    return bool(verbose)


def in_notebook() -> bool:
    """Return whether this is a Jupyter kernel, whose stderr is no terminal but is shown all the same."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config


@contextmanager
def bar(epochs: int, history: Mapping[str, Sequence[float]]) -> Iterator[Callable[[], None]]:
    """Show a bar for the duration of a ``with``, and yield what to call after each epoch.

    Parameters
    ----------
    epochs : int
        When it is full.
    history : mapping of str to list of float
        As `Network.history`; it grows from epoch to epoch.
    """
    done = len(history["cost"])
    with _tqdm()(total=epochs, initial=done, unit="epoch", mininterval=0.0, miniters=1) as drawn:
        due = time.perf_counter() + OFTEN

        def show() -> None:
            texts = {name: f"{history[key][-1]:.4g}" for key, name in SHOWN.items() if history[key]}
            drawn.set_postfix(texts, refresh=False)
            drawn.update(len(history["cost"]) - drawn.n)

        def tell() -> None:
            nonlocal due
            begun = time.perf_counter()
            if begun >= due:
                show()
                ended = time.perf_counter()
                due = ended + min(max(OFTEN, (ended - begun) / SHARE), SELDOM)

        try:
            yield tell
        finally:
            show()


def _tqdm() -> Any:
    """Return the class of bars for where this runs; ``tqdm.auto`` would import asyncio to the same end, for 50 ms."""
    if in_notebook():
        from tqdm import notebook

        if notebook.IProgress is not None:  # ipywidgets is installed
            return notebook.tqdm
    from tqdm import tqdm

    return tqdm
