//! GRUB's script language as a tree (GRUB manual §6 "Writing your own configuration file", "shell-like scripting").

use std::iter::Peekable;
use std::rc::Rc;
use std::str::Chars;

/// How deep blocks may lie within each other: GRUB's own generators need four.
const DEPTH_MAX: u32 = 32;

/// A piece of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// Text as it is.
    Text(String),
    /// A variable's value; without quotes it is split into words.
    Variable { name: String, quoted: bool },
}

/// A word before its variables are put in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) pieces: Vec<Piece>,
    /// Some of it is quoted, so that it is a word even if nothing remains.
    pub(super) quoted: bool,
}

impl Word {
    /// The text of a word that is one, without quotes and variables.
    fn plain(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [Piece::Text(text)] if !self.quoted => Some(text),
            _ => None,
        }
    }
}

/// Statements in order, shared with the functions and menu entries that are made of them.
pub(super) type Block = Rc<[Statement]>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Statement {
    /// A command with its words, and a block as its last argument if it has one.
    Command {
        words: Vec<Word>,
        block: Option<Block>,
    },
    /// Conditions with what follows from each, and what follows from none.
    If {
        arms: Vec<(Block, Block)>,
        otherwise: Block,
    },
    /// `while`, or `until` if inverted.
    While {
        condition: Block,
        inverted: bool,
        body: Block,
    },
    For {
        variable: String,
        words: Vec<Word>,
        body: Block,
    },
    Function {
        name: String,
        body: Block,
    },
}

/// Why a text is no script.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line}: {what}")]
pub(in super::super) struct SyntaxError {
    line: u32,
    what: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(Word),
    /// A newline or a semicolon.
    End,
    Open,
    Close,
}

/// Reads a whole script.
///
/// # Errors
/// Where it goes against the grammar.
pub(super) fn parse(text: &str) -> Result<Block, SyntaxError> {
    let tokens = Lexer { characters: text.chars().peekable(), line: 1 }.all()?;
    let mut parser = Parser { tokens, position: 0, depth: 0 };
    let block = parser.block(&[])?;
    match parser.peek() {
        None => Ok(block),
        Some(_) => Err(parser.error("something ends here that did not begin")),
    }
}

struct Lexer<'a> {
    characters: Peekable<Chars<'a>>,
    line: u32,
}

impl Lexer<'_> {
    fn all(mut self) -> Result<Vec<(Token, u32)>, SyntaxError> {
        let mut tokens = Vec::new();
        loop {
            let line = self.line;
            let Some(&next) = self.characters.peek() else { return Ok(tokens) };
            let token = match next {
                ' ' | '\t' | '\r' => {
                    self.characters.next();
                    continue;
                }
                '#' => {
                    while self.characters.next_if(|&next| next != '\n').is_some() {}
                    continue;
                }
                '\n' | ';' => {
                    self.take();
                    Token::End
                }
                '{' => {
                    self.take();
                    Token::Open
                }
                '}' => {
                    self.take();
                    Token::Close
                }
                _ => match self.word()? {
                    Some(word) => Token::Word(word),
                    None => continue,
                },
            };
            tokens.push((token, line));
        }
    }

    fn take(&mut self) -> Option<char> {
        let next = self.characters.next();
        if next == Some('\n') {
            self.line += 1;
        }
        next
    }

    fn word(&mut self) -> Result<Option<Word>, SyntaxError> {
        let mut word = Word::default();
        let mut text = String::new();
        while let Some(&next) = self.characters.peek() {
            match next {
                ' ' | '\t' | '\r' | '\n' | ';' | '{' | '}' => break,
                '\\' => {
                    self.take();
                    // A backslash at a line's end joins it with the next.
                    match self.take() {
                        Some('\n') | None => {}
                        Some(escaped) => {
                            word.quoted = true;
                            text.push(escaped);
                        }
                    }
                }
                '\'' => {
                    self.take();
                    word.quoted = true;
                    loop {
                        match self.take() {
                            Some('\'') => break,
                            Some(inner) => text.push(inner),
                            None => return Err(self.error("a quoted text has no end")),
                        }
                    }
                }
                '"' => {
                    self.take();
                    word.quoted = true;
                    self.double_quoted(&mut word, &mut text)?;
                }
                '$' => self.variable(&mut word, &mut text, false)?,
                _ => {
                    self.take();
                    text.push(next);
                }
            }
        }
        if !text.is_empty() {
            word.pieces.push(Piece::Text(text));
        }
        Ok((word.quoted || !word.pieces.is_empty()).then_some(word))
    }

    fn double_quoted(&mut self, word: &mut Word, text: &mut String) -> Result<(), SyntaxError> {
        while let Some(&next) = self.characters.peek() {
            match next {
                '"' => {
                    self.take();
                    return Ok(());
                }
                '$' => self.variable(word, text, true)?,
                '\\' => {
                    self.take();
                    match self.take() {
                        Some(escaped @ ('$' | '"' | '\\')) => text.push(escaped),
                        Some('\n') | None => {}
                        Some(other) => text.extend(['\\', other]),
                    }
                }
                _ => {
                    self.take();
                    text.push(next);
                }
            }
        }
        Err(self.error("a quoted text has no end"))
    }

    fn variable(&mut self, word: &mut Word, text: &mut String, quoted: bool) -> Result<(), SyntaxError> {
        self.take();
        let mut name = String::new();
        if self.characters.next_if_eq(&'{').is_some() {
            loop {
                match self.take() {
                    Some('}') => break,
                    Some('\n') | None => return Err(self.error("a variable's name has no end")),
                    Some(inner) => name.push(inner),
                }
            }
        } else if let Some(special) =
            self.characters.next_if(|&next| next.is_ascii_digit() || matches!(next, '?' | '@' | '*' | '#'))
        {
            name.push(special);
        } else {
            while let Some(next) =
                self.characters.next_if(|&next| next.is_ascii_alphanumeric() || next == '_')
            {
                name.push(next);
            }
        }
        if name.is_empty() {
            text.push('$');
            return Ok(());
        }
        if !text.is_empty() {
            word.pieces.push(Piece::Text(std::mem::take(text)));
        }
        word.pieces.push(Piece::Variable { name, quoted });
        Ok(())
    }

    fn error(&self, what: &'static str) -> SyntaxError {
        SyntaxError { line: self.line, what }
    }
}

struct Parser {
    tokens: Vec<(Token, u32)>,
    position: usize,
    depth: u32,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.position).map(|(token, _)| token)
    }

    fn error(&self, what: &'static str) -> SyntaxError {
        let token = self.tokens.get(self.position).or_else(|| self.tokens.last());
        SyntaxError { line: token.map_or(1, |(_, line)| *line), what }
    }

    fn skip_ends(&mut self) {
        while self.peek() == Some(&Token::End) {
            self.position += 1;
        }
    }

    /// The plain word that stands next.
    fn keyword(&self) -> Option<&str> {
        match self.peek() {
            Some(Token::Word(word)) => word.plain(),
            _ => None,
        }
    }

    /// Statements up to one of `ends`, a closing brace, or the end of the text; the end itself is not taken.
    fn block(&mut self, ends: &[&str]) -> Result<Block, SyntaxError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.error("blocks lie too deep within each other"));
        }
        let mut statements = Vec::new();
        loop {
            self.skip_ends();
            let at_end = match self.peek() {
                None | Some(Token::Close) => true,
                _ => self.keyword().is_some_and(|word| ends.contains(&word)),
            };
            if at_end {
                self.depth -= 1;
                return Ok(statements.into());
            }
            statements.push(self.statement()?);
        }
    }

    fn expect(&mut self, keyword: &str, what: &'static str) -> Result<(), SyntaxError> {
        self.skip_ends();
        if self.keyword() == Some(keyword) {
            self.position += 1;
            return Ok(());
        }
        Err(self.error(what))
    }

    fn statement(&mut self) -> Result<Statement, SyntaxError> {
        match self.keyword() {
            Some("if") => self.if_statement(),
            Some(word @ ("while" | "until")) => {
                let inverted = word == "until";
                self.position += 1;
                let condition = self.block(&["do"])?;
                let body = self.loop_body()?;
                Ok(Statement::While { condition, inverted, body })
            }
            Some("for") => self.for_statement(),
            Some("function") => {
                self.position += 1;
                let name = self.keyword().map(ToOwned::to_owned);
                let Some(name) = name else { return Err(self.error("a function has no name")) };
                self.position += 1;
                self.skip_ends();
                match self.braces()? {
                    Some(body) => Ok(Statement::Function { name, body }),
                    None => Err(self.error("a function has no body")),
                }
            }
            _ => self.command(),
        }
    }

    fn if_statement(&mut self) -> Result<Statement, SyntaxError> {
        let mut arms = Vec::new();
        let mut otherwise: Block = Rc::new([]);
        self.position += 1;
        loop {
            let condition = self.block(&["then"])?;
            self.expect("then", "an `if` has no `then`")?;
            let body = self.block(&["elif", "else", "fi"])?;
            arms.push((condition, body));
            match self.keyword() {
                Some("elif") => self.position += 1,
                Some("else") => {
                    self.position += 1;
                    otherwise = self.block(&["fi"])?;
                    break;
                }
                _ => break,
            }
        }
        self.expect("fi", "an `if` has no `fi`")?;
        Ok(Statement::If { arms, otherwise })
    }

    fn for_statement(&mut self) -> Result<Statement, SyntaxError> {
        self.position += 1;
        let variable = self.keyword().map(ToOwned::to_owned);
        let Some(variable) = variable else { return Err(self.error("a `for` has no variable")) };
        self.position += 1;
        self.expect("in", "a `for` has no `in`")?;
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.peek() {
            words.push(word.clone());
            self.position += 1;
        }
        let body = self.loop_body()?;
        Ok(Statement::For { variable, words, body })
    }

    fn loop_body(&mut self) -> Result<Block, SyntaxError> {
        self.expect("do", "a loop has no `do`")?;
        let body = self.block(&["done"])?;
        self.expect("done", "a loop has no `done`")?;
        Ok(body)
    }

    /// A block in braces, if one stands next.
    fn braces(&mut self) -> Result<Option<Block>, SyntaxError> {
        if self.peek() != Some(&Token::Open) {
            return Ok(None);
        }
        self.position += 1;
        let block = self.block(&[])?;
        if self.peek() != Some(&Token::Close) {
            return Err(self.error("a block has no end"));
        }
        self.position += 1;
        Ok(Some(block))
    }

    fn command(&mut self) -> Result<Statement, SyntaxError> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.peek() {
            words.push(word.clone());
            self.position += 1;
        }
        let block = self.braces()?;
        if words.is_empty() {
            return Err(self.error("a block has no command before it"));
        }
        Ok(Statement::Command { words, block })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<Vec<Piece>> {
        match &parse(text).unwrap()[..] {
            [Statement::Command { words, .. }] => words.iter().map(|word| word.pieces.clone()).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.to_owned())
    }

    fn variable(name: &str, quoted: bool) -> Piece {
        Piece::Variable { name: name.to_owned(), quoted }
    }

    #[test]
    fn quotes_escapes_and_variables_are_told_apart() {
        assert_eq!(
            words(r#"a 'b $c' "d ${e} \$f" $g"h"\ i  # comment"#),
            vec![
                vec![text("a")],
                vec![text("b $c")],
                vec![text("d "), variable("e", true), text(" $f")],
                vec![variable("g", false), text("h i")],
            ]
        );
        assert_eq!(words("a \\\n b"), vec![vec![text("a")], vec![text("b")]]);
    }

    #[test]
    fn menu_entries_conditions_loops_and_functions_are_parsed() {
        let script = "function f {\n a; b\n}\nif [ x ]; then y; elif z\nthen w; else v; fi\n\
                      menuentry 'T' --id i {\n linux /l\n}\nfor i in 1 2; do c; done\nuntil d; do e; done\n";
        let block = parse(script).unwrap();
        assert!(matches!(&block[0], Statement::Function { name, body } if name == "f" && body.len() == 2));
        assert!(
            matches!(&block[1], Statement::If { arms, otherwise } if arms.len() == 2 && otherwise.len() == 1)
        );
        assert!(matches!(&block[2], Statement::Command { words, block: Some(block) }
            if words.len() == 4 && block.len() == 1));
        assert!(matches!(&block[3], Statement::For { words, .. } if words.len() == 2));
        assert!(matches!(&block[4], Statement::While { inverted: true, .. }));
    }

    #[test]
    fn what_is_no_script_is_an_error_with_its_line() {
        for (script, line) in [
            ("a\nif b; then c\n", 2),
            ("'", 1),
            ("\n\"x", 2),
            ("a }", 1),
            ("{ a }", 1),
            ("function { a }", 1),
            ("a ${b\n", 2),
            ("fi", 1),
        ] {
            match parse(script) {
                Err(error) => assert_eq!(error.line, line, "{script}: {error}"),
                // A keyword on its own is a command like any other.
                Ok(_) => assert_eq!(script, "fi"),
            }
        }
        assert!(parse(&"if ".repeat(10_000)).is_err());
        assert!(parse(&"menuentry a {".repeat(10_000)).is_err());
    }
}
