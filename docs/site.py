"""A hook of MkDocs: the pages link to files of the repository as they lie there, on the site too.

The README is the site's first page, and what else lies outside docs/ and is linked (result files,
source, the changelog) is served under its path in the repository. So one link works in an editor,
on a code host and on the site.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?(?=\))")


def place(path: str) -> str:
    """Where a file of the repository is on the site."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def origin(file: File) -> str:
    """The path in the repository of a file of the site."""
    return Path(str(file.abs_src_path)).relative_to(ROOT).as_posix()


def linked(page: str) -> Iterator[str]:
    """The files of the repository that a page links to, by their paths there."""
    text = (ROOT / page).read_text(encoding="utf-8")
    folder = (ROOT / page).parent
    for link in LINK.finditer(text):
        target = Path(os.path.normpath(folder / link["path"]))
        if target.is_file():
            yield target.relative_to(ROOT).as_posix()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what the pages link to, and what that links to if it is a page itself."""
    todo = ["README.md", *(origin(file) for file in files.documentation_pages())]
    seen = set(todo)
    while todo:
        path = todo.pop()
        if place(path) not in files.src_uris:
            files.append(File.generated(config, place(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            found = set(linked(path)) - seen
            seen |= found
            todo += found
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have links go to where files are on the site."""
    here = PurePosixPath(origin(page.file)).parent
    start = PurePosixPath(page.file.src_uri).parent

    def on_site(link: re.Match[str]) -> str:
        target = os.path.normpath(here / link["path"])
        return os.path.relpath(place(target), start) + (link["anchor"] or "")

    return LINK.sub(on_site, markdown)
