"""Each command's help has an example, and each command has the options that users of kubectl expect."""

import shlex

import pytest
from references.commands import example, leaves

from podidentity.cli import commands
from podidentity.cli.main import DAEMONS

ALL = {" ".join(path): command for path, command in leaves(("podidentity",), commands.cli) if path[1] not in DAEMONS}


@pytest.mark.parametrize("name", ALL)
def test_each_command_has_an_example(name: str) -> None:
    """The example in a command's help calls that command."""
    words = shlex.split(example(ALL[name]).replace("$(", " ").replace(")", " ").replace('"', " "))
    assert name in " ".join(words), words


@pytest.mark.parametrize("name", ALL)
def test_each_command_answers_h(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`-h` prints the help, as kubectl's commands do."""
    assert commands.run([*name.split()[1:], "-h"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: {name} ")


WITHOUT_CLUSTER = ("lab", "completion", "credential list", "credential delete", "jwks")


@pytest.mark.parametrize(
    "name", [name for name in ALL if not name.removeprefix("podidentity ").startswith(WITHOUT_CLUSTER)]
)
def test_what_reads_a_cluster_takes_kubectls_options(name: str) -> None:
    """Commands that read a cluster have kubectl's options, by kubectl's names."""
    options = {text for parameter in ALL[name].params for text in parameter.opts}
    assert {"--kubeconfig", "--context", "--namespace", "-n", "--output", "-o"} <= options
