"""Renders each chart with its values files below tests/chart, or checks that the golden files are in step.

python tools/chart.py            write what has changed
python tools/chart.py --check    write nothing; exit 1 and name each file that is stale
Helm comes as a library (`helm-python-sdk`, group `chart`), so that every machine renders with the same release of it.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import helm_python
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
CHART = REPOSITORY / "charts" / "aad-pod-identity"
BROKER = REPOSITORY / "charts" / "podidentity-broker"
WEBHOOK = REPOSITORY / "charts" / "podidentity-webhook"
CHARTS = (CHART, BROKER, WEBHOOK)
TESTS = REPOSITORY / "tests" / "chart"
VALUES = TESTS / "values"
BROKER_VALUES = TESTS / "broker-values"
WEBHOOK_VALUES = TESTS / "webhook-values"
GOLDEN = (
    (CHART, VALUES, TESTS / "golden", ("podidentity", "identity")),
    (BROKER, BROKER_VALUES, TESTS / "broker-golden", ("podidentity-broker", "podidentity-broker")),
    (WEBHOOK, WEBHOOK_VALUES, TESTS / "webhook-golden", ("workload-identity", "azure-workload-identity-system")),
)
"""Of each chart: where its values files are, where what it makes of them is, and which release and namespace it is."""


def main(arguments: Sequence[str]) -> int:
    """Write or check; return the exit status."""
    texts = {
        golden / path.name: render(yaml.safe_load(path.read_text()) or {}, chart, *release)
        for chart, values, golden, release in GOLDEN
        for path in sorted(values.iterdir())
    }
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text() != text]
    for path in stale:
        name = path.relative_to(REPOSITORY)
        if "--check" in arguments:
            print(f"{name} is stale; run: make fix", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(texts[path])
            print(f"wrote {name}")
    return 1 if stale and "--check" in arguments else 0


def render(
    values: Mapping[str, Any], chart: Path = CHART, name: str = "podidentity", namespace: str = "identity"
) -> str:
    """Return what `helm template` prints: the files in order, each with its origin. Raise helm_python.HelmError."""
    texts = templates(values, chart=chart, name=name, namespace=namespace).items()
    return "".join(f"---\n# {path}\n{text.strip()}\n" for path, text in texts if text.strip())


def templates(
    values: Mapping[str, Any], *, chart: Path = CHART, name: str = "podidentity", namespace: str = "identity"
) -> dict[str, str]:
    """Return each template rendered, by its path, NOTES.txt among them. Raise helm_python.HelmError."""
    with helm_python.Chart.load(chart) as source:
        source.validate_schema(dict(values))
        return dict(sorted(source.render(dict(values), name=name, namespace=namespace).items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
