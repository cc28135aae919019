"""The walk-through, run in a fresh lab: every step shows what was asked, what came back and what that proves."""
