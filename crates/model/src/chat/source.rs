//! A template's source before it is compiled: tags of transformers become Jinja's, and what could recurse without end is
//! refused.

use std::collections::HashSet;

use minijinja::Error;
use minijinja::machinery::{Span, Token, tokenize};
use minijinja::syntax::SyntaxConfig;

use super::reason::described;

/// Most bytes of a template. The longest published ones have some 30 KB.
const MOST: usize = 64 << 10;

/// The source to compile, with as many lines as before.
///
/// # Errors
/// A source that is too long or has no tokens, and a namespace that is used as a value.
pub(super) fn prepared(source: &str, syntax: &SyntaxConfig) -> Result<String, String> {
    if source.len() > MOST {
        return Err(format!("{} bytes, expected a chat template of at most {MOST}", source.len()));
    }
    let tokens: Result<Vec<_>, Error> = tokenize(source, false, syntax.clone()).collect();
    let tokens = tokens.map_err(|e| described(&e))?;
    check_namespaces(&tokens)?;
    Ok(without_generation(source, &tokens))
}

/// `{% generation %}` marks what an assistant wrote, and has a scope of its own: so does `{% with %}`.
fn without_generation(source: &str, tokens: &[(Token, Span)]) -> String {
    let mut all = source.to_string();
    for three in tokens.windows(3).rev() {
        let [(Token::BlockStart, _), (Token::Ident(name), at), (Token::BlockEnd, _)] = three else { continue };
        let tag = match *name {
            "generation" => "with",
            "endgeneration" => "endwith",
            _ => continue,
        };
        all.replace_range(at.start_offset as usize..at.end_offset as usize, tag);
    }
    all
}

/// Only a namespace can be changed, so only it can come to contain itself, which could not be written out or compared.
/// It must be made by `{% set NAME = namespace(..) %}`, and NAME be used for its attributes only.
fn check_namespaces(tokens: &[(Token, Span)]) -> Result<(), String> {
    let token = |i: usize| tokens.get(i).map(|(token, _)| token);
    let before = |i: usize, n: usize| i.checked_sub(n).and_then(token);
    let is_attribute = |i: usize| matches!(before(i, 1), Some(Token::Dot));
    let mut names = HashSet::new();
    for (i, (it, at)) in tokens.iter().enumerate() {
        if !matches!(it, Token::Ident("namespace")) || is_attribute(i) {
            continue;
        }
        match [4, 3, 2, 1].map(|n| before(i, n)) {
            [Some(Token::BlockStart), Some(Token::Ident("set")), Some(Token::Ident(name)), Some(Token::Assign)]
                if is_whole_call(&tokens[i + 1..]) =>
            {
                names.insert(*name);
            }
            _ => {
                let line = at.start_line;
                return Err(format!("line {line}: namespace is used, expected {{% set NAME = namespace(..) %}} alone"));
            }
        }
    }
    for (i, (it, at)) in tokens.iter().enumerate() {
        let Token::Ident(name) = it else { continue };
        let fine = match [1, 2, 3].map(|n| token(i + n)) {
            [Some(Token::Dot | Token::Assign), ..] => true,
            [Some(Token::BracketOpen), Some(Token::Str(_) | Token::String(_)), Some(Token::BracketClose)] => true,
            _ => is_attribute(i),
        };
        if names.contains(name) && !fine {
            return Err(format!(
                "line {}: namespace {name} is used as a value, expected only its attributes to be",
                at.start_line
            ));
        }
    }
    Ok(())
}

/// Whether tokens begin with a call's arguments after which the tag ends.
fn is_whole_call(tokens: &[(Token, Span)]) -> bool {
    let mut depth = 0;
    for (i, (token, _)) in tokens.iter().enumerate() {
        match token {
            Token::ParenOpen => depth += 1,
            Token::ParenClose => depth -= 1,
            Token::BlockEnd => return false,
            _ => {}
        }
        if depth == 0 {
            return i > 0 && matches!(tokens.get(i + 1), Some((Token::BlockEnd, _)));
        }
    }
    false
}
