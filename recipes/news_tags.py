"""What a tagged newsletter item is: the answers of news_tags.jsonl, whose schema is `recipes.news_tags:NewsTags`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Tag = Annotated[str, Field(max_length=60)]


class NewsTags(BaseModel):
    """Tags of one item. Lists and texts have a longest length, so that any answer ends."""

    model_config = ConfigDict(extra="forbid")

    relevance_score: int = Field(ge=1, le=10)
    """To people who work in tech; 10 is most."""
    summary: str = Field(max_length=160)
    """One sentence; mostly left empty."""
    key_insights: list[Tag] = Field(max_length=12)
    """Topics, as `AI Chip`."""
    company_names: list[Tag] = Field(max_length=12)
