"""Distillation losses. Importing the package imports every module in it, which registers them all."""

import importlib
import pkgutil


def import_all() -> None:
    """Import every module of this package."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


import_all()
