"""Export a run: a folder for a Space or a container, and a model card."""

from vitlab.deploy.card import model_card
from vitlab.deploy.folder import copy_modules, export_space
from vitlab.deploy.parts import find_run, page_facts

__all__ = ["copy_modules", "export_space", "find_run", "model_card", "page_facts"]
