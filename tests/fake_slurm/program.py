"""Plays sbatch, squeue, sacct, scancel, scontrol, sinfo and srun, as far as the project uses them.

Called as `main(STATE_FOLDER, COMMAND, ARGUMENTS)`. What it knows is in `state.json` of that folder; each call is a
line of `calls.jsonl` there. It depends on nothing but Python, and prints what Slurm 22.05 to 24.11 print. It is strict
where a test could otherwise pass by accident: unknown options, ids and formats are refused.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import sys
import time

# Tests call this some hundred times, so what starts slowly is imported where it is used.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Task = dict[str, Any]

ACTIVE = ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING")
SBATCH_OPTIONS = {
    *("account", "array", "chdir", "comment", "constraint", "cpus-per-task", "error", "exclusive", "gres", "hold"),
    *("job-name", "mail-type", "mail-user", "mem", "no-requeue", "nodelist", "nodes", "ntasks-per-node", "open-mode"),
    *("output", "partition", "qos", "reservation", "signal", "time", "wckey", "contiguous", "dependency", "licenses"),
}


class State:
    """`state.json`, held by one process at a time."""

    def __init__(self, folder: str) -> None:
        self.path = f"{folder}/state.json"
        self.lock = os.open(f"{folder}/lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.values: dict[str, Any] = json.loads(read(self.path))

    @property
    def tasks(self) -> list[Task]:
        return [task for task in self.values["tasks"] if not task.get("forgotten")]

    def save(self) -> None:
        with open(self.path + ".new", "w") as file:  # noqa: PTH123
            file.write(json.dumps(self.values))
        os.replace(self.path + ".new", self.path)  # noqa: PTH105


def read(path: str) -> str:
    with open(path) as file:  # noqa: PTH123
        return file.read()


def refuse(text: str, code: int = 1) -> NoReturn:
    sys.stderr.write(text + "\n")
    sys.exit(code)


def options_of(arguments: list[str], flags: set[str], valued: set[str]) -> tuple[dict[str, str], list[str]]:
    """`--key=value`, `--key value` and flags; what is left are operands."""
    found: dict[str, str] = {}
    rest = list(arguments)
    while rest and rest[0].startswith("--"):
        key, equals, value = rest.pop(0)[2:].partition("=")
        if key in flags and not equals:
            found[key] = ""
        elif key in valued:
            found[key] = value if equals else rest.pop(0)
        else:
            refuse(f"unrecognized option '--{key}'")
    return found, rest


def sbatch(state: State, arguments: list[str]) -> None:
    [path] = arguments
    settings = state.values
    settings["sbatch_calls"] += 1
    state.save()
    if settings["kill_before_sbatch"] == settings["sbatch_calls"]:
        os.kill(os.getppid(), signal.SIGKILL)
        return
    options = script_options(read(path))
    check_script(options, settings)
    job, array = settings["next_job"], options.get("array")
    settings["next_job"] += 1
    indices: list[int | None] = [None]
    if array:
        match = re.fullmatch(r"0-(\d+)(?:%\d+)?", array)
        if not match or int(match[1]) >= settings["max_array_size"]:
            refuse("sbatch: error: Batch job submission failed: Invalid job array specification")
        indices = list(range(int(match[1]) + 1))
    held = "hold" in options
    # What a held job with a dependency says depends on the version; its priority of 0 does not.
    reason = "Dependency" if "dependency" in options else "JobHeldUser" if held else "Priority"
    settings["tasks"] += [
        {
            **{"job": job, "index": index, "state": "PENDING", "reason": reason, "priority": 0 if held else 4000},
            **{
                "name": options["job-name"],
                "comment": options.get("comment"),
                "limit": (array or "").partition("%")[2],
            },
            **{"script": path, "exit_code": "0:0", "started": None, "ended": None, "nodes": "None assigned"},
            "user": settings["user"],
            "variables": {key: value for key, value in os.environ.items() if key.startswith(("SBATCH_", "SLURM_"))},
        }
        for index in indices
    ]
    state.save()
    if settings["kill_after_sbatch"] == settings["sbatch_calls"]:
        os.kill(os.getppid(), signal.SIGKILL)
    if settings["time_out_at_sbatch"] == settings["sbatch_calls"]:
        refuse("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    print(f"Submitted batch job {job}")


def script_options(text: str) -> dict[str, str]:
    """The `#SBATCH` lines up to the first command, with a shell's rules for quotation marks, as sbatch reads them."""
    import shlex

    if not text.startswith("#!"):
        refuse("sbatch: error: This does not look like a batch script.")
    if "\0" in text:
        refuse("sbatch: error: Script contains NUL")
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("#SBATCH"):
            for word in shlex.split(line[len("#SBATCH") :], comments=True):
                key, equals, value = word.partition("=")
                if not key.startswith("--") or key[2:] not in SBATCH_OPTIONS:
                    refuse(f"sbatch: unrecognized option '{word}'\nTry \"sbatch --help\" for more information")
                if key[2:] in found:
                    refuse(f"fake sbatch: {key} is given twice")
                found[key[2:]] = value if equals else ""
        elif line.strip() and not line.startswith("#"):
            break
    return found


def check_script(options: dict[str, str], settings: dict[str, Any]) -> None:
    partition = options.get("partition", settings["partitions"][0])
    for name in partition.split(","):
        if name not in settings["partitions"] or name in settings["refused_partitions"]:
            refuse(
                f"sbatch: error: invalid partition specified: {name}\n"
                "sbatch: error: Batch job submission failed: Invalid partition name specified"
            )
    if settings["sbatch_calls"] in settings["refused_sbatch"]:
        refuse("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified")
    if int(options["time"]) < 1 or int(options["nodes"]) < 1:
        refuse("sbatch: error: Invalid time limit or node count")


def name_of(task: Task) -> str:
    return str(task["job"]) if task["index"] is None else f"{task['job']}_{task['index']}"


def squeue(state: State, arguments: list[str]) -> None:
    options, rest = options_of(arguments, {"noheader", "array"}, {"name", "user", "format"})
    if rest or not {"noheader", "array"} <= set(options):
        refuse("fake squeue: only with --noheader and --array")
    for task in state.tasks:
        if task["state"] not in ACTIVE or task["name"] not in options["name"].split(","):
            continue
        if task["state"] not in os.environ.get("SQUEUE_STATES", "").split(",") and "SQUEUE_STATES" in os.environ:
            continue
        if "user" in options and task["user"] != options["user"]:
            continue
        letters = {"%i": name_of(task), "%T": task["state"], "%r": task["reason"], "%Q": str(task["priority"])}
        letters["%k"] = task["comment"] or "(null)"
        print("|".join(letters[letter] for letter in options["format"].split("|")))


def sacct(state: State, arguments: list[str]) -> None:
    options, rest = options_of(arguments, {"noheader", "parsable2"}, {"jobs", "format"})
    if rest or len(options) != 4:
        refuse("fake sacct: only with --noheader --parsable2 --jobs --format")
    wanted = {int(job) for job in options["jobs"].split(",")}
    waiting: dict[tuple[int, str], list[Task]] = {}
    for task in state.tasks:
        if task["job"] not in wanted or task.get("unknown_to_accounting"):
            continue
        if task["started"] is None and task["index"] is not None:
            waiting.setdefault((task["job"], accounted(task)), []).append(task)
        else:
            for step, ended in [("", accounted(task)), *(task.get("steps") or {}).items()]:
                print_past(name_of(task) + step, ended, task, options["format"])
    for (job, ended), tasks in waiting.items():
        indices = ",".join(ranges([task["index"] for task in tasks]))
        limit = f"%{tasks[0]['limit']}" if tasks[0]["limit"] else ""
        print_past(f"{job}_[{indices}{limit}]", ended, tasks[0], options["format"])


def accounted(task: Task) -> str:
    """Accounting may lag behind."""
    return str(task.get("accounted") or task["state"])


def ranges(indices: list[int]) -> list[str]:
    found: list[list[int]] = []
    for index in sorted(indices):
        if found and found[-1][-1] == index - 1:
            found[-1].append(index)
        else:
            found.append([index])
    return [str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in found]


def print_past(job: str, ended: str, task: Task, fields: str) -> None:
    started, end = task["started"], task["ended"] if ended not in ACTIVE else None
    elapsed = int((end or time.time()) - started) if started else 0
    values = {
        **{"JobID": job, "State": ended, "ExitCode": task["exit_code"], "ElapsedRaw": str(elapsed)},
        **{"Start": moment(started), "End": moment(end), "NodeList": task["nodes"]},
    }
    print("|".join(values[field] for field in fields.split(",")))


def moment(seconds: float | None) -> str:
    if seconds is None:
        return "Unknown"
    if os.environ.get("SLURM_TIME_FORMAT") == "%s":
        return str(int(seconds))
    import datetime

    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")


def scancel(state: State, arguments: list[str]) -> None:
    options, ids = options_of(arguments, {"quiet"}, set())
    for job in ids:
        tasks = [task for task in state.tasks if job in (str(task["job"]), name_of(task))]
        if not tasks and "quiet" not in options:
            refuse(f"scancel: error: Kill job error on job id {job}: Invalid job id specified")
        for task in tasks:
            if task["state"] not in ACTIVE:
                continue
            if task["user"] != state.values["user"]:
                refuse(f"scancel: error: Kill job error on job id {job}: Access/permission denied")
            task |= {
                "state": "CANCELLED by 1001",
                "ended": time.time(),
                "exit_code": "0:15" if task["started"] else "0:0",
            }
    state.save()


def scontrol(state: State, arguments: list[str]) -> None:
    if arguments == ["show", "config"]:
        print("Configuration data as of 2026-01-01T00:00:00")
        print(f"MaxArraySize            = {state.values['max_array_size']}\nMaxJobCount             = 10000")
        return
    verb, ids = arguments
    if state.values["kill_at_release"] == "before":
        os.kill(os.getppid(), signal.SIGKILL)
        return
    if verb != "release":
        refuse(f"fake scontrol: {verb}")
    for job in ids.split(","):
        tasks = [task for task in state.tasks if job in (str(task["job"]), name_of(task))]
        if not tasks:
            refuse(f"Invalid job id specified for job {job}\nslurm_suspend error: Invalid job id specified")
        for task in tasks:
            if task["state"] != "PENDING":
                refuse(
                    f"Job is no longer pending execution for job {job}\nslurm_suspend error: Job is no longer pending"
                )
            task |= {"priority": 4000, "reason": "Resources"}
        state.save()
    if state.values["kill_at_release"] == "after":
        os.kill(os.getppid(), signal.SIGKILL)


def sinfo(state: State, arguments: list[str]) -> None:
    options, _ = options_of(arguments, {"noheader", "exact", "Node"}, {"format", "partition", "states"})
    columns = options["format"].split("|")
    kind = "nodes" if "Node" in options else "groups"
    for line in state.values[kind]:
        if options.get("partition", line["%P"]).rstrip("*") == line["%P"].rstrip("*"):
            print("|".join(line[column] for column in columns))


def srun(state: State, arguments: list[str]) -> None:
    valued = {
        "immediate",
        "time",
        "nodes",
        "ntasks",
        "chdir",
        "account",
        "partition",
        "qos",
        "reservation",
        "constraint",
    }
    _, command = options_of(arguments, {"quiet"}, valued)
    if state.values["busy"]:
        refuse("srun: error: Unable to allocate resources: Requested nodes are busy")
    command[0] = "/bin/" + command[0]
    if state.values["nodes_see_nothing"]:
        command = ["/bin/sh", "-c", "test() { false; }; " + command[2]]
    os.execv(command[0], command)


COMMANDS = {command.__name__: command for command in (sbatch, squeue, sacct, scancel, scontrol, sinfo, srun)}


def main(folder: str, name: str, arguments: list[str]) -> None:
    state = State(folder)
    with open(f"{folder}/calls.jsonl", "a") as log:  # noqa: PTH123
        log.write(json.dumps([name, *arguments]) + "\n")
    if words := state.values["down"].get(name):
        refuse(words)
    COMMANDS[name](state, arguments)
