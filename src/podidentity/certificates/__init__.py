"""TLS certificates that a daemon makes, rotates and publishes by itself: for the broker and the webhook.

All replicas of a daemon share one CA, in a Secret of their own namespace; each has a serving certificate of its own, in
memory alone. Clients find the CA's certificate in ConfigMaps, or in a webhook's configuration. `core.certificates` says
when the CA is replaced; `rotation` does it. docs/concepts/certificates.md is for administrators.

What the daemon's role must allow, each by the object's name where there is one:

    own namespace          secrets     create;  get, patch of the CA's Secret
    each namespace         configmaps  create;  get, patch of the bundle's ConfigMap
    cluster                mutatingwebhookconfigurations.admissionregistration.k8s.io  get, patch of the one by its name

`create` cannot be limited to a name. It can be left out of the role where the object is installed empty.
"""
