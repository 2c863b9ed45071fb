"""Files cost a few windows of memory, however large they are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

N_X = 100

BLOCKS = 4
"""Windows that may be in memory at a time, above the library's own."""

WORK = """
import json, resource, sys
import numpy as np
import xpnet
from xpnet import data, network

path, what, sizes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
for name, value in sizes.items():
    setattr(data, name, value)
network.PREDICTED = data.WINDOW
X = np.load(path, mmap_mode="r")
Y = np.load(path + ".Y.npy", mmap_mode="r")
common = {"examples": "rows", "hidden": 16, "epochs": 2, "random_state": 0, "verbose": False, "batch_size": 1024}

def act(X, Y):
    if what == "fit":
        return xpnet.fit(X, Y, **common)
    if what == "held out":
        return xpnet.fit(X, Y, **common, validation_fraction=0.1)
    if what == "full batch":
        return xpnet.fit(X, Y, **common | {"batch_size": "full", "optimizer": "gd"})
    given = [X, Y] if what in ("score", "cost") else [X]
    return getattr(net, what)(*given, examples="rows")

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

few = np.random.default_rng(1).standard_normal((9_000, X.shape[1]), dtype=np.float32)
net = xpnet.fit(few, few[:, 0] > 0, **common)
act(few, few[:, 0] > 0)
before = peak()
act(X, Y)
print(peak() - before, 4 * data.WINDOW)
"""

SIZES = {"RUN": 1_024, "WINDOW": 2**21, "PERMUTED": 2**22, "READ": 2**19}
"""Of windows of 8 MiB."""


@pytest.fixture(scope="module")
def file(tmp_path_factory, request):
    """A file of 120 MB, or 2 GB, with labels beside it."""
    m = 5_000_000 if request.config.getoption("--soak") else 300_000
    path, rng = tmp_path_factory.mktemp("big") / "X.npy", np.random.default_rng(0)
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(m, N_X))
    labels = np.empty(m, bool)
    for start in range(0, m, 50_000):
        rows[start : start + 50_000] = rng.standard_normal((50_000, N_X), dtype=np.float32)
        labels[start : start + 50_000] = rows[start : start + 50_000, 0] > 0
    del rows
    np.save(f"{path}.Y.npy", labels)
    yield path
    path.unlink()


@pytest.mark.skipif(sys.platform == "win32", reason="needs the peak of resident memory")
@pytest.mark.parametrize("what", ["fit", "held out", "full batch", "predict", "predict_proba", "score", "cost"])
def test_a_file_costs_four_windows_of_memory_at_most(file, soak, what):
    sizes = {} if soak else SIZES
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", WORK, str(file), what, json.dumps(sizes)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    cost, window = map(int, done.stdout.split())
    assert cost <= BLOCKS * window
