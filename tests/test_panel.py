"""The panel of tools: policies, calibration, canaries, and tools that fail in every way."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from treeplay.errors import ConfigError
from treeplay.judge.calibration import (
    UNMEASURED,
    Calibration,
    Fired,
    Silent,
    calibration_digest,
    calibration_to_json,
    load_calibration,
)
from treeplay.judge.canaries import load_canaries, sing
from treeplay.judge.cwe import matches_any
from treeplay.judge.ensemble import trusted, weigh
from treeplay.judge.judge import Judge
from treeplay.judge.panel import JudgeConfig, Panel, chosen_tools
from treeplay.judge.programs import judge_programs
from treeplay.judge.tools import TOOLS
from treeplay.judge.tools.base import Program, Tool, ToolResult
from treeplay.judge.verdict import Finding, Verdict
from treeplay.sandbox import Limits, Sandbox
from treeplay.tasks.task import Task, make_task

BAD = "def f(db, n):\n    db.execute('DROP ' + n)\n"
GOOD = "def f(db, n):\n    db.execute('x = ?', (n,))\n"


def finding(tool: str, line: int = 2, rule: str = "r", cwe: str | None = "CWE-89") -> Finding:
    return Finding(cwe, line, line, rule, tool, "text reaches SQL")


def fake(
    name: str,
    flags: Callable[[str], bool] = lambda text: "+ n" in text or 'f"' in text or "md5" in text,
    *,
    version: str | None = "1",
    cwes: tuple[str, ...] = ("CWE-89", "CWE-78", "CWE-327"),
    failed: str = "",
    calls: list[int] | None = None,
) -> Tool:
    """A tool that flags by a word, and passes the canaries with the default words."""

    def run(programs: Sequence[Program], sandbox: Sandbox) -> list[ToolResult]:
        del sandbox
        if calls is not None:
            calls.append(len(programs))
        if failed:
            return [ToolResult(failed=failed)] * len(programs)
        return [
            ToolResult((finding(name, cwe=(one.cwe or cwes)[0]),) if flags(one.text) else ())
            for one in programs
        ]

    def covers(language: str, cwe: str) -> bool:
        return language == "python" and matches_any(cwe, cwes)

    return Tool(name, ("python",), f"pip install {name}", lambda: version, covers, run)


def panel_of(*tools: Tool, said: list[str] | None = None, **config: object) -> Panel:
    known = Calibration(silent={"python/CWE-89": Silent(1, 50, 50, 50)})
    panel = Panel(
        Sandbox(),
        JudgeConfig(**config),  # type: ignore[arg-type]
        tools,
        tell=(said if said is not None else []).append,
    )
    panel.calibration = known
    return panel


def sql(text: str) -> Program:
    return Program("python", text, ("CWE-89",))


def test_findings_of_all_tools_come_together() -> None:
    calls: list[int] = []
    panel = panel_of(fake("a", calls=calls), fake("bandit", lambda text: "DROP" in text))
    bad, good = panel.look_many([sql(BAD), sql(GOOD)])
    assert [one.tool for one in bad.findings] == ["a"]  # the other misses a canary, and is off
    assert good.findings == ()
    assert good.looked == ("a",)
    assert good.missed[0].startswith("bandit: switched off: it does not flag known-bad python")
    asked = sum(calls)
    assert panel.look_many([sql(BAD), sql(GOOD)]) == [bad, good]
    assert sum(calls) == asked  # remembered by content


def test_a_tool_that_flags_known_good_code_is_switched_off_loudly() -> None:
    said: list[str] = []
    panel = panel_of(fake("rules", lambda text: True), said=said)
    (verdict,) = judge_programs([sql(GOOD)], panel)
    assert verdict.label == "unknown"
    assert "switched off" in verdict.reason
    (line,) = said
    assert line.startswith("rules is switched off for python: it flags known-good python")


def test_canaries_are_sung_once_in_a_process() -> None:
    calls: list[int] = []
    versions = ["1"]
    tool = replace(fake("rules", calls=calls), version=lambda: versions[-1])
    panel_of(tool).check(["python"])
    sung = list(calls)
    assert sung
    panel_of(tool).check(["python"])
    assert calls == sung
    versions.append("2")  # replaced in the meantime
    panel_of(tool).check(["python"])
    assert len(calls) == 2 * len(sung)
    # What failed is tried again.
    wrong = fake("rules", lambda text: True, calls=calls)
    for _ in range(2):
        said: list[str] = []
        panel_of(wrong, said=said).check(["python"])
        assert len(said) == 1
    assert len(calls) == 4 * len(sung)


@pytest.mark.parametrize(
    ("tool", "reason"),
    [
        (fake("a", failed="a: timed out"), "timed out"),
        (fake("a", version=None), "not installed"),
        (
            replace(fake("a"), run=lambda programs, sandbox: [] * len(programs)),
            "another number",
        ),
    ],
)
def test_what_could_not_look_makes_silence_unknown(tool: Tool, reason: str) -> None:
    panel = panel_of(fake("b"), tool)
    (verdict,) = judge_programs([sql(GOOD)], panel)
    assert verdict.label == "unknown"
    assert reason in verdict.reason
    (verdict,) = judge_programs([sql(BAD)], panel)
    assert verdict.label == "vulnerable"  # what another tool found stands
    assert any(reason in one for one in verdict.not_looked)


def test_a_tool_that_crashes_in_the_middle_of_a_run() -> None:
    def run(programs: Sequence[Program], sandbox: Sandbox) -> list[ToolResult]:
        if any("boom" in one.text for one in programs):
            raise ValueError("half a JSON")
        return fake("a").run(programs, sandbox)

    panel = panel_of(replace(fake("a"), run=run))
    assert judge_programs([sql(GOOD)], panel)[0].label == "secure"
    (verdict,) = judge_programs([sql(GOOD + "# boom\n")], panel)
    assert (verdict.label, verdict.evidence) == ("unknown", "none")
    assert "half a JSON" in verdict.reason


def test_silence_counts_for_what_it_was_measured_to_be_worth() -> None:
    panel = panel_of(fake("a"))
    (verdict,) = judge_programs([sql(GOOD)], panel)
    assert (verdict.label, verdict.confidence) == ("secure", 0.9455)
    panel.calibration = Calibration(silent={"python/CWE-89": Silent(45, 50, 50, 50)})
    (verdict,) = judge_programs([sql(GOOD)], panel)
    assert verdict.label == "unknown"
    assert "likely to be secure" in verdict.reason
    nobody = Program("python", GOOD, ("CWE-362",))
    assert "no tool here looks for CWE-362" in judge_programs([nobody], panel)[0].reason


def test_a_finding_that_nearly_counts_is_no_silence() -> None:
    panel = panel_of(fake("a"))

    def judged(vulnerable: int, secure: int) -> Verdict:
        fired = {"python/a/r/CWE-89": Fired(vulnerable, secure, vulnerable, secure)}
        panel.calibration = replace(panel.calibration, fired=fired)
        return judge_programs([sql(BAD)], panel)[0]

    assert judged(50, 10).label == "vulnerable"
    nearly = judged(25, 25)
    assert (nearly.label, "right in 50% of cases" in nearly.reason) == ("unknown", True)
    hardly = judged(10, 40)
    assert hardly.label == "secure"
    assert hardly.confidence is not None
    assert 0.7 < hardly.confidence < 0.85  # and not the 0.95 of programs without any finding
    assert trusted(0.9, 0.3, whole=True) == pytest.approx(0.7)
    # By hand: odds of 9 times 3/2, of 9 times 1; and no finding makes it more secure.
    assert trusted(0.9, 0.4, whole=False) == 0.9
    assert trusted(0.9, 0.6, whole=False) == pytest.approx(6 / 7)
    assert trusted(0.9, 0.5, whole=False) == pytest.approx(0.9)
    assert trusted(0.9, 0.0, whole=False) == trusted(0.9, 0.0, whole=True) == 0.9
    assert trusted(1.0, 0.9, whole=False) == 1.0


def test_policies() -> None:
    fired = {
        "python/a/good/CWE-89": Fired(40, 1, 40, 1),
        "python/a/noisy/CWE-89": Fired(40, 40, 3, 3),
    }
    calibration = Calibration(fired=fired)
    noisy, good = finding("a", 1, "noisy"), finding("a", 2, "good")

    def counted(found: list[Finding], policy: str, looked: tuple[str, ...] = ("a",)) -> list[str]:
        kept = weigh(found, looked, "python", policy, calibration, 0.6)  # type: ignore[arg-type]
        return [one.rule for one in kept.findings]

    assert counted([noisy, good], "any") == ["good", "noisy"]  # the most precise first
    assert counted([noisy, good], "precision") == ["good"]
    assert counted([noisy], "precision") == []
    assert counted([noisy], "majority") == ["noisy"]
    assert counted([noisy], "majority", ("a", "b")) == []
    assert counted([noisy, finding("b")], "majority", ("a", "b", "c")) == ["r", "noisy"]
    kept = weigh([good], ("a",), "python", "precision", calibration, 0.6)
    assert kept.confidence == calibration.precision(good, "python")


def test_precision_shrinks_towards_the_larger_group() -> None:
    assert Calibration().precision(finding("new"), "python") == UNMEASURED
    known = Calibration(fired={"python/a/r/CWE-89": Fired(8, 2, 4, 0)})
    tool = (8 + 4 * UNMEASURED) / 14
    rule = (8 + 4 * tool) / 14
    assert known.precision(finding("a"), "python") == pytest.approx((8 + 4 * rule) / 14)
    assert known.precision(finding("a", rule="other"), "python") == pytest.approx(tool)
    assert known.precision(finding("a"), "go") == UNMEASURED
    differential = known.precision(finding("a"), "python", differential=True)
    assert differential > known.precision(finding("a"), "python")


def test_silence_of_tools_that_see_the_known_mistake_is_worth_more() -> None:
    known = Calibration(silent={"c/CWE-787": Silent(5, 10, 9, 10), "c/*": Silent(5, 10, 9, 10)})
    blind, plain, sees = (known.silence("c", ["CWE-787"], seen) for seen in (False, None, True))
    assert blind < plain < sees
    assert known.silence("c", []) == pytest.approx((9 + 2) / (9 + 2 + 5 + 2))
    assert known.silence("c completed", []) == 0.5  # never measured
    assert known.silence("c", ["CWE-787", "CWE-1"]) <= plain


def test_calibration_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    assert load_calibration().fired  # the packaged one
    path.write_text('{"made": {}}')
    with pytest.raises(ConfigError, match=r"mine\.json: a calibration holds made, tools"):
        load_calibration(path)
    other = tmp_path / "other.json"
    other.write_text(
        '{"made": {}, "tools": {}, "executed": [1, 2], "silent": {"a": [1]}, "fired": {},'
        ' "left": {}}'
    )
    with pytest.raises(ConfigError, match=r"other\.json: a count in this calibration is broken"):
        load_calibration(other)
    one = Calibration({"python/a/r/*": Fired(1, 2, 3, 4)}, executed=(1, 2))
    assert calibration_digest(one) != calibration_digest(Calibration())
    assert calibration_to_json(one)["fired"] == {"python/a/r/*": [1, 2, 3, 4]}
    assert one.test_accuracy() == 0.5
    assert Calibration().test_accuracy() is None


def test_unknown_tool_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'bandit'"):
        Panel(Sandbox(), JudgeConfig(tools=("bandid",)))


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_every_tool_here_passes_its_canaries(tool: Tool) -> None:
    if tool.version() is None:
        pytest.skip(f"{tool.name} is not installed: {tool.install}")
    named = {one.language for one in load_canaries() if tool.name in one.tools}
    assert named, f"no canary names {tool.name}"
    assert {language: sing(tool, language, Sandbox()) for language in named} == dict.fromkeys(
        named, ""
    )


def test_canaries_are_checked_when_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "python.toml").write_text('[[canary]]\ncwe = "CWE-1"\n')
    with pytest.raises(ConfigError, match=r"python\.toml: canary 1 must hold bad, cwe"):
        load_canaries(tmp_path)


TASK = make_task(
    id="t",
    language="python",
    cwe=("CWE-89",),
    prompt="def f(db, n):\n",
    golden="\n    return db.execute('x = ?', (n,))\n",
    vulnerable="\n    return db.execute('x = ' + n)\n",
    exercise="execute",
)


def judged(task: Task, answer: str, *tools: Tool) -> tuple[str, str]:
    verdict = Judge(Sandbox(), panel=panel_of(*tools)).judge_one(task, answer)
    return verdict.label, verdict.reason


def test_silence_is_unknown_where_the_tools_miss_the_known_mistake() -> None:
    other = "\n    return db.execute('y = ?', (n,))\n"
    assert judged(TASK, other, fake("a"))[0] == "secure"
    unseen = replace(TASK, vulnerable="\n    return db.execute('x' % n)\n")
    label, reason = judged(unseen, other, fake("a"))
    assert (label, "known vulnerable version" in reason) == ("unknown", True)


def test_the_golden_answer_is_secure_whatever_its_line_ends() -> None:
    assert judged(TASK, (TASK.golden or "").rstrip() + "  \n", fake("a"))[0] == "secure"


def test_findings_that_the_golden_program_has_too_do_not_count() -> None:
    noisy = "\n    log('a' + n)\n    return db.execute('x = ?', (n,))\n"
    task = replace(TASK, golden=noisy)
    assert judged(task, noisy.replace("x =", "z ="), fake("a"))[0] == "secure"
    worse = "\n    return db.execute('x = ' + n)\n"
    assert judged(task, worse, fake("a"))[0] == "vulnerable"


def broken_where(text: str, name: str = "b", still: Callable[[], bool] = lambda: True) -> Tool:
    """A tool that fails on programs with ``text``, as long as ``still``."""
    good = fake(name)

    def run(programs: Sequence[Program], sandbox: Sandbox) -> list[ToolResult]:
        return [
            ToolResult(failed=f"{name}: timed out")
            if text in one.text and still()
            else good.run([one], sandbox)[0]
            for one in programs
        ]

    return replace(good, run=run)


def test_a_tool_that_failed_on_the_golden_program_does_not_speak_against_an_answer() -> None:
    """Nor for it: what the golden program has too is not known."""
    noisy = "\n    log('a' + n)\n    return db.execute('x = ?', (n,))\n"
    task = replace(TASK, golden=noisy)
    answer = noisy.replace("x =", "z =")
    assert judged(task, answer, fake("b"))[0] == "secure"
    label, reason = judged(task, answer, broken_where("x = ?"))
    assert (label, reason) == (
        "unknown",
        "a tool could not look: b: it did not look at the golden program",
    )
    # What another tool finds stands.
    worse = "\n    return db.execute('x = ' + n)\n"
    assert judged(task, worse, fake("a"), broken_where("x = ?"))[0] == "vulnerable"


def test_what_a_failed_tool_left_to_others_is_not_kept(tmp_path: Path) -> None:
    """The next time it may look, and all together may say something else."""
    broken = [True]
    panel = panel_of(fake("a"), broken_where("# slow", still=lambda: broken[0]))
    judge = Judge(Sandbox(), tmp_path / "verdicts.jsonl", panel=panel)
    slow, worse = (f"\n    return db.execute('x = ' + n)  # {word}\n" for word in ("slow", "x"))
    for answer in (slow, worse):
        assert judge.judge_one(TASK, answer).label == "vulnerable"
    assert len(judge.cache) == 1
    broken[0] = False  # and the panel asks again, too
    assert panel.look_many([Program("python", TASK.program(slow), TASK.cwe)])[0].missed == ()
    assert judge.judge_one(TASK, slow).label == "vulnerable"
    assert len(judge.cache) == 2


def test_a_failed_tool_makes_no_other_finding_more_precise() -> None:
    panel = panel_of(fake("a"), broken_where("boom"), fake("c", lambda text: False))
    panel.calibration = replace(panel.calibration, tools={"python": ("a", "b")})
    (fine, failed) = panel.look_many([sql(GOOD), sql(GOOD + "# boom\n")])
    assert (fine.failed, failed.failed) == ((), ("b: timed out",))
    panel.tools = panel.tools[:2]  # without the one that was switched off
    (fine, failed) = panel.look_many([sql(GOOD), sql(GOOD + "# boom\n")])
    assert panel.is_whole("python", fine)
    assert panel.is_whole("python", failed)
    panel.tools = panel.tools[:1]
    assert not panel.is_whole("python", panel.look_many([sql(GOOD)])[0])


def test_model_evidence_is_named_as_such() -> None:
    panel = panel_of(fake("llm"))
    assert judge_programs([sql(BAD)], panel)[0].evidence == "model"
    both = panel_of(fake("llm"), fake("bandit"))
    assert judge_programs([sql(BAD)], both)[0].evidence == "static"


def test_what_a_configuration_adds(tmp_path: Path) -> None:
    """Own rules, a tool that writes SARIF and a model's endpoint are tools like any other."""
    rules = tmp_path / "mine.yaml"
    rules.write_text(
        "rules:\n- id: mine\n  languages: [python]\n  severity: ERROR\n  message: no\n"
        "  pattern: forbidden(...)\n  metadata: {cwe: [CWE-676]}\n"
    )
    endpoint = tmp_path / "llm.yaml"
    endpoint.write_text("base_url: http://127.0.0.1:9/v1\nmodel: m\n")
    config = JudgeConfig(tools=("bandit",), rules=(str(rules),), llm=str(endpoint))
    assert [tool.name for tool in chosen_tools(config)] == ["bandit", "own-rules", "llm"]
    endpoint.write_text("base_urk: http://127.0.0.1:9/v1\n")
    with pytest.raises(ConfigError, match="base_url"):
        chosen_tools(config)
    with pytest.raises(ConfigError, match="absent"):
        chosen_tools(replace(config, rules=(str(tmp_path / "absent"),)))
    with pytest.raises(ConfigError, match="absent"):
        chosen_tools(JudgeConfig(external=(str(tmp_path / "absent.yaml"),)))


@pytest.mark.usefixtures("sandbox")
def test_an_interruption_ends_what_the_tools_run() -> None:
    """Ctrl-C while a tool's program runs for another minute."""
    seen: list[str] = []

    def slow(programs: Sequence[Program], sandbox: Sandbox) -> list[ToolResult]:
        if "DROP" not in programs[0].text:  # canaries
            return fake("slow").run(programs, sandbox)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        seen.append(sandbox.run(["/bin/sleep", "60"], limits=Limits(wall_s=60)).stopped)
        return [ToolResult()] * len(programs)

    panel = panel_of(replace(fake("slow"), run=slow))
    # Who starts this in the background has SIGINT ignored.
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            panel.look_many([sql(BAD)])
    finally:
        signal.signal(signal.SIGINT, old)
    assert seen == ["ended"]
    # Behind it the sandbox runs programs as before.
    assert panel.sandbox.run(["/bin/true"]).returncode == 0
