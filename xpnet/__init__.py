"""Neural networks from ten equations, written once for NumPy on a CPU and CuPy on a GPU.

>>> import xpnet
>>> X, Y = xpnet.datasets.flower()            # X (2, 400): examples are columns
>>> net = xpnet.fit(X, Y, hidden=16, activation="tanh", optimizer="lbfgs", random_state=0)
>>> net.score(X, Y) > 0.9
True
"""

from xpnet import activations, callbacks, datasets, errors, features, initializers, optimizers, plot, schedules
from xpnet.activations import Activation
from xpnet.data import Loader
from xpnet.device import devices
from xpnet.network import Network, load
from xpnet.parquet import Parquet
from xpnet.training import fit
from xpnet.verify import gradient_check, verify

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "Loader",
    "Network",
    "Parquet",
    "activations",
    "callbacks",
    "datasets",
    "devices",
    "errors",
    "features",
    "fit",
    "gradient_check",
    "initializers",
    "load",
    "optimizers",
    "plot",
    "schedules",
    "verify",
]
