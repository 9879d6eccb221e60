"""The documents say what is there: links, commands, parameters, errors; the tutorial and the notebook run. The pages that are made are docs/pages.py's."""

import importlib.util
import json
import re
import shlex
import unicodedata
from pathlib import Path

import pytest
import yaml

import mmrec_mrdib
from mmrec_mrdib import cli, errors, paths, registry
from mmrec_mrdib.cli import parameters
from mmrec_mrdib.schema import read_yaml
from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
_COMMAND = re.compile(
    r"^[ ]*(?:\.venv/bin/)?(?:(mmrec-mrdib)|(?:\.venv/bin/)?python run_mrdib\.py|run_mrdib\.py) (.+)$"
)


def load(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages = load("pages")


def prose(text):
    """Lines outside of code and tables, with their numbers."""
    inside = False
    for n, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            inside = not inside
        elif not inside and not line.startswith(("|", "    ")):
            yield n, line


def code(text):
    """The lines of fenced and indented code, continued ones joined."""
    inside = False
    for line in text.replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("```"):
            inside = not inside
        elif inside or line.startswith("    "):
            yield line


# Form.


def test_the_readme_is_a_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{n}.md" for n in ("tutorial", "faq", "statistics"))])
def test_lines_wrap_at_100(name):
    long = [(n, len(line)) for n, line in prose((ROOT / name).read_text()) if len(line) > 100 and " " in line.strip()]
    assert not long


def test_pictures_are_small_and_every_page_is_in_the_navigation():
    assert all((DOCS / f"{name}.png").stat().st_size < 200_000 for name in ("board", "report"))
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = {page for section in site["nav"] for pages_ in section.values() for page in leaves(pages_)}
    assert {path.name for path in DOCS.glob("*.md")} <= listed
    assert site["strict"] and site["theme"]["font"] is False and not {"extra_javascript", "extra_css"} & set(site)


def leaves(nav):
    if isinstance(nav, str):
        return [nav]
    return [leaf for entry in nav for value in entry.values() for leaf in leaves(value)]


# Links.


def anchors(path):
    """Of the headings of a page, as hosts of repositories make them."""
    headings = [line.lstrip("#").strip() for _, line in prose(path.read_text()) if line.startswith("#")]
    letters = ["".join(c for c in h.lower() if c in " -_" or unicodedata.category(c)[0] in "LN") for h in headings]
    return {text.replace(" ", "-") for text in letters}


@pytest.mark.parametrize("page", [*PAGES, DOCS / "quickstart.ipynb"], ids=lambda p: p.name)
def test_every_link_leads_somewhere(page):
    text = page.read_text()
    if page.suffix == ".ipynb":
        text = "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    links = [link for _, line in prose(text) for link in re.findall(r"\]\(([^)\s]+)\)", line)]
    links += [
        link for line in text.splitlines() if line.startswith("|") for link in re.findall(r"\]\(([^)\s]+)\)", line)
    ]
    broken = []
    for link in links:
        target, _, anchor = link.partition("#")
        if re.match(r"\w+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(link)
    assert not broken


# Commands and parameters.


def known_parameters():
    files = [paths.recbole_dir() / "properties" / name for name in ("overall.yaml", "dataset/sample.yaml")]
    files += [paths.properties_dir() / "overall.yaml", *(paths.properties_dir() / "dataset").glob("*.yaml")]
    names = {key for file in files for key in read_yaml(file)} | {"data_path", "preset", "encoding", "device"}
    return names.union(*map(registry.parameters, [*registry.PLUGINS, *registry.MODELS, *registry.baselines()]))


def test_every_command_in_the_documents_parses():
    parsers, known = dict(pages.parsers()), known_parameters()
    own = {"pooling", "shrink_weight"}  # of the package that docs/extend.md writes
    seen = set()
    for page in PAGES:
        for line in code(page.read_text()):
            if not (found := _COMMAND.match(line)) or "…" in line:
                continue
            words = shlex.split(found[2], comments=True)
            command = next(
                (name for n in (3, 2, 1) if (name := " ".join(words[:n])) in parsers), "train" if not found[1] else None
            )
            assert command is not None, f"{page.name}: {line}"
            arguments = words[len(command.split()) if found[1] else 0 :]
            parser = parsers[command]
            try:
                if parser.allow_abbrev:  # no parameters
                    parser.parse_args(arguments)
                    continue
                _, values = parameters.parse(parser, arguments)
            except SystemExit:
                pytest.fail(f"{page.name}: {line}")
            names = {key.rpartition(".")[2] for key in values}  # --baby.modalities
            assert names <= known | own or command == "host", f"{page.name}: {line}: {names - known}"
            seen.add(command)
    assert {"train", "leaderboard", "tune", "host", "data export", "leaderboard import-run"} <= seen


def test_the_page_of_commands_has_every_command_and_option():
    parsers, text = dict(pages.parsers()), pages.commands_page()
    assert set(cli.COMMANDS) <= set(parsers)
    assert {"data prepare csv", "leaderboard import", "leaderboard import-run"} <= set(parsers)
    for name, parser in parsers.items():
        section = text.split(f"{{ #{name.replace(' ', '-')} }}")[1].split("\n##")[0]
        options = {option for action in parser._actions for option in action.option_strings}
        assert options and all(option in section for option in options), name
    assert str(paths.properties_dir()) not in text  # of the machine that made the page


def test_the_page_of_parameters_has_each_with_default_and_meaning():
    text = pages.parameters_page()
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \|$", text, re.MULTILINE)
    assert all(default and meaning.strip() for _, default, _, meaning in rows), [r for r in rows if not r[3].strip()]
    documented = {key for key, *_ in rows}
    ours = [paths.properties_dir() / "overall.yaml"]
    ours += [registry.property_file("plugin", name) for name in registry.PLUGINS]
    ours += [registry.property_file("model", name) for name in (*registry.MODELS, *registry.BASELINES)]
    for file in ours:
        assert set(read_yaml(file)) <= documented, file
    assert documented >= {"learner", "clip_grad_norm", "field_separator"}  # RecBole's
    of_vbpr = text.split("### VBPR\n")[1].split("\n### ")[0]
    assert "| `embedding_size` | `64` | integer ≥ 1 | d: width of the collaborative half" in of_vbpr
    assert "| `missing` | `error` | error or mean or drop | Items without a row" in text
    assert "`+MRdIB (joint)`: `training: joint`" in text
    assert "| `worker` | batches are made in the training process |" in text  # refused, with the reason


def test_parameters_of_several_lines_and_signs_of_markdown(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("# Heading\na: 'x # y'   # (str) One | two_three, <n>, `b|c_d`.\nb:   # (dict) Of lines.\n  c: 1\n")
    found = pages.entries(file)
    assert found["a"] == ("'x # y'", "str", "One | two_three, <n>, `b|c_d`.") and found["b"][0] == "{c: 1}"
    row = pages._table(found, {"a": "text"}).splitlines()[2]
    assert row == "| `a` | `'x # y'` | text | One \\| two\\_three, &lt;n>, `b\\|c_d`. |"


def test_each_class_of_errors_says_what_it_is_and_how_to_mend_it():
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.MRdIBError)]
    assert len(classes) >= 6 and set(classes) <= set(pages.error_classes())
    text = pages.errors_page()
    for cls in pages.error_classes():
        what, mend = pages.sentence_and_mend(cls)
        assert len(what) > 20 and len(mend) > 20, f"{cls.__name__}: a sentence, and 'To mend: ...', in its docstring"
        assert what in text and mend in text


# The pages that are made.


def test_the_reference_has_every_public_name():
    text = pages.python_page()
    for name, module in mmrec_mrdib._API.items():
        assert f"::: {module}.{name}\n" in text and getattr(mmrec_mrdib, name).__doc__
    for module in pages._MODULES:
        assert importlib.util.find_spec(f"mmrec_mrdib.{module}") is not None


def test_pages_of_the_folder_above_are_seen_from_docs(tmp_path):
    (tmp_path / "a.md").write_text(
        "[a](docs/b.md#c) [d](CHANGELOG.md) [e](LICENSE) [f](https://g.h) [i](#j) ![k](docs/l.png)"
    )
    assert pages.seen_from_docs(tmp_path / "a.md") == (
        "[a](b.md#c) [d](changes.md) [e](../LICENSE) [f](https://g.h) [i](#j) ![k](l.png)"
    )


def test_the_notebook_as_a_page():
    text = pages.notebook(DOCS / "quickstart.ipynb")
    assert text.index("# Quickstart") < text.index("```python\nimport tempfile") < text.index("```text\n")


def test_docstrings_are_made_readable():
    pytest.importorskip("griffe", reason="the site's packages are not installed")
    mended = load("docstrings").mended
    text = "Of <u, i> and `a<b>`.\n\n    x <y>\n\nArgs:\n    a, b: (B,) <ids>.\n    c: one."
    assert mended(text) == (
        "Of &lt;u, i> and `a<b>`.\n\n    x <y>\n\nArgs:\n    a: see `b`.\n    b: (B,) &lt;ids>.\n    c: one."
    )


# What can be run.


def test_the_tutorial_does_what_it_says(tmp_path, monkeypatch, capsys):
    """Its blocks in their order, with an epoch each; a board of one seed, in this process."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", (DOCS / "tutorial.md").read_text(), re.DOTALL | re.MULTILINE)
    done = []
    for language, block in blocks:
        if language == "python":
            exec(compile(block, "docs/tutorial.md", "exec"), {})
        for line in block.splitlines() if not language else ():
            _, *words = shlex.split(line)
            arguments = [name for w in words for name in (sorted(map(str, Path().glob(w))) if "*" in w else [w])]
            if words[0] in ("train", "leaderboard"):
                arguments = [a for a in arguments if not a.startswith("--epochs")]
                arguments += ["--epochs=1", "--stage_epochs=1", "--topk=20", "--embedding_size=8", "--content_size=8"]
            if words[0] == "train":
                arguments += ["--quiet"]
            if words[0] == "leaderboard":
                for option in ("--tune", "--jobs", "--seeds"):
                    arguments[arguments.index(option) + 1] = "0" if option == "--tune" else "1"
            assert cli.main(arguments) == 0, (line, capsys.readouterr())
            done.append(words[0])
    assert done == ["data", "data", "data", "train", "leaderboard", "recommend", "explain", "recommend", "export"]
    told = capsys.readouterr().out
    assert "938 users, 1008 items, 54413 of 100000 interactions" in told  # as on the page
    assert "score = backbone + modalities" in told and Path("board/leaderboard.html").is_file()
    assert len(Path("recs.csv").read_text().splitlines()) == 938 * 5 + 1
    assert [row.split(",")[0] for row in Path("for-new.csv").read_text().splitlines()[1:]] == ["new"] * 5


def test_the_notebook_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    client = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    notebook = nbformat.read(DOCS / "quickstart.ipynb", as_version=4)
    checks = (
        "assert plain['model'] == 'VBPR' and ours['model'] == 'VBPR+MRdIB' and len(best) == 5\n"
        "assert ours['trained_backbone']['test'] == plain['test']\n"
        "assert all(abs(e['score'] - e['backbone'] - sum(e['modalities'].values())) < 1e-4 for e in found['items'])\n"
        "assert [e['item'] for e in found['items']] == best['item'].tolist()[:2]"
    )
    notebook.cells.append(nbformat.v4.new_code_cell(checks))
    client.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
