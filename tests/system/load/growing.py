"""Whether a process grows: its memory and its open files, sampled from /proc. Used by the soaks."""

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Growth:
    """Samples of one process: `resident_mib` with the time of each, `descriptors` how many files were open."""

    resident_mib: list[tuple[float, float]] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def sample(self, pid: int) -> None:
        """Look once."""
        proc = Path(f"/proc/{pid}")
        resident = int(proc.joinpath("status").read_text().split("VmRSS:")[1].split()[0]) / 1024
        self.resident_mib.append((time.monotonic(), resident))
        self.descriptors.append(len(list(proc.joinpath("fd").iterdir())))

    def growth_mib(self) -> float:
        """The last sample over that at half time, when caches and allocators have their size."""
        return self.resident_mib[-1][1] - self.resident_mib[len(self.resident_mib) // 2][1]

    def mib_per_hour(self) -> float:
        """The slope of memory over the second half."""
        half = self.resident_mib[len(self.resident_mib) // 2 :]
        if len({at for at, _ in half}) < 2:
            return 0.0
        return statistics.linear_regression([at for at, _ in half], [mib for _, mib in half]).slope * 3600

    def descriptors_growth(self) -> int:
        """Open files of the last tenth over those of the first half, by their medians."""
        first, last = self.descriptors[: len(self.descriptors) // 2], self.descriptors[-len(self.descriptors) // 10 :]
        return round(statistics.median(last) - statistics.median(first))
