"""The API's address, before anything is started."""

from __future__ import annotations

import pytest

from downloader.config import ApiSettings
from downloader.errors import ConfigError
from downloader.service.start import listen


@pytest.mark.parametrize("host", ["a..b", "a" * 64])
def test_a_host_that_can_be_no_name_is_one_line(host: str) -> None:
    with pytest.raises(ConfigError, match=r"^api.host: cannot listen on .*: not a host name$"):
        listen(ApiSettings(host=host, port=0))
