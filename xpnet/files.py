"""Named NumPy arrays and a JSON-able dict in one safetensors file: what a network or a checkpoint is on disk.

A file is written whole or not at all, and reading one never executes anything. The format [1]_ is the length of a
header (8 bytes), the header (JSON) and the numbers; xpnet adds one metadata entry, ``"xpnet"``, which holds
``{"format": 1, "kind": "network", "metadata": {…}, "checksum": …}`` as JSON.

References
----------
.. [1] https://huggingface.co/docs/safetensors/index, section "Format".
"""

import contextlib
import json
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Literal, NoReturn, TypeAlias

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from xpnet.errors import ArgumentError, FileFormatError

FORMAT_VERSION = 1
"""Of the file's meaning: raised when an older xpnet would misread what this one writes."""

HEADER_LIMIT = 100_000_000
"""Bytes; the safetensors library's own limit."""

Kind: TypeAlias = Literal["network", "checkpoint"]

_ENTRY = "xpnet"
_RESERVED = "__metadata__"
_ADVICE = {
    "network": "open it with xpnet.load(...), and go on from it with fit(..., initial=...)",
    "checkpoint": "pass it as fit(..., checkpoint=...)",
}


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
    *,
    kind: Kind,
    alone: bool = False,
) -> None:
    """Write a file in one step: whoever reads `path`, or kills this process, finds the old file or the new one, whole.

    Only a kill can leave something behind: a file ``.xpnet-….tmp`` in the same folder, which may be deleted.

    Parameters
    ----------
    path : str or path
        Of a new or an old file, whose permissions are kept; a symbolic link stays one and its target is written.
    tensors : mapping of str to array
        Bool, integer or float arrays of at most 64 bits a number, in any order of axes or bytes.
    metadata : mapping of str
        What strict JSON holds: floats are finite and come back bit for bit, tuples come back as lists.
    kind : {"network", "checkpoint"}
        What `read` will have to ask for.
    alone : bool
        Whether nobody else can be writing to `path`, see `replacing`.

    Raises
    ------
    ArgumentError
        An array or the metadata cannot be stored, or `path` is a pipe or a device.
    OSError
        The disk is full, the folder cannot be written to, …; what was there is unchanged.
    """
    target = os.path.realpath(os.fsdecode(path))
    if _is_special(target):
        raise ArgumentError(f"{target!r} is a pipe, a socket or a device; xpnet writes files. Pass the path of a file.")
    data = _encode(tensors, metadata, kind=kind)
    with replacing(target, alone=alone) as temporary, open(temporary, "xb") as file:
        file.write(data)


def read(path: str | os.PathLike[str], *, kind: Kind) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays and the metadata of a file that `write` wrote.

    Memory is bounded whatever the file claims: by twice its size, and 30 times that of its header for the JSON.

    Parameters
    ----------
    path : str or path
        Of the file.
    kind : {"network", "checkpoint"}
        What the file has to be.

    Returns
    -------
    tensors : dict of str to array
        In the host's byte order and C order; writable.
    metadata : dict
        As JSON holds it.

    Raises
    ------
    FileFormatError
        The file is damaged, is not xpnet's, is of another kind, or was written by a later xpnet.
    OSError
        There is no such file (FileNotFoundError), it is a folder, or it may not be read.
    """
    path = os.fsdecode(path)
    if _is_special(path):
        raise FileFormatError(f"{path!r} is a pipe, a socket or a device; expected a file. Pass one that xpnet wrote.")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        header = _header(file, size, path, kind)
        metadata, checksum = _metadata(header, path, kind=kind)
        _check_arrays(header, size - file.tell(), path, kind)
        file.seek(0)
        data = file.read(size)
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise _damaged(path, f"its arrays cannot be read ({type(error).__name__}: {error!s:.200})", kind) from error
    if checksum is not None and checksum != _checksum(tensors):
        raise _damaged(path, "its numbers are not those that were written", kind)
    return tensors, metadata


def _encode(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any], *, kind: Kind) -> bytes:
    """Return the whole file."""
    arrays = {name: _plain(name, value) for name, value in tensors.items()}
    checksum = _checksum(arrays)
    try:
        entry = {"format": FORMAT_VERSION, "kind": kind, "metadata": dict(metadata), "checksum": checksum}
        text = json.dumps(entry, allow_nan=False)
        json.loads(text, object_pairs_hook=_object)  # 1 and "1" are one name in JSON
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(
            f"metadata must be strict JSON, but: {error}. Use str, bool, None, int, finite float, lists and dicts."
        ) from error
    try:
        data: bytes = save(arrays, {_ENTRY: text})
    except (SafetensorError, TypeError, ValueError) as error:
        raise ArgumentError(f"tensors must be arrays by name, but: {error}. Rename or convert them.") from error
    length = int.from_bytes(data[:8], "little")
    if length > HEADER_LIMIT:
        raise ArgumentError(
            f"metadata makes a header of {length:,} bytes; a file holds {HEADER_LIMIT:,}. Store less, or as an array."
        )
    return data


def _plain(name: str, value: np.ndarray) -> np.ndarray:
    """Return `value` as the library needs it: it writes memory as it lies, whatever the strides say."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise ArgumentError(
            f"tensors[{name!r}] is of dtype {array.dtype}; a file holds bool, integers and floats up to 64 bits. "
            "Convert it with astype."
        )
    if name == _RESERVED:
        raise ArgumentError(f"tensors has the name {name!r}, which the format keeps for itself. Rename the array.")
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")  # ascontiguousarray makes 0-d 1-d


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    """Return a number that arrays with another bit will hardly have: of a torn file often only zeros are left."""
    checksum = 0
    for name in sorted(arrays, key=str):
        array = arrays[name]
        plain = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
        checksum = zlib.crc32(plain.reshape(-1).view(np.uint8).data, checksum)
    return checksum


@contextlib.contextmanager
def replacing(path: str, *, alone: bool = False) -> Iterator[str]:
    """Yield the name of a file to write, which takes the place of `path` in one step when all has gone well.

    Parameters
    ----------
    path : str
        Of a new or an old file.
    alone : bool
        Whether nobody else can be writing to `path`, because it is locked: the name is then ``….tmp``, and what a kill
        left there goes.

    Raises
    ------
    OSError
        It could not be written; what was at `path` is as it was.
    """
    path = os.path.realpath(path)  # a link stays one
    folder = os.path.dirname(path)
    # A random name, because two processes may write one path; not by tempfile, whose files nobody else may read.
    temporary = f"{path}.tmp" if alone else os.path.join(folder, f".xpnet-{os.urandom(8).hex()}.tmp")
    try:
        if alone:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        yield temporary
        with contextlib.suppress(FileNotFoundError):  # a new file has the permissions that the umask gives
            os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
        _sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}; nothing was changed", path) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    with contextlib.suppress(OSError):  # Windows and some network disks cannot; the file is whole all the same
        _sync(folder)


def _sync(path: str) -> None:
    """See what a file or a folder holds to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _header(file: BinaryIO, size: int, path: str, kind: Kind) -> dict[str, Any]:
    """Return the header, read no further than the file and the limit allow."""
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise _damaged(path, f"it announces a header of {length:,} bytes and has {size:,} bytes in all", kind)
    if length > HEADER_LIMIT:
        raise _damaged(path, f"it announces a header of {length:,} bytes, above the limit of {HEADER_LIMIT:,}", kind)
    header = _json(file.read(length), "its header", path, kind)
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object", kind)
    return header


def _check_arrays(header: dict[str, Any], size: int, path: str, kind: Kind) -> None:
    """Check, before the numbers are read, that they are real and end where the file does, which may be a long hole."""
    try:
        arrays = [entry for name, entry in header.items() if name != _RESERVED]
        end = max((entry["data_offsets"][1] for entry in arrays), default=0)
        imaginary = [entry["dtype"] for entry in arrays if str(entry["dtype"]).startswith("C")]
    except (TypeError, KeyError, IndexError) as error:
        raise _damaged(path, f"its arrays cannot be read ({type(error).__name__}: {error!s:.200})", kind) from error
    if end != size:
        raise _damaged(path, f"its arrays cannot be read (they end at byte {end!r:.40} of {size:,})", kind)
    if imaginary:
        raise _damaged(path, f"its arrays cannot be read (one is of dtype {imaginary[0]:.40})", kind)


def _metadata(header: dict[str, Any], path: str, *, kind: Kind) -> tuple[dict[str, Any], Any]:
    """Return the metadata and the arrays' checksum, when they are of this `kind` and of a format that is known."""
    texts = header.get(_RESERVED)
    if not isinstance(texts, dict) or _ENTRY not in texts:
        raise FileFormatError(
            f"{path!r} is a safetensors file but not one of xpnet's: expected a {kind}. "
            "Open it with the library that wrote it."
        )
    match entry := _json(texts[_ENTRY], "its xpnet metadata", path, kind):
        case {"format": int(version)} if version > FORMAT_VERSION:
            raise FileFormatError(
                f"{path!r} was written by a later xpnet (format {version}); this one reads up to {FORMAT_VERSION}: "
                "pip install -U xpnet"
            )
        case {"format": int(version), "kind": str(found)} if version > 0 and found != kind and found in _ADVICE:
            raise FileFormatError(f"{path!r} is a {found}, not a {kind}: {_ADVICE[found]}")
        case {"format": int(version), "kind": str(found), "metadata": dict(metadata)} if version > 0 and found == kind:
            return metadata, entry.get("checksum")
        case _:
            raise _damaged(path, "its xpnet metadata lacks a known format, a known kind or the metadata itself", kind)


def _json(text: str | bytes, what: str, path: str, kind: Kind) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_object)
    except (TypeError, ValueError, RecursionError) as error:
        raise _damaged(path, f"{what} is not JSON ({error!s:.200})", kind) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; of a name that is there twice two readers may take two values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a name twice")
    return found


def _no_constant(name: str) -> NoReturn:
    """Raise for NaN and Infinity, which Python's parser takes and JSON does not know."""
    raise ValueError(f"{name} is not a JSON number")


def _damaged(path: str, came: str, kind: Kind) -> FileFormatError:
    mend = ", or delete it to start anew" if kind == "checkpoint" else ""
    return FileFormatError(
        f"{path!r} is damaged or not a safetensors file: {came}. Expected a file that xpnet wrote; "
        f"pass another, or a whole copy of this one{mend}."
    )


def _is_special(path: str) -> bool:
    """Return whether `path` is there but is neither a file nor a folder: opening a pipe would wait for ever."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))
