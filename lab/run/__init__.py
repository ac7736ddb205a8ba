"""Where a run happens: options, device, weights, its directory, teachers, checkpoints, processes, the log."""
