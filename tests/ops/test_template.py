"""Chat templates come with a model's files: they may raise, never end or fill the memory."""

import time

import pytest

from tiny_tokenizer import byte_tokenizer
from tokenmill.errors import InputError
from tokenmill.ops import template
from tokenmill.ops.template import render_chat
from tokenmill.ops.text import as_message

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}"
BROKEN = {
    "raises": ("{{ raise_exception('no users here') }}", "no users here"),
    "syntax": ("{% for %}", "TemplateSyntaxError"),
    "a name that is not": ("{{ messages[7]['content'].x }}", "UndefinedError"),
    "divides by zero": ("{{ 1 // 0 }}", "ZeroDivisionError"),
    "reaches out": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "never ends": (LOOP, "does not end within"),
    "a power that never ends": ("{{ 9 ** (9 ** 11) }}", ""),
    "fills the memory": ("{{ 'a' * 9999999999999 }}", "memory"),
    "fills it slowly": (
        "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "",  # whichever bound it meets first
    ),
    "long": ("{{ 'a' * 99999 }}", "99,999 characters"),
}


@pytest.fixture
def tokenizer(monkeypatch):
    monkeypatch.setattr(template, "SECONDS", 1.0)
    monkeypatch.setattr(template, "LONGEST", 10_000)
    return byte_tokenizer()


@pytest.mark.parametrize("kind", BROKEN)
def test_a_template_that_breaks_is_one_line(tokenizer, kind):
    tokenizer.chat_template, says = BROKEN[kind]
    began = time.monotonic()
    for _ in range(2):  # a failure is not taken for a template that was tried
        with pytest.raises(InputError, match="chat template cannot render") as caught:
            as_message(tokenizer, "hi")
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 20


def test_a_good_template_is_tried_once(tokenizer, monkeypatch):
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert as_message(tokenizer, "hi") == "<user>hi"
    monkeypatch.setattr(template, "_try", lambda *args: pytest.fail("tried again"))
    assert as_message(tokenizer, "again") == "<user>again"


def test_other_roles_are_tried_for_themselves(tokenizer):
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}" + LOOP + "{% endif %}ok"
    assert render_chat(tokenizer, [{"role": "user", "content": "a"}]) == "ok"
    with pytest.raises(InputError, match="does not end"):
        render_chat(tokenizer, [{"role": "system", "content": "a"}])
