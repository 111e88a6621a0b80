"""Conversations as text: what transformers makes of the same template, within bounds (cases 114 and 116)."""

from __future__ import annotations

import re
import threading
from datetime import datetime

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from neuron_server.errors import ChatTemplateError
from neuron_server.text import chat
from neuron_server.text.chat import compile_template

#: Short ones of our own, each in the manner of a family.
LLAMA_3 = """{{- bos_token }}
{%- if tools is not none and tools %}
    {{- "<|start_header_id|>system<|end_header_id|>\\n\\nYou may call these:\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- set head = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' %}
    {{- head + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN = """{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nBe of use.<|im_end|>\\n' }}
{%- endif %}
{%- if tools %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- if ns.last < 0 and message.role == 'user' %}
        {%- set ns.last = messages|length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- set mark = '*' if loop.index0 == ns.last else '' %}
    {{- '<|im_start|>' ~ message.role ~ mark ~ '\\n' ~ content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
MISTRAL = """{%- set loop_messages = messages[1:] if messages[0]['role'] == 'system' else messages -%}
{{ bos_token }}
{%- for message in loop_messages -%}
    {%- if message.role == 'user' -%}
        {%- if loop.last and messages[0].role == 'system' -%}
[INST] {{ messages[0].content + '\\n\\n' + message.content }}[/INST]
        {%- else -%}
[INST] {{ message.content }}[/INST]
        {%- endif -%}
    {%- elif message.role == 'assistant' -%} {{ message.content|trim + eos_token }}
    {%- elif message.tool_call_id is not defined or not message.tool_call_id -%}
        {%- continue -%}
    {%- endif -%}
{%- endfor -%}"""
CHATML = """{% for message in messages %}
  {% if loop.first and message.role == 'system' %}
    {% generation %}
[{{ message.content.upper() }}]
    {% endgeneration %}
  {% else %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
  {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""
GEMMA = """{{ bos_token }}{% set shift = 0 %}
{% if messages[0]['role'] == 'system' %}{% set shift = 1 %}{% endif %}
{% for message in messages[shift:] -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
{%- endif -%}
{%- set role = 'model' if message.role == 'assistant' else message.role -%}
<start_of_turn>{{ role }}
{{ (messages[0].content ~ '\\n\\n') if shift and loop.first else '' }}
{{- message.content | trim }}<end_of_turn>
{% endfor %}
{%- if add_generation_prompt -%}
<start_of_turn>model
{% endif -%}"""
FAMILIES = {"llama-3": LLAMA_3, "qwen": QWEN, "mistral": MISTRAL, "chatml": CHATML, "gemma": GEMMA}

TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "<Wetter> für é & 😀", "arguments": "{}"},
    }
]
TALK = [
    {"role": "user", "content": "  Hello, how are you?\n"},
    {"role": "assistant", "content": '<think>hm</think>\n\nI\'m fine, "thanks" & <you>?'},
    {"role": "user", "content": "日本語 😀 {{ bos_token }} {% raw %}"},
]
SYSTEM = {"role": "system", "content": "Answer in German."}


def transformers_renders(template: str, messages, tools=None) -> str:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Backend(models.BPE()), bos_token="<s>", eos_token="</s>", chat_template=template
    )
    return tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)


def render(template: str, messages=({"role": "user", "content": "Hi"},), tools=None) -> str:
    return compile_template(template, bos_token="<s>", eos_token="</s>").render(messages, tools)


def refusal(template: str, *args) -> str:
    with pytest.raises(ChatTemplateError) as error:
        render(template, *args)
    return str(error.value)


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("messages", [TALK, [SYSTEM, *TALK], TALK[:1]], ids=["talk", "system", "one"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_template_renders_as_in_transformers(family, messages, tools):
    template = FAMILIES[family]
    assert render(template, messages, tools) == transformers_renders(template, messages, tools)


def test_which_templates_show_tools_themselves():
    shows = {family: compile_template(template).uses_tools for family, template in FAMILIES.items()}
    assert shows == {"llama-3": True, "qwen": True, "mistral": False, "chatml": False, "gemma": False}
    assert not compile_template("tools {{ message.tools }}{% set tools = 1 %}{{ tools }}").uses_tools


@pytest.mark.case(116)
def test_a_template_may_refuse_and_its_words_are_told():
    two = [TALK[0], TALK[0]]
    assert refusal(GEMMA, two) == "Conversation roles must alternate user/assistant/user/assistant/..."


# -- context -------------------------------------------------------------------------------------------------


def test_the_context_holds_messages_tools_tokens_and_the_prompt_flag():
    shown = "{{ messages|tojson }} {{ tools }} {{ bos_token }}{{ eos_token }} {{ add_generation_prompt }}"
    assert render(shown) == '[{"role": "user", "content": "Hi"}] None <s></s> True'
    assert compile_template("[{{ bos_token }}]{{ eos_token is defined }}").render([]) == "[]False"


def test_json_is_written_as_it_is():
    assert (
        render("{{ tools|tojson }}", tools=[{"b": "<é>'&\"", "a": None}]) == '[{"b": "<é>\'&\\"", "a": null}]'
    )
    assert render("{{ {'b': 1, 'a': 2}|tojson(sort_keys=true, separators=(',', ':')) }}") == '{"a":2,"b":1}'


def test_today_is_known():
    assert render("{{ strftime_now('%Y') }}") == str(datetime.now().year)


def test_the_content_of_a_first_message_in_pieces_is_its_text():
    assert render("{{ messages[0]['content'][0]['text'] }}") == "Hi"


# -- continuing ----------------------------------------------------------------------------------------------


def talk_ending_with(content: str):
    return [TALK[0], {"role": "assistant", "content": content}]


@pytest.mark.case(114)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_assistants_last_message_is_continued(family):
    text = render(FAMILIES[family], talk_ending_with("the elephant, but"))
    assert text.endswith("the elephant, but")
    assert text.startswith(render(FAMILIES[family], talk_ending_with(""))[: len(text) - 30])


@pytest.mark.parametrize("content", ["a", "|", "<", "assistant", "end", "\n", ""])
def test_what_is_continued_is_not_mistaken_for_what_the_template_says(content):
    opening = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content}]
    assert render(template, messages) == (opening + content).rstrip()


def test_white_space_at_the_end_is_cut_and_earlier_answers_stay():
    template = "{% for m in messages %}[{{ m.content }}]\n{% endfor %}>"
    messages = [{"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "yes \n"}]
    assert render(template, messages) == "[yes]\n[yes"


def test_a_template_that_drops_the_content_is_left_alone():
    assert render("{{ messages|length }}!", talk_ending_with("gone")) == "2!"
    assert render("{{ messages[-1].content[:4] }} and on ", talk_ending_with("some more")) == "some and on"


# -- bounds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ self._TemplateReference__context.vars }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'x' as x %}",
        "{{ lipsum.__globals__['os'] }}",
        "{{ '{0.__class__.__name__}'.format(1) }}",
        "{{ range(10 ** 6) }}",
    ],
)
def test_the_sandbox_holds(template):
    assert refusal(template)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ nothing.here.at.all }}", "'nothing' is undefined"),
        ("{{ messages[0].content + 5 }}", "TypeError"),
        ("{{ {}['a'].b }}", "has no attribute 'a'"),
        ("{{ 'x'.encode('no-such-codec') }}", "LookupError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ messages|sort }}{{ [1, 'a']|sort }}", "TypeError"),
        ("{{ raise_exception(messages) }}", "role"),
    ],
)
def test_every_failure_is_a_template_error(template, words):
    assert words in refusal(template)


@pytest.mark.parametrize(
    "template",
    [
        "{% for",
        "{{",
        "{% nothing %}",
        "{% for x in y %}",
        "{{ a b }}",
        "{% break %}",
        "(" * 9 + "{{" + "(" * 9999,
    ],
)
def test_a_text_that_is_no_template_is_refused_at_once(template):
    with pytest.raises(ChatTemplateError):
        compile_template(template)


def test_a_template_of_megabytes_is_refused():
    with pytest.raises(ChatTemplateError, match="1000001 characters"):
        compile_template("x" * 1_000_001)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ 'x' * 10 ** 9 }}", "repeats something"),
        ("{{ 10 ** 9 * [1] }}", "repeats something"),
        ("{{ 2 ** 5000 }}", "a number of more than"),
        ("{{ (2 ** 4000) * (2 ** 4000) }}", "a number of more than"),
    ],
)
def test_arithmetic_is_bounded(template, words):
    assert words in refusal(template)
    assert render("{{ '=' * 3 }}{{ 3 * '=' }}{{ 2 ** 10 }}{{ 2 ** -1 }}{{ 'x' * -1 }}") == "======10240.5"


def test_the_text_is_bounded(monkeypatch):
    monkeypatch.setattr(chat, "MAX_RENDERED_CHARS", 1000)
    assert len(render("{% for i in range(100) %}0123456789{% endfor %}")) == 1000
    assert "more than 1000 characters" in refusal("{% for i in range(101) %}0123456789{% endfor %}")


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(20) %}{% for j in range(20) %}{% endfor %}{% endfor %}",
        "{% for i in range(20) %}{% for j in range(20) %}{% continue %}x{% endfor %}{% endfor %}",
        "{% for i in range(20) recursive %}{{ loop(range(20)) if loop.depth < 3 }}{% endfor %}",
        "{% macro f() %}{% for i in range(20) %}{% endfor %}{% endmacro %}"
        "{% for i in range(20) %}{{ f() }}{% endfor %}",
        "{% set spend_round = 1 %}{% for i in range(400) %}{% endfor %}",
    ],
)
def test_the_rounds_of_all_loops_together_are_bounded(template, monkeypatch):
    monkeypatch.setattr(chat, "MAX_LOOP_ROUNDS", 300)
    assert "more than 300 rounds" in refusal(template)
    assert render("{% for i in range(300) %}{% endfor %}ok") == "ok"  # each rendering begins anew


def test_the_time_of_loops_is_bounded(monkeypatch):
    monkeypatch.setattr(chat, "MAX_LOOP_SECONDS", -1.0)
    assert "took more than -1 s" in refusal("{% for i in range(2) %}{% endfor %}")


def test_threads_do_not_spend_each_others_rounds(monkeypatch):
    monkeypatch.setattr(chat, "MAX_LOOP_ROUNDS", 1000)
    template = compile_template("{% for i in range(900) %}{{ messages[0].content }}{% endfor %}")
    texts: list[str] = []

    def work(n: int) -> None:
        texts.append(template.render([{"role": "user", "content": str(n)}]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts) == [str(n) * 900 for n in range(4)]


def test_a_long_conversation_renders_in_proportion_to_its_length():
    messages = [{"role": "user" if n % 2 else "assistant", "content": "x"} for n in range(20_001)]
    text = render(CHATML, [SYSTEM, *messages[:-1], {"role": "user", "content": "x"}])
    assert len(re.findall("im_start", text)) == 20_002
