"""From the start of NMI's process to /readyz 200 on a node with 250 pods, what its imports cost, and the image's size.

`make bench` runs it. The reference of the imports is a Python that imports `asyncio` and `ssl` alone.
"""

import argparse
import resource
import subprocess
import sys
import time
from typing import Any

from processes import cpu_seconds
from results import print_result, spread
from system.load.crowd import ROOT, Crowd, crowded

PODS, IDENTITIES = 250, 20
IMPORTS = """
import podidentity.cli.main
import podidentity.cli.nmi
import podidentity.nmi.lifecycle
from podidentity.nmi.adapters.imds import open_imds_client
"""
REFERENCE = "import asyncio, ssl"
IMAGE = ROOT / "build" / "image.tar"
BUDGET = {"imports_over_reference": 5.5}
"""The largest value that is within the budget of docs/performance.md."""


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="how often")
    rounds = range(parser.parse_args().rounds)
    import_cpu_ms(IMPORTS)  # its byte code is there from now on
    pairs = [(import_cpu_ms(IMPORTS), import_cpu_ms(REFERENCE)) for _ in rounds]
    figures: dict[str, Any] = {
        "import_cpu_ms": spread([imports for imports, _ in pairs], 1),
        "reference_cpu_ms": spread([reference for _, reference in pairs], 1),
        "imports over reference": spread([imports / reference for imports, reference in pairs], 2),
        "python_alone_cpu_ms": spread([import_cpu_ms("") for _ in rounds], 1),
        "image_mib": round(IMAGE.stat().st_size / 2**20, 1) if IMAGE.exists() else None,
    }
    with crowded() as crowd:
        crowd.fill(PODS, IDENTITIES)
        ready, cpu = zip(*(start(crowd) for _ in rounds), strict=True)
    figures |= {"ready_s": spread(ready), "ready_cpu_s": spread(cpu)}
    return print_result("start_up", figures, BUDGET, {"imports_over_reference": figures["imports over reference"]})


def import_cpu_ms(program: str) -> float:
    """Return the CPU in ms of a Python that runs `program`, whose modules have been compiled already."""
    usage_before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    usage_after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (usage_after.ru_utime + usage_after.ru_stime - usage_before.ru_utime - usage_before.ru_stime) * 1e3


def start(crowd: Crowd) -> tuple[float, float]:
    """Return the seconds until NMI is ready, and the CPU seconds that it needed for that."""
    start = time.monotonic()
    crowd.start("--anti-spoof=off")
    seconds = time.monotonic() - start
    assert crowd.process is not None
    cpu = cpu_seconds(crowd.process.pid)
    crowd.kill()
    return seconds, cpu


if __name__ == "__main__":
    raise SystemExit(main())
