"""The commands before a run: `arkbeam init`, `arkbeam check` and `arkbeam schema`."""

import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from arkbeam.app.cli_options import AsJson, ConfigPath, ExitCode, Settings
from arkbeam.app.cli_print import out, plain, print_json, print_line
from arkbeam.app.folder import FILES_MAX
from arkbeam.app.program import program
from arkbeam.base.redaction import redact

if TYPE_CHECKING:
    from arkbeam.app.check import Checked, Finding
    from arkbeam.app.init import Initialised

_MARKS = {"ok": "[green]✓[/]", "note": "[yellow]![/]", "wrong": "[red]✗[/]"}


def add_commands(app: typer.Typer, panel: str) -> None:
    """Add the commands to the command line, in a panel of its help."""
    app.command(
        epilog="Example: arkbeam init pictures/\n\nExit codes: 0; 2: nothing usable was found, or a file exists.",
        rich_help_panel=panel,
    )(init)
    app.command(
        epilog="Example: arkbeam check config.yaml\n\nExit codes: 0: all is in order; otherwise that of the first fault: 2 for config,"
        " key and manifests, 1 for storage, 4 if the probe gives no vector, 6 if a run of the output is alive.",
        rich_help_panel=panel,
    )(check)
    app.command(epilog="Example: arkbeam schema > arkbeam.schema.json\n\nExit code: 0.", rich_help_panel=panel)(schema)


def init(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH…", help="A folder of pictures, videos and texts; or manifests.")
    ],
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="CONFIG", help="Name of the config. Default: from PATH.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    files_max: Annotated[int, typer.Option(min=1, help="Most files of a folder that are looked at.")] = FILES_MAX,
    as_json: AsJson = False,
) -> None:
    """Look at a folder or at manifests, and write a config for them.

    A folder becomes a manifest, with one row for each picture, video and text file, found by content.
    Of a manifest, the first rows are read, and the columns with ids, texts, images and videos are guessed.
    Nothing is sent, and nothing is asked.
    """
    from arkbeam.app.init import describe_initialised, initialise

    done = initialise(paths, output, force=force, files_max=files_max)
    if as_json:
        print_json(describe_initialised(done))
    else:
        _show_initialised(done)


def check(
    config: ConfigPath,
    settings: Settings = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Send one row, which is paid for, and show what comes back.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a config before a run: key, manifests, storage, a sample of rows and media, quota, cost.

    Sends nothing, unless --probe is given.
    """
    from arkbeam.app.check import Checked, Finding, check_config

    checked = Checked()
    findings: list[Finding] = []
    for finding in check_config(config, settings or [], checked):
        findings.append(finding)
        _show_finding(finding, as_json=as_json)
    if probe and all(finding.state != "wrong" for finding in findings):
        findings.append(_probe(checked))
        _show_finding(findings[-1], as_json=as_json)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    raise typer.Exit(next((finding.exit_code for finding in findings if finding.exit_code), 0))


def schema() -> None:
    """Print the JSON Schema of a config, for editors and for programs that write configs."""
    from arkbeam.app.schema import schema_bytes

    sys.stdout.write(schema_bytes().decode())


def _probe(checked: "Checked") -> "Finding":
    """Send one row of a config in which nothing is wrong."""
    from arkbeam.app.check import Finding
    from arkbeam.app.probe import probe
    from arkbeam.app.service import open_service

    config, job, rows = checked.config, checked.job, checked.rows
    assert config is not None
    assert job is not None
    assert rows is not None
    with open_service(config) as base_url:
        probed = probe(replace(job.spec, api=replace(job.spec.api, base_url=base_url)), rows)
    if probed.failure is None:
        return Finding("probe", "ok", probed.text)
    return (
        Finding("probe", "wrong", probed.text, ExitCode.STOPPED)
        if probed.is_sent
        else Finding("probe", "note", probed.text)
    )


def _show_finding(finding: "Finding", *, as_json: bool) -> None:
    if not as_json:
        text = "\n  ".join(escape(plain(line)) for line in finding.text.split("\n"))  # a line for each key of a config
        out.print(f"{_MARKS[finding.state]} {finding.name}: {text}", highlight=False, soft_wrap=True)


def _show_initialised(done: "Initialised") -> None:
    looked = done.looked
    guess = looked.guess
    roles = {guess.id: "id"} | {name: key for key in ("text", "image", "video") for name in getattr(guess, key)}
    table = Table("column", "what it holds", "filled", "different", "used as", "example")
    for column in looked.columns[:30]:
        used = roles.get(column.name) or ("keep" if column.name in guess.keep else "")
        holds = f"{column.what} {column.share:.0%}" + (f" ({', '.join(column.forms)})" if column.forms else "")
        cells = (redact(repr(column.name)[1:-1], 40), holds, f"{column.filled:.0%}", f"{column.distinct:.0%}", used)
        table.add_row(*map(escape, cells), escape(column.examples[0] if column.examples else ""))
    out.print(table)
    for line in _describe_initialised(done):
        print_line(line)


def _describe_initialised(done: "Initialised") -> list[str]:
    contents, rows = done.contents, len(done.looked.sample.rows) + done.looked.sample.bad
    lines = []
    if contents is not None:
        kinds = ", ".join(f"{count:,} {kind}s" for kind, count in contents.kinds.items())
        lines.append(f"files: {contents.files:,} ({kinds or 'none of them a picture, a video or a text'})")
        lines += [
            f"left out: {count:,} {reason}, such as {redact(contents.examples[reason][0], 80)}"
            for reason, count in contents.left_out.most_common(5)
        ]
        if done.manifest is None:
            lines.append(f"manifests that are used: {redact(', '.join(done.looked.uris), 200)}")
            unused = len(contents.manifests) - len(done.looked.uris)
            if contents.kinds or (unused and "*" not in done.looked.uris[0]):
                lines.append("all else is not used: to use it, name a folder or manifests that hold it alone")
        if contents.cut:
            lines.append(f"the folder has more files: only {contents.files:,} were looked at (--files-max)")
    lines.append(f"rows: {done.requests:,} of {rows:,} that were looked at can be sent")
    lines += [f"  {code}: {redact(message, 200)}" for code, message in list(done.failures.items())[:3]]
    lines += [f"please check: {redact(doubt, 300)}" for doubt in done.doubts]
    lines += [f"written: {name}" for name in (done.manifest, done.config, done.schema) if name is not None]
    name, config = program(), shlex.quote(done.config)
    trial = shlex.quote(f"output.uri=out/{Path(done.config).stem}-trial")
    return [
        *lines,
        "next:",
        f"  {name} check {config}",
        f"  {name} run {config} --set api.base_url=emulator --set {trial}   # a trial that costs nothing",
        f"  {name} run {config}",
    ]
