"""What is measured.

Runs of writes end with a flush whose time counts (--end-fsync): otherwise a target that keeps writes in memory would
be measured at copying memory.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One load."""

    name: str
    title: str
    #: Arguments of iload.
    arguments: str
    #: Told in MB/s, not in IOPS.
    is_stream: bool = False
    #: How many times as fast as a peer it has to be, where that is not once.
    floors: tuple[tuple[str, float], ...] = ()


READ, WRITE, MIXED = "--rw read", "--rw write --end-fsync", "--rw rw:70 --end-fsync"
SMALL, MIDDLE, LARGE = "--bs 4k", "--bs 64k", "--bs 1m --seq"
DIGESTS = "--header-digest --data-digest"


def _jobs() -> list[Job]:
    made = []
    for depth in (1, 8, 32):
        made += [
            Job(f"r4k-q{depth}", f"4 KiB random read, depth {depth}", f"{READ} {SMALL} --qd {depth}"),
            Job(f"w4k-q{depth}", f"4 KiB random write, depth {depth}", f"{WRITE} {SMALL} --qd {depth}"),
            Job(f"m4k-q{depth}", f"4 KiB random, 70 reads in 100, depth {depth}", f"{MIXED} {SMALL} --qd {depth}"),
        ]
    for depth in (1, 8, 32):
        made += [
            Job(f"r64k-q{depth}", f"64 KiB random read, depth {depth}", f"{READ} {MIDDLE} --qd {depth}", True),
            Job(f"w64k-q{depth}", f"64 KiB random write, depth {depth}", f"{WRITE} {MIDDLE} --qd {depth}", True),
        ]
    for depth in (1, 32):
        made += [
            Job(f"r1m-q{depth}", f"1 MiB sequential read, depth {depth}", f"{READ} {LARGE} --qd {depth}", True),
            Job(f"w1m-q{depth}", f"1 MiB sequential write, depth {depth}", f"{WRITE} {LARGE} --qd {depth}", True),
        ]
    made += [
        Job("w4k-sync16", "4 KiB random write, depth 16, flush every 16", f"{WRITE} {SMALL} --qd 16 --fsync 16"),
        Job("r4k-q32x4", "4 KiB random read, depth 32, 4 sessions", f"{READ} {SMALL} --qd 32 --sessions 4"),
        Job("w4k-q32x4", "4 KiB random write, depth 32, 4 sessions", f"{WRITE} {SMALL} --qd 32 --sessions 4"),
        Job("r4k-crc", "4 KiB random read, depth 32, digests", f"{READ} {SMALL} --qd 32 {DIGESTS}"),
        Job("r1m-crc", "1 MiB sequential read, depth 32, digests", f"{READ} {LARGE} --qd 32 {DIGESTS}", True),
    ]
    return made


ALL = {job.name: job for job in _jobs()}

#: The jobs of a run without options.
FULL = [f"{kind}4k-q{depth}" for depth in (1, 8, 32) for kind in "rwm"]
FULL += ["r64k-q8", "w64k-q8", "r1m-q1", "w1m-q1", "r1m-q32", "w1m-q32", "w4k-sync16"]

#: The jobs of --quick.
QUICK = ["r4k-q1", "w4k-q1", "r4k-q32", "w4k-q32", "r1m-q32", "w1m-q32"]

#: Data that is written and read back before anything is measured. Arguments of iload.
CHECKS = [
    "--verify --rw rw:50 --bs 16k --qd 16 --sessions 4 --size 64m --time 1 --warmup 0 --fsync 200",
    "--verify --rw rw:50 --bs 508k --qd 8 --size 64m --time 1 --warmup 0",
    "--verify --rw rw:50 --bs 64k --qd 8 --size 64m --time 1 --warmup 0 --header-digest --data-digest",
    "--verify --rw rw:50 --bs 256k --qd 8 --size 64m --time 1 --warmup 0 --no-immediate --initial-r2t",
    "--verify --rw rw:50 --bs 128k --qd 8 --size 64m --time 1 --warmup 0"
    " --first-burst 4k --max-burst 16k --receive-segment 4k",
]
