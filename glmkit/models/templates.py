"""The chat formats as Jinja templates, for folders that transformers reads.

They render what :mod:`glmkit.models.prompts` renders; but a template yields text, so the name of a
special token that a user types becomes that token wherever only transformers is used. Neither of
the engines here has this gap.
"""

from __future__ import annotations

_ROUNDS = """\
{{- '[gMASK]<sop>' -}}
{%- set turn = namespace(number=0) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{%- set turn.number = turn.number + 1 -%}
{{- '[Round ' ~ turn.number ~ ']\\n\\n问：' ~ message.content ~ '\\n\\n答：' -}}
{%- elif message.role == 'assistant' -%}
{{- message.content ~ '\\n\\n' -}}
{%- elif message.role == 'system' -%}
{{- message.content ~ '\\n\\n' -}}
{%- else -%}
{{- raise_exception('ChatGLM2 knows no messages of the role ' ~ message.role) -}}
{%- endif -%}
{%- endfor -%}
"""

_ROLES = """\
{%- macro turn(role, about, content) -%}
{{- '<|' ~ role ~ '|>' ~ about ~ '\\n' ~ (' ' ~ content if content else '') -}}
{%- endmacro -%}
{%- macro listed(content, tools) -%}
{%- set plain = namespace(tools=[]) -%}
{%- for tool in tools -%}
{%- set plain.tools = plain.tools + [tool.function if tool.function is defined else tool] -%}
{%- endfor -%}
{{- (content or 'Answer the following questions as best as you can. '
~ 'You have access to the following tools:') ~ '\\n' ~ (plain.tools | tojson(indent=4)) -}}
{%- endmacro -%}
{{- '[gMASK]<sop>' -}}
{%- if tools and messages[0].role != 'system' -%}
{{- turn('system', '', listed('', tools)) -}}
{%- endif -%}
{%- for message in messages -%}
{%- set own = message.tools or (tools if loop.first and message.role == 'system' else none) -%}
{%- if own -%}
{{- turn(message.role, '', listed(message.content, own)) -}}
{%- elif message.tool_calls -%}
{%- if message.content -%}{{- turn('assistant', '', message.content) -}}{%- endif -%}
{%- for call in message.tool_calls -%}
{%- set asked = call.function if call.function is defined else call -%}
{%- set given = namespace(text='') -%}
{%- for name, value in asked.arguments.items() -%}
{%- set quoted = "'" ~ value ~ "'" if value is string else value -%}
{%- set given.text = given.text ~ (', ' if given.text else '') ~ name ~ '=' ~ quoted -%}
{%- endfor -%}
{%- set run = asked.arguments.code if asked.arguments | length == 1 else none -%}
{%- set run = run or 'tool_call(' ~ given.text ~ ')' -%}
{{- turn('assistant', asked.name, '```python\\n' ~ run ~ '\\n```') -}}
{%- endfor -%}
{%- else -%}
{%- set role = 'observation' if message.role == 'tool' else message.role -%}
{{- turn(role, message.metadata or '', message.content) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""

_MARKS = """\
{%- macro about(tools) -%}
{{- '你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，'
~ '你的任务是针对用户的问题和要求提供适当的答复和支持。\\n\\n# 可用工具' -}}
{%- for tool in tools -%}
{%- set it = tool.function if tool.function is defined else tool -%}
{{- '\\n## ' ~ it.name ~ '\\n\\n' ~ (it | tojson(indent=4))
~ '\\n在调用上述函数时，请使用 Json 格式表示调用的参数。' -}}
{%- endfor -%}
{%- endmacro -%}
{{- '[gMASK]<sop>' -}}
{%- if tools -%}{{- '<|system|>\\n' ~ about(tools) -}}{%- endif -%}
{%- for message in messages -%}
{%- if message.tools and not tools -%}{{- '<|system|>\\n' ~ about(message.tools) -}}{%- endif -%}
{%- set role = 'observation' if message.role == 'tool' else message.role -%}
{%- if message.content -%}
{{- '<|' ~ role ~ '|>' ~ (message.metadata or '') ~ '\\n' ~ message.content -}}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{%- set it = call.function if call.function is defined else call -%}
{{- '<|assistant|>' ~ it.name ~ '\\n' ~ (it.arguments | tojson) -}}
{%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""

TEMPLATES = {"chatglm2": _ROUNDS, "chatglm3": _ROLES, "glm4": _MARKS}
"""By family."""
