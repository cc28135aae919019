"""The Kubernetes API for daemons and commands: connection, requests, objects, reflectors, stores, events, election.

It decides nothing about identities.
"""
