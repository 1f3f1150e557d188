from . import (
    batch as batch,
    compress as compress,
    data as data,
    deploy as deploy,
    evaluation as evaluation,
    explain as explain,
    models as models,
    plots as plots,
    report as report,
    training as training,
)
from .data import load_dataset as load_dataset
from .models import build_model as build_model, load_model as load_model
from .run_tables import compare as compare, evaluate as evaluate, run_table as run_table
from .runs import Run as Run
from .training import fit as fit, predict as predict, recipe as recipe
