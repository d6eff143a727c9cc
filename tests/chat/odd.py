"""Chat templates in the manner of families that no package at hand ships, and of habits that templates have.

Written here: what counts is how they treat a conversation (headers, ends, trimming, history), not a model's own text.
"""

from __future__ import annotations

GLM = (
    "[gMASK]<sop>{% for m in messages %}{% if m.role == 'system' %}<|system|>\n{{ m.content }}"
    "{% elif m.role == 'user' %}<|user|>\n{{ m.content }}{% elif m.role == 'assistant' %}<|assistant|>\n{{ m.content }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
GLM_THINKING = """[gMASK]<sop>
{%- if tools %}<|system|>
# Tools
<tools>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools>{% endif %}
{%- macro visible(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for item in content -%}{%- if item.type == 'text' -%}{{ item.text }}{%- endif -%}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'user' %}<|user|>
{{ visible(m.content) }}{{ '/nothink' if enable_thinking is defined and not enable_thinking else '' }}
{%- elif m.role == 'assistant' %}<|assistant|>
{%- set thought = '' %}{% set content = visible(m.content) %}
{%- if m.reasoning_content is string %}{% set thought = m.reasoning_content %}
{%- elif '</think>' in content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}
{%- if loop.index0 > ns.last and thought %}
<think>{{ thought.strip() }}</think>
{%- else %}
<think></think>
{%- endif %}
{%- if content.strip() %}
{{ content.strip() }}{% endif %}
{%- for tc in m.tool_calls or [] %}{% set f = tc.function or tc %}
<tool_call>{{ f.name }}
{% for k, v in f.arguments.items() %}<arg_key>{{ k }}</arg_key>
<arg_value>{{ v if v is string else v | tojson }}</arg_value>
{% endfor %}</tool_call>{% endfor %}
{%- elif m.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|observation|>{% endif %}
<tool_response>
{{ visible(m.content) }}
</tool_response>
{%- elif m.role == 'system' %}<|system|>
{{ visible(m.content) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>
{{- '\\n<think></think>' if enable_thinking is defined and not enable_thinking else '' }}{% endif %}"""
INTERN = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PHI_SEP = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ '<|im_start|>system<|im_sep|>' + m.content + '<|im_end|>' }}"
    "{% elif m.role == 'user' %}{{ '<|im_start|>user<|im_sep|>' + m.content + '<|im_end|>' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant<|im_sep|>' + m.content + '<|im_end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
YI = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}{% endif %}"
    "{% if system_message is defined %}{{ '<|im_start|>system\\n' + system_message + '<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{% set content = message['content'] %}{% if message['role'] == 'user' %}"
    "{{ '<|im_start|>user\\n' + content + '<|im_end|>\\n<|im_start|>assistant\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ content + '<|im_end|>' + '\\n' }}{% endif %}{% endfor %}"
)
GRANITE = """{%- if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}
{%- set loop_messages = messages[1:] %}{% else %}
{%- set system_message = "Knowledge Cutoff Date: April 2024.\\nToday's Date: " + strftime_now('%B %d, %Y') + "." %}
{%- set loop_messages = messages %}{% endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\\n' }}
{%- if tools %}{{- '<|start_of_role|>available_tools<|end_of_role|>' }}{{- tools | tojson(indent=4) }}
{{- '<|end_of_text|>\\n' }}{% endif %}
{%- for message in loop_messages %}
{%- if message.role == 'assistant' and message.tool_calls %}
{{- '<|start_of_role|>assistant<|end_of_role|>' }}{{- message.content or '' }}{{- '<|tool_call|>[' }}
{%- for tc in message.tool_calls %}{{- {'name': tc.function.name, 'arguments': tc.function.arguments} | tojson }}
{%- if not loop.last %}{{- ', ' }}{% endif %}{% endfor %}{{- ']<|end_of_text|>\\n' }}
{%- else %}
{{- '<|start_of_role|>' + ('tool_response' if message.role == 'tool' else message['role']) + '<|end_of_role|>' }}
{{- message['content'] + '<|end_of_text|>\\n' }}{% endif %}
{%- if loop.last and add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}
{%- endfor %}"""
COMMAND = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = messages[0]['content'] %}{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
    "{% if system != false %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system + '<|END_OF_TURN_TOKEN|>' }}"
    "{% endif %}{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set content = m['content'] %}{% if m['role'] == 'user' %}"
    "{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}"
    "{% elif m['role'] == 'assistant' %}"
    "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
NEMOTRON = (
    "{{ '<extra_id_0>System' }}{% for m in messages %}{% if m['role'] == 'system' %}{{ '\\n' + m['content'].strip() }}"
    "{% endif %}{% endfor %}{{ '\\n\\n' }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '<extra_id_1>User\\n' + m['content'].strip() + '\\n' }}{% elif m['role'] == 'assistant' %}"
    "{{ '<extra_id_1>Assistant\\n' + m['content'].strip() + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<extra_id_1>Assistant\\n' }}{% endif %}"
)
MINIMAX = """{%- for m in messages %}{% set name = {'system': 'ai_setting=assistant', 'user': 'name=user',
 'assistant': 'name=assistant', 'tool': 'name=tools'}[m.role] %}
{{- '<beginning_of_sentence>' + ('ai' if m.role == 'assistant' else m.role) + ' ' + name + '\\n' }}
{%- if m.tool_calls %}{{- (m.content or '') + '<tool_calls>\\n' }}
{%- for c in m.tool_calls %}{{- {'name': c.function.name, 'arguments': c.function.arguments} | tojson + '\\n' }}
{%- endfor %}{{- '</tool_calls>' }}
{%- elif m.content is string %}{{- m.content }}
{%- else %}{% for c in m.content | selectattr('type', 'equalto', 'text') %}{{- c.text }}{% endfor %}{% endif %}
{{- '<end_of_sentence>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<beginning_of_sentence>ai name=assistant\\n' }}{% endif %}"""
KIMI = """{%- macro header(m) -%}
{%- if m.role == 'user' -%}<|im_user|>user<|im_middle|>
{%- elif m.role == 'assistant' -%}<|im_assistant|>assistant<|im_middle|>
{%- else -%}<|im_system|>{{ m.role }}<|im_middle|>{%- endif -%}
{%- endmacro -%}
{%- if tools -%}<|im_system|>tool_declare<|im_middle|>{{ tools | tojson }}<|im_end|>{%- endif -%}
{%- for m in messages -%}
{%- if loop.first and m.role != 'system' -%}<|im_system|>system<|im_middle|>You are Kim.<|im_end|>{%- endif -%}
{{ header(m) }}
{%- if m.role == 'assistant' and m.tool_calls -%}
{%- if m.content -%}{{ m.content }}{%- endif -%}<|tool_calls_section_begin|>
{%- for c in m.tool_calls -%}<|tool_call_begin|>functions.{{ c.function.name }}:{{ loop.index0 }}
{{- '<|tool_call_argument_begin|>' }}
{{- c.function.arguments if c.function.arguments is string else c.function.arguments | tojson -}}<|tool_call_end|>
{%- endfor -%}<|tool_calls_section_end|>
{%- elif m.role == 'tool' -%}## Return of {{ m.tool_call_id }}
{{ m.content }}
{%- elif m.content is string -%}{{ m.content }}
{%- else -%}{%- for c in m.content -%}
{%- if c.type == 'image' -%}<|media_begin|>image<|media_content|><|media_pad|><|media_end|>
{%- else -%}{{ c.text }}{%- endif -%}{%- endfor -%}{%- endif -%}
<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{%- endif -%}"""
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system != false %}"
    "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] %}{% else %}"
    "{% set content = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ALPACA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n\n{% elif m.role == 'user' %}"
    "### Instruction:\n{{ m.content }}\n\n{% else %}### Response:\n{{ m.content }}{{ eos_token }}\n\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
VICUNA = (
    "{{ bos_token }}{% if messages[0].role != 'system' %}A chat between a user and an assistant. {% endif %}"
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + ' ' }}{% elif m.role == 'user' %}"
    "{{ 'USER: ' + m.content + ' ' }}{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
R1_STYLE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "{{ '<｜User｜>' + m.content }}{% else %}{% set c = m.content %}{% if '</think>' in c %}"
    "{% set c = c.split('</think>')[-1] %}{% endif %}{{ '<｜Assistant｜>' + c + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
THINK_OPENED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and m.reasoning_content %}"
    "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ bos_token }}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% set messages = messages[1:] %}{% endif %}"
    "<|eot_id|>{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
MERGES_ROLES = (
    "{% for m in messages %}{% if loop.first or messages[loop.index0 - 1].role != m.role %}<|im_start|>{{ m.role }}\n"
    "{% else %}\n\n{% endif %}{{ m.content }}{% if loop.last or messages[loop.index0 + 1].role != m.role %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM_IN_LAST = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}"
    "{% if loop.index0 >= rest | length - 2 and system is defined %}[INST] {{ system }}\n\n{{ m.content }}[/INST]"
    "{% else %}[INST] {{ m.content }}[/INST]{% endif %}{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'system' %}\n{{ '<|system|>\n' + m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'assistant' %}\n{{ '<|assistant|>\n' + m['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
FALCON = (
    "{% for m in messages %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}{{ 'User: ' + m.content.replace('\\r\\n', '\\n').replace('\\n\\n', '\\n') }}"
    "{% else %}{{ 'Assistant: ' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)
EXAONE = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}"
    "{{ '[|' + m.role + '|]' + m.content }}{% if m.role == 'user' %}{{ '\\n' }}{% else %}"
    "{{ '[|endofturn|]\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"
)
ERNIE = """{%- if not cls_token is defined %}{% set cls_token = '<|begin_of_sentence|>' %}{% endif %}
{%- if not end is defined %}{% set end = '<|end_of_sentence|>' %}{% endif %}
{{- cls_token }}{% for m in messages %}{% if m.role == 'user' %}{{- 'User: ' + m.content + '\\n' }}
{%- elif m.role == 'assistant' %}{{- 'Assistant: ' + m.content + end }}
{%- elif m.role == 'system' %}{{- m.content + '\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{- 'Assistant: ' }}{% endif %}"""
BAICHUAN = (
    "{% for m in messages %}{% if m.role == 'user' %}<reserved_106>{{ m.content }}{% elif m.role == 'assistant' %}"
    "<reserved_107>{{ m.content }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<reserved_107>{% endif %}"
)
PAIRS = (
    "{% set ns = namespace(at=0) %}{% if messages[0].role == 'system' %}{% set ns.at = 1 %}<|im_start|>system\n"
    "{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% for i in range(ns.at, messages | length, 2) %}<|im_start|>user\n"
    "{{ messages[i].content }}<|im_end|>\n{% if i + 1 < messages | length %}<|im_start|>assistant\n"
    "{{ messages[i + 1].content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMED_WHOLE = (
    "{% set out %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% endset %}{{ out | trim }}{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}"
)
STRING_BUILT = (
    "{% set ns = namespace(s='') %}{% for m in messages %}"
    "{% set ns.s = ns.s + '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' %}{% endfor %}"
    "{{ ns.s }}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PIECES = (
    "{% set ns = namespace(all=[]) %}{% for m in messages %}"
    "{% set ns.all = ns.all + ['<|' ~ m.role ~ '|>' ~ m.content ~ '<|end|>'] %}{% endfor %}{{ ns.all | join('\\n') }}"
    "{{ '\\n' }}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
FILTERED = (
    "{% for m in messages | selectattr('role', 'equalto', 'system') %}<|system|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% for m in messages | rejectattr('role', 'equalto', 'system') | list %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LIMITED = (
    "{% for m in messages[-3:] %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NUMBERED = (
    "{% for m in messages %}{% if m.role == 'user' %}[Round {{ loop.index0 // 2 + 1 }}]\n\n问：{{ m.content }}\n\n答："
    "{% elif m.role == 'assistant' %}{{ m.content }}\n\n{% else %}{{ m.content }}\n\n{% endif %}{% endfor %}"
)
REACT = """{%- if tools %}Answer with these tools:
{% for t in tools %}{{ (t.function or t).name }}: {{ t | tojson }}
{% endfor %}
{% endif %}{% for m in messages %}{% if m.role == 'user' %}Question: {{ m.content }}
{% elif m.role == 'system' %}{{ m.content }}
{% elif m.role == 'tool' %}Observation: {{ m.content }}
{% elif m.tool_calls %}{% if m.reasoning_content %}Thought: {{ m.reasoning_content }}
{% endif %}Action: {{ m.tool_calls[0].function.name }}
Action Input: {{ m.tool_calls[0].function.arguments | tojson }}
{% else %}Final Answer: {{ m.content }}{{ eos_token }}
{% endif %}{% endfor %}"""
INDENTED = """
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '<user>' ~ message['content'] ~ '</user>' }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<assistant>' }}
        {%- if 'reasoning_content' in message and message['reasoning_content'] %}
            {{- '<thought>' ~ message['reasoning_content'] | trim ~ '</thought>' }}
        {%- endif %}
        {{- message['content'] | default('', true) }}
        {%- if message['tool_calls'] is defined and message['tool_calls'] is not none %}
            {%- for call in message['tool_calls'] %}
                {%- set f = call['function'] %}
                {{- '<call name="' ~ f['name'] ~ '">' ~ f['arguments'] | tojson ~ '</call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '</assistant>' }}
    {%- elif message['role'] in ['system', 'developer'] %}
        {{- '<system>' ~ message['content'] ~ '</system>' }}
    {%- elif message['role'] == 'tool' %}
        {{- '<result>' ~ message['content'] ~ '</result>' }}
    {%- else %}
        {{- raise_exception('Unknown role: ' ~ message['role']) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<assistant>' }}
{%- endif %}
"""
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.reasoning_content and loop.last %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ m.reasoning_content }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
MODEL_ROLE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\\n\\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% if m['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = m['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}{% if m['content'] is string %}"
    "{{ m['content'] | trim }}{% elif m['content'] is iterable %}{% for item in m['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<start_of_image>' }}{% elif item['type'] == 'text' %}{{ item['text'] | trim }}"
    "{% endif %}{% endfor %}{% endif %}{{ '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
EOS_PER_CONVERSATION = (
    "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% else %}{{ eos_token }}{% endif %}"
)
CALLER = (
    "{% macro wrap(role) %}<|im_start|>{{ role }}\n{{ caller() }}<|im_end|>\n{% endmacro %}{% for m in messages %}"
    "{% call wrap(m.role) %}{{ m.content }}{% endcall %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RECURSIVE = (
    "{% for m in messages recursive %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NOTHINK_TAIL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% set c = m.content.split('</think>')[-1].lstrip('\\n') if '</think>' in m.content else m.content %}"
    "{% if loop.last %}<think>\n{{ (m.reasoning_content or '').strip('\\n') }}\n</think>\n\n{% endif %}{{ c }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)

ODD = {name.lower(): text for name, text in list(globals().items()) if name.isupper() and not name.startswith("_")}
