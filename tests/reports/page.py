"""What tests ask of a rendered page, read with the standard library's parser."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "br", "input", "path", "use", "rect", "img", "hr", "link", "wbr"}


@dataclass
class Section:
    """A section's heading, and whether it holds anything beyond it."""

    heading: str = ""
    content: int = 0


@dataclass
class Page(HTMLParser):
    """Tags, attributes, texts and sections of a page; raises where tags do not nest."""

    html: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""
    sections: list[Section] = field(default_factory=list)
    islands: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[str] = []
        self._island: str | None = None
        self.feed(self.html)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.sections.append(Section())
        elif "section" in self._open and tag in ("dt", "li", "svg", "td", "bdi"):
            self.sections[-1].content += 1
        if tag == "script" and dict(attrs).get("type") == "application/json":
            self._island = dict(attrs)["id"]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open[-1:] == [tag], f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()

    def handle_data(self, data):
        if self._island is not None:
            self.islands[self._island] = json.loads(data)
            self.sections[-1].content += 1
            self._island = None
        elif not {"script", "style"} & set(self._open):
            self.text += data
            if self._open and self._open[-1] == "h2":
                self.sections[-1].heading += data
