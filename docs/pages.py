"""The pages of the site that nobody types: a hook of MkDocs (mkdocs.yml), and functions that return Markdown.

- home and changes: README.md and CHANGELOG.md;
- reference: parameters (the comments of properties/, the types of the settings classes), commands (argparse's help), errors and the
  Python interface (docstrings);
- quickstart: the notebook, with the outputs that are stored in it.

What a page links to above docs/ is put beside the pages, so that no link ends in nothing.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import json
import logging
import os
import pkgutil
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

import mmrec_mrdib
from mmrec_mrdib import cli, errors, parameters, paths, registry, schema

logger = logging.getLogger("mkdocs.hooks")
ROOT = Path(__file__).resolve().parent.parent
SOURCES = "sources"  # folder of the site for files that are no pages
_ABOVE = re.compile(r"(?<=\]\()\.\./([\w./-]+)(?=[)#])")
_KEY = re.compile(  # key: value, # (type) meaning
    r"""^(\w+):[ \t]*((?:'[^']*'|"[^"]*"|(?<=\S)\#|[^#'"])*?)[ \t]*(?:(?<!\S)\#[ \t]*(?:\(([\w ]+)\)[ \t]*)?(.*))?$"""
)
_KINDS = {"int": "integer", "float": "number", "str": "text", "bool": "true or false", "dict": "mapping"}
_MODULES = {  # beside the names that `mmrec_mrdib` offers
    "models.base": "what a backbone inherits",
    "encoded": "what passes between a backbone and a plug-in",
    "losses": "losses that models share",
    "graphs": "graphs, and products with them",
    "plugins.base": "what a plug-in inherits",
    "steps": "how a plug-in makes the trainer's step",
    "schema": "typed settings",
    "evaluation": "full ranking and its metrics",
    "significance": "tests over users and seeds",
    "testing.contract": "tests that hold for every backbone",
}


# MkDocs calls these.


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, and what pages link to above docs/."""
    from mkdocs.structure.files import File

    made = {
        "index.md": seen_from_docs(ROOT / "README.md"),
        "changes.md": seen_from_docs(ROOT / "CHANGELOG.md"),
        "quickstart.md": notebook(ROOT / "docs" / "quickstart.ipynb"),
        "reference/parameters.md": parameters_page(),
        "reference/commands.md": commands_page(),
        "reference/errors.md": errors_page(),
        "reference/python.md": python_page(),
    }
    texts = [*made.values(), *(f.content_string for f in files.documentation_pages())]
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    for target in sorted({target for text in texts for target in _ABOVE.findall(text)}):
        if (ROOT / target).is_file():  # otherwise the link stays as it is, and MkDocs tells
            files.append(File.generated(config, f"{SOURCES}/{target}", abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links that lead out of docs/, to the copies."""
    up = "../" * page.file.src_uri.count("/")
    return _ABOVE.sub(lambda m: f"{up}{SOURCES}/{m[1]}" if (ROOT / m[1]).is_file() else m[0], markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Warn, and so fail, where a list or a table was not recognised: each wants an empty line before it."""
    if found := re.search(r"^(?:- |\d\. |\|[ :|-]+\|).{0,40}", re.sub(r"(?s)<pre.*?</pre>", "", html), re.MULTILINE):
        logger.warning("Doc file '%s': no list, or no table, where one seems meant: '%s'", page.file.src_uri, found[0])
    return html


# Pages.


def seen_from_docs(path: Path) -> str:
    """A page of the folder above, its links as from docs/."""
    text = path.read_text(encoding="utf-8").replace("](CHANGELOG.md)", "](changes.md)")
    text = text.replace(".ipynb)", ".md)")
    text = re.sub(r"(?<=\]\()(?!docs/|changes\.md|https?:|#)", "../", text)
    return re.sub(r"(?<=\]\()docs/", "", text)


def notebook(path: Path) -> str:
    """A notebook as Markdown: its cells, and the text that they printed."""
    out = [f"<!-- made from {path.name} -->"]
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            out.append(source)
            continue
        out.append(_fenced(source, "python"))
        for output in cell.get("outputs", []):
            text = "".join(output.get("text", output.get("data", {}).get("text/plain", [])))
            if text.strip():
                out.append(_fenced(text.rstrip("\n"), "text"))
    return "\n\n".join(out) + "\n"


def parameters_page() -> str:
    """Every parameter of every property file: default, type and range, meaning."""
    own = paths.properties_dir()
    recbole = [paths.recbole_dir() / "properties" / name for name in ("overall.yaml", "dataset/sample.yaml")]
    ours = set(entries(own / "overall.yaml"))
    read = {k: e for file in recbole for k, e in entries(file).items() if k not in ours}
    out = [
        "# Parameters",
        "Any of them is an option `--key=value` of `train`, `leaderboard` and `tune`, a line of a file in `--config_files`, or an entry of "
        "`values` in `mmrec_mrdib.train`. Later ones win: RecBole's defaults, those below, the yaml file beside the data, `--config_files`, the "
        "command line. An unknown one, or one without effect, is refused. This page is made from the property files and the classes that check them.",
        "## Of every run",
        _table(entries(own / "overall.yaml"), _types("overall.yaml")),
        "## RecBole's",
        "Those that have an effect here, in RecBole's words. Files in its atomic form may need them; the rest seldom does.",
        _table({k: e for k, e in read.items() if k not in parameters.WITHOUT_EFFECT}, {}),
        "### Refused",
        "Parameters of RecBole that nothing here reads:\n\n| parameter | why, or what instead |\n|---|---|\n"
        + "\n".join(f"| `{k}` | {_cell(why)} |" for k, why in sorted(parameters.WITHOUT_EFFECT.items())),
        "## Plug-ins",
    ]
    for name in registry.PLUGINS:
        out += [f"### +{name}", *_component("plugin", name), *_presets(name)]
    out.append("## Models")
    for name in [*registry.MODELS, *sorted(registry.baselines(), key=str.lower)]:
        out += [f"### {name}", *(_component("model", name) or ["No parameters of its own."])]
    return "\n\n".join(out) + "\n"


def commands_page() -> str:
    """What every command says of itself with --help."""
    out = [
        "# Commands",
        "`mmrec-mrdib COMMAND`; `run_mrdib.py` in a checkout is `mmrec-mrdib train`. Parameters (`--key=value`) are [a page of their own]"
        "(parameters.md). Exit codes: 0 done; 1 done in part; 2 a mistake to mend, told in one line; 130 interrupted.",
        "| command | |\n|---|---|\n"
        + "\n".join(f"| [`{name}`](#{name}) | {_cell(text)} |" for name, text in cli.COMMANDS.items()),
    ]
    for name, parser in parsers():
        level = "##" if name in cli.COMMANDS else "###"
        out += [f"{level} {name} {{ #{name.replace(' ', '-')} }}", _fenced(_help(parser), "text")]
    return "\n\n".join(out) + "\n"


def errors_page() -> str:
    """The classes of errors: what each says, how it is mended."""
    out = [
        "# Errors",
        "Whatever a user can mend ends in one line that says what is wrong, where, and how to mend it; exit code 2, and nothing half-written. "
        "From Python it is one of these exceptions, all of them `mmrec_mrdib.errors.MRdIBError`.",
    ]
    for cls in error_classes():
        what, mend = sentence_and_mend(cls)
        out += [f"## {cls.__name__}", what, f"**To mend**: {mend}"]
    return "\n\n".join(out) + "\n"


def python_page() -> str:
    """The names that `mmrec_mrdib` offers, and the modules that extensions use."""
    out = ["# Python", "What `import mmrec_mrdib` offers, imported on first use, and the modules that extensions use."]
    shown = "    options:\n      heading_level: {level}\n      show_root_heading: true"
    for name, module in mmrec_mrdib._API.items():
        out.append(f"::: {module}.{name}\n" + shown.format(level=2))
    for module, what in _MODULES.items():
        out += [f"## mmrec_mrdib.{module}: {what}", f"::: mmrec_mrdib.{module}\n    options:\n      heading_level: 3"]
    return "\n\n".join(out) + "\n"


# Where they are from.


def entries(file: Path) -> dict[str, tuple[str, str, str]]:
    """Key -> (default, type, meaning) of a property file, as its lines and their comments have them."""
    values, out = schema.read_yaml(file), {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if (found := _KEY.match(line)) and found[1] in values:
            key, default, kind, meaning = (part or "" for part in found.groups())
            if not default:  # a mapping in lines of its own
                default = yaml.safe_dump(values[key], default_flow_style=True, sort_keys=False, width=1000).strip()
            out[key] = default, kind, meaning.strip()
    return out


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command with its parser, those of sub-commands after that of their command."""
    found: dict[str, argparse.ArgumentParser] = {}
    for info in pkgutil.iter_modules(cli.__path__):
        module = importlib.import_module(f"mmrec_mrdib.cli.{info.name}")
        for name, make in inspect.getmembers(module, inspect.isfunction):
            if re.fullmatch(r"(\w+_)?parser", name) and make.__module__ == module.__name__ and name[0] != "_":
                for parser in _with_children(make()):
                    command = parser.prog.removeprefix("mmrec-mrdib ")
                    found["train" if command == "run_mrdib.py" else command] = parser
    order = list(cli.COMMANDS)
    return iter(sorted(found.items(), key=lambda pair: order.index(pair[0].split()[0])))  # stable: children stay behind


def error_classes() -> list[type[errors.MRdIBError]]:
    """MRdIBError and all that inherit from it in the package."""
    for info in pkgutil.walk_packages(mmrec_mrdib.__path__, "mmrec_mrdib."):
        if ".testing" not in info.name:
            importlib.import_module(info.name)
    out: list[type[errors.MRdIBError]] = [errors.MRdIBError]
    for cls in out:  # it grows
        out += [c for c in cls.__subclasses__() if c.__module__.startswith("mmrec_mrdib")]
    return out


def sentence_and_mend(cls: type) -> tuple[str, str]:
    """The two parts of an error's docstring; '' where one is missing."""
    what, _, mend = inspect.cleandoc(cls.__dict__.get("__doc__") or "").partition("To mend:")
    return " ".join(what.split()), " ".join(mend.split())


def _with_children(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _with_children(child)


def _help(parser: argparse.ArgumentParser) -> str:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        text = parser.format_help()
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return text.replace(f"{paths.properties_dir()}", "properties").rstrip()


def _component(kind: str, name: str) -> list[str]:
    """Table of a model's or plug-in's own parameters."""
    found: dict[str, tuple[str, str, str]] = {}
    for file in registry.property_files(name):
        own = file.is_relative_to(paths.properties_dir())
        found |= {
            k: (v, t, text or ("" if own else "(RecBole does not say)")) for k, (v, t, text) in entries(file).items()
        }
    return [_table(found, _types(f"{kind}/{name}.yaml"))] if found else []


def _presets(plugin: str) -> Iterator[str]:
    for preset in registry.presets(plugin):
        file = registry.property_file("plugin", plugin, f"{plugin}-{preset}")
        values = ", ".join(f"`{key}: {value}`" for key, (value, _, _) in entries(file).items())
        yield f"`+{plugin} ({preset})`: {values}"


def _types(file: str) -> dict[str, str]:
    """Key -> type and range, of the settings classes that read this property file."""
    out: dict[str, str] = {}
    for cls in _settings():
        if file in cls.files and (file != "overall.yaml" or cls.__module__ == schema.__name__):
            definition = cls.model_json_schema()
            for key, field in definition["properties"].items():
                out[key] = _type(field, definition.get("$defs", {}))
    return out


@functools.cache
def _settings() -> tuple[type[schema.Settings], ...]:
    error_classes()  # imports everything
    out: list[type[schema.Settings]] = [schema.Settings]
    for cls in out:
        out += [c for c in cls.__subclasses__() if c.__module__.startswith("mmrec_mrdib")]
    return tuple(dict.fromkeys(out))


def _type(field: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """A field of a JSON schema in words: 'integer ≥ 1', 'fixed or auto', 'number > 0 or none'."""
    if "$ref" in field:
        return _type(known[field["$ref"].rpartition("/")[2]], known)
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(f, known) for f in field["anyOf"]))
    if "enum" in field:
        return " or ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    kind = {"null": "none", "array": "list", "object": "mapping", "string": "text", "boolean": "true or false"}.get(
        field.get("type", ""), ""
    )
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[key]:g}" for key, sign in bounds.items() if key in field]
    return " ".join([kind or field.get("type", "any"), ", ".join(limits)]).strip()


def _table(found: Mapping[str, tuple[str, str, str]], types: Mapping[str, str]) -> str:
    lines = ["| parameter | default | values | meaning |", "|---|---|---|---|"]
    for key, (default, kind, meaning) in found.items():
        values = types.get(key) or _KINDS.get(kind, kind)
        shown = "none" if default in ("~", "null") else f"`{default}`".replace("|", "\\|")
        lines.append(f"| `{key}` | {shown} | {_cell(values)} | {_cell(meaning)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text as a cell of a table, whatever signs it has; code stays code."""

    def escaped(found: re.Match[str]) -> str:
        part: str = found[0]
        if part.startswith("`"):
            return part.replace("|", "\\|")
        return "&lt;" if part == "<" else f"\\{part}"

    return re.sub(r"`[^`]*`|[|*_<\[]", escaped, text)


def _fenced(text: str, language: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`{3,}", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
