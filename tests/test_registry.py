"""Nothing of ours without a test, its property files and a line in the documents; and docs/models.md says what the models are."""

import re
import sys

import pytest

from mmrec_mrdib import cli, paths, registry
from tests.conftest import ROOT

TESTS = "\n".join(p.read_text() for p in sorted((ROOT / "tests").glob("test_*.py")) if p.name != "test_registry.py")
DOCS = "\n".join(p.read_text() for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "models.md").read_text().splitlines()
    if re.match(r"\| \w+ \| \w+ \d{4} \|", line)
]
OURS = registry.MODELS | registry.BASELINES


@pytest.mark.parametrize("name", registry.MODELS)
def test_every_backbone_inherits_the_contract(name):
    assert re.search(rf'^class Test\w+\(ContractTests\):\n(    .*\n|\n)*?    model = "{name}"$', TESTS, re.MULTILINE)


@pytest.mark.parametrize("name", OURS | registry.GENERAL)
def test_every_model_is_tested_searched_and_told(name):
    assert f'"{name}"' in TESTS
    assert registry.property_file("search", name).is_file()
    assert registry.property_files(name) or name == "Random"  # it has no parameter
    assert re.search(rf"\b{name}\b", DOCS)


@pytest.mark.parametrize(
    ("plugin", "preset"), [(p, preset) for p in registry.PLUGINS for preset in (None, *registry.presets(p))]
)
def test_every_plugin_and_preset_is_tested_and_told(plugin, preset):
    name = registry.Variant("", plugin, preset).name
    kind = registry.Variant("", plugin, preset).kind
    assert name in TESTS or f'"{kind}"' in TESTS or (preset and re.search(rf'preset\W+"?{preset}\b', TESTS))
    assert f"`{name}`" in DOCS
    assert registry.property_files(plugin)


@pytest.mark.parametrize("name", registry.ESTIMATORS)
def test_every_estimator_is_tested_and_told(name):
    assert f'"{name}"' in TESTS
    assert f"`{name}`" in DOCS


@pytest.mark.parametrize("name", sorted({p.stem for p in (paths.PACKAGE / "mrdib/objectives").glob("[a-z]*.py")}))
def test_every_objective_is_tested_and_told(name):
    assert f"mrdib.objectives.{name} import" in TESTS or name == "base"
    assert re.search(rf"\b{name}\b", DOCS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_tested_and_told(name):
    assert f'"{name}"' in TESTS
    assert f"mmrec-mrdib {name}" in DOCS


def test_every_property_file_is_somebodys():
    names = {
        "model": OURS | registry.recbole_models(),
        "search": OURS | registry.recbole_models() | registry.PLUGINS,
        "plugin": registry.PLUGINS,
    }
    for folder, known in names.items():
        stems = {p.stem.partition("-")[0] for p in (paths.properties_dir() / folder).glob("*.yaml")}
        assert stems <= known.keys()


def test_the_table_of_models_is_true():
    """Venue and year as in the module's first line, the way of z into the score as in the class; by year."""
    assert sorted(row[0] for row in ROWS) == sorted(OURS)
    for name, venue, *rest in ROWS:
        model = registry.model_class(name)
        assert re.search(r"\((?:.*, )?(\w+ \d{4})\)", sys.modules[model.__module__].__doc__)[1] == venue
        if name in registry.MODELS:
            assert rest[-1] == model.z_in_score, name
    for table in (registry.MODELS, registry.BASELINES):
        years = [int(row[1].split()[1]) for row in ROWS if row[0] in table]
        assert years == sorted(years)
