"""The lab's Azure: the parts of IMDS, Entra ID, ARM, Graph, Key Vault and Blob storage that these clients use.

It enforces what Azure enforces: credentials, audiences, role assignments, access policies, and which identities a
machine may speak for. It shares no code with the clients it serves.
"""

from podidentity_lab.azure.azure import Azure
from podidentity_lab.azure.faults import Faults
from podidentity_lab.azure.state import AzureSettings, ServicePrincipal

__all__ = ["Azure", "AzureSettings", "Faults", "ServicePrincipal"]
