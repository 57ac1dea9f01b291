"""Measuring in turns."""

import contextlib
import math
import statistics
import sys
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path

import jobs
import machine
from engine import EngineJob
from jobs import Job
from targets import QUARRY, QUARRY_CACHED

#: A row whose quarry is less than so much faster than a peer is measured again, to be sure.
CLOSE = 1.3


@dataclass
class Row:
    """All rounds of one job on one medium: per target, what iload said in each round."""

    medium: str
    job: Job | EngineJob
    rounds: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def counterpart(self, peer: str) -> str:
        """The quarry that does I/O as the peer does: rdwr goes through the page cache, where there is a disk below."""
        return QUARRY_CACHED if peer == "tgt rdwr" and QUARRY_CACHED in self.rounds else QUARRY

    def ratios(self, peer: str, key: str = "iops") -> list[float]:
        """How many times its counterpart's value is the peer's, per round."""
        pairs = zip(self.rounds[self.counterpart(peer)], self.rounds[peer])
        return [ours[key] / theirs[key] for ours, theirs in pairs if theirs[key]]

    def median(self, target: str, key: str) -> float:
        """The median over the rounds."""
        return statistics.median(said.get(key, math.nan) for said in self.rounds[target])

    def peers(self) -> list[str]:
        """The names of quarry's peers."""
        return [name for name in self.rounds if name.startswith(("tgt", "qcow2"))]

    def is_close(self) -> bool:
        """Whether some peer is not clearly slower."""
        return any(statistics.median(self.ratios(peer)) < CLOSE for peer in self.peers())


class Campaign:
    """All jobs on one medium."""

    def __init__(self, medium: str, folder: Path, targets: list, jobs_: list, options: Namespace) -> None:
        self.medium = medium
        self.folder = folder
        self.targets = targets
        self.jobs = jobs_
        self.options = options

    def run(self) -> list[Row]:
        """Starts the targets, fills them, measures, and stops them."""
        with contextlib.ExitStack() as stack:
            for target in self.targets:
                self._say(f"starting and filling {target.name}")
                target.start()
                stack.callback(target.stop)
                target.fill()
            if not self.options.no_check:
                for target in self.targets:
                    if target.is_checked:
                        self._check(target)
            rows = [self._row(job) for job in self.jobs]
            for number in range(self.options.rounds):
                self._round(number, rows)
            for number in range(self.options.extra_rounds):
                close = [row for row in rows if row.is_close()]
                self._round(self.options.rounds + number, close)
            return rows

    def _row(self, job) -> Row:
        return Row(self.medium, job, {target.name: [] for target in self.targets if target.takes(job)})

    def _check(self, quarry) -> None:
        for arguments in jobs.CHECKS:
            quarry.load(arguments)
        self._say("data written in many ways reads back right")

    def _round(self, number: int, rows: list[Row]) -> None:
        order = self.targets if number % 2 == 0 else self.targets[::-1]
        for row in rows:
            for target in order:
                if target.takes(row.job):
                    machine.settle(self.folder)
                    row.rounds[target.name].append(target.measure(row.job, self.options.time))
            key = "mb_per_s" if row.job.is_stream else "iops"
            values = ", ".join(f"{name} {rounds[-1][key]:.0f}" for name, rounds in row.rounds.items())
            self._say(f"round {number + 1}: {row.job.name}: {values}")

    def _say(self, text: str) -> None:
        print(f"[{self.medium}] {text}", file=sys.stderr, flush=True)
