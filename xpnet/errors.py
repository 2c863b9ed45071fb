"""Every exception and warning that xpnet raises, as one tree.

::

    XpnetError
    ├── ArgumentError            (ValueError)    an argument has a value that cannot be used
    │   └── UnknownArgumentError (TypeError)     there is no argument of that name
    ├── DataError                (ValueError)    X, Y or a weight cannot be learned from
    │   ├── ShapeError                           shapes that do not fit each other
    │   └── TargetError                          Y does not fit the task
    ├── ActivationError          (ValueError)    a user's g and dg do not belong together
    ├── DivergedError            (ArithmeticError)  the cost or the parameters left the finite numbers
    ├── DeviceError              (RuntimeError)
    │   ├── DeviceUnavailableError               the device asked for cannot be used here, and why
    │   ├── DeviceMismatchError  (ValueError)    arrays that live in two places
    │   ├── DeviceFailedError                    the device failed while it computed
    │   └── DeviceFullError      (MemoryError)   not even one column fits
    ├── FileFormatError          (ValueError)    a file is damaged, foreign or too new
    ├── CheckpointError          (ValueError)    a checkpoint belongs to another fit, or is in its hands
    ├── ClusterError             (RuntimeError)  a cluster cannot go on with a fit
    └── MissingPackageError      (ImportError)   an optional package is needed, and which extra brings it

    XpnetWarning                 (UserWarning)
    ├── CheckpointWarning                        a checkpoint could not be written, or not be locked
    ├── DeviceFallbackWarning                    CUDA was asked for, the CPU is used
    ├── DeviceMemoryWarning                      memory ran out, fewer columns are taken at once
    ├── DeviceSpeedWarning                       a GPU is used in a slower way than it allows
    └── ScaleWarning                             features whose sizes slow training down

Each also inherits from the built-in that people catch, so ``except ValueError`` does what it says.

>>> import xpnet
>>> try:
...     xpnet.fit([[0.0, 1.0]], ["no", "yes"], epochs="many")
... except xpnet.errors.XpnetError as error:
...     print(type(error).__name__, "is a ValueError:", isinstance(error, ValueError))
...     print(error)
ArgumentError is a ValueError: True
epochs must be a whole number, 1 or more; it is 'many'.
"""


class XpnetError(Exception):
    """Base of everything that xpnet raises on purpose."""


class ArgumentError(XpnetError, ValueError):
    """An argument has a value that cannot be used."""


class UnknownArgumentError(ArgumentError, TypeError):
    """There is no argument of that name."""


class DataError(XpnetError, ValueError):
    """X, Y or a weight cannot be learned from."""


class ShapeError(DataError):
    """Shapes that do not fit each other."""


class TargetError(DataError):
    """Y does not fit the task."""


class ActivationError(XpnetError, ValueError):
    """A user's ``g`` and ``dg`` do not belong together."""


class DivergedError(XpnetError, ArithmeticError):
    """The cost or the parameters left the finite numbers."""


class DeviceError(XpnetError, RuntimeError):
    """Something about where arrays live."""


class DeviceUnavailableError(DeviceError):
    """The device asked for cannot be used here; the message names the cause and the mend."""


class DeviceMismatchError(DeviceError, ValueError):
    """Arrays that should be together live in two namespaces or on two devices."""


class DeviceFailedError(DeviceError):
    """The device failed while it computed; the message has CUDA's own words."""


class DeviceFullError(DeviceError, MemoryError):
    """There is no room on the device for one column, with the network's parameters and gradient."""


class FileFormatError(XpnetError, ValueError):
    """A file is damaged, is not xpnet's, or was written by a later version."""


class CheckpointError(XpnetError, ValueError):
    """A checkpoint belongs to another fit: other data, other arguments, or one that is running."""


class ClusterError(XpnetError, RuntimeError):
    """A cluster cannot go on with a fit: its scheduler, all of its workers or some of the data is gone."""


class MissingPackageError(XpnetError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""


class XpnetWarning(UserWarning):
    """Base of everything that xpnet warns of."""


class CheckpointWarning(XpnetWarning):
    """A checkpoint could not be written, and training goes on; or nothing can keep another fit from it."""


class DeviceFallbackWarning(XpnetWarning):
    """CUDA was asked for and cannot be used; the CPU is used instead."""


class DeviceMemoryWarning(XpnetWarning):
    """The device's memory ran out; fewer columns are taken at once, with the same mathematics."""


class DeviceSpeedWarning(XpnetWarning):
    """A GPU is used in a slower way than it allows; the message names the mend."""


class ScaleWarning(XpnetWarning):
    """Features are so large or so small that gradient descent will crawl."""
