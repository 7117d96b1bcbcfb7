"""Plans for the clusters of `conf/cluster/`, as the submitting side gets them."""

from __future__ import annotations

import copy
import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from submitit.core.utils import DelayedSubmission

from benchmarks.core.config import RunConfig
from benchmarks.core.errors import UserError
from benchmarks.core.folder import SweepFolder
from benchmarks.core.progress import Progress, write_progress
from benchmarks.core.record import Reason, Record, Status, write_record
from benchmarks.core.sweep import Plan, PlannedRun, plan, read_sweep
from benchmarks.core.variants import CONF_DIR
from slurm.launch import Order, launch
from tests.conftest import base_mapping
from tests.fake_slurm import FakeSlurm


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """Of a sweep that is to be submitted."""
    return a_folder(tmp_path)


@pytest.fixture
def job(slurm: FakeSlurm, folder: SweepFolder) -> str:
    """Of the only run of a sweep, submitted a while ago."""
    launch(an_order(workers=1, repeats=1), folder)
    age_ledger(folder, 1000.0)
    return "100"


def cluster_file(name: str, **slurm: Any) -> dict[str, Any]:
    """`conf/cluster/<name>.yaml` with an account, and with some keys of its `slurm` section set otherwise."""
    values = msgspec.yaml.decode((CONF_DIR / "cluster" / f"{name}.yaml").read_bytes(), type=dict[str, Any])
    if values["slurm"].get("account"):  # read from the environment, or left to be set
        values["slurm"]["account"] = "pr_123_general"
    return {**values, "slurm": {**values["slurm"], **slurm}}


def a_plan(cluster: Mapping[str, Any], *, repeats: int = 1, where: Sequence[str] = (), **axes: Any) -> Plan:
    """A sweep on a cluster; axes as `workers=[1, 2]`, options as `workload__width=8`."""
    base = base_mapping(workload="mlp", steps=5, batch_per_worker=16)
    base |= {"cluster": copy.deepcopy(dict(cluster)), "device": "auto", "threads_per_worker": None}
    named = {key.replace("__", "."): value for key, value in axes.items()}
    sweep = {"name": "test", "axes": named, "repeats": repeats, "where": list(where)}
    return plan(read_sweep(sweep), base)


def an_order(cluster: Mapping[str, Any] | None = None, *, max_attempts: int = 3, **axes: Any) -> Order:
    """What the launcher is told: by default two runs of one shape on the one-machine cluster."""
    cluster = cluster or cluster_file("onehost")
    axes = axes or {"workers": 1, "repeats": 2}
    return Order(plan=a_plan(cluster, **axes), cluster=cluster, max_attempts=max_attempts)


def a_folder(tmp_path: Path, cluster: str = "onehost") -> SweepFolder:
    return SweepFolder.create(tmp_path / "results", cluster, "test")


def leave_record(folder: SweepFolder, run: PlannedRun, status: Status, attempt: int = 1, **facts: Any) -> None:
    """What a supervisor leaves at a run's end."""
    config = run.config
    values: dict[str, Any] = {
        **{"run_id": config.run_id, "cell_id": config.cell_id, "sweep": config.sweep, "repeat": config.repeat},
        **{"attempt": attempt, "status": status, "config": config.as_dict(), "wall_time_s": 10.0, "window": None},
        **{"workers": config.workers, "nodes": config.nodes, "started_at": "2026-01-01T00:00:00+00:00"},
        **{"ranks": [], "evaluation": [], "memory": None, "energy": None, "ledger": {"start": 10.0}},
        **{"ceilings": None, "sanity": [], "notes": [], "environment": {}},
        "reason": None if status == "ok" else Reason(phase="window", kind="Broken", message="on purpose"),
    }
    path = folder.run_folder(config.run_id)
    path.mkdir(exist_ok=True)
    write_record(path, Record(**values | facts))


def jobs_of(folder: SweepFolder) -> dict[str, list[str]]:
    """From the ledger: the jobs of each run, in the order of submission."""
    found: dict[str, list[str]] = {}
    for event in folder.events():
        if event["event"] == "submitted":
            found.setdefault(event["run_id"], []).append(event["job"])
    return found


def runs_in_queue(slurm: FakeSlurm) -> list[str]:
    """The runs that Slurm will make or makes, read from what their jobs would be given; held ones are an error."""
    found = []
    for task in slurm.tasks(active=True):
        assert task["state"] == "RUNNING" or task["priority"] > 0, f"{task['id']} waits to be released for ever"
        pickled = Path(task["script"]).parent / f"{task['id']}_submitted.pkl"
        payload = DelayedSubmission.load(pickled).args[0]
        found.append(Path(payload["folder"]).name)
    return sorted(found)


def run_jobs(slurm: FakeSlurm, make: Callable[[PlannedRun], None], but: str = "") -> None:
    """Play the nodes: `make` leaves the record of each run that is in the queue, but for one task's."""
    for task in slurm.tasks(active=True):
        if task["id"] == but:
            continue
        assert task["priority"] > 0
        payload = DelayedSubmission.load(Path(task["script"]).parent / f"{task['id']}_submitted.pkl").args[0]
        config = RunConfig.from_mapping(payload["config"])
        slurm.start(task["id"])
        make(PlannedRun(config=config, settings=config.flat()))
        slurm.end(task["id"], "COMPLETED", "0:0")


def ids(order: Order) -> list[str]:
    """The runs of a plan."""
    return sorted(run.config.run_id for run in order.plan.runs)


def age_ledger(folder: SweepFolder, by_s: float) -> None:
    """As if all of it had happened earlier."""
    events = list(folder.events())
    for event in events:
        then = datetime.datetime.fromisoformat(event["at"]) - datetime.timedelta(seconds=by_s)
        event["at"] = then.isoformat(timespec="seconds")
    (folder.path / "ledger.jsonl").write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in events))


def leave_progress(folder: SweepFolder, *, age_s: float = 2.0, attempt: int = 1, run_id: str | None = None) -> None:
    at = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age_s)).isoformat(timespec="seconds")
    run_id = run_id or next(iter(jobs_of(folder)))
    folder.run_folder(run_id).mkdir(exist_ok=True)
    facts: dict[str, Any] = {"phase": "window", "step": 7, "steps": 20, "samples_per_s": 1234.5}
    write_progress(
        folder.run_folder(run_id),
        Progress(run_id=run_id, attempt=attempt, job="100", host="n3", started_at=at, at=at, **facts),
    )


def refused(order: Order, folder: SweepFolder) -> str:
    """The one line that says why nothing was submitted."""
    with pytest.raises(UserError) as caught:
        launch(order, folder)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)
