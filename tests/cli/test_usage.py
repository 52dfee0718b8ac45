"""What the console script answers to wrong usage and wrong configuration, without any service."""

import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from downloader import __version__
from downloader.cli import COMMANDS, main
from downloader.cli.inspect import list_plugins
from downloader.cli.options import load
from servers.cli import Ran, run_cli, run_script
from servers.forked import environment

EXAMPLE = Path(__file__).parents[2] / "config.toml.example"


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error, of a run in this process, which is much faster than one of its own."""
    status = main(arguments)
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    return Ran(status, captured.out, captured.err).complaint


@pytest.mark.slow
def test_version() -> None:
    ran = run_script("version")
    assert (ran.status, ran.out, ran.err) == (0, f"{__version__}\n", "")


def test_version_is_a_flag_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr() == (f"{__version__}\n", "")


def test_the_predecessor_s_file_names_the_command_that_converts_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"redis": {}}')
    expected = f"{file}: is JSON: convert it with downloader import-config"
    assert complaint(capsys, "config", "-c", str(file)) == expected


def test_a_new_configuration_with_a_new_token(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    assert main(["config", "init", str(file)]) == 0
    assert file.read_text() == EXAMPLE.read_text()
    assert complaint(capsys, "config", "init", str(file)) == f"{file}: File exists"
    assert main(["token", "new", "shop", "--scope", "read", "--scope", "retry"]) == 0
    with file.open("a") as config:
        config.write(capsys.readouterr().out)
    assert main(["config", "check", "-c", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: ok\n"
    [token] = load(file).api.tokens
    assert (token.name, token.scopes, len(token.token.get_secret_value())) == ("shop", ["read", "retry"], 43)


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("[redis]\nurI = 1", "unknown key redis.urI; did you mean redis.url?"),
        ("[backends.amqp]", "backends.amqp: "),
        (
            '[[api.tokens]]\nname = "a"\ntoken = "short"\nscopes = ["read"]',
            "api.tokens[0].token must have at least 16 characters",
        ),
    ],
)
def test_a_configuration_is_checked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, toml: str, expected: str
) -> None:
    (tmp_path / "c.toml").write_text(toml)
    assert expected in complaint(capsys, "config", "check", "-c", str(tmp_path / "c.toml"))


def test_a_token_needs_a_name_for_logs(capsys: pytest.CaptureFixture[str]) -> None:
    assert complaint(capsys, "token", "new", "a b").startswith("NAME must be 1 to 64 ")


def test_completion_knows_the_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert {"submit", "http_status", "--error-code", "--callback-type", "--processes"} <= set(
        re.findall(r"[-\w]+", script)
    )


def test_p_is_short_for_port(capsys: pytest.CaptureFixture[str]) -> None:
    assert complaint(capsys, "api", "-p", "65536").startswith('Invalid value "65536" for -p.')


@pytest.mark.slow
def test_python_dash_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "downloader", "version"],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    assert done.stdout == f"{__version__}\n"


@pytest.mark.slow
def test_version_and_help_do_not_wait_for_the_network_libraries() -> None:
    code = (
        "import sys; from downloader.cli import main; main([sys.argv[1]]);"
        "sys.exit(' '.join({'trio', 'quart', 'redis', 'pydantic', 'httpx2'} & set(sys.modules)))"
    )
    for argument in ("version", "--help"):
        done = subprocess.run(
            [sys.executable, "-c", code, argument],
            capture_output=True,
            text=True,
            check=False,
            env=environment(),
        )
        assert done.stderr.strip() == ""


@pytest.mark.parametrize(
    "command",
    ["", *(command.__name__.replace("_", "-") for commands in COMMANDS.values() for command in commands)],
)
def test_help_is_on_stdout_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*filter(None, [command]), "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"Usage: downloader {command}".rstrip())
    assert f"  downloader {command}" in out.partition("For example:")[2]


def test_each_command_with_output_has_json() -> None:
    commands = [command for each in COMMANDS.values() for command in each]
    without = {each.__name__ for each in commands if "json_" not in inspect.signature(each).parameters}
    serving = {each.__name__ for each in COMMANDS["Serve"]}
    # A configuration is TOML, health has only an exit status, and events are always JSON.
    without -= {"import_config", "health", "events", "completion", "new_plugin"}
    assert without == serving


def test_version_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": __version__}


def test_config_as_json_is_what_it_is_as_toml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[backends.stranger]\npassword = "hunter2"\nsince = 2026-11-27T08:00:00Z\n')
    assert main(["config", "-c", str(config)]) == 0
    toml = tomllib.loads(capsys.readouterr().out)
    assert main(["config", "-c", str(config), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["backends"].pop("stranger") == {"password": "***", "since": "2026-11-27 08:00:00+00:00"}
    del toml["backends"]["stranger"]
    assert found == toml


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["serve"], 'Unknown command "serve".'),
        (["run", "--prot", "1"], "Unknown option: --prot. Did you mean --port?"),
        (["run", "--port", "x"], 'Invalid value for --port: unable to convert "x" into int'),
        (["run", "--port", "70000"], 'Invalid value "70000" for --port.'),
        (["run", "--processes", "0"], 'Invalid value "0" for --processes.'),
        (["run", "extra"], "Unexpected argument: extra (see downloader run --help)"),
        (["--versoin"], "(see downloader --help)"),
        (["run", "-c"], "parameter -c requires an argument"),
        (["run", "--allow", "10.0.0.0/99"], "--allow: "),
        (["processor", "--port", "1"], "Unknown option: --port (see"),
        (["run", "-c", "no-such.toml"], "no-such.toml: cannot be read: No such file or directory"),
        (["config", "-c", "/"], "/: cannot be read: Is a directory"),
        (["fetch"], "nothing to fetch"),
        (["fetch", "--limit", "0", "http://h/"], 'Invalid value "0" for --limit.'),
        (["fetch", "ftp://h/x"], "'ftp://h/x': the URL must begin with http or https"),
        (["fetch", "http://h/\x1b[31m"], "'http://h/\\x1b[31m': the URL has characters that cannot be shown"),
        (["fetch", "http:///x"], "'http:///x': the URL has no host, or a malformed one"),
        (["fetch", "http://[::1/x"], "'http://[::1/x': the URL has a malformed IPv6 address"),
        (["fetch", "--mime", "[a", "http://h/"], "--mime: malformed pattern '[a'"),
        (["fetch", "--max-rate", "0", "http://h/"], "--max-rate: must be a number of bytes"),
        (["fetch", "--max-rate", "fast", "http://h/"], "--max-rate: must be a number of bytes"),
        (["fetch", "--from-file", "no-such.txt"], "no-such.txt: cannot be read: No such file or directory"),
        (["fetch", "-o", "/dev/null/x", "http://h/"], "the folder '/dev/null/x' cannot be written: "),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in complaint(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["run", "api", "processor", "notifier", "config", "doctor", "plugins"])
def test_each_command_refuses_a_wrong_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[processor]\nconcurency = 3\n")
    expected = f"{config}: unknown key processor.concurency; did you mean processor.concurrency?"
    assert complaint(capsys, command, "-c", str(config)) == expected


def test_each_error_of_a_configuration_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[processor]\nconcurency = 3\nlease = 0\n")
    assert main(["run", "-c", str(config)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"downloader: {config}: unknown key processor.concurency; did you mean processor.concurrency?",
        f"downloader: {config}: processor.lease must be greater than 0",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["serve"], ["run", "-c", "no-such.toml"], ["fetch", "nonsense"]])
def test_the_real_script_answers_alike(arguments: list[str]) -> None:
    ran = run_script(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert arguments[-1] in ran.complaint


@pytest.mark.slow
def test_a_wrong_variable_is_refused_and_kubernetes_own_is_not() -> None:
    ran = run_cli("config", environ={"DOWNLOADER_REDIS_URL": "redis://h"})
    assert (ran.status, ran.complaint) == (
        2,
        "unknown environment variable DOWNLOADER_REDIS_URL; did you mean DOWNLOADER_REDIS__URL?",
    )
    ran = run_cli("config", environ={"DOWNLOADER_PORT": "tcp://10.0.0.1:80", "DOWNLOADER_FAILPOINT": "x"})
    assert (ran.status, ran.err) == (0, "")


@pytest.mark.slow
def test_config_prints_what_can_be_loaded_again(tmp_path: Path) -> None:
    ran = run_cli("config", "-c", EXAMPLE, environ={"DOWNLOADER_API__PORT": "9"})
    assert (ran.status, ran.err) == (0, "")
    assert tomllib.loads(ran.out)["api"]["port"] == 9
    (tmp_path / "again.toml").write_text(ran.out)
    assert run_cli("config", "-c", tmp_path / "again.toml").out == ran.out


@pytest.mark.slow
@pytest.mark.row("H20")
def test_config_prints_no_secret(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[backends.http]\nsecret = { env = "S" }\n')
    environ = {"S": "hunter2", "DOWNLOADER_REDIS__URL": "redis://:hunter2@h"}
    ran = run_cli("config", "-c", tmp_path / "c.toml", environ=environ)
    assert ran.status == 0
    assert "hunter2" not in ran.out
    assert tomllib.loads(ran.out)["redis"]["url"] == "redis://***@h"


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[tuple[str, str], dict[str, object]]:
    """Rows of `plugins --json` by kind and name."""
    assert main(["plugins", *arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return {(row["kind"], row["name"]): row for row in json.loads(out)}


def test_plugins_lists_what_is_installed_and_what_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[backends.http]\n")
    rows = listed(capsys, "-c", str(config))
    assert rows["notifier", "http"] == {
        "kind": "notifier",
        "name": "http",
        "version": __version__,
        "distribution": "downloader-service",
        "configured": True,
        "problem": "",
    }
    used = {key for key, row in rows.items() if row["configured"]}
    assert used == {("notifier", "http"), ("storage", "filesystem"), ("buckets", "s3")}
    assert {
        ("notifier", "kafka"),
        ("notifier", "sqs"),
        ("notifier", "storage"),
        ("storage", "s3"),
    } < rows.keys()
    config.write_text('[processor.filestorage]\ntype = "s3"\n')
    used = {key for key, row in listed(capsys, "-c", str(config)).items() if row["configured"]}
    assert used == {("storage", "s3"), ("buckets", "s3")}
    assert main(["plugins"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"filesystem\tstorage\t{__version__}\tdownloader-service\tyes" in lines
    assert f"http\tnotifier\t{__version__}\tdownloader-service" in lines


def test_a_configured_plugin_that_is_not_installed_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[backends.kafak]\n[backends.http]\n")
    assert main(["plugins", "-c", str(config)]) == 2
    captured = capsys.readouterr()
    assert "kafak\tnotifier\t\t\tyes, but not installed" in captured.out.splitlines()
    assert Ran(2, captured.out, captured.err).complaint.startswith(
        "backends.kafak: no notifier plugin 'kafak' is installed (installed: "
    )
    assert captured.err.endswith("; did you mean 'kafka'?\n")
    assert main(["plugins", "-c", str(config), "--json"]) == 2
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows if row["problem"]] == ["kafak"]


def test_plugins_that_are_installed_badly_are_listed_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, metadata in {
        "bare-1": None,
        "silent-1": "Metadata-Version: 2.1\n",
        "other-3": "Metadata-Version: 2.1\nName: other\nVersion: 3\n",
    }.items():
        info = tmp_path / f"{name}.dist-info"
        info.mkdir()
        point = "http" if name == "other-3" else name.partition("-")[0]
        (info / "entry_points.txt").write_text(
            f"[downloader.notifiers.v1]\n{point} = strangers_own:factory\n"
        )
        if metadata is not None:
            (info / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = listed(capsys)
    for name in ("bare", "silent"):
        row = rows["notifier", name]
        assert (row["version"], row["distribution"], row["problem"]) == ("", "", "")
    config = tmp_path / "c.toml"
    config.write_text("[backends.http]\n")
    assert main(["plugins", "-c", str(config)]) == 2
    captured = capsys.readouterr()
    assert "http\tnotifier\t3\tother\tyes, but installed twice" in captured.out.splitlines()
    assert "is installed more than once (downloader-service " in captured.err


@pytest.mark.slow
def test_a_url_file_is_refused_with_the_line_at_fault(tmp_path: Path) -> None:
    text = "\ufeffhttp://h/a\n\n  # a comment\r\nhttp://h/b#fragment\nnot a url\n"
    ran = run_cli("fetch", "--from-file", "-", stdin=text, cwd=tmp_path)
    expected = "standard input, line 5: the URL is not an absolute URL: https:// or the host is missing"
    assert (ran.status, ran.complaint) == (2, expected)
    (tmp_path / "urls").write_text(text)
    ran = run_cli("fetch", "--from-file", "urls", cwd=tmp_path)
    assert ran.complaint == "urls, line 5: the URL is not an absolute URL: https:// or the host is missing"
    (tmp_path / "urls").write_bytes(b"\xff\xfe")
    ran = run_cli("fetch", "--from-file", "urls", cwd=tmp_path)
    assert (ran.status, ran.complaint) == (2, "urls: not a text file in UTF-8")


@pytest.mark.slow
def test_a_reader_that_goes_away_gets_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "downloader", "config"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=environment(),
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_api_alone_is_refused_on_an_embedded_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert complaint(capsys, "api", "--port", "0").startswith(
        "redis.url: an api alone needs a Redis or Valkey"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_addresses_of_a_running_service_are_no_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOWNLOADER_API", "http://h")
    monkeypatch.setenv("DOWNLOADER_TOKEN", "t")
    assert main(["config"]) == 0


@pytest.mark.parametrize(
    ("table", "package", "extra"),
    [
        ("[backends.kafka]", "confluent_kafka", "kafka"),
        ('[processor.filestorage]\ntype = "s3"', "boto3", "aws"),
        ('[processor.s3]\nbuckets = ["shop-*"]', "boto3", "aws"),
    ],
)
def test_a_configured_plugin_that_lacks_a_package_is_reported(
    table: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    config = tmp_path / "c.toml"
    config.write_text(f"{table}\n")
    rows, problem = list_plugins(load(config))
    missing = f"needs the package {package}: pip install 'downloader-service[{extra}]'"
    assert str(problem) == f"{table.partition(']')[0][1:]}: {missing}"
    assert [row["problem"] for row in rows if row["problem"]] == [missing]
