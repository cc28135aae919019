"""A real Kubernetes on this machine: the lab's network and Azure, with kube-apiserver, kubelets, containerd and runc.

No container engine, no virtual machine: every node is a network and a mount namespace with a containerd, a kubelet and
a kube-proxy of its own. All state is in memory, in the lab's own mount namespace: gone with the lab's first process.
`cluster` is what `inside` runs; `program` is what `up` prepares. Only root may run it.
"""
