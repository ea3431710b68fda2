"""The Python interface: what `import ensemble_kd` offers, over the same stages as the command line."""
