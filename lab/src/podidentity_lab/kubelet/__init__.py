"""The lab's kubelets: pods of the API become namespaces, mounts and processes of this machine."""

from podidentity_lab.kubelet.kubelet import Kubelet
from podidentity_lab.kubelet.logs import ContainerLogs
from podidentity_lab.kubelet.node import Cluster, Node

__all__ = ["Cluster", "ContainerLogs", "Kubelet", "Node"]
