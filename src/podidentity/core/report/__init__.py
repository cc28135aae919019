"""What `explain` and `doctor` conclude from facts."""
