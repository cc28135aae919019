"""What both daemons show of themselves: log lines, metrics, probe pages. Nothing here is on the way of a token."""
