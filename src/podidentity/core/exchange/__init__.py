"""The broker's decisions: what an SDK's token request asks for, who sent it, and what is answered.

The wire format is that of AKS's token proxy, which the SDKs speak when `AZURE_KUBERNETES_TOKEN_PROXY` is set: that of
Entra ID's own token endpoint, with the pod's service account token as the client assertion.
"""
