"""A file that Azure's clients read in the place where Azure Arc's agent writes it, for one process and its children.

The place is below /var/opt and root's; so the process gets mounts of its own, in which /var/opt has that file as well.
The machine's own files stay as they are.
"""

import os
from pathlib import Path

from podidentity.errors import HostError
from podidentity_lab.azure.local_identity import KEY_FILE
from podidentity_lab.linux import mounts

_BASE = Path("/var/opt")


def show(content: str) -> None:
    """Let this process, and all that it starts, find a file with `content` at `KEY_FILE`. Raises `HostError`."""
    try:
        mounts.leave_for_own_mounts()
        neighbours = [path for path in _BASE.iterdir() if path.name != "azcmagent"]
        descriptors = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in neighbours}
        mounts.mount("key", str(_BASE), "tmpfs", mounts.NOSUID | mounts.NODEV, "mode=755")
        for target, descriptor in descriptors.items():
            if Path(f"/proc/self/fd/{descriptor}").is_dir():
                target.mkdir()
            else:
                target.touch()
            mounts.bind(f"/proc/self/fd/{descriptor}", str(target), read_only=False)
        file = Path(KEY_FILE)
        file.parent.mkdir(parents=True)
        file.touch(mode=0o600)
        file.write_text(content)
    except OSError as error:
        raise HostError(
            f"--dialect arc: {KEY_FILE} cannot be shown to a process ({error}); use --dialect app-service, or allow "
            "user namespaces as `podidentity lab up` names them"
        ) from None
