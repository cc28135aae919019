"""The root that a container sees, and the program that builds it from inside."""
