import pytest

from downloader.paths import NAME_BYTES, disposition_name


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ('attachment; filename="report.pdf"', "report.pdf"),
        ("attachment;filename=report.pdf", "report.pdf"),
        ("ATTACHMENT ; FileName = report.pdf ; size=3", "report.pdf"),
        ("attachment; filename=two words.pdf", "two words.pdf"),
        ('inline; filename="a;b=\\"c\\".txt"', "a;b=_c_.txt"),
        ("attachment; filename=\"EURO.txt\"; filename*=UTF-8''%e2%82%ac%20rates.txt", "€ rates.txt"),
        ("attachment; filename*=utf-8'en'%e2%82%ac.txt; filename=EURO.txt", "€.txt"),
        ("attachment; filename*=ISO-8859-1''%a3.txt", "£.txt"),
        # A malformed `filename*` is ignored.
        ("attachment; filename*=UTF-8''%ff.txt; filename=plain.txt", "plain.txt"),
        ("attachment; filename*=koi8-r''%c1.txt; filename=plain.txt", "plain.txt"),
        ("attachment; filename*=plain.txt", ""),
        # The first of a name counts.
        ("attachment; filename=a.txt; filename=b.txt", "a.txt"),
        ("attachment; filename=ü.txt", "ü.txt"),
        # Nothing leads out of a folder, hides or reorders anything.
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ('attachment; filename="C:\\\\temp\\\\a.exe"', "a.exe"),
        ('attachment; filename="C:\\temp\\a.exe"', "a.exe"),
        ("attachment; filename*=UTF-8''..%2F..%2Fetc%2Fpasswd", "passwd"),
        ("attachment; filename*=UTF-8''%00a%0d%0a%e2%80%aeb.txt", "ab.txt"),
        ("attachment; filename=.bashrc", "bashrc"),
        ("attachment; filename=-rf", "rf"),
        ("attachment; filename=CON", "_CON"),
        ('attachment; filename=".."', ""),
        ('attachment; filename="a/"', ""),
        ('attachment; filename=""', ""),
        ("attachment; filename=", ""),
        ('attachment; filename="open', ""),
        ("attachment", ""),
        ("filename=a.txt", ""),
        ("", ""),
    ],
)
def test_names(value: str, name: str) -> None:
    assert disposition_name(value.encode()) == name


def test_latin_1_is_understood() -> None:
    assert disposition_name('attachment; filename="\xe4.txt"'.encode("latin-1")) == "ä.txt"


def test_long_names_are_cut() -> None:
    name = disposition_name(b"attachment; filename=" + b"a" * 60_000 + b".tar.gz")
    assert len(name) == NAME_BYTES
    assert name.endswith("a.tar.gz")


def test_of_a_very_long_name_its_middle_is_not_looked_at() -> None:
    hidden = "\u200b" * 512
    assert disposition_name(f"attachment; filename=a{hidden}b{hidden}.txt".encode()) == "a.txt"
    assert disposition_name(f"attachment; filename=a{hidden[:256]}b{hidden[:256]}.txt".encode()) == "ab.txt"


def test_a_hostile_field_takes_no_time() -> None:
    for value in (b";" * 60_000, b'; a="' + b"\\" * 60_000, b'; a="\\"' * 10_000, b"; a" * 20_000):
        assert disposition_name(value) == ""
