"""How deeply nested an object this process can read: as deep as the Kubernetes API server stores one.

Decoders recurse, one call a level, even over fields that they skip. Python's own limit of 1,000 is far below what
anybody who may create a pod can write, and above it there must be stack enough, or the process would be killed.

Python 3.12 and later count the calls of C code apart, against a limit that is built into the interpreter. What is too
deep for a process all the same is read without its depths, and more slowly: `kube/depth.py`.
"""

import resource
import sys
import threading

NESTING_LEVELS = 10_000
"""The API server refuses deeper objects (Go's encoding/json, maxNestingDepth); a list or an event adds two levels."""
RECURSION_LIMIT = NESTING_LEVELS + 2_000
STACK_BYTES = 16 * 1024 * 1024
"""Decoding and comparing so deep an object takes 4 MiB at most (measured: 400 bytes a level); a skipped field 0.3 MiB.

What is not used costs no memory. Linux gives a first thread 8 MiB by default, and others as little as 2 MiB.
"""


def allow_nested_objects() -> None:
    """Raise Python's recursion limit, where the stacks are, or can be made, large enough for it.

    Call before any thread is started. Where the first thread's stack is bounded below that and may not be raised, the
    limit stays as it is.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if 0 <= soft < STACK_BYTES:
        if 0 <= hard < STACK_BYTES:
            return
        resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, hard))
    threading.stack_size(STACK_BYTES)
    sys.setrecursionlimit(max(sys.getrecursionlimit(), RECURSION_LIMIT))
