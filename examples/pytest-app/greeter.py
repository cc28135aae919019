"""A web application that greets with a secret of Azure Key Vault, as a managed identity."""

import os
from wsgiref.simple_server import make_server

from azure.core.exceptions import AzureError
from azure.identity import DefaultAzureCredential
from azure.keyvault.secrets import SecretClient


def greeting() -> str:
    """Read the secret `greeting` of the vault at VAULT_URL."""
    with DefaultAzureCredential() as credential, SecretClient(os.environ["VAULT_URL"], credential) as client:
        return f"Hello, {client.get_secret('greeting').value}!"


def application(environ, start_response):
    """Answer every request with the greeting, or with 503 and the kind of error (WSGI)."""
    try:
        status, text = "200 OK", greeting()
    except AzureError as error:
        status, text = "503 Service Unavailable", type(error).__name__
    start_response(status, [("Content-Type", "text/plain")])
    return [f"{text}\n".encode()]


if __name__ == "__main__":
    make_server("127.0.0.1", int(os.environ["PORT"]), application).serve_forever()
