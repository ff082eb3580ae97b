"""What is measured, on what, and how it is told: data, studies, runner, report, command line."""

from .datasets import Dataset, DatasetError
from .factories import FactoryError, resolve

__all__ = ["Dataset", "DatasetError", "FactoryError", "resolve"]
