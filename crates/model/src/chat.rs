//! Conversations as a model's own chat template writes them.
//!
//! Templates come with checkpoints and are not trusted: what one may compute and write is bounded.

mod message;
mod python;
mod reason;
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, context};
use serde_json::Value;
use waterfill_checkpoint::writer::NAMED_TEMPLATES;

use crate::error::{ModelError, Result};
pub use message::Message;
use python::Bounded;
use reason::{described, is_raised, place};

/// Instructions that a template may take for a conversation, besides those for each message and byte of it. 64 bytes
/// of text that the template makes count as one.
const FUEL: u64 = 100_000;
const FUEL_PER_MESSAGE: u64 = 500;
/// Beyond it nesting could exhaust the stack.
const MOST_FUEL: u64 = 400_000;

/// Bytes of stack while a template runs. Lists that a template puts into each other are dropped and written by
/// recursion; these are as many as [`MOST_FUEL`] can make need. Only what is used becomes memory.
const STACK: usize = 1 << 30;

/// Bytes that a template may write for a conversation, besides four for each byte of it.
const OUTPUT: usize = 1 << 20;
const OUTPUT_PER_MESSAGE: usize = 1 << 10;

/// The chat template of a checkpoint.
pub struct ChatTemplate {
    environment: Environment<'static>,
    path: PathBuf,
    bos: Option<String>,
}

impl ChatTemplate {
    /// The template of a checkpoint directory: `chat_template.jinja`, else `chat_template` in `tokenizer_config.json`,
    /// which is a text, or a list of texts with names of which `default` is taken. `None` where there is none.
    ///
    /// # Errors
    /// Files that cannot be read, a `chat_template` of another form, a template that is too long or is no Jinja, or
    /// that uses what is not supported here. All name the file.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let (rules, path) = settings(dir)?;
        let (source, path) = match read(&dir.join(OWN))? {
            Some(source) => (source, dir.join(OWN)),
            None => match default_of(&rules["chat_template"]).map_err(|e| unsupported(&path, e))? {
                Some(source) => (source.to_string(), path),
                None => return Ok(None),
            },
        };
        // Long chains of operators are deep trees.
        let compiled = on_large_stack(|| compile(&source));
        let mut environment =
            compiled.and_then(|it| it).map_err(|e| unsupported(&path, format!("chat template, {e}")))?;
        let token = |name: &str| rules[name].as_str().or_else(|| rules[name]["content"].as_str()).map(str::to_string);
        for name in ["bos_token", "eos_token", "unk_token", "pad_token"] {
            if let Some(token) = token(name) {
                environment.add_global(name, token);
            }
        }
        Ok(Some(Self { environment, path, bos: token("bos_token") }))
    }

    /// Text of a conversation, with special tokens written out: also the beginning of text, where the template writes
    /// it ([`ChatTemplate::without_bos`]). No tools are offered, no answer is begun, and today is the 26th of July 2024
    /// for every template, so that the text is always the same.
    ///
    /// # Errors
    /// [`ModelError::Conversation`] if the template refuses the messages, such as roles that do not alternate;
    /// [`ModelError::Unsupported`] if it fails otherwise, or takes too much time, memory or text.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        let bytes: usize = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
        let fuel = FUEL + messages.len() as u64 * FUEL_PER_MESSAGE + bytes as u64;
        let most = OUTPUT + messages.len() * OUTPUT_PER_MESSAGE + 4 * bytes;
        let rendered = on_large_stack(|| {
            let mut environment = self.environment.clone();
            environment.set_fuel(Some(fuel.min(MOST_FUEL)));
            let value = |m: &Message| minijinja::Value::from_pairs([("role", &*m.role), ("content", &*m.content)]);
            let all: Vec<_> = messages.iter().map(value).collect();
            let values = context! { messages => all, add_generation_prompt => false, tools => (), documents => () };
            let mut out = Bounded::new(most);
            let template = environment.get_template(NAME);
            let done = template.and_then(|t| t.render_captured_to(values, &mut out).map(|_| ()));
            match done {
                Ok(()) => out.text().map_err(|e| self.failed(e)),
                Err(_) if out.full => {
                    let size = format!("writes more than {most} bytes for a conversation of {bytes}");
                    Err(self.failed(format!("{size}, expected less")))
                }
                Err(e) => Err(self.stopped(&e, bytes)),
            }
        });
        rendered.map_err(|e| self.failed(e))?
    }

    /// A rendered text without the `bos_token` at its beginning, for callers that put the tokenizer's prefix there.
    pub fn without_bos<'a>(&self, text: &'a str) -> &'a str {
        self.bos.as_deref().and_then(|bos| text.strip_prefix(bos)).unwrap_or(text)
    }

    fn failed(&self, reason: String) -> ModelError {
        unsupported(&self.path, format!("chat template, {reason}"))
    }

    fn stopped(&self, error: &Error, bytes: usize) -> ModelError {
        if is_raised(error) {
            return ModelError::Conversation { path: self.path.clone(), reason: described(error) };
        }
        match error.kind() {
            ErrorKind::OutOfFuel => self.failed(format!(
                "{}takes too long or too much memory for a conversation of {bytes} bytes, expected less",
                place(error)
            )),
            _ => self.failed(described(error)),
        }
    }
}

/// The chat templates that come with a checkpoint, as they are written.
#[derive(Debug, Default)]
pub struct ChatTemplates {
    /// The one that is used where none is named.
    pub default: Option<String>,
    /// Others, by their names.
    pub named: BTreeMap<String, String>,
}

impl ChatTemplates {
    /// Templates of a checkpoint directory: those of [`ChatTemplate::open`], of a list also the others, and the files in
    /// `additional_chat_templates`.
    ///
    /// # Errors
    /// Files that cannot be read, and a `chat_template` of another form.
    pub fn open(dir: &Path) -> Result<Self> {
        let (rules, path) = settings(dir)?;
        let written = &rules["chat_template"];
        let mut named = BTreeMap::new();
        for one in written.as_array().into_iter().flatten() {
            if let (Some(name), Some(source)) = (one["name"].as_str(), one["template"].as_str()) {
                named.insert(name.to_string(), source.to_string());
            }
        }
        // A list without a default is of use to whoever asks for one of its names.
        let of_settings = match (named.remove("default"), named.is_empty()) {
            (None, true) => default_of(written).map_err(|e| unsupported(&path, e))?.map(String::from),
            (found, _) => found,
        };
        let folder = dir.join(NAMED_TEMPLATES);
        if folder.is_dir() {
            let failed = |e: std::io::Error| unsupported(&folder, e.to_string());
            for entry in std::fs::read_dir(&folder).map_err(failed)? {
                let file = entry.map_err(failed)?.path();
                let name = file.file_stem().and_then(|stem| stem.to_str());
                if let (Some(name), true) = (name, file.extension().is_some_and(|e| e == "jinja")) {
                    named.extend(read(&file)?.map(|source| (name.to_string(), source)));
                }
            }
        }
        Ok(Self { default: read(&dir.join(OWN))?.or(of_settings), named })
    }
}

/// File of the default template.
const OWN: &str = "chat_template.jinja";

/// `tokenizer_config.json`, null where there is none, and its path.
fn settings(dir: &Path) -> Result<(Value, PathBuf)> {
    let path = dir.join("tokenizer_config.json");
    let rules = match read(&path)? {
        Some(text) => serde_json::from_str(&text).map_err(|e| unsupported(&path, e.to_string()))?,
        None => Value::Null,
    };
    Ok((rules, path))
}

/// Name of the only template of an environment.
const NAME: &str = "chat";

fn unsupported(path: &Path, reason: String) -> ModelError {
    ModelError::Unsupported { path: path.to_path_buf(), reason }
}

/// Text of a file; `None` if it is not there.
fn read(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(unsupported(path, e.to_string())),
    }
}

/// The template that `chat_template` has, if any.
fn default_of(value: &Value) -> std::result::Result<Option<&str>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(source) => Ok(Some(source)),
        Value::Array(all) => {
            match all.iter().find(|one| one["name"] == "default").map(|one| one["template"].as_str()) {
                Some(Some(source)) => Ok(Some(source)),
                _ => {
                    let names: Vec<_> = all.iter().filter_map(|one| one["name"].as_str()).collect();
                    Err(format!("chat_template names [{}], expected a template named default", names.join(", ")))
                }
            }
        }
        _ => Err("chat_template is neither a text nor a list of {name, template}".into()),
    }
}

/// An environment as transformers has it.
fn compile(source: &str) -> std::result::Result<Environment<'static>, String> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|e| described(&e))?;
    let source = source::prepared(source, &syntax)?;
    let mut environment = Environment::new();
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    python::add(&mut environment);
    environment.add_template_owned(NAME, source).map_err(|e| described(&e))?;
    Ok(environment)
}

/// Runs `work` where nesting as deep as templates can make it fits the stack.
fn on_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> std::result::Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        let thread = thread.map_err(|e| format!("no thread with {STACK} bytes of stack: {e}"))?;
        thread.join().map_err(|_| "the engine of templates failed".into())
    })
}
