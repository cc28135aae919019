"""The command line: one file for each command; upstream's flags for the daemons."""
