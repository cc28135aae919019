"""The lab's kubelets: pods of the API become namespaces, mounts and processes of this machine."""

from podidentity.lab.kubelet.kubelet import Kubelet
from podidentity.lab.kubelet.logs import ContainerLogs
from podidentity.lab.kubelet.node import Cluster, Node

__all__ = ["Cluster", "ContainerLogs", "Kubelet", "Node"]
