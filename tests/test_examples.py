"""The examples in the docstrings of data sets, explanations, models and plots run."""

import doctest
import importlib
import pkgutil

import pytest

import vitlab.data
import vitlab.explain
import vitlab.models
import vitlab.plots

MODULES = [
    module.name
    for package in (vitlab.data, vitlab.explain, vitlab.models, vitlab.plots)
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert not doctest.testmod(importlib.import_module(name)).failed
