"""What the webhook is configured with."""

import ssl
from dataclasses import dataclass

from podidentity.core.injection.rules import Rules


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one webhook. `configuration` is its MutatingWebhookConfiguration, whose caBundle it keeps."""

    rules: Rules
    namespace: str
    service: str = "azure-wi-webhook-webhook-service"
    secret: str = "azure-wi-webhook-server-cert"  # noqa: S105  # a name
    configuration: str = "azure-wi-webhook-mutating-webhook-configuration"
    minimum_tls: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    address: str = ""
    port: int = 9443
    probe_port: int = 9440
    prometheus_port: int = 8095
    drain_seconds: float = 5.0
    kubeconfig: str = ""
    user_agent: str = "podidentity-webhook"
