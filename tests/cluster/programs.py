"""Programs that tests run in pods: the standard library alone, results on standard output or port 8080."""

from cluster.harness import TOKEN_URL

_ASK = f"""
import base64, collections, http.server, json, threading, time, urllib.error, urllib.request

def ask(seconds=100):
    request = urllib.request.Request({TOKEN_URL!r}, headers={{"Metadata": "true"}})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            token = json.load(answer)["access_token"]
    except urllib.error.HTTPError as error:
        return str(error.code), ""
    except (OSError, urllib.error.URLError) as error:
        return type(getattr(error, "reason", error)).__name__, ""
    payload = token.split(".")[1]
    return "200", json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["appid"]
"""

ONCE = f"""{_ASK}
print(json.dumps(ask()))
"""
"""Ask once; prints `["200", client ID]` or what went wrong."""

BRIEFLY = f"""{_ASK}
print(json.dumps(ask(5)))
"""
"""The same with little patience: for an answer that should not come."""

OWN = f"""{_ASK}
import os, sys
answer = ask()
print(json.dumps(answer))
sys.exit(answer != ("200", os.environ["OWN"]))
"""
"""Ask once; exit status 0 when the token is that of the identity in OWN."""

KEEP_ASKING = f"""{_ASK}
seen = collections.Counter()
gap, previous = 0.0, time.monotonic()

def keep_asking():
    global gap, previous
    while True:
        status, owner = ask()
        seen[f"{{status}} {{owner}}".strip()] += 1
        if status == "200":
            gap, previous = max(gap, time.monotonic() - previous), time.monotonic()
        time.sleep(0.05)

class Tell(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global gap, previous
        self.send_response(200)
        self.end_headers()
        answer = seen
        if self.path == "/gap":
            answer = max(gap, time.monotonic() - previous)
            gap, previous = 0.0, time.monotonic()
        self.wfile.write(json.dumps(answer).encode())

for _ in range(3):
    threading.Thread(target=keep_asking, daemon=True).start()
http.server.ThreadingHTTPServer(("", 8080), Tell).serve_forever()
"""
"""Ask for tokens, each on a new connection, and tell on port 8080 how often each answer came, by status and owner.

`/gap` is the longest time in seconds without a token, since it was last asked for.
"""

_PAGE = """
import http.server, json, os, urllib.parse

def serve(answer):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = urllib.parse.urlsplit(self.path)
            body = json.dumps(answer(path.path, dict(urllib.parse.parse_qsl(path.query)))).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)
    http.server.ThreadingHTTPServer(("", int(os.environ.get("PORT", "8080"))), Handler).serve_forever()
"""

BROKER_DOOR = f"""{_PAGE}
import ssl, urllib.error, urllib.request

def ask(token, client_id):
    form = {{"client_id": client_id, "client_assertion": token, "grant_type": "client_credentials",
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "scope": "https://vault.azure.net/.default"}}
    url = os.environ["AZURE_KUBERNETES_TOKEN_PROXY"] + "/" + os.environ["AZURE_TENANT_ID"] + "/oauth2/v2.0/token"
    trust = ssl.create_default_context(cafile=os.environ["AZURE_KUBERNETES_CA_FILE"])
    request = urllib.request.Request(url, urllib.parse.urlencode(form).encode())
    try:
        with urllib.request.urlopen(request, context=trust, timeout=70) as answer:
            return [answer.status, json.load(answer)]
    except urllib.error.HTTPError as error:
        return [error.code, json.load(error)]

def answer(path, query):
    if path == "/ask":
        return ask(query["token"], query["client_id"])
    if path == "/certificate":
        return ssl.get_server_certificate((query["address"], 8443))

serve(answer)
"""
"""Asks the broker with whatever token it is given, and shows which certificate a replica has."""

BROKER_LOAD = f"""{_PAGE}
import asyncio, base64, collections, threading, time
from azure.identity import WorkloadIdentityCredential
from azure.identity.aio import WorkloadIdentityCredential as AsyncCredential

SCOPE, PAUSE = "https://vault.azure.net/.default", 1.0
CAPABILITIES = '{{"access_token":{{"xms_cc":{{"values":["CP1"]}}}}}}'
counts, lock = collections.Counter(), threading.Lock()

def part(token, number):
    text = token.split(".")[number]
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))

def note(token):
    is_right = part(token, 1)["appid"] == os.environ["AZURE_CLIENT_ID"]
    with lock:
        counts["token" if is_right else "token of another"] += 1

def note_failure(error):
    with lock:
        counts[type(error).__name__ + ": " + str(error)] += 1

def keep_asking():
    credential = WorkloadIdentityCredential(enable_azure_proxy=True)
    while True:
        try:
            note(credential.get_token(SCOPE, claims=CAPABILITIES).token)
        except Exception as error:
            note_failure(error)
        time.sleep(PAUSE)

async def keep_asking_too():
    credential = AsyncCredential(enable_azure_proxy=True)
    while True:
        try:
            note((await credential.get_token(SCOPE, claims=CAPABILITIES)).token)
        except Exception as error:
            note_failure(error)
        await asyncio.sleep(PAUSE)

async def keep_all_asking():
    await asyncio.gather(*(keep_asking_too() for _ in range(16)))

def answer(path, query):
    if path == "/trust":
        with open(os.environ["AZURE_KUBERNETES_CA_FILE"]) as file:
            return file.read().count("BEGIN CERTIFICATE")
    if path == "/kid":
        with open(os.environ["AZURE_FEDERATED_TOKEN_FILE"]) as file:
            return part(file.read(), 0)["kid"]
    with lock:
        return counts

for _ in range(16):
    threading.Thread(target=keep_asking, daemon=True).start()
threading.Thread(target=asyncio.run, args=(keep_all_asking(),), daemon=True).start()
serve(answer)
"""
"""32 clients, which are azure-identity's credentials as they are, with their own retries: 16 of them the asynchronous
ones. Each keeps its connection, and asks once a second: with claims that only say what it understands, so that it does
not answer from its own cache and the broker does from its.

Counted: `token` for each token of the right identity; each other end of a `get_token` by the words of its exception.
"""

QUICK_START = """
import json, os, time
from azure.core.credentials import AccessToken
from azure.keyvault.secrets import SecretClient
from msal import ConfidentialClientApplication

class Federated:
    def __init__(self):
        authority = os.environ["AZURE_AUTHORITY_HOST"] + os.environ["AZURE_TENANT_ID"]
        self.application = ConfidentialClientApplication(
            os.environ["AZURE_CLIENT_ID"], authority=authority, client_credential={"client_assertion": self.assertion})

    def assertion(self):
        with open(os.environ["AZURE_FEDERATED_TOKEN_FILE"]) as file:
            return file.read()

    def get_token(self, *scopes, **_):
        answer = self.application.acquire_token_for_client(list(scopes))
        if "access_token" not in answer:
            raise SystemExit(answer["error_description"])
        return AccessToken(answer["access_token"], int(time.time()) + answer["expires_in"])

client = SecretClient(os.environ["KEYVAULT_URL"], Federated())
print(client.get_secret(os.environ["SECRET_NAME"]).value)
"""
"""What azure-workload-identity's quick start runs: MSAL with the projected token, then a secret of a Key Vault."""

WORKLOAD_IDENTITY = """
import os
from azure.identity import WorkloadIdentityCredential
from azure.keyvault.secrets import SecretClient

credential = WorkloadIdentityCredential(enable_azure_proxy="AZURE_KUBERNETES_TOKEN_PROXY" in os.environ)
print(SecretClient(os.environ["KEYVAULT_URL"], credential).get_secret(os.environ["SECRET_NAME"]).value)
"""
"""The same with Azure's own credential, by the token proxy where the pod has one."""

EITHER = """
import os, signal
if "AZURE_FEDERATED_TOKEN_FILE" in os.environ:
    from azure.identity import WorkloadIdentityCredential
    from azure.keyvault.secrets import SecretClient

    proxied = "AZURE_KUBERNETES_TOKEN_PROXY" in os.environ
    client = SecretClient(os.environ["KEYVAULT_URL"], WorkloadIdentityCredential(enable_azure_proxy=proxied))
    print("broker" if proxied else "direct", client.get_secret(os.environ["SECRET_NAME"]).value)
signal.pause()
"""
"""Says by which way it reads a secret, if it has one."""

DOOR_CLIENT = f"""{_PAGE}
import ssl, urllib.error, urllib.request

PROOF = "/var/opt/azcmagent/tokens/podidentity.key"

def fetch(url, headers, form=None):
    body = None if form is None else urllib.parse.urlencode(form).encode()
    trust = ssl._create_unverified_context()
    try:
        request = urllib.request.Request(url, body, headers)
        with urllib.request.urlopen(request, timeout=100, context=trust) as response:
            return response.status, dict(response.headers), json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), json.loads(error.read() or b"{{}}")
    except OSError as error:
        return 0, {{}}, {{"error_description": str(error)}}

def answer(path, query):
    if path == "/metadata":
        return fetch({TOKEN_URL!r}, {{"Metadata": "true"}})
    if path == "/proof":
        return open(PROOF).read()
    if path == "/token-file":
        url = os.environ["IDENTITY_ENDPOINT"] + "?api-version=2020-06-01&resource=https%3A%2F%2Fvault.azure.net"
        url += query.get("more", "")
        status, headers, document = fetch(url, {{"Metadata": "true"}})
        realm = {{name.lower(): value for name, value in headers.items()}}.get("www-authenticate")
        if (status, realm) != (401, "Basic realm=" + PROOF):
            return status, headers, document
        proof = query.get("proof") or open(PROOF).read()
        return fetch(url, {{"Metadata": "true", "Authorization": "Basic " + proof}})
    if path == "/broker":
        return fetch(query.pop("url"), {{}}, query)

serve(answer)
"""
"""Asks by each of NMI's doors, and the broker with whatever form it is given; returns status, headers and document."""
