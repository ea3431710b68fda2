"""Turn an ensemble of teachers into one small model that people deploy, on Ray."""

__version__ = "0.1.0"
