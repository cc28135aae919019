"""What both daemons show of themselves, and how they stay small. Nothing here is on the way of a token."""
