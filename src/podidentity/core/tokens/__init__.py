"""NMI's decisions: what a request asks for, whose token answers it, and where that token comes from."""
