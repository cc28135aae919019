"""How often IMDS is called when many pods ask at once for a token that nobody has. `make bench` runs it.

The reference is NMI with --token-cache=false, which asks IMDS for each request, as aad-pod-identity does; it is asked
less often, because IMDS's own limit of 20 calls a second then sets the pace.
"""

import argparse
import time

from results import print_result, spread
from system.load.crowd import HEAD, Crowd, crowded

PODS, IDENTITIES = 250, 20
REQUESTS, REQUESTS_WITHOUT_CACHE = 1000, 100
CONNECTIONS_PER_POD = 250  # NMI lets one address have 256
IMDS_SECONDS = 0.5  # how long IMDS takes while everybody asks
BUDGET = {"calls_for_1000_requests": 1.0}
"""The largest value that is within the budget of docs/performance.md."""


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often; each round asks for another resource")
    rounds = range(parser.parse_args().rounds)
    with crowded() as crowd:
        pods_of_one = crowd.fill(PODS, IDENTITIES)[::IDENTITIES]
        crowd.start("--anti-spoof=off")
        cached = [ask(crowd, pods_of_one, REQUESTS, f"cached-{number}") for number in rounds]
        crowd.terminate()
        crowd.start("--anti-spoof=off", "--token-cache=false")
        plain = [ask(crowd, pods_of_one, REQUESTS_WITHOUT_CACHE, f"plain-{number}") for number in rounds]
    figures = {
        "cached": {"requests": REQUESTS, "calls": [calls for calls, _ in cached], "s": spread([s for _, s in cached])},
        "without cache": {
            "requests": REQUESTS_WITHOUT_CACHE,
            "calls": [calls for calls, _ in plain],
            "s": spread([s for _, s in plain]),
        },
    }
    return print_result("imds_calls", figures, BUDGET, {"calls_for_1000_requests": max(calls for calls, _ in cached)})


def ask(crowd: Crowd, pods: list[str], requests: int, resource: str) -> tuple[int, float]:
    """Ask all at once from pods of one identity; return the calls to IMDS, and the seconds until all have an answer."""
    connections = min(requests, len(pods) * CONNECTIONS_PER_POD)
    calls_before, start = len(crowd.imds.served.requests), time.monotonic()
    crowd.imds.call(crowd.imds.served.hold, IMDS_SECONDS)
    flags = (f"-connections={connections}", f"-first={requests // connections}", "-expect=token of identity-0 for")
    report = crowd.load(pods, *flags, head=HEAD.replace("vault.azure.net", f"{resource}.example"))
    if report["statuses"] != {"200": requests} or report["wrong"]:
        raise SystemExit(f"not every request had its answer: {report}")
    return len(crowd.imds.served.requests) - calls_before, time.monotonic() - start


if __name__ == "__main__":
    raise SystemExit(main())
