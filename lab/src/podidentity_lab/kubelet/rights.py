"""As whom a container runs and what its private files say: securityContext, host name, hosts, DNS. Pure."""

from podidentity_lab.dns import CLUSTER_DOMAIN
from podidentity_lab.fabric import FABRIC_ADDRESS
from podidentity_lab.kubelet.environment import ContainerConfigError
from podidentity_lab.kubelet.node import Json, Node
from podidentity_lab.linux.mounts import CAPABILITIES
from podidentity_lab.oci.config import User
from podidentity_lab.sandbox.root import Network, Rights

DEFAULT_CAPABILITIES = frozenset(
    (
        *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW"),
        *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
    )
)
"""What containerd gives a container that asks for nothing."""


def security_context(pod: Json, container: Json) -> Json:
    """Return the fields of both `securityContext`s; the container's win."""
    return {**(pod["spec"].get("securityContext") or {}), **(container.get("securityContext") or {})}


def rights(pod: Json, container: Json, image_user: User, *, rootless: bool) -> Rights:
    """Return the rights that `securityContext` of pod and container give. Raises `ContainerConfigError`.

    The container's wins. `image_user` is who runs it where neither says: the image's, or the one that `runAsUser` is in
    the image. A rootless lab has only one user: a container that wants to be another one is uid 0 without capabilities.
    """
    context = security_context(pod, container)
    user = int(context["runAsUser"]) if context.get("runAsUser") is not None else image_user.uid
    if context.get("runAsNonRoot") and user == 0:
        message = "container has runAsNonRoot and image will run as root; set runAsUser to another user"
        raise ContainerConfigError(f"container {container['name']}: {message}")
    group = int(context["runAsGroup"]) if context.get("runAsGroup") is not None else image_user.gid
    groups = (*image_user.groups, *(context.get("supplementalGroups") or ()))
    if "fsGroup" in context:
        groups = (*groups, int(context["fsGroup"]))
    other = user != 0 and rootless
    return Rights(
        user=0 if other else user,
        group=0 if rootless else group,
        groups=() if rootless else groups,
        capabilities=frozenset() if other else _capabilities(container, context.get("capabilities") or {}),
        privileged=bool(context.get("privileged")),
        no_new_privileges=context.get("allowPrivilegeEscalation") is False,
    )


def private_files(node: Node, pod: Json, address: str) -> Network:
    """Return the files below /etc that tell a container where it is."""
    spec, metadata = pod["spec"], pod["metadata"]
    host_network = bool(spec.get("hostNetwork"))
    name = node.name if host_network else spec.get("hostname") or metadata["name"]
    hosts = f"127.0.0.1 localhost\n::1 localhost\n{address} {name}\n"
    hosts += "".join(f"{alias['ip']} {' '.join(alias['hostnames'])}\n" for alias in spec.get("hostAliases") or ())
    policy = spec.get("dnsPolicy", "ClusterFirst")
    searched = policy == "ClusterFirstWithHostNet" or (policy == "ClusterFirst" and not host_network)
    domains = f"{metadata['namespace']}.svc.{CLUSTER_DOMAIN} svc.{CLUSTER_DOMAIN} {CLUSTER_DOMAIN}"
    resolver = f"nameserver {FABRIC_ADDRESS}\n"
    if searched:
        resolver += f"search {domains}\noptions ndots:5\n"
    return Network(name[:63], hosts, resolver, node.cluster.azure_ca)


def _capabilities(container: Json, request: Json) -> frozenset[str]:
    added = _capability_names(container, request.get("add") or ())
    removed_capabilities = _capability_names(container, request.get("drop") or ())
    return (DEFAULT_CAPABILITIES - removed_capabilities) | added


def _capability_names(container: Json, names: list[str] | tuple[str, ...]) -> frozenset[str]:
    plain = frozenset(name.upper().removeprefix("CAP_") for name in names)
    if "ALL" in plain:
        return frozenset(CAPABILITIES)
    unknown = plain.difference(CAPABILITIES)
    if unknown:
        message = f"container {container['name']}: there is no capability {', '.join(sorted(unknown))}"
        raise ContainerConfigError(f"{message}; correct securityContext.capabilities")
    return plain
