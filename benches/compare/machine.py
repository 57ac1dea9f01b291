"""What a run needs of the machine: programs, a place for its files, weight against other processes."""

import contextlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

#: Against others that want the processors; needs root.
NICE = -20


class Trouble(Exception):
    """Something did not work; the text says what."""


def find_programs() -> None:
    """Makes sure that what is started by name is found."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:{Path.home()}/.cargo/bin"
    missing = [program for program in ("cargo", "tgtd", "tgtadm", "setpriv") if not shutil.which(program)]
    if missing:
        raise Trouble(f"missing: {' '.join(missing)}")


def build(root: Path) -> None:
    """Builds what is measured and what measures."""
    command = ["cargo", "build", "--release", "-p", "quarry", "-p", "iload", "-p", "eload", "-p", "cload"]
    if subprocess.run(command, cwd=root).returncode:
        raise Trouble("the build failed")


@contextlib.contextmanager
def work_dir(base: Path) -> Iterator[Path]:
    """A folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="qb-", dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def prefer(pid: int | str = "self") -> None:
    """Gives a process more weight than others.

    With sched_autogroup, niceness counts only among processes of one session (sched(7)), so that the session's own
    weight has to be set too.
    """
    if os.geteuid() != 0:
        return
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(NICE))
    tasks = Path(f"/proc/{pid}/task")
    with contextlib.suppress(OSError):
        for task in tasks.iterdir():
            os.setpriority(os.PRIO_PROCESS, int(task.name), NICE)


def generator_takes_place() -> None:
    """Gives this process, which is to be the generator, the last processor and weight."""
    if processors := sorted(os.sched_getaffinity(0)):
        os.sched_setaffinity(0, processors[-1:])
    prefer()


def generate(command: list[str], what: str) -> str:
    """Runs a generator in its place and returns what it printed."""
    ran = subprocess.run(
        command, capture_output=True, text=True, start_new_session=True, preexec_fn=generator_takes_place
    )
    if ran.returncode:
        raise Trouble(f"{what}: {ran.stderr.strip()[-300:]}")
    return ran.stdout


def target_takes_place() -> None:
    """Gives this process, which is to be a target, the processors that the generator does not have.

    Whether a request crosses to another processor makes a factor of two at depth 1; without this, it is left to
    chance, for each run anew.
    """
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, processors[:-1] or processors)


def is_disk(folder: Path) -> bool:
    """Whether a folder's files are on a disk, and so may be read and written past the page cache."""
    return not str(folder).startswith("/dev/shm")


def settle(folder: Path) -> None:
    """Lets what earlier runs left to the page cache reach the disk, so that the next run does not pay for it, and
    takes the folder's files out of the cache, so that a run on disk is one on disk. Memory files stay."""
    os.sync()
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as open_file:
                os.posix_fadvise(open_file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    time.sleep(0.1)


def describe(root: Path) -> dict[str, str]:
    """Says what was measured on what."""

    def first(path: str, key: str) -> str:
        with contextlib.suppress(OSError):
            for line in Path(path).read_text().splitlines():
                if line.startswith(key):
                    return line.split(":", 1)[-1].strip()
        return "unknown"

    def output(*command: str) -> str:
        with contextlib.suppress(OSError):
            return subprocess.run(command, cwd=root, capture_output=True, text=True).stdout.strip()
        return "unknown"

    return {
        "processor": f"{os.cpu_count()} x {first('/proc/cpuinfo', 'model name')}",
        "memory": first("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "commit": output("git", "rev-parse", "--short", "HEAD") or "unknown",
        "tgt": output("tgtd", "--version"),
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }
