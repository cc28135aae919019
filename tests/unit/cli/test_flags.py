"""Command lines as Go's flag and pflag read them, and what a wrong one says."""

import contextlib
from pathlib import Path

import pytest

from podidentity.cli import mic
from podidentity.cli.flags import COMMON, COMPATIBILITY, Flag, help_width, parse, parse_duration, render_help
from podidentity.cli.nmi import COMMAND, TABLE, refuse_kubenet, settings_of
from podidentity.errors import ConfigurationError, UsageError
from podidentity.nmi.settings import Settings

WORDS = (
    Flag("name", "text", "x", "A text."),
    Flag("count", "number", "3", "A number."),
    Flag("loud", "switch", "false", "A switch."),
    Flag("every", "duration", "1h30m", "A duration."),
    *COMMON,
    *COMPATIBILITY,
)


@pytest.mark.parametrize("dashes", ["-", "--"])
@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["name=y"], "name", "y"),
        (["name", "y"], "name", "y"),
        (["name="], "name", ""),
        (["name", "-odd"], "name", "-odd"),
        (["name=a=b"], "name", "a=b"),
        (["count=0x10"], "count", 16),
        (["loud"], "loud", True),
        (["loud=false"], "loud", False),
        (["loud=T"], "loud", True),
        (["every=90s"], "every", 90.0),
        (["v=5"], "v", 5),
        (["v", "5"], "v", 5),
        (["log-dir=/x"], "log_dir", "/x"),
    ],
)
def test_every_way_to_write_a_flag(dashes: str, words: list[str], name: str, value: object) -> None:
    """A flag has one dash or two, and its value follows `=` or is the next word."""
    flags = parse("p", WORDS, [dashes + words[0], *words[1:]])
    assert flags.values[name] == value
    assert flags.names == {name}


def test_the_short_form_of_verbosity() -> None:
    """`-v5` is taken, as Go's flag library takes it."""
    assert parse("p", WORDS, ["-v5"]).number("v") == 5


def test_defaults_are_read_like_values() -> None:
    """With an empty command line each flag has the default of its table."""
    flags = parse("p", WORDS, [])
    assert (flags.text("name"), flags.number("count"), flags.switch("loud"), flags.seconds("every")) == (
        "x",
        3,
        False,
        5400.0,
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--nam=x"], r"unknown flag --nam; use --name, or see `"),
        (["--zzzzzz"], r"unknown flag --zzzzzz; see `p --help`"),
        (["--count=many"], r'--count: "many" is not a whole number; write for example 5'),
        (["--loud=perhaps"], r'--loud: "perhaps" is neither true nor false; write true or false'),
        (["--every=90"], r'--every: "90" is not a duration'),
        (["--name"], r"--name needs a value"),
        (["--loud", "false"], r'unexpected argument "false"'),
        (["---name=x"], r"unexpected argument"),
        (["--"], r"unexpected argument"),
    ],
)
def test_a_wrong_word_is_one_sentence(words: list[str], told: str) -> None:
    """The sentence names the word and says what to do; the exit status is 2."""
    with pytest.raises(UsageError, match=told) as raised:
        parse("p", WORDS, words)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_status == 2


def test_flags_without_effect_are_reported() -> None:
    """Flags without effect are accepted, since manifests pass them, and listed for a warning."""
    assert parse("p", WORDS, ["--logtostderr", "--name=y", "--vmodule=a=1"]).without_effect == (
        "logtostderr",
        "vmodule",
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("1h30m", 5400.0),
        ("1.5s", 1.5),
        ("100ms", 0.1),
        (".5m", 30.0),
        ("-2s", -2.0),
        ("5", None),
        ("", None),
        ("1h x", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    """Durations are read as Go's ParseDuration reads them."""
    assert parse_duration(text) == pytest.approx(seconds) if seconds is not None else parse_duration(text) is None


@pytest.mark.parametrize("width", [72, 80, 100])
def test_help_shows_every_flag_that_matters(width: int) -> None:
    """The help fits the terminal and has each flag of the table and an example; flags without effect come last."""
    text = render_help(COMMAND.program, COMMAND.summary, TABLE, COMMAND.example, width)
    assert all(f"--{flag.name}" in text for flag in TABLE if not flag.hidden)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "--enableProfile" in text.rpartition("without effect:")[2]
    assert COMMAND.example in text


UPSTREAM = {
    "nmi-listen-address": "127.0.0.1",
    "nmi-port": "2579",
    "metadata-ip": "169.254.169.254",
    "metadata-port": "80",
    "node": "",
    "ipt-update-interval-sec": "60",
    "forceNamespaced": "false",
    "MICNamespace": "default",
    "http-probe-port": "8080",
    "prometheus-port": "9090",
    "retry-attempts-for-created": "16",
    "retry-attempts-for-assigned": "4",
    "find-identity-retry-interval": "5",
    "enableScaleFeatures": "true",
    "block-instance-metadata": "false",
    "metadata-header-required": "true",
    "operation-mode": "standard",
    "allow-network-plugin-kubenet": "false",
    "kubelet-config": "/etc/default/kubelet",
    "set-retry-after-header": "false",
    "enableProfile": "false",
    "version": "false",
    "log-format": "text",
    "custom-user-agent": "",
}


def test_nmi_keeps_upstreams_flags_and_defaults() -> None:
    """A manifest written for aad-pod-identity starts our NMI unchanged."""
    ours = {flag.name: flag.default for flag in TABLE}
    assert {name: ours.get(name) for name in UPSTREAM} == UPSTREAM


def settings(*words: str, **environ: str) -> Settings:
    """Read a command line of NMI."""
    return settings_of(parse(COMMAND.program, TABLE, words), environ)


def test_settings_of_the_usual_manifest() -> None:
    """The flags of upstream's DaemonSet are read, together with NODE_NAME and HOST_IP of the downward API."""
    made = settings("--node=n1", "--http-probe-port=8085", "--enableScaleFeatures=true", HOST_IP="10.0.0.4")
    assert (made.node, made.probe_port, made.listen_address, made.port) == ("n1", 8085, "10.0.0.4", 2579)
    assert (made.wait_created_seconds, made.wait_assigned_seconds) == (80.0, 20.0)
    assert settings(NODE_NAME="n2").node == "n2"
    assert settings("--nmi-listen-address=10.0.0.9", HOST_IP="10.0.0.4").listen_address == "10.0.0.9"
    assert settings("--nmi-listen-address=0.0.0.0").listen_address == ""
    assert settings("--operation-mode=managed", FORCENAMESPACED="true").managed_mode
    assert settings("--secret-namespaces=a,b").secret_namespaces == {"a", "b"}
    assert settings().token_file_port == 0
    assert settings("--broker=https://b/", "--token-file-port=2580").token_file_port == 2580


def test_a_node_that_kubernetes_knows_by_ipv6() -> None:
    """HOST_IP is then where the token-file door is, in the spelling of sockets; IMDS is reached over IPv4 as always."""
    node = settings(HOST_IP="FD00:0::7")
    assert (node.listen_address, node.token_file_ipv6_address) == ("", "fd00::7")
    assert settings(HOST_IP="10.0.0.4").token_file_ipv6_address == ""
    assert settings(HOST_IP="::ffff:10.0.0.4").listen_address == "10.0.0.4"
    assert settings(HOST_IP="::ffff:10.0.0.4").token_file_ipv6_address == ""


@pytest.mark.parametrize("text", ["fd00::x", "10.0.0", "[fd00::7]", "fd00::7/64", "node-1", "::ffff:10.0.0.4.5", " "])
def test_a_host_address_that_is_none(text: str) -> None:
    """It is named, with where the right one stands."""
    with pytest.raises(UsageError, match=r'HOST_IP: ".*" is no IP address; set it to the node.s, status.hostIP'):
        settings(HOST_IP=text)


@pytest.mark.parametrize(
    "text", ["::", "0.0.0.0", "::ffff:0.0.0.0", "::%eth0", "fe80::1", "fe80::1%eth0", "::1", "ff02::1", "224.0.0.1"]
)
def test_the_door_is_at_the_address_of_one_node(text: str) -> None:
    """At all addresses of the host the door would be open to networks that have no pods; others no pod can ask."""
    with pytest.raises(UsageError, match=r'HOST_IP: pods cannot reach the node at ".*"; set it to status.hostIP'):
        settings(HOST_IP=text)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--operation-mode=managed"], "add --forceNamespaced"),
        (["--operation-mode=other"], "give standard or managed"),
        (["--metadata-ip=fe80::1"], "is not an IPv4 address"),
        (["--metadata-ip=1.2.3.4; drop"], "is not an IPv4 address"),
        (["--nmi-port=0"], "is not a port"),
        (["--token-file-port=2580"], "set --broker"),
        (["--token-file-port=2579", "--broker=https://b"], "is also --nmi-port"),
        (["--token-file-port=70000", "--broker=https://b"], "is not a port"),
        (["--broker=http://b"], "over TLS alone"),
        (["--broker=https://[b"], "over TLS alone"),
        (["--broker=https://b:99999"], "over TLS alone"),
        (["--nmi-port=70000"], "is not a port"),
        (["--redirect=iptables"], "give nft or none"),
    ],
)
def test_wrong_settings_are_one_sentence(words: list[str], told: str) -> None:
    """Each sentence says what is wrong with the setting or what to give instead."""
    with pytest.raises(UsageError, match=told):
        settings(*words)


@pytest.mark.parametrize(("columns", "width"), [("40", 72), ("80", 80), ("300", 100)])
def test_help_is_as_wide_as_the_terminal(columns: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The help is as wide as the terminal, but at least 72 and at most 100 columns."""
    monkeypatch.setenv("COLUMNS", columns)
    assert help_width() == width


def test_klogs_flags_are_accepted() -> None:
    """Manifests pass klog's flags; all but `-v` are accepted without effect."""
    given = {flag.name for flag in TABLE if flag.hidden} | {"v"}
    values = {flag.name: flag.default for flag in TABLE}
    flags = parse(COMMAND.program, TABLE, [f"--{name}={values[name]}" for name in given])
    assert {"logtostderr", "vmodule", "stderrthreshold", "log_file_max_size", "skip_log_headers"} < given
    assert set(flags.without_effect) == given - {"v"}


def test_the_login_of_a_custom_cloud_is_read_from_its_description(tmp_path: Path) -> None:
    """The file that AZURE_ENVIRONMENT_FILEPATH names adds its sign-in address to those of Microsoft's clouds."""
    file = tmp_path / "cloud.json"
    file.write_text(
        '{"resourceManagerEndpoint": "https://arm.own/", "activeDirectoryEndpoint": "https://Login.Own.Cloud/"}'
    )
    logins = settings(AZURE_ENVIRONMENT_FILEPATH=str(file)).logins
    assert "https://login.own.cloud" in logins
    assert {"https://login.microsoftonline.com", "https://login.microsoftonline.us"} < settings().logins < logins
    with pytest.raises(ConfigurationError, match="cannot be read"):
        settings(AZURE_ENVIRONMENT_FILEPATH=str(tmp_path / "none"))


@pytest.mark.parametrize("allowed", [True, False])
def test_kubenet_is_refused_unless_it_is_allowed(tmp_path: Path, *, allowed: bool) -> None:
    """A kubelet configuration with kubenet keeps NMI from starting, unless the flag allows it, as in upstream."""
    file = tmp_path / "kubelet"
    file.write_text("KUBELET_FLAGS=--cloud-provider=azure --network-plugin=kubenet\n")
    words = [f"--kubelet-config={file}", f"--allow-network-plugin-kubenet={str(allowed).lower()}"]
    refused = pytest.raises(ConfigurationError, match="uses kubenet") if not allowed else contextlib.nullcontext()
    with refused:
        refuse_kubenet(parse(COMMAND.program, TABLE, words))


def test_an_unreadable_kubelet_config_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A missing file is ignored; one that cannot be read is logged as a warning, and NMI starts."""
    refuse_kubenet(parse(COMMAND.program, TABLE, [f"--kubelet-config={tmp_path / 'none'}"]))
    assert caplog.records == []
    refuse_kubenet(parse(COMMAND.program, TABLE, [f"--kubelet-config={tmp_path}"]))
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize(
    ("word", "refused"),
    [
        ("--syncRetryDuration=0", True),
        ("--syncRetryDuration=-5m", True),
        ("--identity-assignment-reconcile-interval=0s", True),
        ("--leader-election-duration=500ms", True),
        ("--leader-election-duration=-15s", True),
        ("--unassign-delay=-1s", True),
        ("--unassign-delay=0", False),
        ("--syncRetryDuration=10ms", False),
        ("--update-user-msi-retry-interval=-1s", False),
    ],
)
def test_a_time_that_mic_cannot_wait_is_refused(*, word: str, refused: bool) -> None:
    """A duration that is too short is refused with an example; flags without effect may have any value."""
    given = parse("mic", mic.TABLE, [word])
    with pytest.raises(UsageError, match="too short; write for example") if refused else contextlib.nullcontext():
        mic.settings_of(given, {"MIC_POD_NAMESPACE": "default"})
