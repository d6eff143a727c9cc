"""Chat templates in the manner of newer families: reasoning kept or dropped, modes, tools written as XML, namespaces.

Written here after the habits of those families, not copied: what counts is how they treat a conversation.
"""

from __future__ import annotations

KIMI_THINKING = """{%- macro content_of(m) -%}
{%- if m.content is string -%}{{ m.content }}{%- elif m.content -%}
{%- for c in m.content -%}{%- if c.type == 'text' -%}{{ c.text }}{%- else -%}<|media_pad|>{%- endif -%}{%- endfor -%}
{%- endif -%}{%- endmacro -%}
{%- macro calls_of(m) -%}<|tool_calls_section_begin|>{%- for c in m.tool_calls -%}
<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>
{%- if c.function.arguments is string -%}{{ c.function.arguments }}
{%- else -%}{{ c.function.arguments | tojson }}{%- endif -%}<|tool_call_end|>{%- endfor -%}
<|tool_calls_section_end|>{%- endmacro -%}
{%- set ns = namespace(last=-1) -%}
{%- for i in range(messages | length - 1, -1, -1) -%}
{%- if messages[i].role == 'assistant' and not messages[i].get('tool_calls') -%}
{%- set ns.last = i -%}{%- break -%}{%- endif -%}{%- endfor -%}
{%- set hist = messages[:ns.last + 1] -%}{%- set rest = messages[ns.last + 1:] -%}
{%- if tools -%}<|im_system|>tool_declare<|im_middle|>{{ tools | tojson(separators=(',', ':')) }}<|im_end|>{%- endif -%}
{%- for part, keep in [(hist, false), (rest, true)] -%}{%- for m in part -%}
{%- if m.role == 'user' -%}<|im_user|>user<|im_middle|>{{ content_of(m) }}<|im_end|>
{%- elif m.role == 'assistant' -%}<|im_assistant|>assistant<|im_middle|>
{%- if keep -%}<think>{{ m.reasoning_content or '' }}</think>{%- else -%}<think></think>{%- endif -%}
{{ content_of(m) }}{%- if m.tool_calls -%}{{ calls_of(m) }}{%- endif -%}<|im_end|>
{%- else -%}<|im_system|>{{ m.name or m.role }}<|im_middle|>
{%- if m.role == 'tool' -%}## Return of {{ m.tool_call_id }}
{% endif -%}{{ content_of(m) }}<|im_end|>{%- endif -%}
{%- endfor -%}{%- endfor -%}
{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{%- endif -%}"""
MINIMAX_M2 = """{%- macro visible(content) -%}
{%- if content is string -%}{{ content }}{%- elif content is iterable and content is not mapping -%}
{%- for item in content -%}{%- if item is mapping and item.type == 'text' -%}{{ item.text }}
{%- elif item is string -%}{{ item }}{%- endif -%}{%- endfor -%}{%- else -%}{{ content }}{%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(user=-1, call=none) -%}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.user = loop.index0 %}{% endif %}{% endfor -%}
{%- set system = none -%}
{%- if messages and messages[0].role == 'system' -%}
{%- set system = messages[0] -%}{%- set messages = messages[1:] -%}{%- set ns.user = ns.user - 1 -%}{%- endif -%}
{{- ']~!b[' ~ ']~b]system' ~ '\\n' ~ (visible(system.content) if system else 'You are a helpful assistant.') }}
{%- if tools -%}{{- '\\n\\n# Tools\\n<tools>\\n' }}
{%- for t in tools %}{{ '<tool>' ~ t.function | tojson(ensure_ascii=False) ~ '</tool>\\n' }}{% endfor -%}
{{- '</tools>' }}{%- endif -%}{{- '[e~[\\n' }}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}{{- ']~b]ai' ~ '\\n' }}
{%- set thought = '' -%}{%- set content = visible(m.content) -%}
{%- if m.reasoning_content is string -%}{%- set thought = m.reasoning_content -%}
{%- elif '</think>' in content -%}{%- set thought = content.split('</think>')[0].strip('\\n').split('<think>')[-1] -%}
{%- set content = content.split('</think>')[-1].strip('\\n') -%}{%- endif -%}
{%- if thought and loop.index0 > ns.user -%}{{- '<think>' ~ '\\n' ~ thought ~ '\\n' ~ '</think>' ~ '\\n\\n' }}
{%- endif -%}
{%- if content -%}{{- content }}{%- endif -%}
{%- if m.tool_calls -%}{{- '\\n<minimax:tool_call>\\n' }}{%- for c in m.tool_calls -%}
{%- if c.function -%}{%- set c = c.function -%}{%- endif -%}
{{- '<invoke name="' + c.name + '">' }}{% set args = c.arguments %}
{%- for k, v in args.items() %}{{- '<parameter name="' + k + '">' }}
{{- v | tojson(ensure_ascii=False) if v is not string else v }}{{- '</parameter>' }}{% endfor %}
{{- '</invoke>' ~ '\\n' }}{%- endfor -%}{{- '</minimax:tool_call>' }}
{%- set ns.call = m.tool_calls[-1].name -%}{%- else -%}{%- set ns.call = none -%}{%- endif -%}
{{- '[e~[' ~ '\\n' }}
{%- elif m.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- ']~b]tool' }}{%- endif -%}
{{- '\\n<response>' ~ visible(m.content) ~ '</response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '[e~[\\n' -}}{%- endif -%}
{%- elif m.role == 'user' -%}{{- ']~b]user' ~ '\\n' }}{{- visible(m.content) }}{{- '[e~[' ~ '\\n' }}
{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{- ']~b]ai' ~ '\\n' ~ '<think>' ~ '\\n' }}{%- endif -%}"""
SEED = """{%- set bos = '<seed:bos>' -%}{%- set eos = '<seed:eos>' -%}
{%- if not thinking_budget is defined -%}{%- set thinking_budget = -1 -%}{%- endif -%}
{%- if messages[0]['role'] in ['system', 'developer'] -%}{%- set system = messages[0]['content'] -%}
{%- set loop_messages = messages[1:] -%}{%- else -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- if system is defined or tools -%}{{ bos + 'system\\n' + (system or 'You are Doubao.') }}
{%- if tools -%}{{ '\\n\\nTool List:\\n' }}{%- for t in tools -%}{{ t.function | tojson }}
{% endfor -%}{%- endif -%}{{ eos }}{%- endif -%}
{%- if thinking_budget == 0 -%}{{ bos + 'system\\nYou are without a thinking budget.' + eos }}{%- endif -%}
{%- for message in loop_messages -%}{%- if message.role == 'user' -%}{{ bos }}user
{{ message.content | trim + eos }}
{%- elif message.role == 'tool' -%}{{ bos + 'tool\\n' + message.content + eos }}
{%- elif message.role == 'assistant' -%}{{ bos + 'assistant' }}
{%- if message.reasoning_content is defined and message.reasoning_content is string
 and message.reasoning_content | trim | length > 0 -%}
{{ '\\n<seed:think>' + message.reasoning_content | trim + '</seed:think>' }}{%- endif -%}
{%- if message.content is defined and message.content is string and message.content | trim | length > 0 -%}
{{ '\\n' + message.content | trim + ('\\n' if message.tool_calls else '') }}{%- endif -%}
{%- for c in message.tool_calls or [] -%}{{ '\\n<seed:tool_call>\\n<function=' + c.function.name + '>\\n' }}
{%- for k, v in c.function.arguments | items -%}
{{ '<parameter=' + k + '>' + (v if v is string else v | tojson) + '</parameter>\\n' }}{%- endfor -%}
{{ '</function>\\n</seed:tool_call>' }}{%- endfor -%}{{ eos }}{%- else -%}
{{ raise_exception('Unknown role: ' ~ message.role) }}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ bos + 'assistant\\n' }}
{%- if thinking_budget == 0 -%}{{ '<seed:think></seed:think>' }}{%- endif -%}{%- endif -%}"""
HUNYUAN = """{%- set ns = namespace(system='', first=true, user=-1, answer=false) -%}
{%- for m in messages -%}{%- if m['role'] == 'system' -%}{%- set ns.system = ns.system + m['content'] -%}{%- endif -%}
{%- if m['role'] == 'user' -%}{%- set ns.user = loop.index0 -%}{%- endif -%}{%- endfor -%}
{{- '<｜hy_begin▁of▁sentence｜>' }}{{- ns.system }}{%- if ns.system -%}{{- '<｜hy_place▁holder▁no▁3｜>' }}{%- endif -%}
{%- for m in messages -%}{%- if m['role'] == 'user' -%}{{- '<｜hy_User｜>' + m['content'] }}
{%- elif m['role'] == 'assistant' -%}{%- set content = m['content'] -%}
{%- if '<answer>' in content and '</answer>' in content -%}
{%- set content = content.split('<answer>')[-1].split('</answer>')[0].strip() -%}{%- endif -%}
{%- if m.reasoning_content -%}
{%- set content = '<think>\\n' + m.reasoning_content + '\\n</think>\\n<answer>\\n' + content + '\\n</answer>' -%}
{%- endif -%}{{- '<｜hy_Assistant｜>' + content + '<｜hy_place▁holder▁no▁2｜>' }}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<｜hy_Assistant｜>' }}
{%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\\n\\n</think>\\n' }}{%- endif -%}
{%- endif -%}"""
ERNIE_THINKING = """{%- if not enable_thinking is defined -%}{%- set enable_thinking = true -%}{%- endif -%}
{{- '<|im_start|>system\\n<global_setting>\\nthink_mode=' + enable_thinking | string + '\\n</global_setting>' }}
{%- if messages[0].role == 'system' -%}
{{- '\\n\\n<system_setting>\\n' + messages[0].content + '\\n</system_setting>' }}{%- endif -%}
{{- '<|im_end|>\\n\\n' }}
{%- for m in (messages[1:] if messages[0].role == 'system' else messages) -%}
{%- if m.role == 'user' -%}{{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n\\n' }}
{%- elif m.role == 'assistant' -%}{{- '<|im_start|>assistant\\n' }}
{%- if m.reasoning_content -%}{{- '<think>\\n' + m.reasoning_content.strip() + '\\n</think>\\n\\n' }}{%- endif -%}
{%- if m.content -%}{{- '<response>\\n' + m.content.strip() + '\\n</response>\\n' }}{%- endif -%}
{%- for c in m.tool_calls or [] -%}{{- '\\n<tool_call>\\n' }}
{{- {'name': c.function.name, 'arguments': c.function.arguments} | tojson + '\\n</tool_call>\\n' }}{%- endfor -%}
{{- '<|im_end|>\\n\\n' }}
{%- elif m.role == 'tool' -%}{%- if loop.previtem is undefined or loop.previtem.role != 'tool' -%}
{{- '<|im_start|>tool\\n' }}{%- endif -%}{{- '<tool_output>' + m.content | tojson + '</tool_output>\\n' }}
{%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '<|im_end|>\\n\\n' }}{%- endif -%}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking -%}{{- '<think>\\n' }}{%- else -%}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}
{%- endif -%}"""
PHI_MINI = (
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and "
    "message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + "
    "message['tools'] + '<|/tool|>' + '<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + "
    "'<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}"
    "{{ eos_token }}{% endif %}"
)
GRANITE_4 = """{%- set tools_ns = namespace(text='You have these tools:\\n<tools>') %}
{%- if tools %}{%- for tool in tools %}{%- set tools_ns.text = tools_ns.text + '\\n' + (tool | tojson) %}{%- endfor %}
{%- set tools_ns.text = tools_ns.text + '\\n</tools>' %}{%- else %}{%- set tools_ns.text = '' %}{%- endif %}
{%- set ns = namespace(system='') %}
{%- if messages[0].role == 'system' %}{%- if messages[0].content is string %}{%- set ns.system = messages[0].content %}
{%- else %}{%- for e in messages[0].content %}{%- if e.type == 'text' %}
{%- if loop.index > 1 %}{%- set ns.system = ns.system + '\\n' %}{%- endif %}{%- set ns.system = ns.system + e.text %}
{%- endif %}{%- endfor %}{%- endif %}{%- endif %}
{%- if tools_ns.text %}{%- set ns.system = ns.system + ('\\n\\n' if ns.system else '') + tools_ns.text %}{%- endif %}
{%- if ns.system %}
{{- '<|start_of_role|>system<|end_of_role|>' + ns.system + '<|end_of_text|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = namespace(val='') %}
    {%- if message.content is string %}{%- set content.val = message.content %}
    {%- elif message.content is iterable %}{%- for e in message.content %}
    {%- if e.type == 'text' %}{%- if content.val %}{%- set content.val = content.val + '\\n' %}{%- endif %}
    {%- set content.val = content.val + e.text %}{%- endif %}{%- endfor %}{%- endif %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|start_of_role|>' + message.role + '<|end_of_role|>' + content.val + '<|end_of_text|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|start_of_role|>' + message.role + '<|end_of_role|>' + content.val }}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content.val) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
                {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}{{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|end_of_text|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or (messages[loop.index0 - 1].role != 'tool') %}
            {{- '<|start_of_role|>user<|end_of_role|>' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- content.val }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != 'tool') %}{{- '<|end_of_text|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"""
COMMAND_A = """{{ bos_token }}{%- macro text_of(m) -%}{%- if m.content is string -%}{{ m.content | trim }}{%- else -%}
{%- for c in m.content -%}{{ c.text | default('') | trim }}{%- endfor -%}{%- endif -%}{%- endmacro -%}
{%- macro result(call_id, content) %}{"tool_call_id": "{{ call_id }}", "results": {"0": {{ content | tojson }}}}
{%- endmacro -%}
{%- set ns = namespace(ids={}, count=0) -%}
<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|># System Preamble
{% if tools %}Available tools:
```json
[{% for t in tools %}
    {"name": "{{ t.function.name }}", "parameters": {{ t.function.parameters | tojson }}}
    {%- if not loop.last %},{% endif %}{% endfor %}
]
```
{% endif -%}
{% for m in messages -%}{% if m.role | lower == 'system' %}
# Developer Preamble
{{ text_of(m) }}{% endif %}{% endfor -%}<|END_OF_TURN_TOKEN|>
{%- for m in messages -%}
{%- if m.role | lower == 'user' -%}
<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{{ text_of(m) }}<|END_OF_TURN_TOKEN|>
{%- elif m.role | lower in ['assistant', 'chatbot'] -%}
<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>
{%- if m.tool_calls -%}
{%- if m.reasoning_content -%}<|START_THINKING|>{{ m.reasoning_content }}<|END_THINKING|>{%- endif -%}
<|START_ACTION|>[
{% for tc in m.tool_calls %}
    {"tool_call_id": "{{ ns.count + loop.index0 }}", "tool_name": "{{ tc.function.name }}", "parameters":
    {#- #} {{ tc.function.arguments | tojson }}}{% if not loop.last %},{% endif %}
{% endfor %}

]<|END_ACTION|><|END_OF_TURN_TOKEN|>{%- set ns.count = ns.count + m.tool_calls | length -%}
{%- else -%}<|START_RESPONSE|>{{ text_of(m) }}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>{%- endif -%}
{%- elif m.role | lower == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}
<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><|START_TOOL_RESULT|>[{%- else -%},{%- endif -%}
{{ result(m.tool_call_id, m.content) }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}]<|END_TOOL_RESULT|><|END_OF_TURN_TOKEN|>{%- endif -%}
{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{%- endif -%}"""
NEMOTRON_NANO = """{%- set ns = namespace(thinking=true) -%}
{%- for m in messages -%}{%- set content = m.content -%}{%- if m.role in ['user', 'system'] -%}
{%- if '/think' in content.replace('</think>', '') -%}{%- set ns.thinking = true -%}
{%- elif '/no_think' in content -%}{%- set ns.thinking = false -%}{%- endif -%}{%- endif -%}{%- endfor -%}
{%- if messages[0].role != 'system' -%}{%- set messages = [{'role': 'system', 'content': ''}] + messages -%}
{%- endif -%}
{%- for m in messages -%}{%- set content = m.content -%}
{%- if m.role == 'system' -%}{{- '<SPECIAL_10>System\\n' }}{{- content.replace('/think', '').strip() }}
{%- if tools -%}{{- '\\n\\n<AVAILABLE_TOOLS>[' }}{%- for t in tools -%}{{- (t.function or t) | tojson }}
{{- ', ' if not loop.last else '' }}{%- endfor -%}{{- ']</AVAILABLE_TOOLS>' }}{%- endif -%}{{- '\\n' }}
{%- elif m.role == 'user' -%}{{- '<SPECIAL_11>User\\n' + content.replace('/no_think', '').strip() + '\\n' }}
{%- elif m.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<SPECIAL_11>User\\n<TOOL_RESPONSE>[' }}
{%- endif -%}
{{- m.content }}{{- ', ' if not loop.last and messages[loop.index0 + 1].role == 'tool' else '' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- ']</TOOL_RESPONSE>\\n' }}{%- endif -%}
{%- elif m.role == 'assistant' -%}
{%- if '</think>' in content -%}{%- set content = content.split('</think>')[1].strip() -%}{%- endif -%}
{{- '<SPECIAL_11>Assistant\\n' + content.strip() }}
{%- if m.tool_calls -%}{%- if content.strip() -%}{{- '\\n\\n' }}{%- endif -%}{{- '<TOOLCALL>[' }}
{%- for c in m.tool_calls -%}{%- set f = c.function or c -%}{{- '{"name": "' + f.name + '", "arguments": ' }}
{%- if f.arguments is string -%}{{- f.arguments }}{%- else -%}{{- f.arguments | tojson }}{%- endif -%}{{- '}' }}
{{- ', ' if not loop.last else '' }}{%- endfor -%}{{- ']</TOOLCALL>' }}{%- endif -%}{{- '\\n<SPECIAL_12>\\n' }}
{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<SPECIAL_11>Assistant\\n' }}
{%- if not ns.thinking -%}{{- '<think></think>' }}{%- else -%}{{- '<think>\\n' }}{%- endif -%}{%- endif -%}"""
JAMBA = (
    "{% set n = namespace(seen=false) %}{{ bos_token }}{%- macro turn(role, content) -%}"
    "{{ '<|bom|><|' + role + '|> ' + content + '<|eom|>' }}{%- endmacro -%}"
    "{% for m in messages %}{% if m.role == 'system' and not n.seen %}{% set n.seen = true %}"
    "{{ turn('system', m.content) }}"
    "{% elif m.role == 'assistant' and m.tool_calls %}{{ '<|bom|><|assistant|> ' }}{{ m.content or '' }}<tool_calls>["
    "{% for c in m.tool_calls %}{{ '\\n' + {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}"
    "{{ ',' if not loop.last }}{% endfor %}\n]</tool_calls><|eom|>{% else %}{{ turn(m.role, m.content) }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|bom|><|assistant|>' }}{% endif %}"
)
EXAONE_4 = """{%- set role = {'system': '[|system|]\\n', 'user': '[|user|]\\n', 'assistant': '[|assistant|]\\n',
 'tool': '[|tool|]\\n'} %}{%- set ns = namespace(last=messages | length - 1) %}
{%- for m in messages %}{%- if m.role == 'user' and m.content is string %}{%- set ns.last = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for i in range(messages | length) %}{%- set msg = messages[i] %}
{%- if i == 0 and (msg.role == 'system' or tools) %}{{- role.system }}
{{- msg.content if msg.role == 'system' else '' }}
{%- if tools %}{{- '\\n# Available Tools\\n' }}{%- for t in tools %}{{- t | tojson(ensure_ascii=False) + '\\n' }}
{%- endfor %}{%- endif %}{{- '[|endofturn|]\\n' }}{%- if msg.role == 'system' %}{%- continue %}{%- endif %}{%- endif %}
{%- if msg.role == 'assistant' %}{{- role.assistant }}{%- set content = msg.content or '' %}
{%- set thought = msg.reasoning_content | default('', true) %}
{%- if '</think>' in content %}{%- set thought = content.split('</think>')[0].strip().split('<think>')[-1].strip() %}
{%- set content = content.split('</think>')[-1].strip() %}{%- endif %}
{%- if (i > ns.last) or (i == messages | length - 1 and msg.tool_calls) %}
{{- '<think>\\n' ~ thought ~ '\\n</think>\\n\\n' }}{%- else %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{{- content }}
{%- for c in msg.tool_calls or [] %}{{- '<tool_call>' ~ {'name': c.function.name, 'arguments': c.function.arguments}
 | tojson(ensure_ascii=False) ~ '</tool_call>' }}{%- if not loop.last %}{{- '\\n' }}{%- endif %}{%- endfor %}
{{- '[|endofturn|]\\n' }}
{%- elif msg.role == 'tool' %}{%- if i == 0 or messages[i - 1].role != 'tool' %}{{- role.tool }}{%- endif %}
{{- '<tool_result>' + msg.content | tojson(ensure_ascii=False) + '</tool_result>' }}
{%- if i == messages | length - 1 or messages[i + 1].role != 'tool' %}{{- '[|endofturn|]\\n' }}
{%- else %}{{- '\\n' }}{%- endif %}
{%- else %}{{- role[msg.role] }}{{- msg.content + '[|endofturn|]\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '[|assistant|]\\n' }}
{%- if enable_thinking is defined and enable_thinking is true %}{{- '<think>\\n' }}{%- endif %}{%- endif %}"""
LING = """{% set option = 'detailed thinking off' %}{% if enable_thinking | default(false) %}
{%- set option = 'detailed thinking on' %}{% endif -%}
{% if messages[0].role == 'system' %}{{ '<role>SYSTEM</role>' + messages[0].content + '\\n' }}
{%- else %}{{ '<role>SYSTEM</role>' }}{% endif %}{{ option + '<|role_end|>' }}
{%- for message in messages %}{%- set content = message.content if message.content is string else '' %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<role>' + ('HUMAN' if message.role == 'user' else 'SYSTEM') + '</role>' + content + '<|role_end|>' }}
{%- elif message.role == 'assistant' %}{%- set thought = '' %}
{%- if message.reasoning_content is string %}{%- set thought = message.reasoning_content %}{%- endif %}
{{- '<role>ASSISTANT</role>' }}{%- if thought %}
{{- '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
{%- else %}{{- content }}{%- endif %}
{%- for tool_call in message.tool_calls or [] %}
{{- '\\n' if (loop.first and content) or not loop.first }}{%- set tool_call = tool_call.function or tool_call %}
{{- '<tool_call>\\n{"name": "' ~ tool_call.name ~ '", "arguments": ' ~ (tool_call.arguments | tojson) ~
 '}\\n</tool_call>' }}{%- endfor %}{{- '<|role_end|>' }}
{%- elif message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<role>OBSERVATION</role>' }}{%- endif %}
{{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|role_end|>' }}{%- endif %}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<role>ASSISTANT</role>' }}{%- endif %}"""
SMOL_3 = """{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}
{%- set mode = '/think' if enable_thinking else '/no_think' -%}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content -%}
{%- if '/no_think' in system -%}{%- set mode = '/no_think' -%}{%- elif '/think' in system -%}{%- set mode = '/think' -%}
{%- endif -%}{%- set custom = system.replace('/no_think', '').replace('/think', '').rstrip() -%}{%- endif -%}
{{- '## Metadata\\n\\nToday Date: ' ~ strftime_now('%d %B %Y') ~ '\\nReasoning Mode: ' ~ mode ~ '\\n\\n' }}
{{- '## Custom Instructions\\n\\n' ~ (custom if custom else 'You are a helpful assistant.') ~ '\\n\\n' }}
{%- if xml_tools or tools -%}{%- set ns = namespace(xml='') -%}{%- for tool in xml_tools or tools -%}
{%- set ns.xml = ns.xml ~ (tool | string) ~ '\\n' -%}{%- endfor -%}
{{- '### Tools\\n\\n<tools>\\n' ~ ns.xml ~ '</tools>\\n\\n' }}{%- endif -%}{{- '<|im_end|>\\n' }}
{%- for message in messages -%}{%- set content = message.content if message.content is string else '' -%}
{%- if message.role == 'user' -%}{{ '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' -%}{%- generation -%}
{%- if mode == '/think' -%}{{ '<|im_start|>assistant\\n' + content.lstrip('\\n') + '<|im_end|>\\n' }}
{%- else -%}{{ '<|im_start|>assistant\\n' + '<think>\\n\\n</think>\\n' + content.lstrip('\\n') + '<|im_end|>\\n' }}
{%- endif -%}{%- endgeneration -%}
{%- elif message.role == 'tool' -%}{{ '<|im_start|>user\\n' + content + '<|im_end|>\\n' }}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}
{%- if mode == '/no_think' -%}{{ '<think>\\n\\n</think>\\n' }}{%- endif -%}{%- endif -%}"""
APERTUS = """{%- macro kind(spec) -%}{%- if spec.type == 'array' -%}{{ kind(spec['items']) + '[]' }}
{%- elif spec.type in ['integer', 'number'] -%}number{%- elif spec.enum -%}{{ spec.enum | join(' | ') }}
{%- else -%}{{ spec.type }}{%- endif -%}{%- endmacro -%}
{%- macro declared(tools) -%}{%- for t in tools -%}{%- set f = t.function -%}
{{ '// ' + f.description + '\\ntype ' + f.name + ' = (_: {\\n' }}
{%- for name, spec in (f.parameters.properties or {}).items() -%}
{{ '// ' + spec.description + '\\n' + name + ('?' if name not in f.parameters.required else '') + ': ' }}
{{- kind(spec) }}{{ ',\\n' if not loop.last else '\\n' }}{%- endfor -%}{{ '}) => any;\\n' }}
{%- endfor -%}{%- endmacro -%}
{{ bos_token }}{%- set ns = namespace(inside=false) -%}
{%- if messages[0].role == 'system' -%}{%- set first = messages[0] -%}{%- set rest = messages[1:] -%}
{{ '<|system_start|>' }}{{ first.content if first.content is string else first.content.text }}
{%- else -%}{%- set rest = messages -%}{{ '<|system_start|>You are Apertus.' }}{%- endif -%}{{ '<|system_end|>' }}
{{- '<|developer_start|>Deliberation: ' + ('enabled\\n' if enable_thinking else 'disabled\\n') }}
{%- if tools -%}{{ 'Tool Capabilities:\\n' + declared(tools) }}{%- else -%}{{ 'Tool Capabilities: disabled' }}
{%- endif -%}{{ '<|developer_end|>' }}
{%- for message in rest -%}
{%- if message.role == 'user' -%}
{%- if ns.inside -%}{{ '<|assistant_end|>' }}{%- set ns.inside = false -%}{%- endif -%}
{{ '<|user_start|>' + message.content + '<|user_end|>' }}
{%- elif message.role == 'assistant' -%}
{%- if not ns.inside -%}{{ '<|assistant_start|>' }}{%- set ns.inside = true -%}{%- endif -%}
{%- if message.content -%}{{ message.content }}{%- endif -%}
{%- if message.tool_calls -%}{{ '<|tools_prefix|>[' }}{%- for c in message.tool_calls -%}
{{ '{"' + c.function.name + '": ' + (c.function.arguments | tojson) + '}' }}{{ ', ' if not loop.last else '' }}
{%- endfor -%}{{ ']<|tools_suffix|>' }}
{%- else -%}{{ '<|assistant_end|>' }}{%- set ns.inside = false -%}{%- endif -%}
{%- elif message.role == 'tool' -%}
{%- if not ns.inside -%}{{ raise_exception('a tool message must follow a call') }}{%- endif -%}
{{ '[' + message.content + ']' }}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt and not ns.inside -%}{{ '<|assistant_start|>' }}{%- endif -%}"""
OLMO_3 = """{%- set has_system = messages | selectattr('role', 'equalto', 'system') | list | length > 0 -%}
{%- if not has_system -%}{{ '<|im_start|>system\\nYou are Olmo. ' }}
{%- if tools is none or tools | length == 0 -%}{{ 'You have no functions. <functions></functions><|im_end|>\\n' }}
{%- else -%}{{ 'You have functions. <functions>' + (tools | tojson) + '</functions><|im_end|>\\n' }}{%- endif -%}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ '<|im_start|>system\\n' + message['content'] }}
{%- if tools is not none -%}{{- ' <functions>' + (tools | tojson) + '</functions>' -}}
{%- elif message.get('functions', none) is not none -%}{{ ' <functions>' + message['functions'] + '</functions>' }}
{%- endif -%}{{ '<|im_end|>\\n' }}
{%- elif message['role'] == 'user' -%}{{ '<|im_start|>user\\n' + message['content'] + '<|im_end|>\\n' }}
{%- elif message['role'] == 'assistant' -%}{{ '<|im_start|>assistant\\n' }}
{%- if message.get('content', none) is not none -%}{{ message['content'] }}{%- endif -%}
{%- if message.get('tool_calls', none) is not none -%}{{ '<function_calls>' }}
{%- for c in message['tool_calls'] -%}{{ c.function.name + '(' }}
{%- for k, v in c.function.arguments | items -%}{{ k + '=' + (v | tojson) }}
{%- if not loop.last -%}{{ ', ' }}{%- endif -%}{%- endfor -%}{{ ')' }}
{%- if not loop.last -%}{{ '\\n' }}{%- endif -%}{%- endfor -%}{{ '</function_calls>' }}{%- endif -%}
{%- if not loop.last -%}{{ '<|im_end|>' + '\\n' }}{%- else -%}{{ eos_token }}{%- endif -%}
{%- elif message['role'] in ['environment', 'tool'] -%}
{{ '<|im_start|>environment\\n' + message['content'] + '<|im_end|>\\n' }}{%- endif -%}
{%- if loop.last and add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}{%- endfor -%}"""
OLMO_THINK = OLMO_3.replace("{{ '<|im_start|>assistant\\n' }}{%- endif -%}{%- endfor -%}",
                            "{{ '<|im_start|>assistant\\n<think>' }}{%- endif -%}{%- endfor -%}")  # fmt: skip
DEEPSEEK_31 = """{% if not thinking is defined %}{% set thinking = false %}{% endif %}
{%- set ns = namespace(system='', first=true, tool=false, user=false) %}
{%- for m in messages %}{%- if m['role'] == 'system' %}{%- if ns.first %}{%- set ns.system = ns.system + m['content'] %}
{%- set ns.first = false %}{%- else %}{%- set ns.system = ns.system + '\\n\\n' + m['content'] %}{%- endif %}{%- endif %}
{%- endfor %}{{ bos_token }}{{ ns.system }}
{%- for m in messages %}
{%- if m['role'] == 'user' %}{%- set ns.tool = false %}{%- set ns.user = true %}{{ '<｜User｜>' + m['content'] }}
{%- endif %}
{%- if m['role'] == 'assistant' and m['tool_calls'] is defined and m['tool_calls'] is not none %}
{%- if ns.user %}{{ '<｜Assistant｜></think>' }}{%- endif %}{%- set ns.user = false %}{%- set ns.first = false %}
{%- set ns.tool = false %}{%- for tool in m['tool_calls'] %}
{%- if not ns.first %}{%- if m['content'] is none or not m['content'] %}
{{- '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['function']['name'] + '<｜tool▁sep｜>' }}
{{- tool['function']['arguments'] if tool['function']['arguments'] is string else
 tool['function']['arguments'] | tojson }}{{ '<｜tool▁call▁end｜>' }}{%- else %}
{{- m['content'] + '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['function']['name'] + '<｜tool▁sep｜>' }}
{{- tool['function']['arguments'] | tojson + '<｜tool▁call▁end｜>' }}{%- endif %}{%- set ns.first = true %}
{%- else %}{{ '<｜tool▁call▁begin｜>' + tool['function']['name'] + '<｜tool▁sep｜>' }}
{{- tool['function']['arguments'] | tojson + '<｜tool▁call▁end｜>' }}{%- endif %}{%- endfor %}
{{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}{%- endif %}
{%- if m['role'] == 'assistant' and (m['tool_calls'] is not defined or m['tool_calls'] is none) %}
{%- if ns.user %}{{ '<｜Assistant｜>' }}
{%- if m['prefix'] is defined and m['prefix'] and thinking %}{{ '<think>' }}{%- else %}{{ '</think>' }}{%- endif %}
{%- endif %}{%- set ns.user = false %}
{%- if ns.tool %}{{ m['content'] + '<｜end▁of▁sentence｜>' }}{%- set ns.tool = false %}
{%- else %}{%- set content = m['content'] %}
{%- if '</think>' in content %}{%- set content = content.split('</think>', 1)[1] %}{%- endif %}
{{- content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endif %}
{%- if m['role'] == 'tool' %}{%- set ns.user = false %}{%- set ns.tool = true %}
{{- '<｜tool▁output▁begin｜>' + m['content'] + '<｜tool▁output▁end｜>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt and ns.user and not ns.tool %}{{ '<｜Assistant｜>' }}
{%- if not thinking %}{{ '</think>' }}{%- else %}{{ '<think>' }}{%- endif %}{%- endif %}"""
LFM = """{{- bos_token -}}{%- set keep = keep_past_thinking | default(false) -%}
{%- set ns = namespace(system='', last=-1) -%}
{%- if messages[0].role == 'system' -%}{%- set ns.system = messages[0].content -%}
{%- set messages = messages[1:] -%}{%- endif -%}
{%- if tools -%}{%- set ns.system = ns.system + ('\\n' if ns.system else '') + 'List of tools: [' -%}
{%- for tool in tools -%}{%- if tool is not string -%}{%- set tool = tool | tojson -%}{%- endif -%}
{%- set ns.system = ns.system + tool -%}{%- if not loop.last -%}{%- set ns.system = ns.system + ', ' -%}{%- endif -%}
{%- endfor -%}{%- set ns.system = ns.system + ']' -%}{%- endif -%}
{%- if ns.system -%}{{- '<|im_start|>system\\n' + ns.system + '<|im_end|>\\n' -}}{%- endif -%}
{%- for message in messages -%}{%- if message.role == 'assistant' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\\n' -}}
{%- set content = message.content -%}{%- if content is not string -%}{%- set content = content | tojson -%}{%- endif -%}
{%- if message.role == 'assistant' and not keep and loop.index0 != ns.last -%}
{%- if '</think>' in content -%}{%- set content = content.split('</think>')[-1] | trim -%}{%- endif -%}{%- endif -%}
{{- content -}}
{%- if message.tool_calls -%}{{- '<|tool_call_start|>[' -}}{%- for c in message.tool_calls -%}
{{- c.function.name + '(' -}}{%- for k, v in c.function.arguments.items() -%}
{{- k + '=' + ('"' + v + '"' if v is string else v | string) -}}{{- ', ' if not loop.last -}}{%- endfor -%}
{{- ')' -}}{{- ', ' if not loop.last -}}{%- endfor -%}{{- ']<|tool_call_end|>' -}}{%- endif -%}
{{- '<|im_end|>\\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""
STEP = """{%- macro shown(content) -%}{%- if content is string -%}{{ content }}{%- elif content is iterable -%}
{%- for c in content -%}{%- if c.type == 'image' or 'image' in c or 'image_url' in c -%}<im_patch>
{%- elif 'text' in c -%}{{ c.text }}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endmacro -%}
<｜begin▁of▁sentence｜>{%- if tools -%}<|BOT|>system
<tools>{%- for t in tools -%}{{ '\\n' ~ t | tojson }}{%- endfor -%}
</tools>
{%- if messages[0].role == 'system' -%}{{ '\\n' ~ shown(messages[0].content) }}{%- endif -%}<|EOT|>
{%- elif messages[0].role == 'system' -%}{{ '<|BOT|>system\\n' ~ shown(messages[0].content) ~ '<|EOT|>' }}{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) -%}
{{ '<|BOT|>' ~ m.role ~ '\\n' ~ shown(m.content) ~ '<|EOT|>' }}
{%- elif m.role == 'assistant' -%}{{ '<|BOT|>assistant\\n' }}
{%- if m.reasoning_content -%}{{ '<think>\\n' ~ m.reasoning_content.rstrip('\\n') ~ '\\n</think>\\n' }}{%- endif -%}
{{ shown(m.content) }}{%- if m.tool_calls -%}{{ '<｜tool_calls_begin｜>' }}{%- for c in m.tool_calls -%}
{{ '<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="' ~ c.function.name ~ '">' }}
{%- for k, v in c.function.arguments.items() -%}
{{ '<steptml:parameter name="' ~ k ~ '">' ~ (v if v is string else v | tojson) ~ '</steptml:parameter>' }}
{%- endfor -%}{{ '</steptml:invoke><｜tool_call_end｜>' }}{%- endfor -%}{{ '<｜tool_calls_end｜>' }}{%- endif -%}
{{ '<|EOT|>' }}
{%- elif m.role == 'tool' -%}{{ '<|BOT|>tool_response\\n' ~ shown(m.content) ~ '<|EOT|>' }}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|BOT|>assistant\\n<think>\\n' }}{%- endif -%}"""

FAMILIES = {name.lower(): text for name, text in list(globals().items()) if name.isupper() and not name.startswith("_")}
