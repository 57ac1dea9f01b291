"""The table, the verdicts and the JSON."""

import math
import statistics
from dataclasses import asdict, dataclass

from measure import Row
from targets import QUARRY, QUARRY_CACHED


@dataclass
class Verdict:
    """Whether quarry is not slower than a peer at a job."""

    medium: str
    job: str
    quarry: str
    peer: str
    ratio: float
    passed: bool

    def __str__(self) -> str:
        word = "ok" if self.passed else "SLOW"
        return f"{word:4} {self.medium} {self.job}: {self.quarry} is {self.ratio:.2f} times as fast as {self.peer}"


class Result:
    """All rows of a run."""

    def __init__(self, machine: dict[str, str], options: dict) -> None:
        self.machine = machine
        told = ("rounds", "extra_rounds", "time", "shm_mib", "disk_mib", "tolerance")
        self.options = {name: options[name] for name in told}
        self.rows: list[Row] = []

    def add(self, rows: list[Row]) -> None:
        """Takes the rows of a medium in."""
        self.rows += rows

    def verdicts(self, tolerance: float) -> list[Verdict]:
        """Judges every row: the median ratio may fall short of one, or of the job's floor, by the tolerance."""
        made = []
        for row in self.rows:
            floors = dict(row.job.floors)
            for peer in row.peers():
                ratio = statistics.median(row.ratios(peer))
                passed = ratio >= floors.get(peer, 1) * (1 - tolerance)
                made.append(Verdict(row.medium, row.job.name, row.counterpart(peer), peer, ratio, passed))
            for other in self.rows:
                if other.medium == row.medium and other.job.name in floors:
                    ratio = row.median(QUARRY, "iops") / other.median(QUARRY, "iops")
                    passed = ratio >= floors[other.job.name] * (1 - tolerance)
                    name = f"itself at {other.job.name}"
                    made.append(Verdict(row.medium, row.job.name, QUARRY, name, ratio, passed))
        return made

    def table(self) -> str:
        """Medians over the rounds; the ratios are the target's quarry over it, with their range over the rounds."""
        lines = [
            "",
            ", ".join(f"{key}: {value}" for key, value in self.machine.items()),
            "",
            "| medium | job | target | IOPS or MB/s | p50 us | p99 us | p99.9 us | CPU us/IO | quarry is so many times as fast |"
            " CPU ratio |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            for target in row.rounds:
                lines.append(self._line(row, target))
        return "\n".join(lines) + "\n"

    @staticmethod
    def _line(row: Row, target: str) -> str:
        rate = row.median(target, "mb_per_s" if row.job.is_stream else "iops")
        unit = " MB/s" if row.job.is_stream else ""
        speed = cost = ""
        if target not in (QUARRY, QUARRY_CACHED):
            ratios = row.ratios(target)
            speed = f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f}-{max(ratios):.2f})"
            costs = row.ratios(target, "target_cpu_us_per_io")
            cost = f"{statistics.median(costs):.2f}" if costs else ""
        latencies = [row.median(target, key) for key in ("p50_us", "p99_us", "p999_us")]
        told = ["" if math.isnan(latency) else f"{latency:.0f}" for latency in latencies]
        return (
            f"| {row.medium} | {row.job.name} | {target} | {rate:.0f}{unit} | {told[0]} | {told[1]} | {told[2]} "
            f"| {row.median(target, 'target_cpu_us_per_io'):.1f} "
            f"| {speed} | {cost} |"
        )

    def as_json(self, verdicts: list[Verdict]) -> dict:
        """Everything, for scripts: schema 2."""
        return {
            "schema": 2,
            "machine": self.machine,
            "options": self.options,
            "rows": [
                {"medium": row.medium, "job": row.job.name, "title": row.job.title, "targets": row.rounds}
                for row in self.rows
            ],
            "verdicts": [asdict(verdict) for verdict in verdicts],
        }
