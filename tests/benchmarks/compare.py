"""Times candidates against each other and against the machine, and prints one table."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Row:
    """One candidate's median, and how often the floor and the first candidate fit into it."""

    name: str
    milliseconds: float
    to_floor: float
    to_first: float


def compare(
    title: str,
    candidates: Mapping[str, Callable[[], object]],
    *,
    floor_seconds: float,
    out: Path | None = None,
    rounds: int = 15,
) -> dict[str, float]:
    """Run the candidates in turn, round after round, so that a slow minute of the machine hits all of them.

    Args:
        title: Names the table and the JSON file.
        candidates: What to time, the package's own first.
        floor_seconds: The time below which no implementation can get here.
        out: Folder for the JSON file, or None.
        rounds: How often each one runs; the first two do not count.

    Returns:
        Median milliseconds by name.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 2):
        for name, call in candidates.items():
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(t[2:]) * 1e3 for name, t in times.items()}
    first = next(iter(medians.values()))
    rows = [Row(name, ms, ms / (floor_seconds * 1e3), ms / first) for name, ms in medians.items()]
    print(f"\n{title} ({torch.get_num_threads()} threads, floor {floor_seconds * 1e3:.3f} ms)")
    print(f"{'':28}{'ms':>10}{'x floor':>10}{'x first':>10}")
    for row in rows:
        print(f"{row.name:28}{row.milliseconds:10.3f}{row.to_floor:10.2f}{row.to_first:10.2f}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        table = {"title": title, "threads": torch.get_num_threads(), "floor_ms": floor_seconds * 1e3}
        name = "".join(c if c.isalnum() else "_" for c in title)
        (out / f"{name}.json").write_text(json.dumps({**table, "rows": [asdict(r) for r in rows]}, indent=1))
    return medians


def peak_mebibytes(setup: str, statement: str) -> float:
    """Return by how much the peak memory of a fresh process grows over ``statement``, after ``setup``; Linux only.

    Args:
        setup: Python that imports and draws inputs; it should call what is measured once at a tiny size.
        statement: Python whose memory counts.
    """
    code = f"{_PEAK}\n{setup}\nbefore = peak(restart=True)\n{statement}\nprint((peak() - before) / 1024)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


# getrusage's peak would count the imports, and the parent's size at the fork.
_PEAK = """
def peak(restart=False):
    if restart:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
"""
