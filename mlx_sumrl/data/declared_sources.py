"""Sources that are known by name: where they are, what their columns mean, what is asked for, the licence.

Invariant: a declaration says everything that preparing needs, so that adding a source is adding an entry here.
Layouts were looked up on the dataset pages; where the hub holds a loading script, which `datasets` 4 no longer
runs, the rows are those of the hub's own conversion (``refs/convert/parquet``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")

_CONVERTED = "refs/convert/parquet"


@dataclass(frozen=True, slots=True)
class Layout:
    """What the columns of a source mean."""

    document: str = "document"
    """The text to summarise. A list of texts is joined by spaces."""
    summary: str = "summary"
    """The summary. Of a list of texts, see `first_summary`."""
    messages: str | None = None
    """A chat, in place of document and summary."""
    id: str | None = None
    """The row's own name, if the column is there."""
    keep: tuple[str, ...] = ()
    """Further columns that are kept, if they are there."""
    first_summary: bool = False
    """The summaries of a list are alternatives, of which the first is taken; otherwise they are joined."""
    cue: str = ""
    """What the document ends with and is no part of it."""

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns without which a file is not in this layout."""
        return (self.messages,) if self.messages else (self.document, self.summary)


@dataclass(frozen=True, slots=True)
class Hub:
    """Where the rows are on the Hugging Face hub."""

    name: str
    splits: tuple[tuple[SplitName, str], ...] = (
        ("train", "train"),
        ("validation", "validation"),
        ("test", "test"),
    )
    """Our name of a split, and theirs."""
    config_name: str | None = None
    revision: str | None = None
    folder: str | None = None
    """Folder inside the dataset that holds its splits."""


@dataclass(frozen=True, slots=True)
class DeclaredSource:
    """One source that is known by name."""

    name: str
    title: str
    hub: Hub | None
    layouts: tuple[Layout, ...]
    """The hub's layout first, then those that files of it are found in."""
    instruction: str
    licence: str
    language: str | None
    """ISO 639-1 code; None where it may be any."""


_POST = "Summarize the post.\n\n{document}"
_ARTICLE = "Summarize the article.\n\n{document}"
_REDDIT = (
    Layout(document="prompt", summary="completion", cue="TL;DR:"),
    Layout(document="post", keep=("subreddit", "title"), id="id"),
    Layout(id="id"),
)

DECLARED: dict[str, DeclaredSource] = {
    source.name: source
    for source in (
        DeclaredSource(
            "tldr",
            "Reddit TL;DR, as TRL has it",
            Hub("trl-lib/tldr"),
            _REDDIT,
            _POST,
            "OpenAI's Modified MIT licence for its filtered version; the posts are of Webis TL;DR, CC BY 4.0",
            "en",
        ),
        DeclaredSource(
            "smoltldr",
            "a small part of Reddit TL;DR",
            Hub("mlabonne/smoltldr"),
            _REDDIT,
            _POST,
            "none stated on its page; the posts are of Webis TL;DR, CC BY 4.0",
            "en",
        ),
        DeclaredSource(
            "cnn_dailymail",
            "CNN/DailyMail 3.0.0, news with highlights",
            Hub("abisee/cnn_dailymail", config_name="3.0.0"),
            (Layout(document="article", summary="highlights", id="id"), Layout(id="id")),
            _ARTICLE,
            "Apache-2.0; the articles belong to CNN and Daily Mail",
            "en",
        ),
        DeclaredSource(
            "xsum",
            "XSum, BBC articles with their first sentence",
            Hub("EdinburghNLP/xsum", revision=_CONVERTED, folder="default"),
            (Layout(id="id"),),
            "Summarize the article in one sentence.\n\n{document}",
            "unknown; the articles belong to the BBC",
            "en",
        ),
        DeclaredSource(
            "scitldr",
            "SciTLDR, abstracts of papers with what their authors say in one sentence",
            Hub("allenai/scitldr", revision=_CONVERTED, folder="Abstract"),
            (
                Layout(document="source", summary="target", id="paper_id", first_summary=True),
                Layout(id="id"),
            ),
            "Summarize the paper in one sentence.\n\n{document}",
            "Apache-2.0 (the authors' repository)",
            "en",
        ),
        DeclaredSource(
            "dialogsum",
            "DialogSum, everyday conversations",
            Hub("knkarthick/dialogsum"),
            (Layout(document="dialogue", id="id", keep=("topic",)), Layout(id="id")),
            "Summarize the conversation.\n\n{document}",
            "CC BY-NC-SA 4.0",
            "en",
        ),
        DeclaredSource(
            "lcsts",
            "LCSTS, short Chinese posts with their headline",
            Hub("hugcyp/LCSTS"),
            (Layout(document="text"), Layout(id="id")),
            "用一句话概括下面的文章。\n\n{document}",
            "none stated; for research",
            "zh",
        ),
        DeclaredSource(
            "messages",
            "chats: a column `messages` with role and content (needs --from)",
            None,
            (Layout(messages="messages", id="id"),),
            "",
            "none stated",
            None,
        ),
    )
}
"""Name -> declaration."""

_HUB_NAMES = {source.hub.name.lower(): name for name, source in DECLARED.items() if source.hub}


def declared(name: str) -> DeclaredSource | None:
    """The declaration of a name, or of the hub's own name for it; None where there is none."""
    lower = name.lower()
    return DECLARED.get(_HUB_NAMES.get(lower, lower))


def described() -> str:
    """All of them in one paragraph."""
    return "; ".join(f"{name} ({source.title})" for name, source in DECLARED.items())
