"""Renders the chart with each values file of tests/chart/values, or checks that tests/chart/golden is in step.

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
VALUES = REPOSITORY / "tests" / "chart" / "values"
GOLDEN = REPOSITORY / "tests" / "chart" / "golden"


def main(arguments: Sequence[str]) -> int:
    """Write or check; the exit status."""
    texts = {GOLDEN / path.name: render(yaml.safe_load(path.read_text()) or {}) for path in sorted(VALUES.iterdir())}
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


def render(values: Mapping[str, Any]) -> str:
    """Render as `helm template` does: the files in order, each with its origin. Raises helm_python.HelmError."""
    return "".join(f"---\n# {path}\n{text.strip()}\n" for path, text in templates(values).items() if text.strip())


def templates(values: Mapping[str, Any], *, name: str = "podidentity", namespace: str = "identity") -> dict[str, str]:
    """Render each template, NOTES.txt among them, in order. Raises helm_python.HelmError."""
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(dict(values))
        return dict(sorted(chart.render(dict(values), name=name, namespace=namespace).items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
