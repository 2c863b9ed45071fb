"""Sums among processes: what a gradient spread over workers needs, by whichever way there is.

Examples are cut into numbered parts when a fit starts, and a process may hold several of them. A sum is taken in the
order of the parts' numbers, so its bits are the same whoever holds them; those of MPI and NCCL are in the order of the
processes.

====================  ================================================================================================
`Alone`               one process has all parts
`Star`                Dask's own connections, with the cluster's encryption: the first process adds, and tells the rest
`Mpi`                 MPI, where the workers were launched under it (``mpiexec``, dask-mpi)
`Nccl`                NCCL, where every process has a GPU of its own; not yet run on a GPU
====================  ================================================================================================
"""

import asyncio
import contextlib
import operator
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from xpnet.device import HOST, Place
from xpnet.errors import ClusterError
from xpnet.typing import Array

PLAIN = 2**17
"""Bytes up to which a vector travels within its message; larger ones go beside it, which copies less."""

LOOK = 0.25
"""Seconds of waiting after which a process looks whether it is still wanted."""

T = TypeVar("T")


class CutShortError(ClusterError):
    """A sum could not be taken: another process is gone or has failed, or nobody wants the result any more."""


class Member(NamedTuple):
    """One of the processes that sum.

    Attributes
    ----------
    address : str
        Of its Dask worker.
    parts : tuple of int
        The numbers of the parts that it holds, rising.
    """

    address: str
    parts: tuple[int, ...]


class Sums(Protocol):
    """A way to sum."""

    def sum(self, vectors: Mapping[int, Array]) -> Array:
        """Return the sum of all parts' vectors, the same bits in every process.

        Parameters
        ----------
        vectors : mapping of int to (count,) array
            Those of the parts that this process holds, of one dtype everywhere.

        Raises
        ------
        CutShortError
            It could not be taken.
        """

    def close(self) -> None:
        """Let go of the others, who are told so when they wait."""


class Alone:
    """Sums of parts that are all here."""

    def sum(self, vectors: Mapping[int, Array]) -> Array:
        """Return the sum, in the order of the parts."""
        return _added(vectors)

    def close(self) -> None:
        """There is nobody else."""


def _added(vectors: Mapping[int, Array]) -> Array:
    return reduce(operator.add, (vectors[number] for number in sorted(vectors)))


# Dask's own connections -----------------------------------------------------------------------------------------------


class Star:
    """Sums through the first process, over connections of Dask's, in an event loop of this thread's own.

    The others find it by its Dask worker's address, which tells them where it listens; both ends are secured as the
    worker's own connections are. A vector of 26 KB takes 0.4 ms between two processes of one machine, one of 3.2 MB
    12 ms.

    Parameters
    ----------
    worker : distributed.Worker
        That this process is.
    members : sequence of Member
        All, in the same order everywhere; the first adds.
    name : str
        Of this meeting, the same everywhere and never again.
    wanted : callable
        Whether to go on waiting; asked every `LOOK` seconds.
    """

    def __init__(self, worker: Any, members: Sequence[Member], name: str, wanted: Callable[[], bool]) -> None:
        self.worker, self.members, self.wanted = worker, members, wanted
        self.name = f"xpnet-{name}"
        self.rank = [member.address for member in members].index(worker.address)
        self.comms: dict[int, Any] = {}
        self._listener: Any = None
        self._runner = asyncio.Runner()
        try:
            self._waited(self._gather() if self.rank == 0 else self._join())
        except BaseException:
            self.close()
            raise

    def sum(self, vectors: Mapping[int, Array]) -> Array:
        """Return the sum, in the order of the parts."""
        ours = {number: HOST.asarray(vector) for number, vector in vectors.items()}
        return self._waited(self._added(ours) if self.rank == 0 else self._told(ours))

    def share(self, value: Any) -> Any:
        """Return the first process's `value` in all of them."""
        return self._waited(self._tell(value) if self.rank == 0 else self.comms[0].read())

    def close(self) -> None:
        """Let go of the others."""
        with self._runner:
            self._runner.run(self._leave())

    async def _leave(self) -> None:
        self.worker.extensions.pop(self.name, None)
        if self._listener is not None:
            self._listener.stop()
        for comm in self.comms.values():
            with contextlib.suppress(Exception):
                await asyncio.wait_for(comm.close(), LOOK)  # what was written last still goes out

    def _waited(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns, as long as somebody wants it."""
        try:
            return self._runner.run(self._watched(work))
        except (OSError, EOFError) as error:  # all of Dask's connections' errors are kinds of these
            raise CutShortError(f"A worker has left in the middle of a sum: {error}") from error

    async def _watched(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait((task,), timeout=LOOK))[0]:
                if not self.wanted():
                    raise CutShortError("Nobody wants this sum any more.")
            return task.result()
        finally:
            task.cancel()

    # Meeting

    async def _gather(self) -> None:
        """Listen until all others are here."""
        from distributed.comm import listen

        everyone = asyncio.Event()

        async def welcome(comm: Any) -> None:
            self.comms[await comm.read()] = comm
            if len(self.comms) == len(self.members) - 1:
                everyone.set()

        self._listener = await listen(
            _beside(self.worker.address),
            welcome,
            **self.worker.security.get_listen_args("worker"),
        )
        self.worker.extensions[self.name] = self._listener.contact_address
        await everyone.wait()

    async def _join(self) -> None:
        """Ask the first process's worker where it listens until it knows, and go there."""
        from distributed.comm import connect

        how = self.worker.security.get_connection_args("worker")
        comm = await connect(self.members[0].address, **how)
        try:
            while (contact := await self._asked(comm)) is None:
                await asyncio.sleep(0.002)
        finally:
            comm.abort()
        self.comms[0] = await connect(contact, **how)
        await _sent(self.comms[0], self.rank)

    async def _asked(self, comm: Any) -> Any:
        from distributed.core import send_recv
        from distributed.protocol.pickle import dumps

        answer = await send_recv(comm, op="run", function=dumps(partial(_contact, self.name)), reply=True)
        return answer["result"]

    # Summing

    async def _added(self, ours: Mapping[int, Array]) -> Array:
        vectors = dict(ours)
        count, dtype = (first := next(iter(ours.values()))).size, first.dtype
        for rank, comm in self.comms.items():
            theirs = _unpacked(await comm.read(), dtype).reshape(-1, count)
            vectors |= dict(zip(self.members[rank].parts, theirs, strict=True))
        total = _added(vectors)
        await self._tell(_packed(total))
        return total

    async def _tell(self, value: Any) -> Any:
        for comm in self.comms.values():
            await _sent(comm, value)
        return value

    async def _told(self, ours: Mapping[int, Array]) -> Array:
        vectors = [ours[number] for number in self.members[self.rank].parts]
        await self.comms[0].write(_packed(vectors[0] if len(vectors) == 1 else np.concatenate(vectors)))
        return _unpacked(await self.comms[0].read(), vectors[0].dtype)


def _contact(name: str, dask_worker: Any) -> str | None:
    """Return where a worker listens for a meeting, once it does."""
    found: str | None = dask_worker.extensions.get(name)
    return found


def _beside(address: str) -> str:
    """Return where a worker of that address can listen besides."""
    from distributed.comm import get_address_host
    from distributed.comm.addressing import parse_address

    scheme, _ = parse_address(address)
    if scheme == "inproc":  # workers that are threads of one process
        return "tcp://127.0.0.1:0"
    return f"{scheme}://{get_address_host(address)}:0"


async def _sent(comm: Any, message: Any) -> None:
    """Write a message, and see it off: what is left in a buffer would wait for the next time that the loop runs."""
    await comm.write(message)
    if (stream := getattr(comm, "stream", None)) is not None:
        await stream.write(b"")


def _packed(vector: Array) -> Any:
    from distributed.protocol import to_serialize

    return vector.tobytes() if vector.nbytes <= PLAIN else [to_serialize(vector)]


def _unpacked(message: Any, dtype: Any) -> npt.NDArray[Any]:
    return np.frombuffer(message, dtype) if isinstance(message, bytes) else np.asarray(message[0])


# MPI and NCCL ---------------------------------------------------------------------------------------------------------


class Mpi:
    """Sums by MPI among the workers that were launched under it.

    Parameters
    ----------
    ranks : sequence of int
        The processes' ranks in MPI's world, in the same order everywhere.
    """

    def __init__(self, ranks: Sequence[int]) -> None:
        from mpi4py import MPI

        group = MPI.COMM_WORLD.Get_group().Incl(list(ranks))
        self._comm = MPI.COMM_WORLD.Create_group(group)

    def sum(self, vectors: Mapping[int, Array]) -> Array:
        """Return the sum: that of this process's parts first, then that of the processes."""
        ours = np.ascontiguousarray(HOST.asarray(_added(vectors)))
        total = np.empty_like(ours)
        # Not Allreduce, which may round differently in different processes.
        self._comm.Reduce(ours, total, root=0)
        self._comm.Bcast(total, root=0)
        return total

    def close(self) -> None:
        """Free the communicator."""
        self._comm.Free()


class Nccl:
    """Sums by NCCL among processes that each have a GPU. Not yet run on a GPU.

    Parameters
    ----------
    star : Star
        By which they meet; the first process's identifier goes through it.
    place : Place
        The GPU.
    """

    def __init__(self, star: Star, place: Place) -> None:
        self.star, self.place, nccl = star, place, place.xp.cuda.nccl
        identifier = star.share(nccl.get_unique_id() if star.rank == 0 else None)
        with place.active():
            self._comm = nccl.NcclCommunicator(len(star.members), tuple(identifier), star.rank)
        self._types = {"float32": nccl.NCCL_FLOAT32, "float64": nccl.NCCL_FLOAT64}
        self._sum = nccl.NCCL_SUM

    def sum(self, vectors: Mapping[int, Array]) -> Array:
        """Return the sum: that of this process's parts first, then that of the processes."""
        ours = self.place.xp.ascontiguousarray(_added(vectors))
        total = self.place.xp.empty_like(ours)
        stream = self.place.xp.cuda.get_current_stream().ptr
        dtype = self._types[ours.dtype.name]
        self._comm.allReduce(ours.data.ptr, total.data.ptr, ours.size, dtype, self._sum, stream)
        return total

    def close(self) -> None:
        """Let go of the others, also in the middle of a sum."""
        self._comm.abort()
        self.star.close()


# The choice -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Means:
    """What a process can sum by.

    Attributes
    ----------
    mpi : int or None
        Its rank in MPI's world, when it was launched under MPI with threads allowed.
    gpu : str or None
        What tells its GPU from all others, when NCCL is there for it.
    """

    mpi: int | None = None
    gpu: str | None = None


def means(place: Place) -> Means:
    """Return what this process can sum by when it computes at `place`."""
    if place.is_cuda:
        return Means(gpu=_gpu(place))
    return Means(mpi=_mpi_rank()) if place.is_numpy else Means()


def _mpi_rank() -> int | None:
    """Return this process's rank, when whoever launched it has set MPI up."""
    mpi = getattr(sys.modules.get("mpi4py"), "MPI", None)
    if mpi is None or not mpi.Is_initialized() or mpi.Query_thread() < mpi.THREAD_MULTIPLE:
        return None
    return int(mpi.COMM_WORLD.Get_rank()) if mpi.COMM_WORLD.Get_size() > 1 else None


def _gpu(place: Place) -> str | None:
    nccl = getattr(place.xp.cuda, "nccl", None)
    if not getattr(nccl, "available", False):
        return None
    properties = place.xp.cuda.runtime.getDeviceProperties(place.device.id)
    return str(bytes(properties["uuid"]).hex())


def met(
    worker: Any,
    members: Sequence[Member],
    means: Sequence[Means],
    place: Place,
    name: str,
    wanted: Callable[[], bool],
) -> Sums:
    """Bring the processes together by the best means that all of them have; to be closed when that is over.

    Parameters
    ----------
    worker : distributed.Worker
        That this process is.
    members : sequence of Member
        All processes, in the same order everywhere.
    means : sequence of Means
        What each can sum by.
    place : Place
        Where this one computes.
    name, wanted
        As `Star` has them.
    """
    if len(members) == 1:
        return Alone()
    ranks = [it.mpi for it in means if it.mpi is not None]
    if len(set(ranks)) == len(members):
        return Mpi(ranks)
    star = Star(worker, members, name, wanted)
    gpus = {it.gpu for it in means if it.gpu is not None}
    return Nccl(star, place) if len(gpus) == len(members) else star
