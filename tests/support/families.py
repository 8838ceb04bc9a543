"""Process trees of workers."""

from __future__ import annotations

import contextlib
import json
import time

import psutil

# Children of every kind; each writes its pid to a separate file.
PARENT = """
import json, os, subprocess, tempfile, time

FOLDER = tempfile.mkdtemp()

def note(name):
    with open(f"{FOLDER}/{name}.part", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{FOLDER}/{name}.part", f"{FOLDER}/{name}")

def daemon():
    if os.fork():
        return os.wait()
    os.setsid()
    if os.fork():
        os._exit(0)
    note("forked-daemon")
    time.sleep(600)

class Handler:
    def initialize(self, context):
        shell = f"echo $$ > {FOLDER}/NAME.part; mv {FOLDER}/NAME.part {FOLDER}/NAME; exec sleep 600"
        subprocess.Popen(["sh", "-c", shell.replace("NAME", "child")])
        started = shell.replace("NAME", "daemon")
        # Of another session, without the variables of the worker, and without a parent as soon as it runs.
        subprocess.run(["setsid", "sh", "-c", 'sh -c "$0" &', started], env={"PATH": os.environ["PATH"]})
        subprocess.run(["sh", "-c", "sleep 0.1 &"])
        daemon()

    def handle(self, rows, context):
        names = ("child", "daemon", "forked-daemon")
        while not all(os.path.exists(f"{FOLDER}/{name}") for name in names):
            time.sleep(0.01)
        pids = {name: int(open(f"{FOLDER}/{name}").read()) for name in names}
        return [json.dumps({"worker": os.getpid(), **pids})] * len(rows)
"""


def family(answer: bytes) -> list[psutil.Process]:
    """Return the worker and all processes that it has started."""
    return [psutil.Process(pid) for pid in json.loads(answer).values()]


def runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def all_end(processes: list[psutil.Process]) -> bool:
    until = time.monotonic() + 60
    while any(map(runs, processes)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(runs, processes))


def descendants() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}
