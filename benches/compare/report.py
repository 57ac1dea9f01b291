"""The table, the verdicts and the JSON."""

import statistics
from dataclasses import asdict, dataclass

from measure import Row


#: Where quarry is slower and why is told in docs/performance.md: medium, job, peer, and the ratio that it must keep.
#: rdwr answers such a write from the page cache, quarry when the disk has it.
KNOWN_SLOWER = {("disk", "w4k-q1", "tgt rdwr"): 0.5}


@dataclass
class Verdict:
    """Whether quarry is not slower than a peer at a job, or not slower than is known."""

    medium: str
    job: str
    peer: str
    ratio: float
    passed: bool
    known_slower: bool = False

    def __str__(self) -> str:
        word = "SLOW" if not self.passed else "KNOWN SLOWER" if self.known_slower else "ok"
        return (
            f"{word:12} {self.medium} {self.job}: "
            f"{self.ratio:.2f} times as fast as {self.peer}"
        )


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
        """Judges every row: the median ratio may fall short of one, or of what is known, by the tolerance."""
        made = []
        for row in self.rows:
            for peer in row.peers():
                ratio = statistics.median(row.ratios(peer))
                known = KNOWN_SLOWER.get((row.medium, row.job.name, peer))
                slower = known is not None and ratio < 1 - tolerance
                least = known if slower else 1
                passed = ratio >= least * (1 - tolerance)
                made.append(Verdict(row.medium, row.job.name, peer, ratio, passed, slower))
        return made

    def table(self) -> str:
        """Medians over the rounds; the ratios are quarry over the target, with their range over the rounds."""
        lines = [
            "",
            ", ".join(f"{key}: {value}" for key, value in self.machine.items()),
            "",
            "| medium | job | target | IOPS or MB/s | p50 us | p99 us | CPU us/IO | quarry is so many times as fast |"
            " CPU ratio |",
            "|---|---|---|---|---|---|---|---|---|",
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
        if target != "quarry":
            ratios = row.ratios(target)
            speed = f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f}-{max(ratios):.2f})"
            costs = row.ratios(target, "target_cpu_us_per_io")
            cost = f"{statistics.median(costs):.2f}" if costs else ""
        return (
            f"| {row.medium} | {row.job.name} | {target} | {rate:.0f}{unit} | {row.median(target, 'p50_us'):.0f} "
            f"| {row.median(target, 'p99_us'):.0f} | {row.median(target, 'target_cpu_us_per_io'):.1f} "
            f"| {speed} | {cost} |"
        )

    def as_json(self, verdicts: list[Verdict]) -> dict:
        """Everything, for scripts: schema 1."""
        return {
            "schema": 1,
            "machine": self.machine,
            "options": self.options,
            "rows": [
                {"medium": row.medium, "job": row.job.name, "title": row.job.title, "targets": row.rounds}
                for row in self.rows
            ],
            "verdicts": [asdict(verdict) for verdict in verdicts],
        }
