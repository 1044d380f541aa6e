//! What proxies' regular expressions (RE2's) lack. Ours are checked with another engine of linear time, which takes some more,
//! and a proxy refuses all routes of a port for one expression it cannot read.
//! <https://github.com/google/re2/wiki/Syntax>
use regex_syntax::ast::parse::Parser;
use regex_syntax::ast::{
    AssertionKind, Ast, ClassSet, ClassSetItem, ClassUnicodeKind, Flag, Flags, FlagsItemKind, GroupKind,
    HexLiteralKind, Literal, LiteralKind, RepetitionKind, RepetitionRange,
};

/// RE2's limit of `{n}`, also of nested ones together.
const MAX_REPEAT: u64 = 1000;

/// Why RE2 would refuse the expression or read it otherwise; none when it would not.
pub(super) fn problem(expression: &str) -> Option<String> {
    if expression.is_empty() {
        return Some("it is empty".to_owned());
    }
    match Parser::new().parse(expression) {
        Err(error) => Some(error.kind().to_string()),
        Ok(ast) => check(&ast).err(),
    }
}

/// The largest product of nested repetitions.
fn check(ast: &Ast) -> Result<u64, String> {
    match ast {
        Ast::Empty(_) | Ast::Dot(_) | Ast::ClassPerl(_) => Ok(1),
        Ast::Flags(set) => check_flags(&set.flags).map(|()| 1),
        Ast::Literal(literal) => check_literal(literal).map(|()| 1),
        Ast::Assertion(assertion) => match assertion.kind {
            AssertionKind::StartLine
            | AssertionKind::EndLine
            | AssertionKind::StartText
            | AssertionKind::EndText
            | AssertionKind::WordBoundary
            | AssertionKind::NotWordBoundary => Ok(1),
            _ => Err("starts and ends of words are not supported".to_owned()),
        },
        Ast::ClassUnicode(class) => check_unicode(&class.kind).map(|()| 1),
        Ast::ClassBracketed(class) => check_set(&class.kind).map(|()| 1),
        Ast::Repetition(repetition) => {
            let times = match &repetition.op.kind {
                RepetitionKind::Range(
                    RepetitionRange::Exactly(times)
                    | RepetitionRange::AtLeast(times)
                    | RepetitionRange::Bounded(_, times),
                ) => u64::from(*times).max(1),
                RepetitionKind::ZeroOrOne | RepetitionKind::ZeroOrMore | RepetitionKind::OneOrMore => 1,
            };
            let times = times.saturating_mul(check(&repetition.ast)?);
            if times > MAX_REPEAT {
                return Err(format!("{times} repetitions are more than {MAX_REPEAT}"));
            }
            Ok(times)
        }
        Ast::Group(group) => {
            if let GroupKind::NonCapturing(flags) = &group.kind {
                check_flags(flags)?;
            }
            check(&group.ast)
        }
        Ast::Alternation(alternation) => largest(&alternation.asts),
        Ast::Concat(concat) => largest(&concat.asts),
    }
}

fn largest(asts: &[Ast]) -> Result<u64, String> {
    asts.iter().try_fold(1, |most, ast| Ok(check(ast)?.max(most)))
}

fn check_flags(flags: &Flags) -> Result<(), String> {
    let unknown = flags.items.iter().find(|item| {
        matches!(item.kind, FlagsItemKind::Flag(Flag::Unicode | Flag::CRLF | Flag::IgnoreWhitespace))
    });
    match unknown {
        Some(_) => Err("of the flags only i, m, s and U are supported".to_owned()),
        None => Ok(()),
    }
}

fn check_literal(literal: &Literal) -> Result<(), String> {
    match &literal.kind {
        LiteralKind::HexFixed(kind) | LiteralKind::HexBrace(kind) if *kind != HexLiteralKind::X => {
            Err("\\u and \\U are not supported; use \\x{...}".to_owned())
        }
        _ => Ok(()),
    }
}

fn check_unicode(kind: &ClassUnicodeKind) -> Result<(), String> {
    match kind {
        ClassUnicodeKind::OneLetter(_) | ClassUnicodeKind::Named(_) => Ok(()),
        ClassUnicodeKind::NamedValue { .. } => Err("\\p{name=value} is not supported".to_owned()),
    }
}

fn check_set(set: &ClassSet) -> Result<(), String> {
    match set {
        ClassSet::BinaryOp(_) => Err("&&, -- and ~~ mean nothing in a class".to_owned()),
        ClassSet::Item(item) => check_item(item),
    }
}

fn check_item(item: &ClassSetItem) -> Result<(), String> {
    match item {
        ClassSetItem::Empty(_) | ClassSetItem::Ascii(_) | ClassSetItem::Perl(_) => Ok(()),
        ClassSetItem::Literal(literal) => check_literal(literal),
        ClassSetItem::Range(range) => check_literal(&range.start).and_then(|()| check_literal(&range.end)),
        ClassSetItem::Unicode(class) => check_unicode(&class.kind),
        ClassSetItem::Bracketed(_) => Err("a class in a class means something else; write \\[".to_owned()),
        ClassSetItem::Union(union) => union.items.iter().try_for_each(check_item),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_re2_takes() {
        for expression in [
            "a+",
            "^/api/v[0-9]+/.*$",
            "(?i)abc",
            "a{1,1000}",
            "(?:a|b)*?",
            "[[:alpha:]_-]",
            "\\pL\\d\\.",
            "(?P<n>x)",
            "\\x{41}",
        ] {
            assert_eq!(problem(expression), None, "{expression}");
        }
    }

    #[test]
    fn what_re2_refuses_or_reads_otherwise() {
        for expression in [
            "",
            "(",
            "a{1001}",
            "(a{100}){11}",
            "(?x)a b",
            "(?-u:a)",
            "\\u0041",
            "[a&&b]",
            "[a[b]]",
            "\\b{start}a",
            "\\p{sc=Greek}",
        ] {
            assert!(problem(expression).is_some(), "{expression}");
        }
    }
}
