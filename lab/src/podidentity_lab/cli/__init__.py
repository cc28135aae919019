"""The commands of `podidentity lab`: words and output only."""
