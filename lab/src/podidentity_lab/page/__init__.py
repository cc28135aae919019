"""The lab's page: what is there and what happens, for a browser of this machine. `podidentity lab open` serves it.

It is a client of the lab, in a process of its own: it reads the control socket and the Kubernetes API as the commands
do, and a browser that asks much of it slows nothing in the lab.

`sources` reads, `events` makes values of what it reads, `trails` puts the stations of one request together, `overview`
says what is there, `faults` has the switches, `rendering` makes HTML, `feed` sends it to browsers, `app` answers them,
`door` says which requests are the user's own.
"""
