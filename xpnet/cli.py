"""The command: `main` reads arguments, runs one of its commands, and says on one line what was wrong with them.

Results go to stdout; progress, warnings and errors to stderr. The exit code is 0, 1 when a verification failed, 2 on
bad input, 130 on Ctrl-C, 141 when nobody reads stdout any more and 143 on SIGTERM, with a checkpoint written.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

import xpnet
from xpnet import activations, datasets, features, files, heads, initializers, optimizers, plot, tables, targets
from xpnet import checkpoint as checkpoints
from xpnet import device as devices
from xpnet.arguments import nearest, real, whole
from xpnet.callbacks import EpochView
from xpnet.checkpoint import Terminated
from xpnet.device import DeviceInfo
from xpnet.errors import ArgumentError, DataError, XpnetError, XpnetWarning
from xpnet.network import Network, load
from xpnet.targets import Task
from xpnet.training import FOREIGN, fit
from xpnet.typing import Layer
from xpnet.verify import verify

DEFAULTS: Mapping[str, Any] = fit.__kwdefaults__ or {}
"""What `fit` takes when nothing is said, which `xpnet fit` takes too."""

WIDTH = 79
"""Columns of a line for people."""

PICTURES = (".png", ".svg", ".pdf")
"""The endings of pictures that are drawn."""

MOST_UNITS = 1_000_000
"""Units of a layer that can be asked for; more is a slip of the hand."""

PACKAGES = (
    ("numpy",),
    ("array-api-compat",),
    ("safetensors",),
    ("cupy", "cupy-cuda13x", "cupy-cuda12x"),
    ("nvmath-python",),
    ("torch",),
    ("jax",),
    ("pyarrow",),
    ("scikit-learn",),
)
"""Packages that `xpnet doctor` looks for, each by every name that it is installed under."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; by default those of this process.

    Returns
    -------
    int
        0, 1 when a verification failed, 2 on bad input, 130 on Ctrl-C, 141 when stdout was closed, 143 on SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # where a terminal has no λ, it is \\u03bb
    try:
        with _warnings_on_a_line():
            code = _run(sys.argv[1:] if arguments is None else arguments)
            print(end="", flush=True)  # a pipe that is closed breaks here, not after the last line of Python
            return code
    except BrokenPipeError:
        _forget_stdout()
        return 141
    except KeyboardInterrupt:
        return 130
    except (XpnetError, OSError, MemoryError) as error:
        _say("error", _words(error))
        _forget_stdout()
        return 2


def _run(arguments: Sequence[str]) -> int:
    try:
        options = _parsed(arguments)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except Terminated:  # only a fit with a checkpoint ends so
        _say("terminated", f"the same command goes on from {options.checkpoint}.")
        return 128 + signal.SIGTERM


# Commands -------------------------------------------------------------------------------------------------------------


def _demo(options: argparse.Namespace) -> int:
    iterations = whole("--iterations", options.iterations, low=1)
    seed = whole("--random-state", options.random_state, low=0)
    device = devices.resolve(options.device).name
    if options.plot is not None:
        tables.check_output(options.plot, option="--plot", inputs=[], endings=PICTURES)
    figure = None if options.plot is None else plot._figure()
    X, Y = datasets.flower()
    print(
        "A flower of 400 points: eight petals, in two colors that no line can part.\n"
        "A network of 2-4-1 units, tanh, learns them by gradient descent on all points\n"
        f"at once, with learning rate 1.2, on {device}.\n",
        flush=True,
    )

    def tell(view: EpochView) -> None:
        if view.epoch % 1_000 == 0:
            print(f"Cost after iteration {view.epoch}: {view.cost:.6f}", flush=True)

    common: dict[str, Any] = {"device": device, "dtype": "float64", "random_state": seed, "verbose": False}
    begun = time.perf_counter()
    net = fit(
        X,
        Y,
        hidden=4,
        activation="tanh",
        optimizer="gd",
        learning_rate=1.2,
        batch_size="full",
        epochs=iterations,
        patience=None,
        initial=initializers.small_normal((2, 4, 1), random_state=seed),
        callbacks=tell,
        **common,
    )
    if net.stop_reason == "interrupted":
        raise KeyboardInterrupt
    seconds = time.perf_counter() - begun
    line = fit(X, Y, hidden=(), optimizer="lbfgs", **common)
    print(f"\n{iterations:,} iterations in {seconds:.1f} s. Points whose color it tells:\n")
    print(f"  this network         {net.score(X, Y):6.1%}")
    print(f"  logistic regression  {line.score(X, Y):6.1%}   (no hidden layer: one straight line)")
    if figure is not None:
        plot.decision_boundary(net, X, Y, figure.subplots())
        with files.replacing(options.plot) as temporary:
            figure.savefig(temporary, format=Path(options.plot).suffix[1:].lower(), dpi=150)
        print(f"\nThe points and the regions of this network are drawn in {options.plot}.")
    return 0


def _fit(options: argparse.Namespace) -> int:
    if options.cluster is not None:
        return _fit_on_cluster(options)
    if len(options.data) > 1:
        raise ArgumentError(f"fit has no place for {options.data[1]!r} without --cluster. See: xpnet fit --help")
    (options.data,) = options.data
    hidden = _hidden(options.hidden)
    fraction = _test_fraction(options)
    place = devices.resolve(options.device)
    devices.check_dtype(place, options.dtype)
    for option, path in (("--out", options.out), ("--checkpoint", options.checkpoint)):
        if path is not None:
            tables.check_output(path, option=option, inputs=[options.data])
    if options.out and options.checkpoint and os.path.realpath(options.out) == os.path.realpath(options.checkpoint):
        raise ArgumentError(f"--out and --checkpoint must name two files; both are {options.out!r}.")
    seed = _seed(options)

    plan = _features(options)
    given = tables.read_labeled(options.data, options.target, drop=options.drop, treated=plan is not None)
    kind = targets.infer(targets.read(given.Y, examples="rows"), options.task)
    training, held_out = (given.rows(side) for side in tables.split(len(given.Y), fraction, seed))
    del given  # the targets of a large file are large
    _check_classes(training.Y, held_out.Y, kind, all_of_them=True)
    if plan is not None and len(held_out.Y):
        plan.learn([training.X]).encode(held_out.X, name="the rows held out")  # refused before all the work, not after
    net = _trained(
        training,
        kind,
        standardize=not options.no_standardize,
        features=plan,
        hidden=hidden,
        device=place.name,
        random_state=seed,
        verbose=False if options.quiet else "auto",
        **{name: getattr(options, name) for name in _PASSED},
    )
    if net.stop_reason == "interrupted":
        _say("interrupted", f"this is the network after {net.epochs_run} epochs.")
    if options.out is not None:
        net.save(options.out)

    _show("task", _task_in_words(kind))
    _show("network", "-".join(map(str, net.sizes)) + (f", {net.activation.name}" if hidden else ""))
    if net.features is not None:
        _show("features", str(net.features))
    _show("rows", f"{len(training.Y):,} to train on, {len(held_out.Y):,} held out")
    _show("epochs", f"{net.epochs_run}, stopped by {_stop(net.stop_reason, options)}")
    _show("time", f"{net.timing['train_seconds']:.2f} s on {net.device}, {net.dtype}")
    _show("seed", f"{seed} (the same again with --random-state {seed})")
    if len(held_out.Y):
        _show(_score_in_words(net), f"{net.score(held_out.X, held_out.Y, examples='rows'):.4f} on the rows held out")
    _show("written", options.out or "nothing; to keep the network: --out net.safetensors")
    return 0


def _fit_on_cluster(options: argparse.Namespace) -> int:
    """Train on files that the workers of a Dask cluster open."""
    from xpnet import dask

    hidden = _hidden(options.hidden)
    fraction = _test_fraction(options)
    if options.features or options.ignore_unknown:
        raise ArgumentError("--features must be left out with --cluster, where columns are plain numbers.")
    for option, path in (("--out", options.out), ("--checkpoint", options.checkpoint)):
        if path is not None:
            tables.check_output(path, option=option, inputs=[])
    seed, standardize = _seed(options), not options.no_standardize
    with dask.connected(options.cluster) as client:
        training, held_out = dask.stored(options.data, options.target, options.drop, client, fraction, seed)
        trained, held = (dask.of_target(files.Y, client) for files in (training, held_out))
        kind = targets.infer(dask.labels(trained + held, training.examples + held_out.examples), options.task)
        if held:
            theirs, ours = (np.concatenate([each.labels for each in side]) for side in (trained, held))
            _check_classes(theirs, ours, kind, all_of_them=False)
        scaling = None
        if standardize and kind.name == "regression":
            _check_largest(max(each.largest for each in trained), options.dtype)
            scaling = dask.scaling(trained)
        net = dask.fit(
            training.X,
            [file._replace(scaling=scaling) for file in training.Y],
            client=client,
            examples="rows",
            task=kind.name,
            standardize=standardize,
            hidden=hidden,
            device=options.device,
            random_state=seed,
            verbose=False if options.quiet else "auto",
            **{name: getattr(options, name) for name in _PASSED},
        )
        net = net if scaling is None else _scaled_back(net, *scaling)
        if net.stop_reason == "interrupted":
            _say("interrupted", f"this is the network after {net.epochs_run} epochs.")
        if options.out is not None:
            net.save(options.out)
        score = dask.score(net, held_out, client, options.device) if held_out.examples else None
    _show("task", _task_in_words(net.kind))
    _show("network", "-".join(map(str, net.sizes)) + (f", {net.activation.name}" if hidden else ""))
    _show("rows", f"{training.examples:,} to train on, {held_out.examples:,} held out")
    workers = int(net.timing["workers"])
    _show("cluster", f"{options.cluster}, {workers} worker{'s' * (workers != 1)}")
    _show("epochs", f"{net.epochs_run}, stopped by {_stop(net.stop_reason, options)}")
    _show("time", f"{net.timing['train_seconds']:.2f} s, {net.dtype}")
    _show("seed", f"{seed} (the same again with --random-state {seed})")
    if score is not None:
        _show(_score_in_words(net), f"{score:.4f} on the rows held out")
    _show("written", options.out or "nothing; to keep the network: --out net.safetensors")
    return 0


def _test_fraction(options: argparse.Namespace) -> float:
    fraction = 0.2 if options.test_fraction is None else options.test_fraction
    return real("--test-fraction", fraction, low=0.0, below=1.0)


def _score_in_words(net: Network) -> str:
    return {"regression": "R²", "count": "D²"}.get(net.task, "accuracy")


def _predict(options: argparse.Namespace) -> int:
    if options.out is not None:
        tables.check_output(options.out, option="--out", inputs=[options.net, options.data], endings=tables.WRITABLE)
    net = load(options.net, device=options.device)
    if options.proba and net.classes is None:
        raise ArgumentError(f"--proba needs a network that tells classes; this one is for {net.task}. Leave it out.")
    X = tables.read_features(options.data, n_features=net.sizes[0], names=net.feature_names, features=net.features)
    with contextlib.closing(net.outputs(X, examples="rows")) as outputs:
        parts = (_predictions(devices.to_host(A), net.kind, proba=options.proba) for A in outputs)
        if options.out is not None:
            tables.write(options.out, parts)
        elif sys.stdout is not None:
            tables.write_csv(parts, sys.stdout)
    return 0


def _bench(options: argparse.Namespace) -> int:
    names = ("only", "workloads", "peers", "repeats", "out")
    given = [f"--{name}={getattr(options, name)}" for name in names if getattr(options, name) is not None]
    command = [sys.executable, str(_benchmarks() / "cpu.py"), *given, *(["--quick"] if options.quick else [])]
    return subprocess.call(command)


def _benchmarks() -> Path:
    """Return the benchmarks' folder: in the package when it was built, beside it in a checkout."""
    package = Path(xpnet.__file__).parent
    folders = package / "benchmarks", package.parent / "tests" / "benchmarks"
    return next(folder for folder in folders if folder.is_dir())


def _doctor(options: argparse.Namespace) -> int:  # noqa: ARG001  # the commands share one signature
    machine = f"{platform.system()} {platform.machine()}"
    print(f"xpnet {xpnet.__version__} on Python {platform.python_version()}, {machine}\n")
    for names in PACKAGES:
        _show(names[0], _version(names), indent=18)
    print("\nDevices")
    found = xpnet.devices()
    for info in found:
        _show_device(info)
    print(flush=True)
    passed = [_verified(info.name) for info in found if info.available]
    return 0 if all(passed) else 1


# The parts of `fit` ---------------------------------------------------------------------------------------------------

_PASSED = (
    *("activation", "optimizer", "learning_rate", "l2", "batch_size", "epochs", "patience", "validation_fraction"),
    *("class_weight", "dtype", "threads", "checkpoint", "checkpoint_every"),
)
"""The options that `fit` takes as they are."""


def _trained(training: tables.Labeled, kind: Task, *, standardize: bool, **arguments: Any) -> Network:
    """Return `fit`'s network.

    With `standardize`, numbers to predict are standardized as features are, and the output layer is scaled back:
    identity is linear, so ``deviation · (W A + b) + mean`` is a layer too. The costs in its history stay those of the
    standardized numbers.
    """
    Y = training.Y
    if not (standardize and kind.name == "regression"):
        return fit(training.X, Y, task=kind.name, standardize=standardize, examples="rows", **arguments)
    mean, deviation, Y = _standardized(Y, arguments["dtype"])
    net = fit(training.X, Y, task=kind.name, standardize=True, examples="rows", **arguments)
    return _scaled_back(net, mean, deviation)


def _standardized(Y: npt.NDArray[Any], dtype: str) -> tuple[Any, Any, npt.NDArray[Any]]:
    """Return the outputs' means and deviations, and Y by them in `dtype`, to which `fit` would cast it."""
    Y = Y.astype(np.float64)
    _check_largest(float(np.abs(Y).max()), dtype)
    mean, deviation = Y.mean(axis=0), Y.std(axis=0)
    deviation = np.where(deviation > 0.0, deviation, 1.0)
    Y -= mean
    Y /= deviation
    return mean, deviation, Y.astype(dtype, copy=False)


def _check_largest(size: float, dtype: str) -> None:
    """Raise when numbers of that size cannot be standardized."""
    largest = float(np.sqrt(np.finfo(dtype).max))
    if size > largest:
        raise DataError(
            f"The target must be within ±{largest:.2g} to be standardized in {dtype}; the largest is {size:.2g}. Scale "
            "it first."
        )


def _scaled_back(net: Network, mean: Any, deviation: Any) -> Network:
    """Return the network that predicts the numbers, from one that was trained on standardized ones."""
    W, b = (devices.to_host(array).astype(np.float64) for array in net.layers[-1])
    scale = np.reshape(deviation, (-1, 1))
    with net.place.active():
        last = [
            net.place.asarray(array, dtype=net.dtype) for array in (scale * W, scale * b + np.reshape(mean, (-1, 1)))
        ]
    return replace(net, layers=(*net.layers[:-1], Layer(*last)))


def _hidden(text: str) -> tuple[int, ...]:
    if text.strip().lower() in ("", "none"):
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 20 and 1 <= int(part) <= MOST_UNITS for part in parts):
        raise ArgumentError(
            f"--hidden must be units of each hidden layer, 1 to {MOST_UNITS:,}, such as 64 or 256,64, or none; it is "
            f"{text!r}."
        )
    return tuple(map(int, parts))


def _features(options: argparse.Namespace) -> features.Plan | None:
    """Return the treatments of columns: of ``auto``, ``city=onehot,age=median``, or both in one or several options."""
    if options.ignore_unknown and not options.features:
        raise ArgumentError("--ignore-unknown needs --features, of which it says more. Pass both or neither.")
    if not options.features:
        return None
    unknown = "ignore" if options.ignore_unknown else "error"
    words = [word for text in options.features for word in next(csv.reader([text]), [])]
    given: dict[str, Any] = {}
    for word in words:
        name, equals, how = word.rpartition("=")
        if word != "auto" and not (equals and name):
            raise ArgumentError(
                f"--features must be auto, or COLUMN=HOW such as city=onehot,age=median; it is {word!r}."
            )
        if word != "auto":
            given[name] = features.onehot(unknown=unknown) if how == "onehot" else _number_or_name(how)
    plan = features.auto(given, unknown=unknown)
    return plan if "auto" in words else replace(plan, is_auto=False)


def _number_or_name(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _seed(options: argparse.Namespace) -> int:
    """Return the seed given, or that of the checkpoint to go on from, or a new one."""
    if options.random_state is not None:
        return whole("--random-state", options.random_state, low=0)
    if options.checkpoint is not None and (theirs := checkpoints.seed_of(options.checkpoint)) is not None:
        return theirs
    return int(np.random.SeedSequence().generate_state(1)[0])


def _check_classes(training: npt.NDArray[Any], held_out: npt.NDArray[Any], kind: Task, *, all_of_them: bool) -> None:
    """Raise when a class is among the labels held out only: it could be neither learned nor scored."""
    if kind.classes is None or training.ndim == 2:
        return
    unseen = np.setdiff1d(held_out, training)
    if unseen.size:
        label = unseen[0].item()
        count = f" ({held_out.tolist().count(label)} in all)" if all_of_them else ""
        raise DataError(
            f"Every row of the class {label!r} is held out{count}. Remove them, or choose another --random-state or "
            "--test-fraction."
        )


def _task_in_words(kind: Task) -> str:
    if kind.classes is None or kind.name == "multilabel":
        return kind.name + (f", {kind.n_outputs} outputs" if kind.n_outputs > 1 else "")
    shown = ", ".join(str(label) for label in kind.classes[:10])
    more = f" and {kind.classes.size - 10} more" if kind.classes.size > 10 else ""
    return f"{kind.name}, {kind.classes.size} classes: {shown}{more}"


def _stop(reason: str, options: argparse.Namespace) -> str:
    return {
        "epochs": f"--epochs {options.epochs}",
        "patience": f"--patience {options.patience}: the cost fell no further",
        "interrupted": "Ctrl-C",
    }[reason]


# The parts of `predict` and `doctor` ----------------------------------------------------------------------------------


def _predictions(A: npt.NDArray[Any], kind: Task, *, proba: bool) -> dict[str, npt.NDArray[Any]]:
    """Return the columns to write, from the network's output ``(n_y, m)``."""
    labels = targets.decode(A, kind)
    if labels.ndim == 1:
        columns = {"prediction": labels}
    elif labels.shape[0] == 1:
        columns = {"prediction": labels[0]}
    else:
        columns = {f"prediction_{i}": row for i, row in enumerate(labels)}
    if proba and kind.classes is not None:
        rows = [1.0 - A[0], A[0]] if kind.name == "binary" else list(A)
        columns |= {f"probability_{label}": row for label, row in zip(kind.classes, rows, strict=True)}
    return columns


def _version(names: Sequence[str]) -> str:
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name) + (f" ({name})" if name != names[0] else "")
    return "not installed"


def _show_device(info: DeviceInfo) -> None:
    if info.available:
        _show(info.name, info.description)
        return
    # The command that mends it has a line of its own, to be copied from.
    problem, _, mend = (info.problem or "").partition(". Run: ")
    _show(info.name, f"not available: {problem}")
    if mend:
        print(f"{'':12}Run: {mend}")


def _verified(device: str) -> bool:
    """Print what `verify` finds on a device, and return whether all of it is right."""
    try:
        report = verify(device)
    except Exception as error:  # whatever a broken device raises is what the doctor is asked for
        print(_one_line(f"Verification of {device} FAILED: {type(error).__name__}: {error}"))
        return False
    print(report, flush=True)
    return report.passed


# What is printed ------------------------------------------------------------------------------------------------------


def _show(label: str, text: str, *, indent: int = 12) -> None:
    """Print a result with its name before it."""
    print(
        textwrap.fill(
            _printable(text),
            WIDTH,
            initial_indent=f"{label:<{indent}}",
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def _say(what: str, text: str) -> None:
    """Print one line on stderr."""
    print(_one_line(f"xpnet: {what}: {text}"), file=sys.stderr, flush=True)


def _one_line(text: str) -> str:
    return _printable(re.sub(r"\s*\n\s*", " ", text.strip()))


def _printable(text: str) -> str:
    """Return the text with whatever a terminal would obey, from a table or a file's name, as its number."""
    return "".join(letter if letter.isprintable() else _number_of(letter) for letter in text)


def _number_of(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


@contextlib.contextmanager
def _warnings_on_a_line() -> Iterator[None]:
    """Show warnings without the line of code that they come from, for the duration of a ``with``."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _say("warning", _translated(str(message)))

    with warnings.catch_warnings():
        warnings.simplefilter("always", XpnetWarning)
        warnings.showwarning = show
        yield


def _words(error: BaseException) -> str:
    """Return what an error says, in the command's words."""
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"There is not enough memory. {error}"
    return _translated(str(error))


def _option(found: re.Match[str]) -> str:
    """Return ``--batch-size full`` for ``batch_size="full"``."""
    name, *value = filter(None, found.groups())
    return " ".join([f"--{name.replace('_', '-')}", *value])


def _treated(found: re.Match[str]) -> str:
    """Return ``--features city=onehot`` for ``fit(..., features={"city": "onehot"})``."""
    try:
        treated = json.loads(found[2].replace(", ...", ""))
    except ValueError:  # a column's name has a brace in it
        return found[0]
    return tables.as_option(treated) + ",auto" * bool(found[1])


_OPTIONS = "|".join((*_PASSED, "device", "features", "hidden", "random_state", "task"))
_ALONE = r"(?<![\w/\\'\"-])"  # neither part of a word or a path, nor quoted
_TRANSLATIONS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"fit\(\.\.\., checkpoint=\.\.\.\)", "xpnet fit --checkpoint"),
    (r"a fit with checkpoint= goes on", "a fit with --checkpoint goes on"),
    (r"fit\(\.\.\., features=\{[^}]*\bonehot\(unknown=\"ignore\"\)\}\)", "--ignore-unknown"),
    (r"fit\(\.\.\., features=(xpnet\.features\.auto\()?(\{[^}]*\})\)?\)", _treated),
    (r"^features\[('.*?')\](?= must)", r"--features \1"),
    (r", or from xpnet\.features(?=;)", ""),
    (r"pass standardize=True", "leave out --no-standardize"),
    (r"Pass standardize=True|Train on \(Y - Y\.mean\(\)\) / Y\.std\(\)", "Leave out --no-standardize"),
    (r"Use sample_weight", "Leave it out"),
    (r", or (?:an xpnet\.Activation\(g, dg\)|made by xpnet\.optimizers|None for where X lives)(?=;)", ""),
    (rf'{_ALONE}({_OPTIONS})=(?:"([^"]*)"|(\d+))', _option),
    (rf"^({_OPTIONS})(?= (?:must|needs|names))", _option),
    (rf"{_ALONE}(batch_size|class_weight|learning_rate)(?![\w'\"=])", _option),
    (r"^Y (?=has|must|is|holds)", "The target "),
)
"""Python's way to put it, and the command's."""


def _translated(message: str) -> str:
    """Return a message of the library in the command's words: ``task="count"`` is ``--task count`` here."""
    for python, command in _TRANSLATIONS:
        message = re.sub(python, command, message)
    return message


def _forget_stdout() -> None:
    """Have what stdout still holds go nowhere, so that Python does not complain of it when it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# Arguments ------------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message}. See: {self.prog} --help")


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        odd = next((word for word in unknown if word.startswith("-")), unknown[0])
        raise ArgumentError(f"{options.command} has no {_unknown(odd, options)} See: xpnet {options.command} --help")
    return options


def _unknown(word: str, options: argparse.Namespace) -> str:
    if not word.startswith("-"):
        return f"place for {word!r}."
    name = word.partition("=")[0].lstrip("-").replace("-", "_")
    advice = re.fullmatch(r"it is '(\w+)'", FOREIGN.get(name, ""))
    if advice and hasattr(options, advice[1]):
        return f"option {word!r}; it is --{advice[1].replace('_', '-')}."
    known = [f"--{name.replace('_', '-')}" for name in vars(options)]
    return f"option {word!r}.{nearest(word, known)}"


def _number_or_word(text: str) -> int | str:
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else text


def _patience(text: str) -> int | None:
    return None if text.lower() == "none" else int(text)


def _every(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


_number_or_word.__name__, _patience.__name__ = "whole number or word", "whole number"  # what argparse calls them


_DEVICE_HELP = "cpu, cuda, cuda:N, or auto: CUDA when it works (default: {})"


def _parser() -> _Parser:
    parser = _new(
        _Parser,
        prog="xpnet",
        description="Train neural networks from ten equations, on a CPU or a CUDA GPU.",
        epilog="""
            examples:
              xpnet demo
              xpnet fit cancer.csv --target diagnosis --out net.safetensors
              xpnet predict net.safetensors new.csv --out predictions.csv
              xpnet doctor
              xpnet bench --only gd --workloads digits

            "xpnet COMMAND --help" tells what a command takes.
            """,
    )
    parser.add_argument("--version", action="version", version=f"xpnet {xpnet.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_fit(commands)
    _add_predict(commands)
    doctor = _new(
        commands.add_parser,
        "doctor",
        help="show versions and devices, and verify what each device computes",
        description="Show versions, devices and why one is missing, then verify what each that works computes.",
        epilog="The exit code is 1 when a verification fails.",
    )
    doctor.set_defaults(run=_doctor)
    _add_bench(commands)
    return parser


def _new(make: Callable[..., _Parser], *arguments: Any, epilog: str, **options: Any) -> _Parser:
    return make(
        *arguments,
        epilog=textwrap.dedent(epilog).strip(),
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=27),
        allow_abbrev=False,  # an abbreviation in a script breaks when an option is added
        **options,
    )


def _add_demo(commands: Any) -> None:
    demo = _new(
        commands.add_parser,
        "demo",
        help="train the lecture's network on a flower of points",
        description="Train the lecture's network, 2-4-1 with tanh, on 400 points that form a flower.",
        epilog="""
            examples:
              xpnet demo
              xpnet demo --iterations 2000 --random-state 7
              xpnet demo --plot flower.png
            """,
    )
    demo.add_argument("--device", default="cpu", help=_DEVICE_HELP.format("cpu"))
    demo.add_argument("--iterations", type=int, default=10_000, metavar="N", help="steps downhill (default: 10000)")
    demo.add_argument("--random-state", type=int, default=3, metavar="SEED", help="of the first weights (default: 3)")
    demo.add_argument("--plot", metavar="FILE", help="where to draw points and regions: .png, .svg or .pdf")
    demo.set_defaults(run=_demo)


def _add_bench(commands: Any) -> None:
    parser = _new(
        commands.add_parser,
        "bench",
        help="measure xpnet beside PyTorch, JAX and scikit-learn on this machine",
        description=textwrap.fill(
            "Measure training, prediction, memory and import beside those of PyTorch, JAX and scikit-learn that are "
            "installed, in turn, and write the tables as Markdown and JSON. All of it takes half an hour on two "
            "cores, on which nothing else should run.",
            WIDTH,
        ),
        epilog="""
            examples:
              xpnet bench --quick
              xpnet bench --only gd,adam --workloads digits,full --peers PyTorch
            """,
    )
    parser.add_argument("--only", metavar="NAME,...", help="sections: import, gd, adam, predict, time-to-score, …")
    parser.add_argument("--workloads", metavar="NAME,...", help="of planar, digits, tabular, wide and full")
    parser.add_argument("--peers", metavar="NAME,...", help="of PyTorch, torch.compile, JAX and scikit-learn")
    parser.add_argument("--repeats", type=int, metavar="N", help="measured runs of each (default: 7)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--out", default=".", metavar="PATH", help="a folder, or a .json file (default: here)")
    parser.set_defaults(run=_bench)


def _add_fit(commands: Any) -> None:
    parser = _new(
        commands.add_parser,
        "fit",
        help="train a network on a table",
        description=textwrap.fill(
            "Train a network on a table, and score it on rows that it has not seen. Rows are examples. A CSV's first "
            "line has the columns' names. Features, and a target of numbers, are standardized; features of words or "
            "with gaps need --features.",
            WIDTH,
        ),
        epilog="""
            examples:
              xpnet fit cancer.csv --target diagnosis --out net.safetensors
              xpnet fit houses.parquet --target price --task regression --hidden 256,64
              xpnet fit people.csv --target income --features city=onehot,age=median
              xpnet fit digits.npy --target -1 --l2 3 --validation-fraction 0.1
              xpnet fit big.parquet --target y --device cuda --checkpoint run.ckpt
              xpnet fit part-*.parquet --target y --cluster tcp://scheduler:8786
            """,
    )
    parser.add_argument("data", metavar="DATA", nargs="+", help="a .csv, .parquet, .npy (2-D) or .npz file")
    parser.add_argument(
        "--target",
        required=True,
        metavar="COLUMN",
        help="what to predict: a column's name; its number in .npy (-1 is the last); the array's name in .npz",
    )
    parser.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="COLUMN",
        help="a column that is no feature; may be repeated",
    )
    parser.add_argument(
        "--features",
        action="append",
        metavar="HOW",
        help="of columns of words or with gaps: COLUMN=onehot, drop, or what fills gaps: mean, median, most_frequent "
        "or a number; several with commas between; auto chooses",
    )
    parser.add_argument(
        "--ignore-unknown", action="store_true", help="words that the rows trained on have not are no error"
    )
    network = parser.add_argument_group("the network")
    network.add_argument(
        "--hidden",
        default=str(DEFAULTS["hidden"]),
        metavar="UNITS",
        help=f"of each hidden layer: 64, or 256,64, or none (default: {DEFAULTS['hidden']})",
    )
    _choice(network, "activation", activations.ACTIVATIONS)
    _choice(network, "task", ("auto", *heads.TASK_HEADS))
    training = parser.add_argument_group("training")
    _choice(training, "optimizer", optimizers.OPTIMIZERS)
    _number(training, "learning-rate", float, "step size (default: the optimizer's own)")
    _number(training, "l2", float, "λ of the penalty λ/(2m) Σ‖W‖² (default: 0)")
    _number(training, "batch-size", _number_or_word, "rows per step, full, or auto (default: auto)")
    _number(training, "epochs", int, f"passes over the rows (default: {DEFAULTS['epochs']})")
    _number(
        training,
        "patience",
        _patience,
        f"epochs without a lower cost after which to stop, or none (default: {DEFAULTS['patience']})",
    )
    _number(training, "validation-fraction", float, "share of the training rows to judge that cost by (default: 0)")
    training.add_argument("--class-weight", choices=["balanced"], metavar="balanced", help="weigh rare classes up")
    training.add_argument("--no-standardize", action="store_true", help="take the numbers as they are")
    training.add_argument("--test-fraction", type=float, metavar="X", help="share of the rows held out (default: 0.2)")
    _number(training, "random-state", int, "seed of the rows held out, the weights and the order (default: a new one)")
    machine = parser.add_argument_group("the machine")
    machine.add_argument("--device", default="auto", help=_DEVICE_HELP.format("auto"))
    _choice(machine, "dtype", ("float32", "float64"))
    _number(machine, "threads", int, "CPU threads (default: every core)")
    machine.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="of a Dask scheduler, whose workers open DATA, .parquet or .npy files",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="FILE", help="where to write the network, such as net.safetensors")
    output.add_argument("--checkpoint", metavar="FILE", help="state of the training; an existing one is resumed")
    _number(
        output, "checkpoint-every", _every, f'seconds, epoch, or "500 steps" (default: {DEFAULTS["checkpoint_every"]})'
    )
    output.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_fit)


def _choice(group: Any, name: str, values: Sequence[str] | Mapping[str, Any]) -> None:
    listed = ", ".join(values)
    group.add_argument(
        f"--{name}", default=DEFAULTS[name], metavar="NAME", help=f"{listed} (default: {DEFAULTS[name]})"
    )


def _number(group: Any, name: str, kind: Callable[[str], Any], text: str) -> None:
    metavar = "X" if kind is float else "N"
    group.add_argument(f"--{name}", type=kind, default=DEFAULTS[name.replace("-", "_")], metavar=metavar, help=text)


def _add_predict(commands: Any) -> None:
    parser = _new(
        commands.add_parser,
        "predict",
        help="predict the rows of a table with a trained network",
        description=textwrap.fill(
            "Predict the rows of a table, as CSV on standard output or in a file. Columns are found by name when the "
            "network was trained on names; others, such as the target, are ignored.",
            WIDTH,
        ),
        epilog="""
            examples:
              xpnet predict net.safetensors new.csv
              xpnet predict net.safetensors new.parquet --proba --out predictions.csv
            """,
    )
    parser.add_argument("net", metavar="NET", help="a network that xpnet wrote")
    parser.add_argument("data", metavar="DATA", help="a .csv, .parquet, .npy (2-D) or .npz file")
    parser.add_argument("--out", metavar="FILE", help="a .csv or .parquet file (default: standard output)")
    parser.add_argument("--proba", action="store_true", help="the probability of each class too")
    parser.add_argument("--device", default="auto", help=_DEVICE_HELP.format("auto"))
    parser.set_defaults(run=_predict)
