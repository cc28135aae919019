"""MIC's decisions: which assigned identities should exist, and what to write."""
