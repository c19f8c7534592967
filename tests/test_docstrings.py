"""Help says everything where the user looks: every parameter, in full, with an example that runs."""

import doctest
import inspect
import re

import pytest

import xdan
from xdan.records.record import RecordWords

NAMES = sorted(set(xdan.__all__) - {"__version__"})
# Words that send the reader to another docstring.
ELSEWHERE = re.compile(r"\bas\s+for\b", re.IGNORECASE)
SECTION = re.compile(r"^(\w[\w ]*)\n-+$", re.MULTILINE)


def sections(doc):
    """Text of each numpydoc section."""
    parts = SECTION.split(doc)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def described(doc, section="Parameters"):
    """Parameters that a section of a docstring describes, with their description."""
    entries = re.split(r"^(?=\S)", sections(doc).get(section, ""), flags=re.MULTILINE)
    parameters = {}
    for entry in filter(str.strip, entries):
        head, _, body = entry.partition("\n")
        names = head.partition(" : ")[0]
        parameters |= {name.strip().replace("\\", ""): head.partition(" : ")[2] + body for name in names.split(",")}
    return parameters


def taken(value):
    """Parameters of a signature as a docstring writes them."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [stars.get(one.kind, "") + name for name, one in inspect.signature(value).parameters.items()]


def with_methods(name):
    """A public object and, of a class, the public methods that xdan wrote, inherited ones too."""
    value = getattr(xdan, name)
    yield name, value
    if inspect.isclass(value):
        for label, member in inspect.getmembers(value):
            inner = member.fget if isinstance(member, property) else member
            if not label.startswith("_") and (getattr(inner, "__module__", None) or "").startswith("xdan"):
                yield f"{name}.{label}", member


@pytest.mark.parametrize("name", NAMES)
def test_docstring_says_it_all_itself(name):
    sent_away = {label: ELSEWHERE.findall(inspect.getdoc(value) or "") for label, value in with_methods(name)}
    assert {label: phrases for label, phrases in sent_away.items() if phrases} == {}
    assert not re.search(r"^\s*\{\w+\}\s*$", getattr(xdan, name).__doc__, re.MULTILINE)  # a marker that nobody filled


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_the_signature(name):
    """Those of a dataclass are its attributes; a protocol's are those of a class that its user writes."""
    value = getattr(xdan, name)
    doc = inspect.getdoc(value)
    told, asked = described(doc), set() if value is xdan.XdanWarning else set(taken(value))
    assert set(told) <= asked
    assert asked - set(told) <= set(described(doc, "Attributes"))


ON_RECORDS = [name for name in NAMES if "**words" in described(inspect.getdoc(getattr(xdan, name)))]


@pytest.mark.parametrize("name", [*ON_RECORDS, "baseline"])
def test_every_word_of_a_record_is_explained(name):
    told = described(inspect.getdoc(getattr(xdan, name)))["**parameters" if name == "baseline" else "**words"]
    items = re.findall(r"^ *- ([\w, ]+) : ", told, re.MULTILINE)
    explained = [one.strip() for names in items for one in names.split(",")]
    assert sorted(explained) == sorted(RecordWords.__annotations__)


@pytest.mark.parametrize("name", NAMES)
def test_there_is_an_example_that_runs(name):
    value = getattr(xdan, name)
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(value))
    assert examples, "no Examples"
    assert not [one.source for one in examples if doctest.SKIP in one.options]
    assert any(one.want for one in examples), "nothing is shown"
