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

def keep_asking():
    while True:
        status, owner = ask()
        seen[f"{{status}} {{owner}}".strip()] += 1
        time.sleep(0.05)

class Tell(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(seen).encode())

for _ in range(3):
    threading.Thread(target=keep_asking, daemon=True).start()
http.server.ThreadingHTTPServer(("", 8080), Tell).serve_forever()
"""
"""Ask for tokens, each on a new connection, and tell on port 8080 how often each answer came, by status and owner."""
