from pathlib import Path

import pytest
import tomli_w

from downloader.config import load_settings, redacted
from downloader.net import redact_url

CANARY = "hunter2hunter2hunter2"


@pytest.mark.row("H20")
def test_no_secret_is_printed_and_all_else_is(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        f"""
        [redis]
        url = "rediss://user:{CANARY}@h:1/2"
        sentinel = {{ master = "m", nodes = ["h:1"], password = "{CANARY}" }}
        [[api.tokens]]
        name = "shop"
        token = "{CANARY}"
        scopes = ["read"]
        [processor.request_headers]
        Authorization = "{CANARY}"
        cookie = "{CANARY}"
        "X-Api-Key" = "{CANARY}"
        Accept = "*/*"
        [processor.filestorage]
        type = "s3"
        bucket = "b"
        region = {{ env = "SECRET" }}
        aws_secret_access_key = "{CANARY}"
        endpoint_url = "https://u:{CANARY}@s3/?sig={CANARY}"
        [processor.cloud.az]
        account_name = "ours"
        account_key = "{CANARY}"
        [backends.http]
        secrets = ["{CANARY}", "{CANARY}2"]
        timeout = 5
        [backends.kafka]
        sasl_plain_password = "{CANARY}"
        bootstrap_servers = ["a:1", {{ env = "SECRET" }}]
        pin_token = 12345678
        [backends.kafka.ssl]
        keyfile_passphrase = "{CANARY}"
        """
    )
    shown = redacted(load_settings(config, environ={"SECRET": CANARY}, overrides={}))
    text = tomli_w.dumps(shown)
    assert CANARY not in text
    assert "12345678" not in text
    assert shown["redis"]["url"] == "rediss://***@h:1/2"
    assert shown["redis"]["sentinel"] == {"master": "m", "nodes": ["h:1"], "password": "***"}
    assert shown["api"]["tokens"][0]["name"] == "shop"
    assert shown["processor"]["request_headers"] == {
        "Authorization": "***",
        "cookie": "***",
        "X-Api-Key": "***",
        "Accept": "*/*",
    }
    assert shown["processor"]["filestorage"] == {
        "type": "s3",
        "bucket": "b",
        "region": "***",
        "aws_secret_access_key": "***",
        "endpoint_url": "https://***@s3/?sig=***",
    }
    assert shown["processor"]["cloud"]["az"] == {"account_name": "ours", "account_key": "***"}
    assert shown["backends"]["http"] == {"secrets": ["***", "***"], "timeout": 5}
    assert shown["backends"]["kafka"]["bootstrap_servers"] == ["a:1", "***"]
    assert shown["notifier"]["retry_schedule"] == [5, 60, 600, 3600, 21600]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h/p", "https://h/p"),
        ("https://h:1/p?a=1&b=2", "https://h:1/p?a=***&b=***"),
        ("https://u:p@h/p?a", "https://h/p?***"),
        ("https://u@v:p@h/p", "https://h/p"),
        ("https://h/@me?X-Amz-Signature=abc#tok", "https://h/@me?X-Amz-Signature=***#***"),
        ("redis://:pa/ss@h", "redis://***"),
        ("redis://:pa#ss@h", "redis://***"),
        ("redis://:pa?ss@h", "redis://***"),
        ("http://[::1]:8/p", "http://[::1]:8/p"),
        ("//u:p@h/x", "//h/x"),
        ("no url?a=b", "no url?a=***"),
        ("", ""),
        ("unix:///run/v.sock?db=1", "unix:///run/v.sock?db=***"),
        ("https://h/\n?a=\nb", "https://h/\n?a=***"),
    ],
)
@pytest.mark.row("H20")
def test_redact_url(url: str, shown: str) -> None:
    assert redact_url(url) == shown
