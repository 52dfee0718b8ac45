"""Flags that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

Config = Annotated[Path | None, Parameter(name=["--config", "-c"])]
Host = Annotated[str | None, Parameter(name="--host")]
Port = Annotated[int | None, Parameter(name="--port", validator=Number(gte=0, lte=65535))]
Json = Annotated[bool, Parameter(name="--json", show_default=False)]
