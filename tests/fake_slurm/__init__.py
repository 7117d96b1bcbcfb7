"""A Slurm for tests, faked where the project calls it: a folder of commands that comes first, and alone, on PATH."""

from __future__ import annotations

import fcntl
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).resolve().parent / "program.py"
COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "sinfo", "srun")

# What `sinfo` prints on the one-machine cluster; tests add their own.
CPU_GROUP = {"%P": "cpu*", "%a": "up", "%D": "4", "%c": "4", "%m": "5423", "%G": "gpu:1", "%l": "1-00:00:00"}


def idle_node(name: str, partition: str = "cpu") -> dict[str, str]:
    """A line of `sinfo --Node`."""
    return {"%N": name, "%t": "idle", "%P": partition, "%a": "up"}


# What Slurm's commands say where they cannot answer.
NO_ACCOUNTING = "Slurm accounting storage is disabled"
NO_DBD = "sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection: Connection refused"
NO_CONTROLLER = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


class FakeSlurm:
    """Makes the commands and their state in a folder, and lets a test play the cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        state = {
            "tasks": [],
            "next_job": 100,
            "user": "me",
            "partitions": ["cpu", "gpu"],
            "refused_partitions": [],
            "refused_sbatch": [],
            "sbatch_calls": 0,
            "kill_before_sbatch": 0,
            "kill_after_sbatch": 0,
            "time_out_at_sbatch": 0,
            "kill_at_release": "",
            "max_array_size": 1001,
            "groups": [CPU_GROUP, {**CPU_GROUP, "%P": "gpu"}],
            "nodes": [],  # that are idle, see idle_node
            "down": {},
            "busy": False,
            "nodes_see_nothing": False,
        }
        (folder / "state.json").write_text(json.dumps(state))
        for command in COMMANDS:
            (self.bin / command).write_text(
                f"#!{sys.executable} -IS\nimport sys\nsys.path.insert(0, {str(PROGRAM.parent)!r})\n"
                f"import program\nprogram.main({str(folder)!r}, {command!r}, sys.argv[1:])\n"
            )
            (self.bin / command).chmod(0o755)

    @contextmanager
    def state(self) -> Iterator[dict[str, Any]]:
        """The state, to be read or changed."""
        with (self.folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            values = json.loads((self.folder / "state.json").read_text())
            yield values
            (self.folder / "state.json").write_text(json.dumps(values))

    def set(self, **settings: Any) -> None:
        with self.state() as values:
            assert values.keys() >= settings.keys()
            values.update(settings)

    def down(self, **commands: str) -> None:
        """These commands print these words and fail, until they are named with nothing to say."""
        with self.state() as values:
            values["down"].update(commands)

    def calls(self, command: str) -> list[list[str]]:
        """The arguments of all calls of a command so far."""
        path = self.folder / "calls.jsonl"
        lines = map(json.loads, path.read_text().splitlines()) if path.exists() else []
        return [line[1:] for line in lines if line[0] == command]

    def tasks(self, *, active: bool = False) -> list[dict[str, Any]]:
        """All tasks that sbatch has taken; single jobs are tasks, too."""
        with self.state() as values:
            found = [{**task, "id": task_id(task)} for task in values["tasks"]]
        return [task for task in found if task["state"] in ("PENDING", "RUNNING")] if active else found

    def update(self, task: str, **facts: Any) -> None:
        """Change what Slurm knows of a task."""
        with self.state() as values:
            [one] = [one for one in values["tasks"] if task_id(one) == task]
            one.update(facts)

    def start(self, task: str, ago_s: float = 100.0) -> None:
        steps = {".batch": "RUNNING", ".extern": "RUNNING", ".0": "RUNNING"}
        facts = {"reason": "None", "started": time.time() - ago_s, "nodes": "n1", "steps": steps}
        self.update(task, state="RUNNING", **facts)

    def end(self, task: str, state: str, exit_code: str = "1:0", ago_s: float = 60.0, **steps: str) -> None:
        """End a task that runs; `steps` by name (`batch`, `extern`, `0`) end otherwise than it."""
        ended = {f".{name}": "COMPLETED" for name in ("batch", "extern")} | {".0": state}
        ended |= {f".{name.removeprefix('step_')}": said for name, said in steps.items()}
        self.update(task, state=state, exit_code=exit_code, ended=time.time() - ago_s, steps=ended)

    def script(self, task: str) -> str:
        """What sbatch was given."""
        [one] = [one for one in self.tasks() if one["id"] == task]
        return Path(one["script"]).read_text()


def task_id(task: dict[str, Any]) -> str:
    return str(task["job"]) if task["index"] is None else f"{task['job']}_{task['index']}"
