"""The managed identity controller: pods and bindings to assigned identities, and those to VMs and scale sets."""
