"""From the start of NMI's process to /readyz 200 on a node with 250 pods, what its imports cost, and the image's size.

`make bench` runs it. The reference of the imports is a Python that imports nothing.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from system.load.crowd import ROOT, Crowd, cpu_seconds, crowded
from telling import spread, tell

PODS, IDENTITIES = 250, 20
IMPORTS = """
import podidentity.cli.main
import podidentity.cli.nmi
import podidentity.nmi.daemon
from podidentity.nmi.sources import open_imds_client
"""
IMAGE = ROOT / "build" / "image.tar"
BUDGET = {"import_cpu_ms": 250.0}
"""The largest value that is within the budget of docs/performance.md."""


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often")
    rounds = range(parser.parse_args().rounds)
    imports, nothing = zip(*((import_cpu_ms(IMPORTS), import_cpu_ms("")) for _ in rounds), strict=True)
    figures: dict[str, Any] = {
        "import_cpu_ms": spread(imports, 1),
        "python_alone_cpu_ms": spread(nothing, 1),
        "image_mib": round(IMAGE.stat().st_size / 2**20, 1) if IMAGE.exists() else None,
    }
    with crowded() as crowd:
        crowd.fill(PODS, IDENTITIES)
        ready, cpu = zip(*(start(crowd) for _ in rounds), strict=True)
    figures |= {"ready_s": spread(ready), "ready_cpu_s": spread(cpu)}
    return tell("start_up", figures, BUDGET, {"import_cpu_ms": figures["import_cpu_ms"]["median"]})


def import_cpu_ms(program: str) -> float:
    """User and system time of a Python that runs `program`, in milliseconds; its byte code is there already."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3


def start(crowd: Crowd) -> tuple[float, float]:
    """Seconds until NMI is ready, and the CPU it needed for that."""
    began = time.monotonic()
    crowd.start("--anti-spoof=off")
    seconds = time.monotonic() - began
    assert crowd.process is not None
    used = cpu_seconds(crowd.process.pid)
    crowd.kill()
    return seconds, used


if __name__ == "__main__":
    raise SystemExit(main())
