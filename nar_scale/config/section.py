"""What all sections of a YAML file have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """Base of every section: no unknown keys, no silent conversion between types, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
