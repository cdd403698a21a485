//! What templates take for granted besides Jinja itself: functions and filters that transformers gives them, and methods
//! of Python's strings.

use std::io::{self, Write};

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::reason::Raised;

/// The day that templates take for today, so that a text does not depend on when it was made: the one that Llama 3's
/// templates write where they are not told the date.
const TODAY: jiff::civil::DateTime = jiff::civil::date(2024, 7, 26).at(0, 0, 0, 0);

/// Adds the functions, filters and methods.
pub(super) fn add(environment: &mut Environment) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", to_json);
    environment.set_unknown_method_callback(method);
}

fn wrong(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

fn raise_exception(reason: String) -> Result<Value, Error> {
    Err(wrong(reason).with_source(Raised))
}

fn strftime_now(format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, TODAY).map_err(|e| wrong(format!("strftime_now({format:?}): {e}")))
}

/// Methods of strings, lists and maps.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    // Fuel is charged for the result, which a width of many digits makes too large to be made at all.
    let wide = |text: &str| text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 3);
    if name == "format" && value.as_str().is_some_and(wide) {
        return Err(wrong("format with a number of more than three digits, expected narrower fields"));
    }
    unknown_method_callback(state, value, name, args)
}

/// As transformers', and unlike Jinja's: nothing is escaped that JSON does not ask for.
fn to_json(state: &State, value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    if ascii == Some(true) {
        return Err(wrong("tojson with ensure_ascii=true, only false is supported"));
    }
    // A byte costs a quarter of the fuel of an instruction.
    let left = state.fuel_levels().map_or(u64::MAX, |(_, remaining)| remaining);
    let mut out = Bounded::new(usize::try_from(left.saturating_mul(4)).unwrap_or(usize::MAX));
    let written = match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Spaced)),
        Some(indent @ 0..=16) => {
            let indent = " ".repeat(indent);
            value.serialize(&mut Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(indent.as_bytes())))
        }
        Some(indent) => return Err(wrong(format!("tojson with indent={indent}, expected at most 16"))),
    };
    state.consume_fuel(if out.full { u64::MAX } else { out.bytes.len() as u64 / 4 })?;
    written.map_err(|e| wrong(format!("tojson: {e}")))?;
    out.text().map_err(wrong)
}

/// JSON on one line as Python writes it, with spaces after commas and colons.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// Bytes up to a limit, beyond which writing fails.
pub(super) struct Bounded {
    bytes: Vec<u8>,
    most: usize,
    /// Whether more was to be written.
    pub full: bool,
}

impl Bounded {
    /// Takes at most `most` bytes.
    pub fn new(most: usize) -> Self {
        Self { bytes: Vec::new(), most, full: false }
    }

    /// What was written; an error if it ends within a character.
    pub fn text(self) -> Result<String, String> {
        String::from_utf8(self.bytes).map_err(|e| e.to_string())
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.most - self.bytes.len() {
            self.full = true;
            return Err(io::Error::other(format!("more than {} bytes", self.most)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
