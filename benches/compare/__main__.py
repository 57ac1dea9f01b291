"""Compares quarry with tgt in one interleaved run, and fails when quarry is the slower one.

One thin volume of quarry's, attached with CHAP, and a raw file of the same size under tgt, both filled, are loaded
in turns by the same generator; a ratio is taken inside a round and the median over the rounds counts. On disk, like
is compared with like: tgt's store aio does direct I/O as quarry does unless told otherwise, its store rdwr goes
through the page cache as quarry does with page_cache = true. Everything started or made is removed at the end, also
when interrupted.

The part `control` makes control calls to an agent with few and with 10,000 volumes; it compares with nobody.

The part `engine` does the same one layer below, without network: the thin engine against qcow2 images under qemu-img
bench and a plain file under fio, each in one process, on volumes made anew for each load.

  scripts/bench                        everything: about 45 minutes
  scripts/bench --quick                short rounds, of the target the 4 KiB jobs and two streams: about 15 minutes
  scripts/bench --parts engine --media shm
  scripts/bench --media shm --jobs r4k-q1,w4k-q32 --rounds 3

Exit status: 0 when quarry is not slower anywhere, 1 when it is, 2 when something did not work.
"""

import argparse
import json
import signal
import sys
from pathlib import Path

import control
import engine
import jobs
import machine
import report
from measure import Campaign
from targets import Quarry, RawFile, TcpLimit, Tgt

#: The size of a volume that the engine's jobs load, where a job has none of its own, in MiB.
ENGINE_MIB = 1024

ROOT = Path(__file__).resolve().parents[2]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer jobs, short rounds")
    parser.add_argument("--parts", default="target,engine,control", help="some of target, engine and control")
    parser.add_argument("--jobs", help="names, separated by commas: " + " ".join([*jobs.ALL, *engine.ALL]))
    parser.add_argument("--media", default="shm,disk", help="shm, disk, or both")
    parser.add_argument("--peers", default="aio,rdwr", help="the backing stores of tgt to compare with")
    parser.add_argument("--rounds", type=int, help="how often every job is measured")
    parser.add_argument("--extra-rounds", type=int, help="how often more for a row that is close or in doubt")
    parser.add_argument("--time", type=float, help="seconds measured of each job and round")
    parser.add_argument("--shm-mib", type=int, default=1024, help="size of the volume in memory, in MiB")
    parser.add_argument(
        "--disk-mib", type=int, default=4096, help="size of the volume on disk, in MiB: more than a run reads"
    )
    parser.add_argument("--calls", type=int, help="control calls of each kind")
    parser.add_argument("--most-volumes", type=int, default=10_000, help="no control calls beside more volumes than that")
    parser.add_argument("--shm-dir", type=Path, default=Path("/dev/shm"), help="where the files in memory go")
    parser.add_argument("--disk-dir", type=Path, default=Path("/var/tmp"), help="where the files on disk go")
    parser.add_argument("--tolerance", type=float, default=0.05, help="how much slower counts as not slower")
    parser.add_argument("--raw", action="store_true", help="measure the medium itself too, with fio")
    parser.add_argument("--no-check", action="store_true", help="do not check data first")
    parser.add_argument("--no-build", action="store_true", help="take what target/release has")
    parser.add_argument("--json", type=Path, help="write all results there")
    options = parser.parse_args()
    quick = options.quick
    options.rounds = options.rounds or (3 if quick else 5)
    options.extra_rounds = (2 if quick else 4) if options.extra_rounds is None else options.extra_rounds
    options.calls = options.calls or (200 if quick else 1000)
    options.time = options.time or (1.5 if quick else 3)
    names = options.jobs.split(",") if options.jobs else [*(jobs.QUICK if quick else jobs.FULL), *engine.ALL]
    options.media = options.media.split(",")
    options.peers = options.peers.split(",")
    options.parts = options.parts.split(",")
    given = [(names, {*jobs.ALL, *engine.ALL}), (options.media, {"shm", "disk"}), (options.peers, {"aio", "rdwr"})]
    given.append((options.parts, {"target", "engine", "control"}))
    unknown = [word for words, known in given for word in words if word not in known]
    if unknown:
        parser.error(f"unknown: {' '.join(unknown)}")
    options.jobs = [jobs.ALL[name] for name in names if name in jobs.ALL and "target" in options.parts]
    options.engine_jobs = [engine.ALL[name] for name in names if name in engine.ALL and "engine" in options.parts]
    return options


def interrupted(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    options = parse_options()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    machine.find_programs()
    if not options.no_build:
        machine.build(ROOT)
    binaries = ROOT / "target" / "release"
    result = report.Result(machine.describe(ROOT), vars(options))
    rates = []
    for medium in options.media:
        base, size_mib = {
            "shm": (options.shm_dir, options.shm_mib),
            "disk": (options.disk_dir, options.disk_mib),
        }[medium]
        with machine.work_dir(base) as folder:
            if options.jobs:
                targets = [Quarry(folder, binaries, size_mib, page_cache=False)]
                if medium == "disk" and "rdwr" in options.peers:
                    targets.append(Quarry(folder, binaries, size_mib, page_cache=True))
                targets += [Tgt(folder, binaries, size_mib, store) for store in options.peers]
                if medium == "shm":
                    targets.append(TcpLimit(folder, binaries))
                if options.raw:
                    targets.append(RawFile(folder, size_mib))
                result.add(Campaign(medium, folder, targets, options.jobs, options).run())
            if engine_jobs := [job for job in options.engine_jobs if medium in job.media]:
                subjects = [engine.Engine(folder, binaries, ENGINE_MIB), engine.PlainFile(folder, binaries, ENGINE_MIB)]
                for name, image_options in engine.QCOW2.items():
                    subjects.append(engine.Qcow2(folder, binaries, ENGINE_MIB, name, image_options))
                result.add(Campaign(medium, folder, subjects, engine_jobs, options).run())
            if "control" in options.parts:
                rates += control.measure(medium, folder, binaries, options.calls, options.most_volumes)
    print(result.table())
    print(control.table(rates))
    verdicts = result.verdicts(options.tolerance)
    for verdict in verdicts:
        print(verdict)
    if options.json:
        options.json.write_text(json.dumps(result.as_json(verdicts) | {"control": [vars(rate) for rate in rates]}, indent=1) + "\n")
    return 1 if any(not verdict.passed for verdict in verdicts) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except machine.Trouble as trouble:
        print(f"scripts/bench: {trouble}", file=sys.stderr)
        sys.exit(2)
