"""Data sets as git checkouts: fetched at their revisions, and the same tasks as in record form."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from tinydata import make_data
from typer.testing import CliRunner

from treeplay.cli import app
from treeplay.errors import TaskError
from treeplay.experiments.data import missing_files, place_of, prepare
from treeplay.experiments.protocol import load_protocol
from treeplay.tasks.fetch import SOURCES, Source, fetch
from treeplay.tasks.importers import KINDS, OWN, import_tasks

DATA = Path(os.environ.get("TREEPLAY_DATA", Path(__file__).parents[2] / "shared" / "data"))


def _git(folder: Path, *args: str) -> str:
    told = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    return subprocess.run(
        ["git", *told, "-C", str(folder), *args], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A repository with two commits, and its first one as a source."""
    remote = tmp_path / "remote" / "set"
    remote.mkdir(parents=True)
    _git(remote, "init", "--quiet")
    _git(remote, "config", "uploadpack.allowAnySHA1InWant", "true")
    (remote / "data.jsonl").write_text("first\n")
    _git(remote, "add", ".")
    _git(remote, "commit", "--quiet", "-m", "one")
    revision = _git(remote, "rev-parse", "HEAD")
    (remote / "data.jsonl").write_text("second\n")
    _git(remote, "commit", "--quiet", "-a", "-m", "two")
    return Source(remote.as_uri(), revision, "data.jsonl", "MIT")


def test_a_revision_is_checked_out_once(source: Source, tmp_path: Path) -> None:
    lines: list[str] = []
    folder = tmp_path / "data"
    # Two sets of one repository are one checkout.
    both = {"one": source, "other": Source(source.repository, source.revision, "x", "MIT")}
    fetch(folder, both, lines.append)
    assert (folder / "set" / "data.jsonl").read_text() == "first\n"
    assert lines == [f"{folder / 'set'}: {source.repository} at {source.revision[:12]}"]
    fetch(folder, both, lines.append)
    assert lines[1:] == [f"{folder / 'set'}: there"]


def test_what_is_there_otherwise_stays(source: Source, tmp_path: Path) -> None:
    (tmp_path / "data" / "set").mkdir(parents=True)
    with pytest.raises(TaskError, match=r"set is there and is not file://.*move it away"):
        fetch(tmp_path / "data", {"one": source}, print)
    gone = Source(source.repository, "0" * 40, "data.jsonl", "MIT")
    with pytest.raises(TaskError, match=r"git fetch failed in .*set\.part: .*; try again"):
        fetch(tmp_path / "other", {"one": gone}, print)
    assert not (tmp_path / "other" / "set").exists()


def test_every_importer_has_a_source() -> None:
    assert set(SOURCES) == set(KINDS) - set(OWN)
    assert all(len(one.revision) == 40 for one in SOURCES.values())
    done = CliRunner().invoke(app, ["tasks", "fetch", "x", "mbp"])
    assert done.exit_code == 2
    assert "did you mean 'mbpp'" in done.output


def test_mbpp_as_files_of_one_task_each(tmp_path: Path) -> None:
    for number in (10, 9):
        task = {
            "name": f"mbpp_{number}",
            "prompt": f'def f{number}(x):\n    """Doc."""\n',
            "tests": f"assert f{number}(1) == 1",
        }
        (tmp_path / f"mbpp_{number}.yaml").write_text(yaml.safe_dump(task))
    found = import_tasks("mbpp", tmp_path).tasks
    assert [(t.id, t.meta["entry_point"]) for t in found] == [("mbpp/9", "f9"), ("mbpp/10", "f10")]
    (tmp_path / "mbpp_11.yaml").write_text("name: [")
    with pytest.raises(TaskError, match=r"mbpp_11.yaml: not readable YAML"):
        import_tasks("mbpp", tmp_path)


def test_an_experiment_reads_checkouts_too(tmp_path: Path) -> None:
    """SecurityEval as upstream has it, beside other sets in record form."""
    data = make_data(tmp_path / "data")
    record = data / "securityeval.eval.jsonl"
    protocol = load_protocol("paper")
    before = prepare(protocol, data, tmp_path / "a", "smoke", print)
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    record.unlink()
    assert "lacks securityeval.eval.jsonl" in missing_files(protocol, data)
    assert f"tasks fetch {data} securityeval" in missing_files(protocol, data)
    upstream = data / "SecurityEval" / "dataset.jsonl"
    upstream.parent.mkdir()
    upstream.write_text(
        "".join(
            json.dumps(
                {
                    "ID": row["id"].partition("/")[2],
                    "Prompt": row["prompt"],
                    "Insecure_code": row["vulnerable"],
                }
            )
            + "\n"
            for row in rows
        )
    )
    assert place_of("securityeval", data) == upstream
    after = prepare(protocol, data, tmp_path / "b", "smoke", print)
    assert len(after) == len(before) == 1
    same = ("suites", "train", "held_out")
    assert all(after[0].facts[key] == before[0].facts[key] for key in same)
    # To the byte: the set's own licence, which the tiny records have otherwise, left out.
    name = "full/securityeval.jsonl"
    rows = [
        [json.loads(line) | {"license": ""} for line in (at / name).read_text().splitlines()]
        for at in (before[0].train.parent, after[0].train.parent)
    ]
    assert rows[0] == rows[1]


def test_a_dry_run_without_data_names_what_is_missing() -> None:
    done = CliRunner().invoke(
        app, ["experiment", "main", "--dry-run"], env={"TREEPLAY_DATA": "/nowhere"}
    )
    assert done.exit_code == 0
    assert "arms: tsp, tsp-own" in done.output
    assert "treeplay tasks fetch /nowhere seccodeplt" in " ".join(done.output.split())


@pytest.mark.skipif(not (DATA / "sven.train.jsonl").is_file(), reason="no SVEN data here")
def test_prompts_of_sven_are_those_of_its_functions() -> None:
    """Records come with a prompt, upstream without: the records' is not used."""
    tasks = import_tasks("sven", DATA / "sven.train.jsonl").tasks
    assert "given" not in {task.meta["prompt_from"] for task in tasks}
