"""Hooks of MkDocs (`hooks:` in mkdocs.yml): pages from elsewhere in the tree, names of the API, links that GitHub follows too.

* CONTRIBUTING.md, CHANGELOG.md and benchmarks/README.md stand outside of docs/ and are pages of the site. Links to them are
  followed; of links to files that are no pages, the words stay.
* A line `::: pcm.NAME` in a page becomes the directive of mkdocstrings for the object that the name stands for.
* Words after the language of a fence ("python no-run") are for the tests, and are left out.
* Pages that the navigation does not name are put at its end. Every page is also there as Markdown, which llms.txt points at.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import llms  # noqa: E402
import names  # noqa: E402

PAGES = {(ROOT / name).resolve(): page for page, name in llms.AT_ROOT.items()}
"""File outside of docs/ -> page of the site."""
LINK = re.compile(r"(?<!!)\[([^\]\n]*)\]\(([^)\s]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts pages that the navigation does not name yet into a section of their own, so that none is out of reach."""
    named = {page for _, page in llms.pages(config.nav or [])} | set(llms.AT_ROOT)
    there = {path.relative_to(config.docs_dir).as_posix() for path in Path(config.docs_dir).rglob("*.md")}
    if more := sorted(there - named):
        (config.nav or []).append({"More": more})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that stand outside of docs/."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=relinked(path.read_text("utf-8"), path, page)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites what only GitHub, or only the tests, need."""
    if page.file.src_uri not in llms.AT_ROOT:
        markdown = relinked(markdown, Path(config.docs_dir) / page.file.src_uri, page.file.src_uri)
    markdown = re.sub(r"^( *```\w+) [\w -]+$", r"\1", markdown, flags=re.M)
    markdown = re.sub(r"^(<!-- .* -->)\n(?=\|)", r"\1\n\n", markdown, flags=re.M)  # a table begins after an empty line
    return re.sub(r"^::: (pcm\.\S+)$", lambda found: directive(found[1]), markdown, flags=re.M)


def relinked(markdown: str, path: Path, page: str) -> str:
    """Text of a file with its links as the site has them; where a link leads to a file that is no page, its words alone."""
    docs, up = ROOT / "docs", "../" * page.count("/")

    def link(found: re.Match[str]) -> str:
        target, _, fragment = found[2].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return found[0]
        there = (path.parent / target).resolve()
        if there in PAGES:
            where = PAGES[there]
        elif there.is_relative_to(docs):
            where = there.relative_to(docs).as_posix()
        else:
            return found[1]
        return f"[{found[1]}]({up}{where}{'#' + fragment if fragment else ''})"

    blocks = re.split(r"(^ *```.*?^ *```$)", markdown, flags=re.M | re.S)
    return "".join(block if i % 2 else LINK.sub(link, block) for i, block in enumerate(blocks))


def directive(name: str) -> str:
    """What mkdocstrings takes for a public name: the place where the object is defined, under the name by which it is used."""
    return f'::: {names.place(name)}\n    options:\n      heading: "{name}"\n      toc_label: "{name.rpartition(".")[2]}"'


def on_post_build(config: MkDocsConfig) -> None:
    """Puts the Markdown of every page beside it."""
    there = {path.relative_to(config.docs_dir): path for path in Path(config.docs_dir).rglob("*.md")}
    there |= {Path(page): path for path, page in PAGES.items()}
    for page, path in there.items():
        target = Path(config.site_dir) / page
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
