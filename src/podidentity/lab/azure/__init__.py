"""The lab's Azure: IMDS, Entra ID, ARM, Graph and Key Vault, close enough that real clients cannot tell.

It enforces what Azure enforces: credentials, audiences, role assignments, access policies, and which identities a
machine may speak for. It shares no code with the clients it serves.
"""

from podidentity.lab.azure.azure import Azure
from podidentity.lab.azure.faults import Faults
from podidentity.lab.azure.state import AzureSettings, ServicePrincipal

__all__ = ["Azure", "AzureSettings", "Faults", "ServicePrincipal"]
