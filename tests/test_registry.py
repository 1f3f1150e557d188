import pytest

from vitlab.registry import Registry


@pytest.fixture
def registry():
    registry = Registry("dataset")

    @registry.register
    def digits():
        return "digits"

    @registry.register(name="folder:")
    def folder(path, seed=0):
        return path, seed

    return registry


def test_names_and_prefixes(registry):
    assert registry.names() == ["digits", "folder:"]
    assert registry["digits"]() == "digits"
    assert registry["folder:/data:old"](seed=3) == ("/data:old", 3)
    assert "folder:x" in registry and "folders:x" not in registry and "folder" not in registry


def test_twice_the_same_name_is_an_error(registry):
    with pytest.raises(ValueError, match="'digits' is registered already"):
        registry.register(lambda: None, name="digits")


@pytest.mark.parametrize("name", ["digit", "cifar", "folders:x"])
def test_unknown_name_lists_the_choices(registry, name):
    with pytest.raises(ValueError, match=rf"unknown dataset '{name}'.*Choices: digits, folder:"):
        registry[name]


def test_near_name_is_suggested(registry):
    with pytest.raises(ValueError, match=r"Did you mean digits\?"):
        registry["digit"]
