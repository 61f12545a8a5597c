"""The pages are short, their sentences too, and every link leads somewhere. Needs nothing but the files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
# written by a command, or by many measurements: as long as they come out
GENERATED = {DOCS / "environment.md", DOCS / "plan.md", DOCS / "report" / "report.md"}
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *sorted(DOCS.rglob("*.md"))]
OWN = [page for page in PAGES if page not in GENERATED]
MOST_LINES, MOST_README_LINES, MOST_GLOSSARY_LINES, MOST_WORDS = 200, 150, 60, 25
CODE_FOLDERS = ("world_model", "yume_gym", "train", "agents", "examples", "tests", "docs")
CODE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|(?:src|href)=\"([^\"]+)\"")
ITEM = re.compile(r"([-*+]|\d+\.)\s+(.*)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(text: str) -> str:
    """Without comments, code and what code says."""
    return re.sub(r"`[^`\n]*`", "code", CODE.sub("", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)))


def links(text: str) -> list[str]:
    """Targets of links and pictures, those to other sites left out."""
    found = [one or other for one, other in LINK.findall(prose(text))]
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub and MkDocs both name them; those that they name differently are left out."""
    titles = re.findall(r"^#+\s+(.*?)\s*$", CODE.sub("", text), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "") for title in titles]
    words = [re.sub(r"[^\w\s-]", "", title).strip().lower() for title in plain]
    return {re.sub(r"\s", "-", w) for w in words} & {re.sub(r"[-\s]+", "-", w) for w in words}


def blocks(text: str) -> list[str]:
    """Paragraphs and list items of the prose: no headings, tables or pictures."""
    found: list[list[str]] = [[]]
    for line in re.sub(r"!\[[^\]]*\]\([^)]*\)", "", prose(text)).split("\n"):
        plain = line.strip()
        if not plain or plain.startswith(("|", "#", "<")) or line.startswith("    "):
            found.append([])
        elif item := ITEM.match(plain):
            found.append([item[2]])
        else:
            found[-1].append(plain)
    return [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(block)) for block in found if block]


def sentence_lengths(text: str) -> list[int]:
    """Words of each sentence."""
    sentences = [s for block in blocks(text) for s in re.split(r"(?<=[.!?])[\"')*_]*\s+", block)]
    lengths = [sum(any(c.isalnum() for c in word) for word in sentence.split()) for sentence in sentences]
    return [length for length in lengths if length]


def broken(page: Path) -> list[str]:
    """Links of a page that lead nowhere."""
    lost = []
    for target in links(page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        file = (page.parent / unquote(path)).resolve() if path else page
        if not file.exists() or (
            anchor and (file.suffix != ".md" or anchor not in anchors(file.read_text(encoding="utf-8")))
        ):
            lost.append(target)
    return lost


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=name)
def test_pages_of_the_site_link_within_it(page: Path) -> None:
    outside = [t for t in links(page.read_text(encoding="utf-8")) if DOCS not in (page.parent / t).resolve().parents]
    assert [target for target in outside if not target.startswith("#")] == []


@pytest.mark.parametrize("page", OWN, ids=name)
def test_pages_are_short(page: Path) -> None:
    most = {"README.md": MOST_README_LINES, "glossary.md": MOST_GLOSSARY_LINES}.get(page.name, MOST_LINES)
    assert len(page.read_text(encoding="utf-8").splitlines()) <= most


@pytest.mark.parametrize("page", OWN, ids=name)
def test_sentences_are_short(page: Path) -> None:
    lengths = sentence_lengths(page.read_text(encoding="utf-8"))
    assert lengths and sum(lengths) / len(lengths) <= MOST_WORDS


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lists_begin_after_an_empty_line(page: Path) -> None:
    """Elsewhere they are lists without one, too; on the site they would be part of the paragraph."""
    for paragraph in CODE.sub("", page.read_text(encoding="utf-8")).split("\n\n"):
        lines = [line.strip() for line in paragraph.strip().split("\n")]
        if not ITEM.match(lines[0]) and not lines[0].startswith("#"):
            assert not [line for line in lines if re.match(r"[-*+]\s", line)], paragraph


def test_the_site_has_every_page_once() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = re.findall(r":\s+(\S+\.md)\s*$", nav, re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_the_gallery_shows_every_picture() -> None:
    shown = {(DOCS / target).resolve() for target in links((DOCS / "gallery.md").read_text(encoding="utf-8"))}
    assert {name(p) for p in DOCS.rglob("*.png")} - {name(p) for p in shown if p.is_relative_to(DOCS)} == set()


@pytest.mark.parametrize("page", OWN, ids=name)
def test_code_that_pages_name_is_there(page: Path) -> None:
    """Files by their path or name, folders, and modules that are run; older entries of the notes may name what is gone."""
    text = page.read_text(encoding="utf-8")
    scripts = [name(path) for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*.py")]
    files = re.findall(r"`([\w/.-]+\.py)`", text)
    folders = re.findall(rf"`((?:{'|'.join(CODE_FOLDERS)})(?:/[\w-]+)*/)`", text)
    modules = re.findall(rf"python -m ((?:{'|'.join(CODE_FOLDERS)})(?:\.\w+)+)", text)
    found = {f for f in files if any(s == f or s.endswith(f"/{f}") for s in scripts)}
    found |= {f for f in folders if (ROOT / f).is_dir()}
    found |= {m for m in modules if {f"{m.replace('.', '/')}{end}" for end in (".py", "/__main__.py")} & {*scripts}}
    assert page.parent.name == "lab-notes" or {*files, *folders, *modules} == found


def test_states_are_where_the_page_of_the_code_says() -> None:
    rows = re.findall(
        r"^\| (`\w+`(?:, `\w+`)*) \| (`[\w./]+`(?:, `[\w./]+`)*) \|", (DOCS / "code.md").read_text(), re.MULTILINE
    )
    assert len(rows) >= 6
    for classes, files in rows:
        paths = [
            p for f in re.findall(r"[\w./]+", files) for p in ROOT.rglob(f) if p.parts[len(ROOT.parts)] in CODE_FOLDERS
        ]
        code = "\n".join(path.read_text(encoding="utf-8") for path in paths)
        assert all(re.search(rf"^class {c}\b", code, re.MULTILINE) for c in re.findall(r"\w+", classes)), classes


def test_the_version_is_the_newest_release() -> None:
    releases = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == releases[0]


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `two`, three\n\nSee [here](other.md), [there](#one-two-three), [up](#up) and `[no](link.md)`.\n\n"
        '<img src="gone.png">\n\n```\n[code](x.md)\n```\n\n- One two three. Four five!\n- Six\n\n| a table |\n',
        encoding="utf-8",
    )
    assert broken(page) == ["other.md", "#up", "gone.png"]
    assert sentence_lengths(page.read_text(encoding="utf-8")) == [6, 3, 2, 1]
    assert anchors("## A & b\n## C d") == {"c-d"}  # GitHub says a--b, MkDocs a-b
