"""The short trainings behind the tests of explanations are made once, for a model of the same name
and options.
"""

from tests.toys import small_digits, tiny_vit
from vitlab.models import load_model
from vitlab.training import ensure_planted_run, ensure_shuffled_run, known_truth


def test_trained_once_like_the_model(monkeypatch):
    monkeypatch.setitem(known_truth.STAMP, "epochs", 1)
    like = tiny_vit()
    planted = ensure_planted_run("digits", like)
    assert (
        planted.parameters["dataset"] == "planted:digits"
        and len(planted.read_table("splits.csv")) <= 1000
    )
    trained = load_model(planted.path)
    assert (trained.name, trained.options) == (
        like.name,
        like.options,
    ) and trained.classes == small_digits().classes
    assert ensure_planted_run("digits", like).path == planted.path
    calls = []
    monkeypatch.setattr(
        known_truth, "finetune", lambda *names, **arguments: calls.append((names, arguments))
    )
    ensure_planted_run("digits", tiny_vit(depth=2))
    ensure_shuffled_run("digits", like, seed=3)
    (deeper, first), (shuffled, second) = calls
    assert (
        deeper == ("planted:digits", "vit_scratch", 0)
        and first["options"]["depth"] == 2
        and first["mixup"] == 0
    )
    assert shuffled == ("shuffled:digits", "vit_scratch", 3) and second["monitor"] == "train_loss"
