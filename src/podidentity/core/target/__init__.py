"""The decisions for one VM or scale set: a state machine whose steps are wait, read, record and send.

             ┌──────────────────────── what ARM says is there ────────────────────────┐
             ▼                                                                        │
    ┌─────────────────┐  unknown, in doubt or old                                     │
    │    next step?   ├────────────────────────────▶ read: GET the target ────────────┤
    └─┬─────┬───────┬─┘                                                               │
      │     │       │    additions that the record lacks, or lost ones that it has    │
      │     │       └────────────────────────────▶ record: write the ConfigMap ───────┤
      │     │            recorded, and the burst has gathered                         │
      │     └────────────────────────────────────▶ send: PATCH the target             │
      │  nothing to do, Retry-After, no token                │                        │
      ▼                                                      ├─ ok: done ─────────────┤
    wait: until a moment or until a wish changes; then again ├─ named: set aside ─────┤
                                                             ├─ somebody: by halves ──┤
                                                             └─ target: later ────────┘

What an answer to a PATCH means:

- **ok**: ARM has done it. What the answer says is there; without client IDs, a read follows.
- **named**: ARM names the identities it refuses. They are set aside and tried again alone after a pause that doubles.
- **somebody**: ARM refuses one and does not say which. Removals are kept apart from additions, then the additions are
  halved until the bad one is alone.
- **target**: nobody is to blame: throttling, a server's error, a missing role on the target. The whole target waits.

`next_step` chooses the step, `drift` what must change, `outcomes` what the end of a step makes of the state, `blame`
which of the four an answer is, `quarantine` who is set aside. `state` holds what is known; `arm_limits` are ARM's token
buckets. Nothing here does I/O: a worker of MIC carries the steps out, one at a time. It records before it sends: a MIC
that is killed in between knows what it may take off.
"""
