"""Decisions, pure: values in, values and reasons out. No I/O, no clock, no logging."""
