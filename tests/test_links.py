"""Every link in the pages and in the notebooks' texts leads somewhere: to a file of the repository and a heading in it, or to a known site.

Nothing is fetched: of outside links, the site alone is checked.
"""

import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")])
SITES = {"arxiv.org", "doi.org", "aclanthology.org", "openreview.net", "proceedings.neurips.cc"}
LINK = re.compile(r"""\]\(\s*<?([^)\s>]+)>?(?:\s+["'][^)]*["'])?\s*\)|<(?:a|img)\s[^>]*?(?:href|src)=["']([^"']+)["']|<(https?://[^>\s]+)>""")
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.+?)\s*#*\s*$", re.M)


def text_of(path):
    """The Markdown of a page, or of a notebook's text cells."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return content
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(content)["cells"] if cell["cell_type"] == "markdown")


def without_code(text):
    """The text without code, comments and formulas, in which brackets are no links."""
    text = re.sub(r"^ {0,3}(```+|~~~+).*?^ {0,3}\1[ \t]*$", "", text, flags=re.M | re.S)
    return re.sub(r"<!--.*?-->|\$\$.*?\$\$|`[^`\n]*`|\$[^$\n]+\$", "", text, flags=re.S)


def links_of(text):
    return [next(filter(None, found)) for found in LINK.findall(without_code(text))]


def anchors_of(text):
    """What links may name in a page: its headings, as code hosts and JupyterLab write them, and ids in its HTML."""
    plain = re.sub(r"^ {0,3}(```+|~~~+).*?^ {0,3}\1[ \t]*$", "", text, flags=re.M | re.S)
    anchors = set(re.findall(r"""\b(?:id|name)=["']([^"']+)["']""", plain))
    for heading in HEADING.findall(plain):
        words = re.sub(r"[*`]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        anchors |= {slug if slug not in anchors else f"{slug}-1", words.replace(" ", "-")}
    return anchors


def problem_of(link, page):
    """What is wrong with a link of a page, or None."""
    parts = urlsplit(link)
    if parts.scheme:
        known = parts.scheme == "https" and parts.hostname in SITES
        return None if known or parts.scheme == "attachment" else "not a site of SITES"
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if ROOT not in (target, *target.parents) or not target.exists():
        return "no such file"
    if parts.fragment and target.suffix in (".md", ".ipynb") and unquote(parts.fragment) not in anchors_of(text_of(target)):
        return "no such heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    problems = {link: problem for link in links_of(text_of(page)) if (problem := problem_of(link, page))}
    assert not problems


def test_pages_name_what_they_are_about():
    """The paper and the works that the method is made of are linked, and every notebook is."""
    links = links_of(text_of(ROOT / "README.md"))
    numbers = ("2408.08650", "1611.01144", "1611.00712", "1308.3432", "2304.08612", "2010.04838", "2110.08515", "2108.01453", "2212.04119")
    assert {f"https://arxiv.org/abs/{number}" for number in numbers} <= set(links)
    assert {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("0*.ipynb")} <= set(links)
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= {link.partition("#")[0] for link in links}


@pytest.mark.parametrize(("text", "links"), [
    ("[a](b.md) and ![c](d.png \"e\"), [two\nlines](f.md#g)", ["b.md", "d.png", "f.md#g"]), ("[![a](b.png)](c.md)", ["b.png", "c.md"]),
    ('<img src="a.png" alt="b"> <a class="c" href="d.md">e</a> <https://arxiv.org>', ["a.png", "d.md", "https://arxiv.org"]),
    ("```\n[a](b)\n```\n`[c](d)` $x[i](j)$ <!-- [e](f) --> [g](h)", ["h"])])
def test_links_are_found_and_code_is_not(text, links):
    assert links_of(text) == links


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    page = ROOT / "README.md"
    wrong = {"docs/absent.md": "no such file", "../elsewhere.md": "no such file", "docs/export.md#no-such": "no such heading",
             "#nothing": "no such heading", "https://example.com/x": "not a site of SITES", "http://arxiv.org/abs/1": "not a site of SITES"}
    assert {link: problem_of(link, page) for link in wrong} == wrong
    for link in ("docs/export.md#adapter-or-merged", "docs", "#two-commands", "https://arxiv.org/abs/1", "docs/chat.png"):
        assert problem_of(link, page) is None


def test_anchors_are_those_of_code_hosts():
    text = "# One, *two* & `three`!\n## One more\n## One more\n```\n# code\n```\n<a id=\"here\"></a>"
    assert {"one-two--three", "one-more", "one-more-1", "here"} <= anchors_of(text) and "code" not in anchors_of(text)
