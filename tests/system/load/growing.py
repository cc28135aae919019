"""Whether a process grows: its memory and its open files, sampled from /proc."""

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

from processes import resident_mib


@dataclass
class Growth:
    """Samples of a process: `resident_mib` with the time of each, and in `descriptors` the number of open files."""

    resident_mib: list[tuple[float, float]] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def sample(self, pid: int) -> None:
        """Take one sample."""
        proc = Path(f"/proc/{pid}")
        self.resident_mib.append((time.monotonic(), resident_mib(pid)))
        self.descriptors.append(len(list(proc.joinpath("fd").iterdir())))

    def growth_mib(self) -> float:
        """Return the last sample over that at half time, when caches and allocators have their size."""
        return self.resident_mib[-1][1] - self.resident_mib[len(self.resident_mib) // 2][1]

    def mib_per_hour(self) -> float:
        """Return the slope of memory over the second half."""
        half = self.resident_mib[len(self.resident_mib) // 2 :]
        if len({at for at, _ in half}) < 2:
            return 0.0
        return statistics.linear_regression([at for at, _ in half], [mib for _, mib in half]).slope * 3600

    def descriptors_growth(self) -> int:
        """Return the median of open files in the last tenth, minus that of the first half."""
        first, last = self.descriptors[: len(self.descriptors) // 2], self.descriptors[-len(self.descriptors) // 10 :]
        return round(statistics.median(last) - statistics.median(first))
