"""The report opens offline in a browser, draws, sorts and switches, and the console stays silent."""

import io
import json
import re
import shutil
import subprocess

import pytest
from rich.console import Console

from bench import fakes
from tokenmill.bench.compare import compare

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = """
--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --enable-logging=stderr --v=0
--virtual-time-budget=4000
"""

# Run inside the page, after its own script: use every control, then say what came of it.
PROBE = """
<script>{
const out = {};
const rows = () => [...document.querySelectorAll("#rows tbody tr")].map((tr) => tr.children[0].textContent);
out.first = rows()[0];
document.querySelectorAll("#rows th.sort")[3].click();
out.sizes = [...document.querySelectorAll("#rows tbody tr")].slice(1).map((tr) => Number(tr.children[3].dataset.value));
out.stillFirst = rows()[0];
const task = document.getElementById("heat-task");
task.value = "drift"; task.dispatchEvent(new Event("change"));
out.heats = [...document.querySelectorAll(".heat")].filter((e) => !e.hidden).map((e) => e.dataset.task);
const spec = document.getElementById("kept-spec");
const held = () => [...document.querySelectorAll("#text span:not(.gone)")].length;
const all = document.getElementById("kept-all");
spec.value = "full"; spec.dispatchEvent(new Event("change")); out.full = held();
spec.value = "knorm(budget=0.25)"; spec.dispatchEvent(new Event("change"));
all.checked = false; all.dispatchEvent(new Event("input")); out.quarter = held();
out.tokens = document.querySelectorAll("#text span").length;
out.text = document.getElementById("text").textContent;
out.points = document.querySelectorAll("svg g.point").length;
document.querySelector("svg g.point[data-method=knorm]").dispatchEvent(new Event("mouseenter"));
out.lit = document.querySelectorAll("tr.lit").length;
document.title = "PROBE" + JSON.stringify(out) + "EBORP";
}</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    fakes.install(patch.setattr)
    folder = tmp_path_factory.mktemp("browser") / "run"
    prompt = 'Tags <b>like</b> these & "those" </script> stay text.'
    compare("cache", methods=["knorm", "recent_window", "zip_cache"], out=folder, prompt=prompt,
            console=Console(file=io.StringIO()))  # fmt: skip
    patch.undo()
    return folder / "report.html", prompt


def open_in_browser(path, profile):
    done = subprocess.run(
        [CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_report_opens_and_its_controls_work(page, tmp_path):
    path, prompt = page
    probed = tmp_path / "probed.html"
    probed.write_text(path.read_text().replace("</body>", PROBE + "</body>"))
    dom, console = open_in_browser(probed, tmp_path / "profile")
    assert console == []
    assert 'data-ready="yes"' in dom
    found = re.search(r"PROBE(\{.*?\})EBORP", dom)
    assert found, dom[:500]
    out = json.loads(found.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert out["first"] == out["stillFirst"] == "untouched"
    assert out["sizes"] == sorted(out["sizes"], reverse=True)
    assert out["heats"] == ["drift"]
    assert out["tokens"] == out["full"] == len(prompt) + 1  # and the token every prompt begins with
    assert out["quarter"] == (len(prompt) + 1) // 4
    assert out["text"] == "<s>" + prompt
    assert out["points"] == 2 * 6
    assert out["lit"] == 2
