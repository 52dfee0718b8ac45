"""The one type for URLs: what a browser would make of them, and what is refused whatever they are for."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from downloader.net import Url, UrlError, Use, host_of, local_host

USES: list[Use] = ["download", "callback", "proxy", "endpoint"]


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port", "authority"),
    [
        ("http://example.org/x", "http", "example.org", 80, b"example.org"),
        ("HTTP://EXAMPLE.org:80/x", "http", "example.org", 80, b"example.org"),
        ("https://example.org", "https", "example.org", 443, b"example.org"),
        ("https://example.org:8443?x", "https", "example.org", 8443, b"example.org:8443"),
        ("http://example.org.:/", "http", "example.org.", 80, b"example.org."),
        ("http://[2001:DB8::1]:81/", "http", "2001:db8::1", 81, b"[2001:db8::1]:81"),
        ("http://b\u00fccher.example/", "http", "xn--bcher-kva.example", 80, b"xn--bcher-kva.example"),
        ("http://\uff11\uff12\uff17.0.0.1/", "http", "127.0.0.1", 80, b"127.0.0.1"),
        ("http://a_b.example/", "http", "a_b.example", 80, b"a_b.example"),
        ("http://2130706433/", "http", "127.0.0.1", 80, b"127.0.0.1"),
    ],
)
def test_the_origin(text: str, scheme: str, host: str, port: int, authority: bytes) -> None:
    origin = Url.parse(text).origin
    assert (origin.scheme, origin.host, origin.port, origin.authority) == (scheme, host, port, authority)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0X7F.1", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("017700000001", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("\uff11\uff12\uff17\u30020.0.1", "127.0.0.1"),
        ("0250.0.0.1", "168.0.0.1"),
    ],
)
@pytest.mark.row("H1")
def test_addresses_are_read_as_browsers_read_them(host: str, address: str) -> None:
    for use in USES:
        assert Url.parse(f"http://{host}", use).origin.host == address


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("http://h", b"/"),
        ("http://h?a=/b", b"/?a=/b"),
        ("http://h#a", b"/"),
        ("  http://h/a b  ", b"/a%20b"),
        ('http://h/|^"<>`{}?|^"<>`{}', b"/%7C%5E%22%3C%3E%60%7B%7D?%7C%5E%22%3C%3E%60%7B%7D"),
        ("http://h/\u00fc?\u20ac", b"/%C3%BC?%E2%82%AC"),
        ("http://h/100%?50&%zz%2f%41", b"/100%?50&%zz%2f%41"),
        ("http://h/a/../b/./c//d?e=../f", b"/a/../b/./c//d?e=../f"),
        ("http://h/~+;,!$&'()*:@=[]?c+d[]\\", b"/~+;,!$&'()*:@=[]?c+d[]\\"),
        ("http://h/a\\b", b"/a/b"),
        ("http://h/?", b"/?"),
        ("http://h/a\u202eb\u00a0", b"/a%E2%80%AEb%C2%A0"),
    ],
)
def test_the_target_as_a_browser_sends_it(text: str, target: bytes) -> None:
    assert Url.parse(text).target == target


@pytest.mark.parametrize(
    ("userinfo", "user", "password", "basic"),
    [
        ("", b"", b"", b""),
        ("us%40er:p%3Ass@", b"us@er", b"p:ss", b"Basic dXNAZXI6cDpzcw=="),
        ("user@", b"user", b"", b"Basic dXNlcjo="),
        ("127.0.0.1%2f@", b"127.0.0.1/", b"", b"Basic MTI3LjAuMC4xLzo="),
    ],
)
def test_userinfo(userinfo: str, user: bytes, password: bytes, basic: bytes) -> None:
    for use in USES[:3]:
        url = Url.parse(f"http://{userinfo}example.org/", use)
        assert (url.credentials, url.basic) == ((user, password), basic)
        assert url.origin.authority == b"example.org"


HOSTILE = {
    "url_malformed": ["", "x", "//h/", "/x", "http:h", "http:/h", "mailto:a@b", "h:80", "http//h"],
    "url_scheme": ["file://h/etc/passwd", "gopher://127.0.0.1/", "ftp://h/", "javascript://h/%0a", "ws://h/"],
    "url_host": [
        "http://",
        "http:///x",
        "http://:80/",
        "http://u@/",
        "http://a..b/",
        "http://.a/",
        "http://%31%32%37.0.0.1/",
        "http://127.0.0.1%00/",
        "http://evil\\@127.0.0.1/",
        "http://a b/",
        "http://-a/",
        "http://a-/",
        "http://./",
        "http://a../",
        "http://a%2fexample.org/",
        "http://exa$mple.org/",
        "http://\N{ZERO WIDTH JOINER}.example/",
        "http://\N{EN DASH}\N{GRINNING FACE}.example/",
        "http://[::g]/",
        "http://" + "a" * 64 + "/",
        "http://" + ".".join(["a" * 60] * 5) + "/",
        *("http://1.2.3.256/", "http://1.2.3.4.5/", "http://0x/", "http://a.127/", "http://08.0.0.1/"),
        "http://[::1/",
        "http://[::1]x/",
        "http://[fe80::1%25eth0]/",
        "http://[v1.x]/",
        "http://::1/",
        "http://\u00fc..b/",
    ],
    "url_port": [
        "http://h:0/",
        "http://h:65536/",
        "http://h:99999/",
        "http://h:x/",
        "http://h:8o/",
        "http://h:\u0668\u0660/",
        "http://h:-1/",
        "http://h:1:2/",
    ],
    "url_characters": [
        "http://h/\r\nX: y",
        "http://h/\0",
        "http://h/\n",
        "http://h/\t",
        "http://h/\x7f",
        "http://h/\ud800",
    ],
    "url_too_long": ["http://h/" + "a" * 8192],
    "url_userinfo": ["http://a@b@c/"],
}


@pytest.mark.parametrize(("code", "text"), [(code, text) for code in HOSTILE for text in HOSTILE[code]])
@pytest.mark.row("H7")
def test_urls_refused_for_every_use(code: str, text: str) -> None:
    for use in USES:
        with pytest.raises(UrlError) as caught:
            Url.parse(text, use)
        assert caught.value.code == code or (use == "proxy" and caught.value.code == "url_malformed")
        assert not text or text not in str(caught.value)


@pytest.mark.parametrize("port", [22, 25, 6379, 6380, 11211, 5432, 27017])
def test_other_protocols_ports(port: int) -> None:
    for use in USES[:3]:
        with pytest.raises(UrlError) as caught:
            Url.parse(f"http://example.org:{port}/", use)
        assert caught.value.code == "url_port"


@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
@pytest.mark.row("H9")
def test_proxies(scheme: str) -> None:
    url = Url.parse(f"{scheme}://us:er@p.example", "proxy")
    assert (url.origin.scheme, url.origin.port) == (
        scheme,
        {"http": 80, "https": 443, "socks5": 1080}[scheme],
    )
    for rest in ("/path", "/?query", "?query"):
        with pytest.raises(UrlError):
            Url.parse(f"{scheme}://p.example{rest}", "proxy")
    if scheme == "socks5":
        with pytest.raises(UrlError):
            Url.parse("socks5://p.example/")


@pytest.mark.parametrize(
    "text",
    ["http://u@h/", "http://u:p@h/", "http://@h/", "http://h/?", "http://h/?q", "http://h/#f", "socks5://h"],
)
def test_an_endpoint_is_refused_with_a_user_a_query_or_a_fragment(text: str) -> None:
    assert Url.parse("https://minio.internal:6379/s3", "endpoint").origin.port == 6379
    with pytest.raises(UrlError):
        Url.parse(text, "endpoint")


@pytest.mark.parametrize(
    ("location", "there"),
    [
        (b"/x", "http://h:81/x"),
        (b" /x ", "http://h:81/x"),
        (b"y?z", "http://h:81/a/y?z"),
        (b"?z", "http://h:81/a/b?z"),
        (b"../q", "http://h:81/q"),
        (b"//o/p", "http://o/p"),
        (b"https://o/a/../p#f", "https://o/a/../p"),
        (b"/a b|", "http://h:81/a%20b%7C"),
        ("/\u00fc".encode(), "http://h:81/%C3%BC"),
        (b"/\xe9", "http://h:81/%E9"),
        (b"#f", "http://h:81/a/b?c"),
    ],
)
def test_redirects(location: bytes, there: str) -> None:
    url = Url.parse("http://u:p@h:81/a/b?c").join(location)
    expected = Url.parse(there)
    assert (url.origin, url.target) == (expected.origin, expected.target)
    assert url.basic == b""


@pytest.mark.parametrize(
    "location",
    [
        *(text.encode() for code in ("url_scheme", "url_host", "url_port") for text in HOSTILE[code]),
        b"http://h:6379/",
        b"//h:25/",
        b"//evil\\@127.0.0.1/",
        b"/\r\nX: y",
        b"/\0",
        b"javascript:alert(1)",
        b"//[",
        b"/" + b"a" * 9000,
    ],
)
@pytest.mark.row("H5", "H7")
def test_redirects_pass_the_same_checks(location: bytes) -> None:
    with pytest.raises(UrlError):
        Url.parse("http://h/").join(location)


def test_its_repr_shows_no_secret() -> None:
    shown = repr(Url.parse("http://canary:canary@h/x?canary"))
    assert "canary" not in shown


@given(
    st.text(max_size=60) | st.from_regex(r"https?://[^/]{1,20}/[^#]{0,20}", fullmatch=True),
    st.sampled_from(USES),
)
@example("http://h/\udfff", "download")
def test_any_text_is_a_url_or_refused(text: str, use: Use) -> None:
    try:
        url = Url.parse(text, use)
    except UrlError:
        return
    assert url.target.isascii()
    assert not set(url.target) & set(b' \r\n\t\0"<>^`{|}')
    assert url.target.startswith(b"/")
    assert url.origin.host.isascii()
    assert not set(url.origin.host) & set(" \r\n\t\0/@%?#\\")
    again = Url.parse(f"{url.origin.scheme}://{url.origin.authority.decode()}{url.target.decode()}", use)
    assert (again.origin, again.target) == (url.origin, url.target)


@given(st.binary(max_size=60))
def test_any_location_is_followed_or_refused(location: bytes) -> None:
    try:
        url = Url.parse("http://h/a/b?c").join(location)
    except UrlError:
        return
    assert url.origin.scheme in ("http", "https")
    assert url.target.isascii()


@pytest.mark.parametrize(
    ("url", "host", "with_port"),
    [
        ("https://Example.org:443/a", "example.org", "example.org"),
        ("https://u:p@example.org./b", "example.org", "example.org."),
        ("http://example.org:8080/", "example.org", "example.org:8080"),
        ("http://[::1]/", "::1", "[::1]"),
        ("no URL", "", ""),
        (7, "", ""),
    ],
)
def test_the_host_of_a_url(url: object, host: str, with_port: str) -> None:
    assert (host_of(url), host_of(url, with_port=True)) == (host, with_port)


@pytest.mark.parametrize(
    ("host", "local"),
    [("0.0.0.0", "127.0.0.1"), ("", "127.0.0.1"), ("::", "::1"), ("h", "h")],
)
def test_the_address_of_a_server_on_this_machine(host: str, local: str) -> None:
    assert local_host(host) == local
