"""Methods from outside the package, one file each: what CONTRIBUTING.md shows, and test_plugins.py runs."""
