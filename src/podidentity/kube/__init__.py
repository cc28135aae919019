"""Kubernetes as the daemons see it: a connection, narrow objects, requests, caches kept by watches, events, election.

Knows how to ask and how to remember; decides nothing about identities. Built by each daemon's `daemon.py`.
"""
