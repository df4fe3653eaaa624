"""What a target would hold, read into memory through the same plans, steps and executors that write it."""
