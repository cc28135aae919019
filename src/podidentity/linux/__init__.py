"""This host: netfilter, routes, connections, network namespaces. Decides nothing about pods or identities."""
