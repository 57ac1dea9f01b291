"""Control calls through the agent's API: how many a second, and how long one takes."""

import json
from dataclasses import dataclass
from pathlib import Path

import machine
from targets import Quarry

#: How many volumes are there, and how many calls are under way at a time.
SIZES = ((10, 1), (10, 8), (10_000, 1), (10_000, 8))


@dataclass
class Rates:
    """What one run of cload measured, a line for each kind of call."""

    medium: str
    volumes: int
    callers: int
    calls: list[dict[str, str | float]]


def measure(medium: str, folder: Path, binaries: Path, calls: int, most_volumes: int) -> list[Rates]:
    """Starts an agent for each size and measures it."""
    measured = []
    for volumes, callers in SIZES:
        if volumes > most_volumes:
            continue
        home = folder / f"control-{volumes}-{callers}"
        home.mkdir()
        agent = Quarry(home, binaries, size_mib=16, page_cache=False)
        agent.start()
        try:
            command = [str(binaries / "cload"), "--socket", str(home / agent.name / "quarry.sock")]
            command += ["--volumes", str(volumes), "--calls", str(calls), "--callers", str(callers)]
            machine.prefer(agent.process.pid)
            said = machine.generate(command, "cload")
            measured.append(Rates(medium, volumes, callers, json.loads(said)))
        finally:
            agent.stop()
    return measured


def table(rates: list[Rates]) -> str:
    """A line for each kind of call, a column for each size."""
    if not rates:
        return ""
    heads = [f"{rate.medium}, {rate.volumes} volumes, {rate.callers} at a time" for rate in rates]
    lines = [f"| call | {' | '.join(f'{head}: a second, p50 / p99 us' for head in heads)} |"]
    lines.append("|---" * (len(rates) + 1) + "|")
    for cells in zip(*(rate.calls for rate in rates)):
        told = [f"{cell['per_second']:.0f}, {cell['p50_us']:.0f} / {cell['p99_us']:.0f}" for cell in cells]
        lines.append(f"| {cells[0]['call']} | {' | '.join(told)} |")
    return "\n".join(lines)
