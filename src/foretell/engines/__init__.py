"""What runs inside serving engines, by their plugin interfaces. Not imported by anything else."""
