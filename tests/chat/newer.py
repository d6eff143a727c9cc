"""Chat templates with habits that families have now and then, or may take up next: written here, none is copied."""

from __future__ import annotations

RECIPIENTS = """{{- '<|start|>system<|message|>Knowledge: 2026-01. Effort: ' ~ (effort | default('mid')) ~ '<|end|>'
 }}
{%- if tools %}{{ '<|start|>developer<|message|># Tools\\n' }}{% for t in tools %}{{ t.function.name ~ ' = ' ~
 t.function.parameters | tojson ~ '\\n' }}{% endfor %}{{ '<|end|>' }}{% endif %}
{%- set ns = namespace(user=-1) %}{%- for m in messages %}{% if m.role == 'user' %}{% set ns.user = loop.index0
 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'system' %}{{ '<|start|>developer<|message|>' ~ m.content ~ '<|end|>' }}
{%- elif m.role == 'user' %}{{ '<|start|>user<|message|>' ~ m.content ~ '<|end|>' }}
{%- elif m.role == 'tool' %}{{ '<|start|>functions.' ~ m.name ~ ' to=assistant<|message|>' ~ m.content | tojson ~
 '<|end|>' }}
{%- else %}
{%- if m.reasoning_content and loop.index0 > ns.user %}{{ '<|start|>assistant<|channel|>thought<|message|>' ~
 m.reasoning_content ~ '<|end|>' }}{% endif %}
{%- for c in m.tool_calls or [] %}{{ '<|start|>assistant<|channel|>call to=functions.' ~ c.function.name ~
 '<|message|>' ~ c.function.arguments | tojson ~ '<|call|>' }}{% endfor %}
{%- if m.content %}{{ '<|start|>assistant<|channel|>say<|message|>' ~ m.content ~ ('<|return|>' if loop.last else
 '<|end|>') }}{% endif %}
{%- endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""
CALLER = """{%- macro turn(role) -%}<|turn|>{{ role }}
{{ caller() }}<|/turn|>
{% endmacro -%}
{%- for m in messages %}{% call turn(m.role) %}{{ m.content | trim }}
{%- for c in m.tool_calls or [] %}<call name={{ c.function.name | tojson }}>{{ c.function.arguments | tojson
 }}</call>{% endfor %}{% endcall %}{% endfor %}
{%- if add_generation_prompt %}<|turn|>assistant
{% endif %}"""
COLLECTED = """{%- set ns = namespace(out='') %}{%- for m in messages %}{%- set ns.out = ns.out ~ '<|im_start|>' ~
 m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' %}{%- endfor %}
{%- if add_generation_prompt %}{%- set ns.out = ns.out ~ '<|im_start|>assistant\\n' %}{%- endif %}{{ ns.out }}"""
JOINED = """{%- set ns = namespace(parts=[]) %}{%- for m in messages %}{%- set ns.parts = ns.parts + ['<|im_start|>'
 ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>'] %}{%- endfor %}
{{- ns.parts | join('\\n') }}{%- if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{%- endif %}"""
END_BY_NEXT = """{%- for m in messages %}{{ '<|start_header_id|>' ~ ('ipython' if m.role == 'tool' else m.role) ~
 '<|end_header_id|>\\n\\n' }}
{%- if m.tool_calls %}{{ m.content or '' }}{% for c in m.tool_calls %}{{ '{"name": ' ~ c.function.name | tojson ~
 ', "parameters": ' ~ c.function.arguments | tojson ~ '}' }}{{ '; ' if not loop.last }}{% endfor %}
{%- else %}{{ m.content }}{% endif %}
{{- '<|eom_id|>' if loop.nextitem is defined and loop.nextitem.role == 'tool' else '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
COUNTED_TURNS = """{%- for m in messages %}[{{ loop.index }}/{{ messages | length }}] {{ m.role }}: {{ m.content
 }}<|end|>
{% endfor %}{%- if add_generation_prompt %}[{{ messages | length + 1 }}/{{ messages | length + 1
 }}] assistant: {% endif %}"""
SANITIZED = """{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'user' %}{{ m.content | replace('<|', '< |') | replace('\\r', '') }}{% else %}{{ m.content }}{% endif
 %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
REFLECTS = """{%- for m in messages %}{{ '<|' ~ m.role ~ '|>\\n' }}
{%- if m.role == 'assistant' %}{{ m.content }}{% if m.reasoning_content %}{{ '\\n<reflection>' ~ m.reasoning_content
 ~ '</reflection>' }}{% endif %}{{ '<|end|>\\n' }}
{%- else %}{{ m.content ~ '<|end|>\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n'
 }}{% endif %}"""
BLOCKS = """{%- for m in messages %}<|{{ m.role }}|>{% if m.content is string %}<text>{{ m.content }}</text>{% else %}
{%- for p in m.content %}{% if p.type == 'thinking' %}<thinking>{{ p.thinking }}</thinking>{% elif p.type == 'text'
 %}<text>{{ p.text }}</text>
{%- elif p.type == 'image' %}<|image|>{% endif %}{% endfor %}{% endif %}
{%- for c in m.tool_calls or [] %}<use>{{ {'tool': c.function.name, 'input': c.function.arguments} | tojson(indent=1)
 }}</use>{% endfor %}<|eot|>{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
EOS_BEFORE_USER = """{{- bos_token }}{%- for m in messages %}{% if m.role == 'user' %}{% if not loop.first
 %}{{ eos_token }}{% endif %}{{ '\\n\\nHuman: ' ~ m.content }}
{%- elif m.role == 'system' %}{{ m.content }}{% else %}{{ '\\n\\nAssistant: ' ~ m.content }}{% endif %}{% endfor
 %}{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"""
BACKWARDS = """{%- set ns = namespace(out='') %}{%- for m in messages | reverse %}{%- set ns.out = '<|' ~ m.role ~
 '|>' ~ m.content ~ '<|end|>' ~ ns.out %}{%- endfor %}{{ ns.out }}{% if add_generation_prompt %}<|assistant|>{% endif
 %}"""
CAPTURED = """{%- for m in messages %}{% set block %}
<|im_start|>{{ m.role }}
{{ m.content }}
{%- for c in m.tool_calls or [] %}
<tool_call>{{ c.function.name }}{% for k, v in c.function.arguments | dictsort %} {{ k }}={{ v | tojson }}{% endfor
 %}</tool_call>
{%- endfor %}<|im_end|>
{% endset %}{{ block.lstrip('\\n') }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
CALL_IS_A_TURN = """{%- for m in messages %}
{%- if m.tool_calls %}{% if m.content %}{{ '<|assistant|>' ~ m.content ~ '<|end|>' }}{% endif %}{% for c in
 m.tool_calls %}{{ '<|assistant|>' ~ c.function.name ~ '\\n' ~ c.function.arguments | tojson ~ '<|observe|>'
 }}{% endfor %}
{%- elif m.role == 'tool' %}{{ '<|observation|>' ~ m.content }}
{%- else %}{{ '<|' ~ m.role ~ '|>' ~ m.content ~ '<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt
 %}{{ '<|assistant|>' }}{% endif %}"""
OPEN_LAST = """{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% if not loop.last or m.role != 'assistant' %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
HYBRID_XML = """{%- set thinking = thinking if thinking is defined else true %}{%- set ns = namespace(last=0,
 tools=false) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{{- bos_token ~ '<role name="system">' }}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}
{%- if tools %}{{ '\\n<functions>' }}{% for t in tools %}{{ '<function>' ~ t.function | tojson ~ '</function>'
 }}{% endfor %}{{ '</functions>' }}{% endif %}{{ '</role>' }}
{%- for m in messages %}{% if m.role == 'user' %}{{ '<role name="user">' ~ m.content ~ '</role>' }}
{%- elif m.role == 'tool' %}{{ '<role name="tool">' ~ m.content ~ '</role>' }}
{%- elif m.role == 'assistant' %}{{ '<role name="assistant">' }}
{%- if loop.index0 >= ns.last %}{{ '<cot>' ~ (m.reasoning_content or '') ~ '</cot>' }}{% endif %}
{{- m.content }}{% for c in m.tool_calls or [] %}{{ '<invoke fn="' ~ c.function.name ~ '">' }}{% for k, v in
 c.function.arguments.items() %}{{ '<arg name="' ~ k ~ '" type="' ~ ('str' if v is string else 'json') ~ '">' ~ (v if
 v is string else v | tojson) ~ '</arg>' }}{% endfor %}{{ '</invoke>' }}{% endfor %}{{ '</role>' }}
{%- endif %}{% endfor %}{% if add_generation_prompt %}{{ '<role name="assistant">' ~ ('<cot>' if thinking else
 '<cot></cot>') }}{% endif %}"""
SUFFIXED_USER = """{%- set think = enable_thinking | default(true) %}{%- for m in messages %}{% if m.role == 'user'
 %}{{ '<u>' ~ m.content ~ ('' if think or not loop.last else ' /no_think') ~ '</u>' }}
{%- elif m.role == 'assistant' %}{{ '<a>' }}{% if m.reasoning_content %}{{ '<t>' ~ m.reasoning_content ~ '</t>'
 }}{% endif %}{{ m.content ~ '</a>' }}{% else %}{{ '<s>' ~ m.content ~ '</s>' }}{% endif %}{% endfor %}{% if
 add_generation_prompt %}{{ '<a>' }}{% endif %}"""
GROUPED_RESULTS = """{%- for m in messages %}{% if m.role == 'tool' %}{% if loop.previtem.role != 'tool' %}<|user|>
{% endif %}<result id="{{ m.tool_call_id }}">
{{ m.content }}
</result>{% if loop.last or loop.nextitem.role != 'tool' %}<|end|>
{% else %}
{% endif %}{% elif m.role == 'assistant' %}<|assistant|>
{% if m.content %}{{ m.content }}{% endif %}{% if m.tool_calls %}{% if m.content %}

{% endif %}<calls>
{% for c in m.tool_calls %}- id: {{ c.id }}
  name: {{ c.function.name }}
  args: {{ c.function.arguments | tojson }}
{% endfor %}</calls>{% endif %}<|end|>
{% else %}<|{{ m.role }}|>
{{ m.content }}<|end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
FUNCTIONARY = """{{ bos_token }}{%- if tools -%}<|start_header_id|>system<|end_header_id|>

// Supported functions
{% for t in tools -%}namespace functions.{{ t.function.name }}: {{ t.function.parameters | tojson(indent=2) }}
{% endfor -%}<|eot_id|>{%- endif -%}
{%- for m in messages -%}
{%- if m.role in ['user', 'system'] -%}
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content + '<|eot_id|>' }}
{%- elif m.role == 'tool' -%}
{{ '<|start_header_id|>tool<|end_header_id|>\\n\\n' + m.content + '<|eot_id|>' }}
{%- else -%}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}
{%- if m.content -%}{{ '>>>all\\n' + m.content }}{%- endif -%}
{%- for c in m.tool_calls or [] -%}{{ '>>>' + c.function.name + '\\n' + c.function.arguments | tojson }}{%- endfor -%}
{{ '<|eot_id|>' }}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n>>>' }}{%- endif -%}"""
CHATGLM_3 = (
    "{% for m in messages %}{% if loop.first %}[gMASK]sop<|{{ m['role'] }}|>\n {{ m['content'] }}"
    "{% else %}<|{{ m['role'] }}|>\n {{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BAICHUAN_M2 = """{%- set last = namespace(user=-1) %}{%- for m in messages[::-1] %}
{%- if m.role == 'user' and last.user < 0 %}{%- set last.user = messages | length - 1 - loop.index0 %}{%- endif %}
{%- endfor %}{%- for m in messages %}{%- if m.role in ('user', 'system') %}
{{- '<C_Q>' if m.role == 'user' else '' }}{{- m.content }}
{%- elif m.role == 'assistant' %}{%- set parts = m.content.split('</think>') %}{{- '<C_A>' }}
{%- if loop.index0 > last.user and m.reasoning_content %}{{- '<think>\\n' ~ m.reasoning_content ~ '\\n</think>\\n\\n' }}
{%- endif %}{{- parts[-1].lstrip('\\n') ~ eos_token }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<C_A>' }}
{%- if thinking_mode is defined %}{{- {'on': '<think>\\n', 'off': '<think>\\n\\n</think>\\n'}[thinking_mode] }}
{%- endif %}
{%- endif %}"""
GROUPED = """{%- set ns = namespace(system=[], turns=[]) -%}
{%- for m in messages -%}{%- if m.role == 'system' -%}{%- set ns.system = ns.system + [m.content] -%}
{%- elif ns.turns and ns.turns[-1].role == m.role -%}
{%- set ns.turns = ns.turns[:-1] + [{'role': m.role, 'content': ns.turns[-1].content ~ '\\n\\n' ~ m.content}] -%}
{%- else -%}{%- set ns.turns = ns.turns + [{'role': m.role, 'content': m.content}] -%}{%- endif -%}{%- endfor -%}
<s>{%- for t in ns.turns -%}
{%- if t.role == 'user' -%}{{ '[INST]' }}{%- if loop.first and ns.system -%}{{ ns.system | join('\\n\\n') ~ '\\n\\n' }}
{%- endif -%}{{ t.content ~ '[/INST]' }}{%- else -%}{{ t.content ~ '</s>' }}{%- endif -%}{%- endfor -%}"""
SYSTEM_LAST_USER = """{%- set ns = namespace(system=none, user=-1, index=0) -%}
{%- if messages[0].role == 'system' -%}{%- set ns.system = messages[0].content -%}{%- endif -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.user = loop.index0 -%}{%- endif -%}{%- endfor -%}
{{ bos_token }}{%- for m in messages -%}{%- if m.role == 'user' -%}
{%- if loop.index0 == ns.user and tools -%}{{ '[AVAILABLE_TOOLS]' ~ (tools | tojson) ~ '[/AVAILABLE_TOOLS]' }}
{%- endif -%}
{%- if loop.index0 == ns.user and ns.system -%}{{ '[INST]' ~ ns.system ~ '\\n\\n' ~ m.content ~ '[/INST]' }}
{%- else -%}{{ '[INST]' ~ m.content ~ '[/INST]' }}{%- endif -%}
{%- elif m.role == 'assistant' and m.tool_calls -%}{{ '[TOOL_CALLS][' }}{%- for c in m.tool_calls -%}
{{ {'name': c.function.name, 'arguments': c.function.arguments, 'id': c.id} | tojson }}{{ ', ' if not loop.last }}
{%- endfor -%}{{ ']' ~ eos_token }}
{%- elif m.role == 'assistant' -%}{{ ' ' ~ m.content ~ eos_token }}
{%- elif m.role == 'tool' -%}{{ '[TOOL_RESULTS]' ~ {'content': m.content, 'call_id': m.tool_call_id} | tojson
 ~ '[/TOOL_RESULTS]' }}{%- endif -%}{%- endfor -%}"""
SKIPPING = (
    "{% for m in messages if m.role != 'tool' %}{% if m.role == 'system' and not loop.first %}{% continue %}{% endif %}"
    "{% filter trim %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfilter %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

NEWER = {name.lower(): text for name, text in list(globals().items()) if name.isupper() and not name.startswith("_")}
