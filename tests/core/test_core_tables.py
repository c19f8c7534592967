"""What a notebook shows of the objects that a user makes."""

import re
from html.parser import HTMLParser

import pytest
import torch

import xdan


class Cells(HTMLParser):
    """Text of a table's cells, row by row; refuses tags that are not closed."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.open = [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("th", "td"):
            self.rows[-1].append(data)


def table(value):
    return dict(Cells(value._repr_html_()).rows)


def test_dynamics_shows_its_parameters_its_fields_and_its_error():
    told = table(xdan.Lorenz96(sites=12, forcing=9.0).with_model_error(0.5))
    assert (told["sites"], told["forcing"], told["field x"]) == ("12", "9.0", "x: 12")
    assert "model error" in told
    assert table(xdan.TwoScaleLorenz96(sites=4, fast=3)).keys() >= {"field U", "field V"}


def test_group_shows_its_size():
    assert table(xdan.Group.ring(12, 3)) == {"group": "turns of the ring by 3", "elements": "4", "sites": "12"}


def test_experiment_shows_what_it_states_and_nothing_else(model):
    told = table(xdan.TwinExperiment(model, interval=0.1, observe=xdan.Sites.every(2)))
    assert told == {
        "dynamics": "Lorenz96(sites=8, forcing=8.0, timestep=0.05)",
        "interval": "0.1",
        "observe": "Sites.every(2, 0)",
        "error_std": "1.0",
    }


def test_network_shows_its_architecture_and_its_training(net):
    told = table(net)
    assert (told["filters"], told["memory"], told["training: batch"]) == ("4", "2", "2")
    assert told["weights"] == str(sum(value.size for value in net.arrays.values()))
    assert re.fullmatch(r"\d\.\d{3}", told["training: validation RMSE"])


def test_committee_is_shown_by_the_names_of_its_networks(net):
    both = xdan.committee([net, net])
    assert table(both)["networks"] == "['residual-cnn', 'residual-cnn']"
    assert len(repr(both)) < 200


@pytest.mark.parametrize(
    "sites", [xdan.Sites.all(), xdan.Sites.every(3, 1), xdan.Sites.random(2, 5), xdan.Sites.random(4)]
)
def test_sites_are_shown_as_they_are_made(sites):
    assert eval(repr(sites), {"Sites": xdan.Sites}) == sites
    assert len(repr(sites)) < 25


def test_words_of_a_user_are_no_html():
    swap = torch.tensor([1, 0])
    assert "<b>" not in xdan.Group("<b>bold</b>", 2, lambda index: swap, 2)._repr_html_()
