"""Workloads, the simulator, bounds and plots."""
