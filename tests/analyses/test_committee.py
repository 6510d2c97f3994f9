import numpy as np
import pytest
from scipy.stats import rankdata

from mlflow_relabel_audit.analyses.noise.committee import agreed, committee, say_of_stacks, stacked, standing


def voices(seed=2, n=2000):
    """Two halves of what tells the label, chance, and the labels."""
    rng = np.random.default_rng(seed)
    margin, hidden, chance = rng.normal(size=(3, n))
    y = (rng.random(n) < 1 / (1 + np.exp(-2 * margin - 2 * hidden))).astype(float)
    return margin, hidden, chance, y


@pytest.mark.parametrize("helps", [False, True])
def test_a_learner_joins_where_it_predicts_labels(helps):
    margin, hidden, chance, y = voices()
    stacks, alone = committee({"linear": margin}, {"forest": hidden if helps else chance}, y, np.ones(2000))
    assert stacks[0].margin is margin
    assert len(stacks) == 1 + helps
    if helps:
        assert stacks[1].heard == ("linear", "forest")
        assert stacks[1].loss < alone - 0.1
        np.testing.assert_allclose(stacks[1].margin, 2 * margin + 2 * hidden, atol=1.0)


def test_what_speaks_against_labels_is_left_out():
    margin, hidden, _, y = voices()
    found = stacked({"linear": margin, "turned": -hidden}, y, np.ones(2000))
    assert found.heard == ("linear",)


def test_learners_join_one_by_one():
    margin, hidden, chance, y = voices()
    others = {"chance": chance, "forest": hidden, "same": hidden}
    stacks, _ = committee({"linear": margin}, others, y, np.ones(2000))
    assert [stack.heard for stack in stacks] == [("linear",), ("linear", "forest")]


def test_rows_without_a_say_do_not_move_a_stack():
    margin, hidden, _, y = voices()
    say = (np.arange(2000) < 1000).astype(float)
    turned = np.where(say > 0, y, 1 - y)
    one, other = (stacked({"linear": margin, "forest": hidden}, labels, say) for labels in (y, turned))
    np.testing.assert_allclose(one.margin, other.margin)
    assert one.loss == other.loss


def test_evaluation_rows_outweigh_training_rows_in_a_stack():
    """A learner that follows the training rows' wrong labels loses its weight where evaluation rows say so."""
    rng = np.random.default_rng(0)
    truth, given = rng.normal(size=(2, 3000))
    training = np.arange(3000) < 2000
    y = (np.where(training, given, truth) + 0.5 * rng.normal(size=3000) > 0).astype(float)
    both = {"follows": given, "knows": truth}
    fooled = stacked(both, y, np.ones(3000))
    told = stacked(both, y, say_of_stacks(2000, np.ones(3000)))
    away = [np.corrcoef(stack.margin, truth)[0, 1] for stack in (fooled, told)]
    assert away[0] < 0.6
    assert away[1] > 0.9


def test_without_evaluation_rows_training_rows_have_their_trust():
    trust = np.array([1.0, 0.5, 0.0])
    np.testing.assert_allclose(say_of_stacks(3, trust), [2.0, 1.0, 0.0])
    np.testing.assert_allclose(say_of_stacks(1000, np.ones(1100))[[0, 1000]], [0.2, 1.0])


def test_a_stack_that_doubts_everything_does_not_drown_the_others():
    loud, quiet = np.array([0.9, 0.8, 0.7, 0.6]), np.array([0.0, 0.01, 0.03, 0.02])
    found = agreed([loud, quiet], [rankdata(loud), rankdata(quiet)], np.ones(2))
    assert (loud + quiet).argmax() == 0
    assert found.argmax() == 2  # third of the loud places, first of the quiet
    np.testing.assert_allclose(found[[2, 3]], [0.45, 0.31])  # the means, dealt out in that order
    np.testing.assert_allclose(agreed([loud], [rankdata(loud)], np.ones(1)), loud)


def test_rows_with_equal_places_are_equally_doubted():
    one, other = np.array([0.1, 0.4, 0.9]), np.array([0.4, 0.1, 0.9])
    found = agreed([one, other], [rankdata(one), rankdata(other)], np.full(2, 0.3))
    assert found[0] == found[1] < found[2]


def test_a_stack_stands_as_what_it_explains_of_the_labels():
    margin, hidden, chance, y = voices()
    losses = [stacked({"voice": voice}, y, np.ones(2000)).loss for voice in (margin, 2 * margin + 2 * hidden, chance)]
    found = standing(losses, y, np.ones(2000))
    assert found[1] == 1.0
    assert 0.2 < found[0] < 0.6
    assert found[2] < 0.01
    wrong = [np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.2, 0.1])]
    np.testing.assert_allclose(agreed(wrong, [rankdata(each) for each in wrong], np.array([1.0, 0.4])), 0.2)
    order = np.argsort(agreed([wrong[0], np.array([0.9, 0.5, 0.1])], [np.arange(3), np.arange(3)[::-1]], found[1:]))
    np.testing.assert_array_equal(order, [0, 1, 2])
