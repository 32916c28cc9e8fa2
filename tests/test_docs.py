"""What the documents say is so: generated pages are current, the example of a new method runs, the licence is whole."""

import importlib.util
import re
import sys
from pathlib import Path

import torch

from tokenmill.method import Method

ROOT = Path(__file__).parents[1]


def _generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current(capsys):
    stale = _generate().main(check=True)
    assert stale == 0, capsys.readouterr().out


def test_every_link_leads_somewhere():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)  # code has its own ](
        for target in re.findall(r"\]\(([^)#\s]+)", prose):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_the_example_of_a_new_method_runs(tmp_path, monkeypatch):
    guide = (ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8")
    source = re.search(r'```python\n(""".*?)```', guide, re.S)[1]
    folder = tmp_path / "score"
    folder.mkdir()
    (folder / "value_norm.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    from score.value_norm import value_norm

    monkeypatch.delitem(sys.modules, "score.value_norm")
    assert isinstance(value_norm, Method)
    assert repr(value_norm(budget=0.5)) == "value_norm(budget=0.5)"
    from contract.traces import trace

    seen = trace()
    assert torch.allclose(value_norm(seen), seen.values.norm(dim=-1), atol=1e-5)


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
