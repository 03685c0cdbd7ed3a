"""The texts of inline scripts and styles: the policy of a page has their hashes. Loaded by the first page alone."""

from html.parser import HTMLParser


class InlineElements(HTMLParser):
    """The texts of the inline <script> and <style> elements of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self.tag = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tag = tag
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self.tag = ""

    def handle_data(self, data: str) -> None:
        if self.tag in self.texts:  # one text may come in several pieces
            self.texts[self.tag][-1] += data
