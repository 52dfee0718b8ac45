"""URLs that two parsers read differently, and ports and schemes of other protocols: refused in any use."""

HOSTILE_URLS = (
    "http://evil\\@127.0.0.1",
    "http://evil\\@127.0.0.1/",
    "http://%31%32%37.0.0.1",
    "http://h.test:0",
    "http://h.test:22",
    "http://h.test:25",
    "http://h.test:6379",
    "http://h.test:99999",
    "gopher://h.test",
    "file:///etc/passwd",
    "http://",
    "http:///x",
    "http://a..b",
    "http://" + "a" * 300,
    "http://" + ".".join(["a" * 59] * 5),
    "http://h.test\r\nX: y",
    "http://h.test\0",
)
