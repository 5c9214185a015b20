"""The jobs of a plan on a Dask cluster: results written as they come, each once and whole; a run that was stopped goes on.

A job is one Parquet file. What is finished is what lies there: no list is kept that could disagree. The command writes the files,
not the workers, so that a cluster needs to share only what is read: pictures, graphs and weights, at the same paths.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from dask.system import CPU_COUNT
from distributed import Client, Future, Nanny, Scheduler, SpecCluster, as_completed
from distributed.scheduler import KilledWorker
from distributed.system import MEMORY_LIMIT

from ... import LabError
from ...config import GPU
from ...errors import first_line
from ...files import TEXT, read_json, record, require_room, say, write_json, written_whole
from ...port.graphs import Graphs, find_network
from ..measures import MEASURES
from . import work
from .plan import Contender, Job, Plan, jobs

STAMP = "evaluation.json"
STAMPED = record(plan={"type": "object"}, made_by={"type": "object"}, weights=TEXT)
KEYS = [("picture", pa.string()), ("square", pa.int32()), ("hole", pa.string()), ("contender", pa.string())]
NUMBERS = ("share", *MEASURES, "lpips", "seconds")
SCHEMA = pa.schema([*KEYS, ("error", pa.string()), *((name, pa.float64()) for name in NUMBERS), ("features", pa.binary())])
"""The columns of every part; a measure that was not taken is null."""
PART_BYTES = 200  # about what a row takes on the disk, without features
PROCESS_BYTES, PARAMETER_BYTES = 1e9, 24
"""About what a worker takes in memory: for itself, and for each parameter of the network; 6.7 GB were measured at full size."""
MEMORY_SHARE = 0.8  # of the machine's memory may go to workers
QUIET = logging.CRITICAL  # what a job raises comes back with it, and lost workers are counted; Dask's log would say it again
CONNECT_SECONDS = 30  # that a scheduler may take to answer ...
START_SECONDS = 600  # ... and workers to start on a busy machine, where importing takes long


@dataclass(frozen=True)
class Progress:
    """Handed to the callback after every job, and once before the first."""

    done: int  # holes filled, by all contenders together, with those of earlier runs
    of: int
    dashboard: str  # address of Dask's; empty without a cluster


@dataclass(frozen=True)
class Ran:
    """What a call did."""

    jobs: int  # that this call ran
    holes: int  # in them
    seconds: float  # from the first job's start to the last part's end
    work_seconds: float  # that workers spent in `work.do`: what a plain loop would have taken
    workers: int  # that were there at the start; 0 without a cluster
    lost: int  # of these, how many were not there at the end


def run(
    plan: Plan,
    who: tuple[Contender, ...],
    folder: str | Path,
    workers: int | None = None,
    scheduler: str = "",
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Ran:
    """Run every job whose part is not in `folder` yet.

    Args:
        plan: pictures, holes and settings.
        who: contenders; those that a finished run lacks are added to it.
        folder: gets `evaluation.json`, what it was made from, and `parts/`.
        workers: processes on this machine, one thread each; None for as many as cores and memory allow; 0 for a plain loop in this
            process. With a scheduler it is not used.
        scheduler: address of a Dask cluster that exists, as in tcp://host:8786.
        on_progress: called with how far it is.

    Raises:
        LabError: the folder holds another evaluation, the cluster cannot be reached or lacks a resource, or a job ended its worker
            several times. What was finished is kept.
    """
    folder = Path(folder).resolve()
    graphs = Graphs(find_network(plan.network), plan.weights, Path(plan.graphs))
    _stamp(plan, graphs, folder)
    for form in dict.fromkeys(c.form for c in who if c.form and c.filler not in ("torch", "torch-cuda")):
        graphs.stored(form)  # once, before workers ask for it at the same time
    every = jobs(plan, who)
    left = [job for job in every if read_part(folder / job.name) is None]
    require_room(folder, PART_BYTES * sum(len(job.cases) for job in left), "the evaluation")
    total = sum(len(job.cases) for job in every)
    done, spent = total - sum(len(job.cases) for job in left), 0.0
    alone = not left or workers == 0 and not scheduler
    with nullcontext() if alone else _client(scheduler, graphs, left, workers) as client:
        at_first, link = (_ready(client), client.dashboard_link) if client else (set(), "")
        on_progress(Progress(done, total, link))
        start = time.perf_counter()
        for job, rows, took in _from_workers(client, plan, left) if client else _here(plan, left):
            write_part(folder / job.name, rows)
            done, spent = done + len(job.cases), spent + took
            on_progress(Progress(done, total, link))
        seconds = time.perf_counter() - start
        lost = at_first - set(_workers(client)) if client else ()
    return Ran(len(left), sum(len(job.cases) for job in left), seconds, spent, len(at_first), len(lost))


# -- what is kept ------------------------------------------------------------------------------------------------------


def facts_of(plan: Plan, graphs: Graphs) -> dict[str, object]:
    """Everything that an evaluation's numbers depend on except its contenders, as JSON can say it."""
    return {"plan": plan.facts(), "made_by": work.MADE_BY, "weights": graphs.fingerprint()}


def _stamp(plan: Plan, graphs: Graphs, folder: Path) -> None:
    """Record what the run is made from; LabError where something else was recorded."""
    facts, path = facts_of(plan, graphs), folder / STAMP
    if not path.exists():
        if any(folder.glob("parts/*/*.parquet")):
            raise LabError(f"{folder} has results but no {STAMP}; choose another folder, or remove this one")
        write_json(path, facts)
        return
    kept = read_json(path, STAMPED, "choose another folder, or remove this one")
    named, before = (x["plan"] | {"code or libraries": x["made_by"], "the weights": x["weights"]} for x in (facts, kept))
    if different := [name for name, value in named.items() if value != before.get(name)]:
        raise LabError(
            f"{folder} holds an evaluation that differs in {', '.join(different)}; choose another folder, or remove this one"
        )


def kept_plan(folder: str | Path) -> dict:
    """What the run in a folder was made from: "plan" as `Plan.facts` has it, "made_by", "weights".

    Raises:
        DamagedFile: there is none, or it is damaged.
    """
    return read_json(Path(folder) / STAMP, STAMPED, "name the folder of an evaluation")


def write_part(path: Path, rows: list[dict]) -> None:
    """Write the rows of a job whole or not at all, and have the disk confirm it."""
    table = pa.Table.from_pylist(rows, SCHEMA)
    with written_whole(path) as part:
        with part.open("wb") as file:
            pq.write_table(table, file, write_page_checksum=True)
            file.flush()
            os.fsync(file.fileno())


def read_part(path: Path) -> pa.Table | None:
    """The rows of a job; None where it is missing or, which is said, damaged."""
    if not path.exists():
        return None
    try:
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
        if table.schema.equals(SCHEMA):
            return table
        words = "other columns"
    except (pa.ArrowException, OSError) as error:
        words = first_line(error)
    say(f"{path} is damaged ({words}); its job is run again")
    return None


# -- where jobs run ----------------------------------------------------------------------------------------------------


def _workers(client: Client) -> dict[str, dict]:
    """What the scheduler knows of each worker, by its address."""
    return client.scheduler_info(n_workers=-1)["workers"]


def _ready(client: Client) -> set[str]:
    """Have every worker import what jobs need, which takes seconds, before the clock starts; returns their addresses.

    Raises:
        LabError: a worker has other code or libraries than this process.
    """
    found = client.run(_made_by)
    if other := [address for address, facts in found.items() if facts != work.MADE_BY]:
        raise LabError(
            f"{len(other)} of {len(found)} workers have other code or libraries; install the same there, as on {other[0]}"
        )
    return set(found)


def _made_by() -> dict[str, object]:
    return work.MADE_BY


def _timed(plan: Plan, job: Job) -> tuple[list[dict], float]:
    start = time.perf_counter()
    return work.do(plan, job), time.perf_counter() - start


def _here(plan: Plan, left: list[Job]) -> Iterator[tuple[Job, list[dict], float]]:
    for job in left:
        yield job, *_timed(plan, job)


def _from_workers(client: Client, plan: Plan, left: list[Job]) -> Iterator[tuple[Job, list[dict], float]]:
    """Jobs as they are finished, each once. Dask does a lost worker's jobs again; one that ends its workers again and again is given up."""
    needed = {job.contender.resource for job in left} - {""}
    offered = {name for worker in _workers(client).values() for name in worker["resources"]}
    if needed - offered:
        words = f"no worker of this cluster offers {', '.join(needed - offered)}"
        raise LabError(f"{words}; start one with `dask worker ADDRESS --resources {GPU}=1`, or leave out what needs it")
    known = {f"evaluate-{i}": job for i, job in enumerate(left)}
    sent = replace(plan, names=plan.names[:1])  # a job names its pictures; the list of all may be long

    def submit(key: str, job: Job) -> Future:
        resources = {job.contender.resource: 1} if job.contender.resource else None
        return client.submit(_timed, sent, job, key=key, resources=resources, pure=False)

    given_up = []
    for future in as_completed([submit(key, job) for key, job in known.items()], loop=client.loop):
        job = known[future.key]
        try:
            rows, seconds = future.result()
        except KilledWorker:
            given_up.append(f"{job.contender.label}, batch {job.number}")
            continue
        yield job, rows, seconds
    if given_up:
        raise LabError(
            f"{len(given_up)} jobs ended their worker several times, most likely because memory ran out; take fewer workers or a smaller "
            f"batch, and run the command again. The first: {given_up[0]}"
        )


@contextmanager
def _client(scheduler: str, graphs: Graphs, left: list[Job], workers: int | None) -> Iterator[Client]:
    """A client of the cluster at an address, or of one made for this run on this machine.

    Raises:
        LabError: nothing answers at the address, or too few workers start.
    """
    if scheduler:
        try:
            client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, ImportError) as error:  # ImportError: a protocol that is not installed
            words = f"no Dask scheduler answers at {scheduler} ({first_line(error)})"
            raise LabError(f"{words}; start one with `dask scheduler`, or leave --scheduler out") from None
        with client:
            if not _workers(client):
                raise LabError(f"the scheduler at {scheduler} has no workers; start some with `dask worker {scheduler}`")
            yield client
        return
    options = {"host": "127.0.0.1", "port": 0, "dashboard": True, "dashboard_address": "127.0.0.1:0"}
    description = _workers_here(graphs, left, workers)
    with SpecCluster(description, {"cls": Scheduler, "options": options}, silence_logs=QUIET) as cluster:
        logging.getLogger("tornado.application").setLevel(QUIET)
        with Client(cluster, set_as_default=False) as client:
            client.wait_for_workers(len(description), timeout=START_SECONDS)
            yield client


def _workers_here(graphs: Graphs, left: list[Job], workers: int | None) -> dict[str, dict]:
    """Processes of one thread on this machine, as `SpecCluster` takes them: each card has one of its own, the rest are for the processor."""
    needs = {job.contender.resource for job in left}
    cards = max(torch.cuda.device_count(), 1) if GPU in needs else 0
    cards = min(cards, workers or cards)
    fitting = workers or workers_that_fit(graphs)
    common = {"nthreads": 1, "host": "127.0.0.1", "memory_limit": 0, "dashboard": False, "silence_logs": QUIET}
    found = {}
    for i in range(cards):
        own = {"resources": {GPU: 1}, "env": {"CUDA_VISIBLE_DEVICES": str(i)}}
        found[f"card-{i}"] = {"cls": Nanny, "options": common | own}
    if "" in needs:
        found |= {f"processor-{i}": {"cls": Nanny, "options": common} for i in range(min(fitting, len(left)))}
    return found


def workers_that_fit(graphs: Graphs) -> int:
    """How many workers cores and memory of this machine allow, at least 1."""
    parameters = sum(graphs.parameter_counts().values())
    fitting = int(MEMORY_SHARE * MEMORY_LIMIT / (PROCESS_BYTES + PARAMETER_BYTES * parameters))
    return max(min(CPU_COUNT, fitting), 1)
