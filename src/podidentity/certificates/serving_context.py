"""The TLS context of a server, whose certificate can be replaced while it serves."""

import errno
import os
import ssl

from podidentity.certificates.authority import ServingCertificate

_NO_EXECUTION = 0x0008  # MFD_NOEXEC_SEAL, linux/memfd.h since 6.3; hosts with vm.memfd_noexec=2 require it


def new_context(minimum_tls: ssl.TLSVersion) -> ssl.SSLContext:
    """Return a server's context without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = minimum_tls
    return context


def load(context: ssl.SSLContext, certificate: ServingCertificate) -> None:
    """Let new handshakes take `certificate`; connections that are open go on.

    OpenSSL reads keys from a file only: it gets one in memory that no other process can open by name. Nothing reaches a
    disk, and the container's file system may be read-only.
    """
    file = _memory_file()
    try:
        with os.fdopen(os.dup(file), "wb") as writer:
            writer.write(certificate.key_pem + certificate.chain_pem)
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)


def _memory_file() -> int:
    flags = os.MFD_CLOEXEC | _NO_EXECUTION
    try:
        return os.memfd_create("certificate", flags)
    except OSError as error:
        if error.errno != errno.EINVAL:  # an older kernel does not know the flag
            raise
        return os.memfd_create("certificate", os.MFD_CLOEXEC)
