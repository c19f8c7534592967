"""Registries of classes by name: one class for a name, its own place when it is defined anew, words for the rest."""

import pytest

import xdan
from xdan.core.learning.objectives import SquaredError
from xdan.core.networks.activations import SiLU, register_activation
from xdan.core.registry import Registry, constructor_parameters


class Animal:
    pass


def defined(name, *, place="Cat"):
    """A class as a module, or a notebook's cell, defines it."""
    return type(name, (Animal,), {"__qualname__": place})


@pytest.fixture
def animals():
    registry = Registry("animal", Animal, "zoo.Animal")
    registry.add("cat", defined("Cat"))
    return registry


def test_a_name_leads_to_its_class(animals):
    dog = defined("Dog", place="Dog")
    animals.add("dog", dog)
    assert animals["dog"] is dog
    assert list(animals) == ["cat", "dog"]
    assert "dog" in animals
    assert "cow" not in animals
    assert ["dog"] not in animals
    assert animals.has("dog", dog)
    assert not animals.has("dog", Animal)
    assert not animals.has("cow", dog)


def test_a_class_defined_anew_takes_its_own_place_and_no_other(animals):
    first, again = animals["cat"], defined("Cat")
    animals.add("cat", again)
    assert animals["cat"] is again is not first
    with pytest.raises(
        ValueError, match=r"the name 'cat' is that of .*\.Cat: expected another `name` for .*\.Lion, as"
    ):
        animals.add("cat", defined("Lion", place="Lion"))
    assert animals["cat"] is again


@pytest.mark.parametrize("name", [None, 3, "", ["cat"]])
def test_a_name_is_a_word(animals, name):
    with pytest.raises(ValueError, match=r"name=.* of Cat: expected a name that stores can refer to it by"):
        animals.add(name, defined("Cat"))
    assert list(animals) == ["cat"]


@pytest.mark.parametrize("thing", [3, None, "cat", dict, Animal()])
def test_what_is_no_class_of_the_kind_is_refused(animals, thing):
    with pytest.raises(TypeError, match=r"register_animal\(.*\): expected a class derived from zoo\.Animal"):
        animals.check(thing, "register_animal")
    animals.check(Animal, "register_animal")


@pytest.mark.parametrize(
    ("register", "base"),
    [
        (xdan.register_dynamics, xdan.Lorenz96),
        (xdan.register_network, xdan.ResidualCNN),
        (xdan.register_method, xdan.ThreeDVar),
        (xdan.register_objective, SquaredError),
        (register_activation, SiLU),
    ],
)
def test_the_decorators_refuse_alike(register, base):
    """What another class registered stays; what is no class, or has no name of its own, is refused."""
    function = register.__name__
    for thing in (3, dict):
        with pytest.raises(TypeError, match=rf"{function}\(.*\): expected a class derived from xdan\."):
            register(thing)
    with pytest.raises(TypeError, match="Nameless has no name: expected a class attribute `name`"):
        register(type("Nameless", (base,), {}))
    with pytest.raises(ValueError, match=rf"the name {base.name!r} is that of .*{base.__name__}: expected another `na"):
        register(type("Other", (base,), {"name": base.name}))
    assert register(base) is base


def test_an_unknown_name_lists_the_known_ones(animals):
    with pytest.raises(ValueError, match=r"animal 'cow' is unknown; known are \['cat'\]: expected one of them"):
        _ = animals["cow"]
    with pytest.raises(TypeError, match=r"animal=\['cat'\]: expected one of the names \['cat'\]"):
        _ = animals[["cat"]]


class Wide:
    def __init__(self, size, *, colour="red", **more):
        self.size = size


class Inherits(Wide):
    pass


class HandsOn(Wide):
    def __init__(self, legs=4, **more):
        super().__init__(**more)


class Closed(HandsOn):
    def __init__(self, *legs, tail=True):
        super().__init__()


@pytest.mark.parametrize(
    ("cls", "names"),
    [
        (Wide, {"size", "colour"}),
        (Inherits, {"size", "colour"}),
        (HandsOn, {"legs", "size", "colour"}),
        (Closed, {"tail"}),
        (Animal, set()),
    ],
)
def test_parameters_of_a_constructor_are_those_of_its_parents_too(cls, names):
    assert constructor_parameters(cls) == names
