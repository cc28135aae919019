"""The ways in and through the lab: the proxy on loopback, names, Services, with real sockets and real nft rules."""

import contextlib
import json
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator

import pytest
from dnslib import DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from podidentity_lab import dns, gateway, services
from podidentity_lab.demo.admin import Admin
from podidentity_lab.fabric import AZURE_ADDRESS
from system.lab.running import NOBODY, Json, Lab, lab, pod
from waiting import until


@pytest.fixture(scope="module", params=["routed", "bridge"])
def up(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab of two nodes, with pods routed or on a bridge."""
    home = tmp_path_factory.mktemp("labs")
    home.chmod(0o700)
    with lab(home, "net", "--network", request.param) as one:
        yield one


def server(name: str, node: str) -> Json:
    """Return a pod on `node` that answers its own name on port 8080."""
    script = f"mkdir /tmp/www; echo {name} > /tmp/www/index.html; exec python3 -m http.server -d /tmp/www 8080"
    made = pod(name, script, readinessProbe={"tcpSocket": {"port": 8080}, "periodSeconds": 1})
    made["metadata"]["labels"] = {"app": "web"}
    made["spec"]["nodeName"] = node
    return made


def service(name: str, selector: str) -> Json:
    """Return a Service with an external address."""
    spec = {"type": "LoadBalancer", "selector": {"app": selector}, "ports": [{"port": 80, "targetPort": 8080}]}
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def external(up: Lab, name: str) -> str:
    """Return the external address of a Service, once it has one."""

    def address() -> str:
        ingress = (up.get("service", name).get("status") or {}).get("loadBalancer", {}).get("ingress") or [{}]
        return str(ingress[0].get("ip", ""))

    until(address, "an address")
    return address()


@pytest.mark.root
def test_a_service_reaches_all_its_pods_from_everywhere(up: Lab) -> None:
    """From the host through the proxy, and from pods by name, also from a node that one of the pods runs on."""
    up.create(server("web-0", "node-0"), server("web-1", "node-1"), service("web", "web"))
    until(lambda: up.is_ready("web-0") and up.is_ready("web-1"), "the pods")
    address = external(up, "web")
    answers: set[str] = set()

    def collect() -> bool:
        status, body = up.curl(f"http://{address}/")
        answers.add(body.strip() if status == 200 else "")
        return {"web-0", "web-1"} <= answers

    until(collect, "both pods to answer")
    script = (
        "for n in $(seq 20); do curl -sS -m 5 http://web/; curl -sS -m 5 http://web.default.svc.cluster.local/; done"
    )
    for node in ("node-0", "node-1"):
        asker = pod(f"asker-{node}", script)
        asker["spec"]["nodeName"] = node
        said = up.run_pod(asker).split()
        assert (len(said), set(said)) == (40, {"web-0", "web-1"})


@pytest.mark.root
def test_a_service_without_pods_refuses(up: Lab) -> None:
    """Nobody waits for an answer that cannot come; the proxy says what it could not reach."""
    up.create(service("empty", "nothing"))
    status, said = up.curl(f"http://{external(up, 'empty')}/")
    assert status == 502
    assert "in the lab cannot be reached" in said
    refused = up.run_pod(pod("refused", "curl -sS -m 5 http://empty/; echo $?"))
    assert refused.splitlines()[-1] == "7"  # curl: failed to connect, not 28: timed out


@pytest.mark.root
def test_azure_has_its_real_names(up: Lab) -> None:
    """Host and pods reach Azure under its own names, with certificates that the lab's bundle vouches for."""
    status, _ = up.curl("https://management.azure.com/subscriptions?api-version=2022-12-01")
    assert status == 401
    names = "login.microsoftonline.com management.azure.com graph.microsoft.com any.vault.azure.net"
    script = f"for n in {names}; do curl -sS -o /dev/null -w '%{{http_code}} ' https://$n/; done"
    said = up.run_pod(pod("azure", script)).split()
    assert len(said) == 4
    assert "000" not in said


@pytest.mark.root
def test_other_users_of_the_machine_do_not_come_in(up: Lab) -> None:
    """The gateway is a port of the machine's loopback; it serves the lab's user and root, and tells others why not."""
    url = "http://management.azure.com/"
    assert up.curl(url)[0] != 403
    proxy = next(up.variables[name] for name in ("HTTP_PROXY", "http_proxy") if name in up.variables)
    become = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")
    command = [*become, "curl", "-sS", "-m", "20", "-w", "%{http_code}", "--proxy", proxy, url]
    told = subprocess.run(command, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True).stdout
    assert told.endswith("403")
    assert "this lab is another user's" in told


@pytest.mark.root
def test_the_log_tells_who_asked_for_what_as_whom(up: Lab) -> None:
    """Host, pod and identity by name, the answer with its reason; a follower sees each request as it comes."""
    command = up.user.command("log", "--name", up.name, "--follow", "--output", "json")
    with subprocess.Popen(command, env=up.environment(), stdout=subprocess.PIPE, text=True) as following:
        try:
            assert following.stdout is not None
            up.curl("https://management.azure.com/subscriptions/first")
            seen = (json.loads(line) for line in following.stdout)
            next(one for one in seen if one["what"] == "/subscriptions/first")
            with contextlib.closing(Admin(up.variables)) as admin:
                admin.create_group("logged", "westeurope")
            up.run_pod(pod("refused-by-vault", "curl -s https://nowhere.vault.azure.net/secrets/x"))
            made = next(one for one in seen if one["what"].endswith("/resourceGroups/logged"))
            refused = next(one for one in seen if one["service"] == "keyvault")
        finally:
            following.terminate()
    assert (made["asker"], made["service"], made["method"], made["status"]) == ("host", "arm", "PUT", 201)
    assert made["who"] == up.variables["LAB_OWNER_CLIENT_ID"]
    assert (refused["asker"], refused["status"]) == ("default/refused-by-vault", 404)
    assert "nowhere" in refused["why"]
    text = up.run("log", "--name", up.name).stdout
    assert f"host → ARM: PUT {made['what']}, as {made['identity']}: 201" in text
    assert up.variables["LAB_OWNER_CLIENT_SECRET"] not in text


@pytest.mark.root
def test_there_is_no_way_out(up: Lab) -> None:
    """Neither a name nor an address of the real world is reached, from the host or from a pod."""
    assert up.curl("http://example.com/")[1].startswith("podidentity lab: the lab has no name example.com")
    assert up.curl("http://8.8.8.8/")[1].startswith("podidentity lab: the lab has no address 8.8.8.8")
    assert up.run_pod(pod("out", "curl -s -m 5 http://example.com/; echo $?")) == "6\n"  # could not resolve


@pytest.mark.root
def test_pods_reach_each_other_across_nodes(up: Lab) -> None:
    """Every pod reaches every other at its own address, and is seen with its own."""
    listen = "import socket; s=socket.create_server(('', 9000)); c,a=s.accept(); print(a[0])"
    there = pod("there", command=["python3", "-c", listen])
    there["spec"]["nodeName"] = "node-1"
    up.create(there)
    until(lambda: up.get("pod", "there")["status"].get("podIP"), "an address")
    address = up.get("pod", "there")["status"]["podIP"]
    here = pod("here", f"until curl -s telnet://{address}:9000 </dev/null; do sleep 0.1; done")
    here["spec"]["nodeName"] = "node-0"
    up.run_pod(here)
    assert up.finished("there").strip() == up.get("pod", "here")["status"]["podIP"]


def proxied(up: Lab) -> socket.socket:
    """Return a connection to the lab's proxy."""
    host, _, port = up.variables["HTTP_PROXY"].removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=10)


@pytest.mark.root
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GARBAGE\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"CONNECT :1 HTTP/1.1\r\n\r\n", b"400"),
        (b"CONNECT management.azure.com:99999 HTTP/1.1\r\n\r\n", b"400"),
        (b"CONNECT management.azure.com:444 HTTP/1.1\r\n\r\n", b"502"),
        (b"GET http://[::1/ HTTP/1.1\r\n\r\n", b"400"),
        (b"GET http://x/ HTTP/1.1\r\nA: " + b"a" * 70_000 + b"\r\n\r\n", b"431"),
    ],
)
def test_the_proxy_answers_nonsense(up: Lab, sent: bytes, status: bytes) -> None:
    """Whatever is sent, the proxy says what is wrong and lives on."""
    with proxied(up) as connection:
        connection.sendall(sent)
        assert connection.recv(4096).split(b" ")[1] == status


@pytest.mark.root
def test_a_tunnel_carries_tls_to_its_end(up: Lab) -> None:
    """CONNECT gives the bytes through unchanged: TLS ends in the lab's Azure."""
    with proxied(up) as connection:
        connection.sendall(b"CONNECT vault.vault.azure.net:443 HTTP/1.1\r\nHost: vault.vault.azure.net:443\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        context = ssl.create_default_context(cafile=up.variables["SSL_CERT_FILE"])
        with context.wrap_socket(connection, server_hostname="vault.vault.azure.net") as tunnel:
            tunnel.sendall(b"GET /secrets/x HTTP/1.1\r\nHost: vault.vault.azure.net\r\nConnection: close\r\n\r\n")
            assert tunnel.recv(4096).startswith(b"HTTP/1.1 ")


NAMES = dns.Names(
    lambda name: name.endswith(".vault.azure.net"),
    lambda namespace, name: {"a/b": "10.96.0.9"}.get(f"{namespace}/{name}"),
)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("x.vault.azure.net", AZURE_ADDRESS),
        ("X.Vault.Azure.Net.", AZURE_ADDRESS),
        ("b.a.svc", "10.96.0.9"),
        ("b.a.svc.cluster.local.", "10.96.0.9"),
        ("c.a.svc", None),
        ("b.a", None),
        ("svc", None),
        ("", None),
    ],
)
def test_names(name: str, address: str | None) -> None:
    """Azure's names in any case, Services with and without the cluster's domain, and nothing else."""
    assert NAMES.find(name) == address


def test_a_name_without_the_asked_type_is_empty_and_not_missing() -> None:
    """A name without an AAAA record is answered without one, since NXDOMAIN would stop resolvers from asking for A."""
    reply = DNSRecord.parse(dns.answer(NAMES, DNSRecord.question("x.vault.azure.net", "AAAA").pack()) or b"")
    assert (reply.header.rcode, reply.rr) == (0, [])
    missing = DNSRecord.parse(dns.answer(NAMES, DNSRecord.question("example.com").pack()) or b"")
    assert missing.header.rcode == 3


QUERY = DNSRecord.question("x.vault.azure.net").pack()


@given(
    st.binary(max_size=300) | st.builds(lambda at, more: QUERY[:at] + more, st.integers(0, 40), st.binary(max_size=40))
)
def test_no_query_breaks_the_dns(query: bytes) -> None:
    """Any bytes get an answer or none, never an error."""
    reply = dns.answer(NAMES, query)
    assert reply is None or len(reply) >= 12


@given(st.binary(max_size=300))
def test_no_head_breaks_the_gateway(head: bytes) -> None:
    """Whatever bytes a client sends, the gateway parses a request or refuses it, and raises nothing else."""
    try:
        asked = gateway.parse(head)
    except gateway.Refusal:
        return
    assert asked.host


def test_a_plain_request_is_rebuilt_for_its_server() -> None:
    """The server sees origin form, its own headers and a connection that ends; the proxy's headers stay behind."""
    fields = b"Host: a.b:81\r\nProxy-Authorization: s\r\nConnection: keep-alive\r\nX: 1\r\n\r\n"
    asked = gateway.parse(b"GET http://a.b:81/x?y=1 HTTP/1.1\r\n" + fields)
    assert (asked.host, asked.port, asked.tunnel) == ("a.b", 81, False)
    assert asked.first == b"GET /x?y=1 HTTP/1.1\r\nHost: a.b:81\r\nX: 1\r\nConnection: close\r\n\r\n"


def test_routes_follow_services_and_endpoints() -> None:
    """Ports are matched by name, headless Services have no address, and a Service without pods leads nowhere."""
    ports = [{"name": "a", "port": 80}, {"name": "b", "port": 81, "protocol": "UDP"}]
    listed: list[Json] = [
        {"metadata": {"namespace": "n", "name": "two"}, "spec": {"clusterIP": "10.96.0.5", "ports": ports}},
        {"metadata": {"namespace": "n", "name": "headless"}, "spec": {"clusterIP": "None", "ports": ports}},
    ]
    subset = {"addresses": [{"ip": "10.244.0.2"}], "ports": [{"name": "a", "port": 8080}]}
    endpoints: list[Json] = [{"metadata": {"namespace": "n", "name": "two"}, "subsets": [subset]}]
    found = services.routes(listed, endpoints)
    assert found == {
        ("tcp", "10.96.0.5", 80): (("10.244.0.2", 8080),),
        ("udp", "10.96.0.5", 81): (),
        ("tcp", "10.96.0.1", 443): (("192.168.50.1", 6443),),
    }


@pytest.mark.root
def test_nft_takes_every_table_that_is_rendered() -> None:
    """One backend, several and none: the kernel loads it twice in a row, in a namespace of its own."""
    found: dict[services.Front, tuple[services.Backend, ...]] = {
        ("tcp", "10.96.0.5", 80): (("10.244.0.2", 8080),),
        ("udp", "10.96.0.5", 53): (("10.244.0.2", 53), ("10.244.1.2", 53), ("10.244.1.3", 53)),
        ("tcp", "10.96.0.6", 80): (),
    }
    script = "nft -f - <<X\n" + services.render(found) * 2 + "X\nnft list table ip lab_services"
    command = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", script]
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # a user's own has no sbin
    told = subprocess.run(
        command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False, timeout=30
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("numgen random mod 3") == 2
