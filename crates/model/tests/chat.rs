//! Conversations through templates that resemble published ones, and through ones that mean harm.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use waterfill_model::{ChatTemplate, Message, ModelError};

fn messages(all: &[(&str, &str)]) -> Vec<Message> {
    all.iter().map(|(role, content)| Message { role: role.to_string(), content: content.to_string() }).collect()
}

/// The template as a checkpoint with these special tokens has it.
fn template(source: &str) -> Result<ChatTemplate, ModelError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), source).unwrap();
    let rules = json!({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "pad_token": null});
    std::fs::write(dir.path().join("tokenizer_config.json"), rules.to_string()).unwrap();
    ChatTemplate::open(dir.path()).map(|template| template.expect("it has a template"))
}

fn render(source: &str, all: &[(&str, &str)]) -> Result<String, ModelError> {
    template(source)?.render(&messages(all))
}

const TALK: [(&str, &str); 3] = [("user", " Hi <b>\n"), ("assistant", "Hello."), ("user", "Bye")];

#[test]
fn chatml_puts_its_system_prompt_first() {
    let source = "{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
    {% if loop.first and tools %}no tools{% endif %}
    {% generation %}
{{ '<|im_start|>' + message['role'] + '\\n' + message.content + '<|im_end|>' }}
    {% endgeneration %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
";
    let expected = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n Hi <b>\n<|im_end|>\n\
                    <|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n";
    assert_eq!(render(source, &TALK).unwrap(), expected);
    let own = render(source, &[("system", "Rhyme."), ("user", "Hi")]).unwrap();
    assert_eq!(own, "<|im_start|>system\nRhyme.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n");
}

#[test]
fn llama_3_writes_its_beginning_of_text_and_a_date() {
    let source = "{{- bos_token }}
{%- set date = strftime_now('%d %b %Y') if strftime_now is defined else 'never' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date + '\\n\\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
";
    let template = template(source).unwrap();
    let text = template.render(&messages(&TALK)).unwrap();
    let expected = "<|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>\
                    <|start_header_id|>user<|end_header_id|>\n\nHi <b><|eot_id|>\
                    <|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>\
                    <|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>";
    assert_eq!(text, format!("<s>{expected}"));
    assert_eq!(template.without_bos(&text), expected);
    assert_eq!(template.without_bos(expected), expected);
}

#[test]
fn mistral_refuses_roles_that_do_not_alternate() {
    let source = "{{ bos_token }}{% for message in messages %}\
                  {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
                  {{ raise_exception('Roles must alternate, not ' ~ message.role) }}{% endif %}\
                  {% if message['role'] == 'user' %}{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}\
                  {% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}";
    assert_eq!(render(source, &TALK).unwrap(), "<s>[INST] Hi <b> [/INST]Hello.</s>[INST] Bye [/INST]");
    let error = render(source, &[("user", "a"), ("user", "b")]).unwrap_err();
    assert!(matches!(error, ModelError::Conversation { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("chat_template.jinja: the chat template refuses a conversation: line 1: "), "{message}");
    assert!(message.ends_with("Roles must alternate, not user"), "{message}");
}

#[test]
fn gemma_names_the_model_and_keeps_state_in_a_namespace() {
    let source = "{{ bos_token }}
{%- macro turn(role, content) -%}
<start_of_turn>{{ role }}
{{ content | trim }}<end_of_turn>
{% endmacro -%}
{%- set ns = namespace(first='', turns=0) -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {%- set ns.first = message.content + '\\n\\n' -%}
        {%- continue -%}
    {%- endif -%}
    {{- turn('model' if message.role == 'assistant' else message.role, ns.first ~ message.content) -}}
    {%- set ns.first = '' -%}
    {%- set ns.turns = ns['turns'] + 1 -%}
{%- endfor -%}
{{ ns.turns }} {{ messages | length }} {{ nothing }}";
    let expected = "<s><start_of_turn>user\nRhyme.\n\n Hi <b><end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n\
                    <start_of_turn>user\nBye<end_of_turn>\n3 4 ";
    assert_eq!(render(source, &[&[("system", "Rhyme.")], &TALK[..]].concat()).unwrap(), expected);
}

#[test]
fn values_are_written_as_python_does() {
    let source = "{{ messages | tojson }} {{ {'b': [1, none], 'a': 1.5} | tojson(indent=1) }} {{ [true, none, 'x'] }} \
                  {{ 'a</think>b'.split('</think>')[-1] }} {{ 'abc'.startswith('ab') }} {{ '{:>4}'.format(7) }}\
                  {{ messages[0].items() | list | length }}";
    let expected = "[{\"role\": \"user\", \"content\": \"<é'&>\"}] {\n \"b\": [\n  1,\n  null\n ],\n \"a\": 1.5\n} \
                    [True, None, 'x'] b True    72";
    assert_eq!(render(source, &[("user", "<é'&>")]).unwrap(), expected);
}

#[test]
fn places_of_a_template_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let open = |dir: &Path| ChatTemplate::open(dir).map(|t| t.map(|t| t.render(&messages(&TALK)).unwrap()));
    let config = |rules: serde_json::Value| {
        std::fs::write(dir.path().join("tokenizer_config.json"), rules.to_string()).unwrap();
        open(dir.path()).map_err(|e| e.to_string())
    };
    assert_eq!(open(dir.path()).unwrap(), None);
    assert_eq!(config(json!({"bos_token": null})).unwrap(), None);
    assert_eq!(config(json!({"chat_template": null})).unwrap(), None);
    assert_eq!(config(json!({"chat_template": "one {{ bos_token }}"})).unwrap().unwrap(), "one ");
    let named = |name: &str| json!([{"name": "tool_use", "template": "no"}, {"name": name, "template": "two"}]);
    assert_eq!(config(json!({"chat_template": named("default")})).unwrap().unwrap(), "two");
    let fails = |rules: serde_json::Value, what: &str| {
        let message = config(rules).unwrap_err();
        assert!(message.contains(what) && message.contains("tokenizer_config.json: "), "{message}");
    };
    fails(json!({"chat_template": named("rag")}), "names [tool_use, rag], expected a template named default");
    fails(json!({"chat_template": 3}), "chat_template is neither a text nor a list");
    fails(json!({"chat_template": "a\n{% if %}"}), "chat template, line 2: syntax error: unexpected end of block");
    std::fs::write(dir.path().join("chat_template.jinja"), "three\n").unwrap();
    assert_eq!(open(dir.path()).unwrap().unwrap(), "three");
    std::fs::write(dir.path().join("tokenizer_config.json"), "{").unwrap();
    assert!(open(dir.path()).is_err_and(|e| e.to_string().contains("tokenizer_config.json: EOF")));
}

#[test]
fn broken_templates_are_named_with_the_line() {
    for (source, what) in [
        ("a\n{% for x in %}", "line 2: syntax error"),
        ("{{ 'a }}", "line 1: syntax error"),
        ("a\n\n{{ frobnicate(1) }}", "line 3: unknown function: frobnicate"),
        ("{{ messages[0].content.nothing.more }}", "line 1: undefined value"),
        ("{{ 1 | tojson(ensure_ascii=true) }}", "only false is supported"),
        ("{{ strftime_now('%Q!') }}", "strftime_now(\"%Q!\")"),
        ("{% include 'a' %}", "line 1: syntax error: unknown statement include"),
        (&"x".repeat(300_000), "300000 bytes, expected a chat template of at most 65536"),
    ] {
        let error = render(source, &TALK).unwrap_err();
        assert!(matches!(error, ModelError::Unsupported { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("chat_template.jinja: chat template, ") && message.contains(what), "{message}");
    }
}

#[test]
fn templates_that_mean_harm_end_soon() {
    let grow = |init: &str, step: &str, end: &str| {
        format!(
            "{{% set ns = namespace(x={init}) %}}{{% for i in range(99999) %}}{{% set ns.x = {step} %}}{{% endfor %}}{end}"
        )
    };
    let long = |first: &str, again: &str, last: &str| first.to_string() + &again.repeat(60_000 / again.len()) + last;
    let too_much = "takes too long or too much memory for a conversation of 34 bytes";
    for (source, what) in [
        ("{% for i in range(9999999999) %}x{% endfor %}".to_string(), "range has too many elements"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}".into(), too_much),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".into(), "recursion limit"),
        (grow("'xx'", "ns.x ~ ns.x", ""), too_much),
        ("{{ 'x' * 99999999999 }}".into(), too_much),
        ("{{ '{:>999999999}'.format(1) }}".into(), "more than three digits"),
        ("{{ '{:>{}}'.format(1, 999999999) }}".into(), ""),
        ("{{ '%999999999d' | format(1) }}".into(), too_much),
        ("{{ ['x' * 99999] | tojson(indent=999999) }}".into(), "expected at most 16"),
        ("{{ (['x' * 99999] * 99) | tojson }}".into(), too_much),
        (
            "{% set a = 'x' * 1048 %}{% for i in range(1100) %}{{ a }}{% endfor %}".into(),
            "writes more than 1051784 bytes",
        ),
        // Nesting, which is dropped, written and compared by recursion.
        (grow("[]", "[ns.x]", ""), too_much),
        (grow("range(1)", "ns.x[0:]", ""), too_much),
        (grow("{}", "{'a': ns.x}", ""), too_much),
        (grow("[]", "[ns.x]", "").replace("99999", "9999") + "{{ ns.x }}{{ ns.x == [ns.x] }}", ""),
        (grow("[]", "[ns.x]", "").replace("99999", "9999") + "{{ ns.x | tojson }}", ""),
        (long("{{ 'a'", " ~ 'a'", " }}"), ""),
        (long("{{ 'a'", "|trim", " }}"), ""),
        (long("{{ a", ".a", " }}"), ""),
        (long("{{ ", "not ", "a }}"), ""),
        (long("{% if a %}", "{% elif a %}", "{% endif %}"), ""),
        (long("{{ ", "[", " }}"), "recursion"),
        // What contains itself.
        ("{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x }}".into(), "namespace ns is used as a value"),
        ("{% set ns = namespace() %}{% set ns.x = {'a': ns } %}{{ ns }}".into(), "namespace ns is used as a value"),
        ("{% set f = namespace %}".into(), "expected {% set NAME = namespace(..) %} alone"),
        ("{% set a = [namespace()] %}".into(), "expected {% set NAME = namespace(..) %} alone"),
        ("{% set a = namespace() or 1 %}".into(), "expected {% set NAME = namespace(..) %} alone"),
        ("{% set a, b = namespace(), 1 %}".into(), "expected {% set NAME = namespace(..) %} alone"),
    ] {
        let (start, shown) = (Instant::now(), &source[..source.len().min(80)]);
        let ended = render(&source, &TALK);
        let taken = start.elapsed();
        assert!(taken < Duration::from_secs(60), "{shown}: {taken:?}");
        if taken > Duration::from_millis(500) {
            eprintln!("{shown}: {taken:?}");
        }
        if !what.is_empty() {
            assert!(ended.as_ref().is_err_and(|e| e.to_string().contains(what)), "{shown}: {ended:.300?}");
        }
    }
}
