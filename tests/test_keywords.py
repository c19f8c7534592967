"""A misspelt keyword of a public function or class is refused, and the message names the right one."""

import inspect

import pytest

import xdan
from xdan.accessor import DanAccessor
from xdan.core.keywords import checks_keywords, constructor_checks_keywords, keywords_of
from xdan.records.record import RecordWords

VERBS = sorted(name for name in vars(DanAccessor) if not name.startswith("_"))
FUNCTIONS = sorted(name for name in xdan.__all__ if inspect.isfunction(getattr(xdan, name)))
CLASSES = sorted(name for name in xdan.__all__ if inspect.isclass(getattr(xdan, name)))
MADE_BY_XDAN = ("Network", "XdanWarning")
OF_TRAINING = {"calibrate", "with_spread"}  # their keywords go to train and to a network


@pytest.fixture(scope="module")
def ds():
    return xdan.twin(xdan.Lorenz96(sites=8), cycles=4, trajectories=2, seed=0).compute()


def own_keywords(function):
    """Keywords with a name that a letter may be left out of."""
    parameters = inspect.signature(function).parameters.values()
    names = [one.name for one in parameters if one.default is not one.empty]
    takes_words = any(one.name == "words" and one.kind is one.VAR_KEYWORD for one in parameters)
    words = list(RecordWords.__annotations__) if takes_words else []
    return [name for name in [*names, *words] if len(name) > 4]


def misspelt(name):
    """A name as newcomers write it."""
    return name.replace("_", "") if "_" in name else name[:-1]


POSITIONAL = {
    "baseline": ("etkf",),
    "reanalysis": ("etkf",),
    "estimate_parameters": (xdan.Lorenz96(sites=8), {"forcing": (7.0, 1.0)}),
}


@pytest.mark.parametrize("name", VERBS)
def test_verbs_name_the_keyword_that_was_meant(ds, name):
    method = getattr(ds.dan, name)
    keywords = own_keywords(method)
    for keyword in keywords:
        wrong = misspelt(keyword)
        if wrong in keywords:
            continue
        with pytest.raises((TypeError, ValueError), match=rf"{wrong}.*, perhaps '{keyword}'"):
            method(*POSITIONAL.get(name, ()), **{wrong: 1})


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in VERBS and name not in OF_TRAINING])
def test_functions_name_the_keyword_that_was_meant(name):
    function = getattr(xdan, name)
    arguments = (xdan.Lorenz96(),) if name == "twin" else ()
    for keyword in own_keywords(function):
        with pytest.raises(TypeError, match=rf"{misspelt(keyword)}.*, perhaps '{keyword}'"):
            function(*arguments, **{misspelt(keyword): 1})


@pytest.mark.parametrize(
    "name", [name for name in CLASSES if name not in MADE_BY_XDAN and not inspect.isabstract(getattr(xdan, name))]
)
def test_classes_name_the_keyword_that_was_meant(name):
    construct = getattr(xdan, name)
    for keyword in own_keywords(construct):
        with pytest.raises(TypeError, match=rf"{misspelt(keyword)}=1: .*, perhaps '{keyword}'"):
            construct(**{misspelt(keyword): 1})


def test_a_checked_class_stays_itself():
    @constructor_checks_keywords
    class Ring:
        def __init__(self, sites, length=1.0):
            self.sites, self.length = sites, length

    @constructor_checks_keywords
    class Named(Ring):
        def __init__(self, name, **more):
            self.name = name
            super().__init__(**more)

    named = Named("n", sites=3, length=2.0)
    assert (named.name, named.sites, named.length) == ("n", 3, 2.0)
    assert list(inspect.signature(Ring).parameters) == ["sites", "length"]
    with pytest.raises(TypeError, match=r"size=3: expected no argument beyond \['sites', 'length'\]"):
        Named("n", size=3)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'sites'"):
        Ring()


def test_sweep_refuses_burnin():
    with pytest.raises(TypeError, match=r"burnin=3: expected no argument beyond \['experiment', .*, perhaps 'burn_in'"):
        xdan.sweep(xdan.Lorenz96(), {"3D-Var": {"baseline": "3d-var"}}, burnin=3)


def test_a_checked_function_stays_itself():
    @checks_keywords
    def score(run, *, burn_in=0):
        """Score."""
        return run, burn_in

    assert score(1, burn_in=2) == (1, 2)
    assert (score.__name__, score.__doc__) == ("score", "Score.")
    assert keywords_of(score) == ("run", "burn_in")
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        score(burn_in=2)


def test_words_of_a_record_are_keywords_of_a_verb():
    assert set(RecordWords.__annotations__) < set(keywords_of(xdan.score))
