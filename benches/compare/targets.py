"""What is compared: each is started, told where it is, and stopped."""

import contextlib
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import time
from pathlib import Path

import machine
from jobs import Job
from machine import Trouble

INITIATOR = "iqn.2026-11.io.quarry:bench"

#: The two ways quarry does I/O, as targets.
QUARRY = "quarry"
QUARRY_CACHED = "quarry page cache"

#: How long a target may take to be ready or to stop, in seconds. Others may be compiling.
PATIENCE = 60


def spawn(command: list[str], log: Path, **more) -> subprocess.Popen:
    """Starts a process in a session of its own, which the system kills if we die."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL,
            stderr=stream,
            start_new_session=True,
            preexec_fn=machine.target_takes_place,
            **({"stdout": stream} | more),
        )


def stop(process: subprocess.Popen) -> None:
    """Ends a process."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def output(command: list[str], **more) -> str:
    """Runs a command that must succeed."""
    ran = subprocess.run(command, capture_output=True, text=True, **more)
    if ran.returncode:
        raise Trouble(f"{' '.join(command[:4])}: {(ran.stderr or ran.stdout).strip()[-300:]}")
    return ran.stdout


class IscsiTarget:
    """A target that iload speaks to."""

    name: str
    url: str
    process: subprocess.Popen
    #: Whether data is written and read back before anything is measured.
    is_checked = False

    def __init__(self, folder: Path, binaries: Path, size_mib: int) -> None:
        self.folder = folder
        self.binaries = binaries
        self.size_mib = size_mib

    def fill(self) -> None:
        """Writes the whole volume."""
        self.load(f"--rw write --seq --bs 1m --qd 8 --ops {self.size_mib}")

    def takes(self, _job: Job) -> bool:
        """Whether it can do the job."""
        return True

    def measure(self, job: Job, seconds: float) -> dict[str, float]:
        """Does a job for so long."""
        return self.load(f"{job.arguments} --time {seconds} --warmup 0.5")

    def load(self, arguments: str) -> dict[str, float]:
        """Loads the volume and returns what iload measured."""
        machine.prefer(self.process.pid)
        command = [
            str(self.binaries / "iload"),
            "--json",
            *("--initiator", INITIATOR),
            *("--pid", str(self.process.pid)),
            *shlex.split(arguments),
            self.url,
        ]
        said = machine.generate(command, f"{self.name}: {arguments}")
        return json.loads(said)

    def stop(self) -> None:
        """Ends the target."""
        stop(self.process)


class Quarry(IscsiTarget):
    """An agent with one thin volume, its pool in a file."""

    is_checked = True

    def __init__(self, folder: Path, binaries: Path, size_mib: int, page_cache: bool) -> None:
        super().__init__(folder, binaries, size_mib)
        self.page_cache = page_cache
        self.name = QUARRY_CACHED if page_cache else QUARRY

    def start(self) -> None:
        """Starts the agent, makes the volume and attaches it."""
        program = str(self.binaries / "quarry")
        log = self.folder / "quarry.log"
        command = [program, "agent", "--config", str(self._config())]
        self.process = spawn(command, log, stdout=subprocess.PIPE, text=True)
        try:
            self._attach(program)
        except BaseException:
            self.stop()
            raise

    def _config(self) -> Path:
        home = self.folder / self.name.replace(" ", "-")
        home.mkdir()
        config = home / "quarry.toml"
        config.write_text(
            f"""
            [agent]
            state_dir = "{home}"
            [api]
            listen = "unix:{home}/quarry.sock"
            [pool.default]
            path = "{home}/default.pool"
            create = true
            size = "64GiB"
            page_cache = {"true" if self.page_cache else "false"}
            [target]
            listen = ["127.0.0.1:{free_port()}"]
            """
        )
        return config

    def _attach(self, program: str) -> None:
        ready = self.process.stdout.readline()
        if not ready.startswith("ready "):
            raise Trouble(f"the agent did not start: {(self.folder / 'quarry.log').read_text()[-300:]}")
        said = dict(pair.split("=", 1) for pair in ready.split()[1:])
        environment = os.environ | {"QUARRY_ENDPOINT": said["endpoint"]}

        def call(*words: str) -> dict:
            return json.loads(output([program, *words, "-o", "json"], env=environment))

        volume = call("volume", "create", "--size", f"{self.size_mib}MiB")
        attachment = call("attachment", "create", "--volume", volume["id"], "--initiator", INITIATOR)
        data = attachment["connection_info"]["data"]
        self.url = (
            f"iscsi://{data['auth_username']}%{data['auth_password']}@{data['target_portal']}"
            f"/{data['target_iqn']}/{data['target_lun']}"
        )


class Tgt(IscsiTarget):
    """Debian's tgt with a raw file.

    Its store `aio` does direct I/O, and acknowledges SYNCHRONIZE CACHE without doing anything; `rdwr` goes through
    the page cache and flushes when it is told to.
    """

    #: As wide as iload asks for; Debian's defaults make long writes slower.
    LIMITS = {
        "MaxRecvDataSegmentLength": 262144,
        "FirstBurstLength": 262144,
        "MaxBurstLength": 1048576,
        "InitialR2T": "No",
        "ImmediateData": "Yes",
        "HeaderDigest": "None,CRC32C",
        "DataDigest": "None,CRC32C",
    }

    def __init__(self, folder: Path, binaries: Path, size_mib: int, store: str) -> None:
        super().__init__(folder, binaries, size_mib)
        self.store = store
        self.name = f"tgt {store}"

    def start(self) -> None:
        """Starts a daemon of our own with one logical unit."""
        self.control = str(random.randrange(1000, 30000))
        port = free_port()
        log = self.folder / f"tgt-{self.store}.log"
        portal = f"portal=127.0.0.1:{port}"
        self.process = spawn(["tgtd", "-f", "-C", self.control, "--iscsi", portal], log)
        try:
            self._export(port)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the daemon, which takes no notice of SIGTERM while it has a target."""
        self.process.kill()
        self.process.wait()

    def _export(self, port: int) -> None:
        await_port(port)
        target = f"iqn.2026-11.io.quarry:tgt-{self.store}"
        backing = self.folder / f"tgt-{self.store}.raw"
        output(["fallocate", "-l", f"{self.size_mib}MiB", str(backing)])
        self._admin("new", "target", "-T", target)
        for name, value in self.LIMITS.items():
            self._admin("update", "target", "-n", name, "-v", str(value))
        self._admin("new", "logicalunit", "--lun", "1", "-b", str(backing), "--bstype", self.store)
        self._admin("bind", "target", "-I", "ALL")
        self.url = f"iscsi://127.0.0.1:{port}/{target}/1"

    def _admin(self, operation: str, mode: str, *more: str) -> None:
        command = ["tgtadm", "-C", self.control, "--lld", "iscsi", "--op", operation, "--mode", mode, "--tid", "1"]
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                output([*command, *more])
                return
            except Trouble as trouble:
                # The daemon listens to initiators a little before it listens to us.
                if "connect" not in str(trouble) or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


class RawFile:
    """The medium itself, through fio: what no target can be faster than."""

    name = "raw file"
    is_checked = False

    def __init__(self, folder: Path, size_mib: int) -> None:
        self.file = folder / "raw"
        self.size_mib = size_mib

    def start(self) -> None:
        """Makes the file."""
        output(["fallocate", "-l", f"{self.size_mib}MiB", str(self.file)])

    def stop(self) -> None:
        """Removes the file."""
        with contextlib.suppress(OSError):
            self.file.unlink()

    def fill(self) -> None:
        """Writes the whole file."""
        self._fio("--rw=write", "--bs=1m", "--iodepth=8")

    def takes(self, _job: Job) -> bool:
        """Whether it can do the job."""
        return True

    def measure(self, job: Job, seconds: float) -> dict[str, float]:
        """Does what iload would, as far as fio can."""
        words = shlex.split(f"{job.arguments} --time {seconds} --warmup 0.5")

        def value(option: str, default: str) -> str:
            return words[words.index(option) + 1] if option in words else default

        order = "" if "--seq" in words else "rand"
        kind, _, reads = value("--rw", "read").partition(":")
        options = [
            f"--rw={order}{kind}",
            f"--rwmixread={reads or 50}",
            f"--bs={value('--bs', '4k')}",
            f"--iodepth={value('--qd', '32')}",
            f"--numjobs={value('--sessions', '1')}",
            f"--runtime={value('--time', '5')}",
            f"--ramp_time={value('--warmup', '1')}",
            "--time_based",
            "--norandommap",
        ]
        if "--end-fsync" in words:
            options.append("--end_fsync=1")
        if "--fsync" in words:
            options.append(f"--fdatasync={value('--fsync', '1')}")
        job = self._fio(*options)
        side = max(job["read"], job["write"], key=lambda side: side["iops"])
        percentiles = side["clat_ns"]["percentile"]
        return {
            "iops": side["iops"],
            "mb_per_s": side["bw_bytes"] / 1e6,
            "p50_us": percentiles["50.000000"] / 1e3,
            "p99_us": percentiles["99.000000"] / 1e3,
            "p999_us": percentiles["99.900000"] / 1e3,
            "target_cpu_us_per_io": (job["usr_cpu"] + job["sys_cpu"]) * 1e4 / max(side["iops"], 1),
            "target_rss_kib": 0,
        }

    def _fio(self, *options: str) -> dict:
        common = ["fio", "--name=raw", f"--filename={self.file}", f"--size={self.size_mib}m", "--ioengine=io_uring"]
        common += ["--direct=1", "--thread", "--group_reporting", "--output-format=json"]
        said = output([*common, *options], start_new_session=True, preexec_fn=machine.prefer)
        return json.loads(said[said.index("{") :])["jobs"][0]


class TcpLimit:
    """Requests and answers of the same sizes over one connection with nothing behind them: the network's own limit."""

    name = "loopback tcp"
    is_checked = False

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.log = folder / "tcp-limit.log"
        self.program = str(binaries / "tcp-limit")

    def start(self) -> None:
        """Starts who answers."""
        self.port = free_port()
        self.process = spawn([self.program, "serve", str(self.port)], self.log)
        await_port(self.port)

    def stop(self) -> None:
        """Ends it."""
        stop(self.process)

    def fill(self) -> None:
        """Nothing is there to be filled."""

    def takes(self, job: Job) -> bool:
        """One connection, without digests and flushes in between."""
        return not {"--sessions", "--fsync", "--data-digest"} & set(shlex.split(job.arguments))

    def measure(self, job: Job, seconds: float) -> dict[str, float]:
        """Sends and answers what iload and a target would."""
        machine.prefer(self.process.pid)
        words = shlex.split(job.arguments)
        value = {option: words[words.index(option) + 1] for option in ("--rw", "--bs", "--qd")}
        kind, _, percent = value["--rw"].partition(":")
        command = [self.program, "load", str(self.port), "--pid", str(self.process.pid), "--time", str(seconds)]
        command += ["--reads", percent or {"read": "100", "write": "0"}[kind], "--depth", value["--qd"]]
        command += ["--bytes", str(int(value["--bs"][:-1]) << {"k": 10, "m": 20}[value["--bs"][-1]])]
        said = output(command, start_new_session=True, preexec_fn=machine.generator_takes_place)
        return json.loads(said)


def free_port() -> int:
    """Finds a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def await_port(port: int) -> None:
    """Waits until somebody listens."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise Trouble(f"nobody listens at port {port}")
