"""The thin engine against a qcow2 image and a plain file, each loaded inside one process, without a network."""

import json
import os
import re
import resource
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import machine
from machine import Trouble

MIB = 1 << 20
NAN = float("nan")


@dataclass(frozen=True)
class EngineJob:
    """One load. Requests follow each other at a fixed step, so that every subject touches the same blocks."""

    name: str
    title: str
    #: read, write or discard.
    rw: str = "read"
    #: Bytes.
    block: int = 4096
    #: From one request to the next, in bytes. 17 blocks: each block of a volume comes before one comes again.
    step: int = 17 * 4096
    depth: int = 32
    #: Whether everything was written before; else nothing was.
    filled: bool = True
    #: Taken after that.
    snapshots: int = 0
    #: A flush after so many requests of each of those in flight; 0 is one at the end.
    fsync: int = 0
    #: MiB; None is the run's own.
    size_mib: int | None = None
    #: No more requests than these: a chunk is written for the first time only once.
    requests: int = 0
    #: Where it means anything: in memory, a flush does nothing.
    media: tuple[str, ...] = ("shm", "disk")
    #: How many times as fast as a peer, or as our own other job, it has to be.
    floors: tuple[tuple[str, float], ...] = ()

    @property
    def is_stream(self) -> bool:
        """Told in MB/s."""
        return self.block >= MIB


FIRST = {"rw": "write", "step": 65536, "size_mib": 16384, "requests": 262144, "filled": False}
AFTER_SNAPSHOT = {"rw": "write", "step": 65536, "requests": 16384, "snapshots": 1}


def _jobs() -> list[EngineJob]:
    stream = {"block": MIB, "step": MIB, "depth": 8}
    synced = {"fsync": 1, "media": ("disk",)}
    return [
        EngineJob("read-q1", "4 KiB read, depth 1", depth=1),
        EngineJob("read-q32", "4 KiB read, depth 32"),
        EngineJob("read-1snap", "the same, 1 snapshot", snapshots=1, floors=(("read-q32", 0.95),)),
        EngineJob("read-1000snap", "the same, 1,000 snapshots", snapshots=1000, floors=(("read-q32", 0.95),)),
        EngineJob("over-q1", "4 KiB overwrite, depth 1", "write", depth=1),
        EngineJob("over-q32", "4 KiB overwrite, depth 32", "write"),
        EngineJob("first-q32", "4 KiB first write of a chunk, depth 32", **FIRST),
        EngineJob("cow-q32", "4 KiB write of a chunk after a snapshot, depth 32", **AFTER_SNAPSHOT),
        EngineJob("read-1m", "1 MiB sequential read, depth 8", **stream),
        EngineJob("over-1m", "1 MiB sequential overwrite, depth 8", "write", **stream),
        EngineJob("first-1m", "1 MiB sequential first write, depth 8", "write", filled=False, **stream),
        EngineJob("over-sync", "4 KiB overwrite, flush after each", "write", depth=1, **synced),
        EngineJob("over-sync-x16", "the same, 16 writers", "write", depth=16, **synced),
        EngineJob("first-sync", "4 KiB first write, flush after each", **FIRST | synced | {"depth": 1}),
        EngineJob("first-sync-x16", "the same, 16 writers", **FIRST | synced | {"depth": 16}),
        # A cluster of either image: they do not discard less.
        EngineJob("discard", "128 KiB discard of what was written, depth 1", "discard", 131072, 131072, 1, requests=8192),
    ]


ALL = {job.name: job for job in _jobs()}

#: The two qcow2 images that are common: Debian's default, and one with blocks of 4 KiB inside its clusters.
QCOW2 = {
    "qcow2 64k": "cluster_size=64k,lazy_refcounts=off",
    "qcow2 ext_l2": "cluster_size=128k,extended_l2=on",
}


class Subject:
    """Something that stores a volume."""

    name: str
    is_checked = False

    def __init__(self, folder: Path, binaries: Path, size_mib: int) -> None:
        self.folder = folder
        self.binaries = binaries
        self.size_mib = size_mib

    def size_of(self, job: EngineJob) -> int:
        """The volume's size in MiB."""
        return job.size_mib or self.size_mib

    def start(self) -> None:
        """Nothing runs between loads."""

    def fill(self) -> None:
        """Each load makes its own volume."""

    def stop(self) -> None:
        """Nothing runs between loads."""

    def takes(self, _job: EngineJob) -> bool:
        """Whether it can do the job."""
        return True


def _run(command: list[str], said_to_it: str = "") -> str:
    how = {"capture_output": True, "text": True, "start_new_session": True, "preexec_fn": machine.prefer}
    ran = subprocess.run(command, input=said_to_it, **how)
    if ran.returncode:
        raise Trouble(f"{' '.join(command[:3])}: {ran.stderr.strip()[-300:]}")
    return ran.stdout


class Engine(Subject):
    """A volume of the thin engine."""

    name = "quarry"

    def measure(self, job: EngineJob, seconds: float) -> dict[str, float]:
        """Makes the volume and loads it."""
        command = [str(self.binaries / "eload"), "--pool", str(self.folder / "pool")]
        command += ["--size", f"{self.size_of(job)}m", "--prepare", "filled" if job.filled else "blank"]
        command += ["--snapshots", str(job.snapshots), "--rw", job.rw, "--bs", str(job.block), "--step", str(job.step)]
        command += ["--qd", str(job.depth), "--fsync", str(job.fsync), "--ops", str(job.requests)]
        command += ["--time", str(seconds), *(["--end-fsync"] if job.rw != "read" and not job.fsync else [])]
        try:
            return json.loads(_run(command))
        finally:
            (self.folder / "pool").unlink(missing_ok=True)


class Qcow2(Subject):
    """A qcow2 image, loaded by qemu-img bench."""

    def __init__(self, folder: Path, binaries: Path, size_mib: int, name: str, options: str) -> None:
        super().__init__(folder, binaries, size_mib)
        self.name = name
        self.options = options

    def takes(self, job: EngineJob) -> bool:
        """qemu-img bench flushes for all of those in flight together; a chain of snapshots is made in no time."""
        return not (job.fsync and job.depth > 1) and job.snapshots <= 1

    def measure(self, job: EngineJob, seconds: float) -> dict[str, float]:
        """Makes the image and loads it: first with a few requests, which tell how many the time is worth."""
        image = self.folder / "image.qcow2"
        size = self.size_of(job)
        try:
            _run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", self.options, str(image), f"{size}M"])
            if job.filled:
                self._bench(image, ["-w", "-s", str(MIB), "-S", str(MIB), "-d", "8"], size)
            for number in range(job.snapshots):
                _run(["qemu-img", "snapshot", "-c", str(number), str(image)])
            options = ["-s", str(job.block), "-S", str(job.step), "-d", str(job.depth)]
            options += ["-w"] if job.rw == "write" else []
            options += ["--flush-interval", str(job.fsync)] if job.fsync else []
            if job.rw == "discard":
                return self._discard(image, job, size)
            trial = min(1000, job.requests or 1000)
            rate = self._bench(image, options, trial)["iops"]
            count = max(int(rate * seconds), 1000)
            if job.requests:
                count = min(count, job.requests - trial)
            offset = trial * job.step % (size * MIB)
            said = self._bench(image, [*options, "-o", str(offset)], count)
            return said | {"mb_per_s": said["iops"] * job.block / 1e6}
        finally:
            image.unlink(missing_ok=True)

    def _discard(self, image: Path, job: EngineJob, size: int) -> dict[str, float]:
        """qemu-img bench does not discard; qemu-io does, one after the other. Its start and end are not counted."""
        count = min(job.requests, size * MIB // job.step)
        commands = "".join(f"discard -q {number * job.step} {job.block}\n" for number in range(count))
        nothing, nothing_cpu = self._qemu_io(image, "")
        elapsed, cpu = self._qemu_io(image, commands)
        rate = count / max(elapsed - nothing, 1e-3)
        said = {"iops": rate, "p50_us": NAN, "p99_us": NAN, "mb_per_s": rate * job.block / 1e6}
        return said | {"target_cpu_us_per_io": (cpu - nothing_cpu) * 1e6 / count}

    def _qemu_io(self, image: Path, commands: str) -> tuple[float, float]:
        """Returns how many seconds that took, of the clock and of processors."""
        command = ["qemu-io", "-f", "qcow2", "-d", "unmap", "-i", "io_uring", "-t", self._cache(), str(image)]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        _run(command, commands)
        after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        return ended - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def _cache(self) -> str:
        return "none" if machine.is_disk(self.folder) else "writeback"

    def _bench(self, image: Path, options: list[str], count: int) -> dict[str, float]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = ["qemu-img", "bench", "-f", "qcow2", "-i", "io_uring", "-t", self._cache(), "-c", str(count)]
        said = _run([*command, *options, str(image)])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        elapsed = re.search(r"completed in ([0-9.]+) seconds", said)
        if not elapsed:
            raise Trouble(f"qemu-img bench did not say how long it took: {said[-200:]}")
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        rate = count / max(float(elapsed[1]), 1e-3)
        return {"iops": rate, "p50_us": NAN, "p99_us": NAN, "target_cpu_us_per_io": cpu * 1e6 / count}


class PlainFile(Subject):
    """A file, loaded by fio through io_uring: what the medium can do."""

    name = "raw file"

    def takes(self, job: EngineJob) -> bool:
        """A file has no snapshots."""
        return job.snapshots == 0

    def measure(self, job: EngineJob, seconds: float) -> dict[str, float]:
        """Makes the file and loads it."""
        file = self.folder / "raw"
        size = self.size_of(job)
        writers = job.depth if job.fsync else 1
        # What fio calls a trim is a hole punched into the file, with this engine.
        discards = job.rw == "discard"
        kind = "trim" if discards else job.rw
        rw = f"{kind}:{job.step - job.block}" if job.step > job.block else kind
        options = [f"--rw={rw}", f"--bs={job.block}", f"--iodepth={job.depth // writers}", f"--numjobs={writers}"]
        # What can be done only once must not be done again.
        options += [] if job.requests else ["--time_based"]
        options += [f"--runtime={seconds}", f"--size={size}m", "--thread"]
        options += [f"--ioengine={'falloc' if discards else 'io_uring'}"]
        options += ["--direct=1"] if machine.is_disk(self.folder) and not discards else []
        options += [f"--fdatasync={job.fsync}"] if job.fsync else ["--end_fsync=1"]
        options += [f"--io_size={job.requests * job.block}"] if job.requests else []
        options += [f"--offset_increment={size // writers}m"] if writers > 1 else []
        try:
            with file.open("wb") as made:
                made.truncate(size * MIB)
                if job.filled:
                    data = bytes([0xA5]) * MIB
                    for _ in range(size):
                        made.write(data)
                    os.fsync(made.fileno())
            said = _run(["fio", "--name=raw", f"--filename={file}", "--group_reporting", "--output-format=json", *options])
            ran = json.loads(said[said.index("{") :])["jobs"][0]
            side = ran[kind]
            quantiles = side["clat_ns"].get("percentile", {})
            return {
                "iops": side["iops"],
                "mb_per_s": side["bw_bytes"] / 1e6,
                "p50_us": quantiles.get("50.000000", 0) / 1e3,
                "p99_us": quantiles.get("99.000000", 0) / 1e3,
                "target_cpu_us_per_io": (ran["usr_cpu"] + ran["sys_cpu"]) * 1e4 * writers / max(side["iops"], 1),
            }
        finally:
            file.unlink(missing_ok=True)
