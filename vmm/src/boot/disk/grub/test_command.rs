//! `test` and `[` (GRUB manual §16.3.100).

use super::super::filesystem::Found;
use super::interpreter::Interpreter;

/// How deep parentheses may lie within each other.
const DEPTH_MAX: u32 = 16;

/// Whether `expression` holds; one that is none does not.
pub(super) fn evaluate(interpreter: &Interpreter<'_>, expression: &[String]) -> bool {
    let words: Vec<&str> = expression.iter().map(String::as_str).collect();
    Test { interpreter, words: &words, depth: 0 }.either()
}

struct Test<'a> {
    interpreter: &'a Interpreter<'a>,
    words: &'a [&'a str],
    depth: u32,
}

impl Test<'_> {
    fn take(&mut self) -> Option<&str> {
        let (&first, rest) = self.words.split_first()?;
        self.words = rest;
        Some(first)
    }

    fn either(&mut self) -> bool {
        let mut holds = self.both();
        while self.words.first() == Some(&"-o") {
            self.words = &self.words[1..];
            holds |= self.both();
        }
        holds
    }

    fn both(&mut self) -> bool {
        let mut holds = self.term();
        while self.words.first() == Some(&"-a") {
            self.words = &self.words[1..];
            holds &= self.term();
        }
        holds
    }

    fn term(&mut self) -> bool {
        if let [left, operator, right, ..] = self.words
            && let Some(holds) = compare(left, operator, right)
        {
            self.words = &self.words[3..];
            return holds;
        }
        match self.words {
            ["!", _, ..] => {
                self.words = &self.words[1..];
                !self.term()
            }
            ["(", ..] if self.depth < DEPTH_MAX => {
                self.words = &self.words[1..];
                self.depth += 1;
                let holds = self.either();
                self.depth -= 1;
                self.take();
                holds
            }
            [operator @ ("-f" | "-e" | "-s" | "-d" | "-n" | "-z"), operand, ..] => {
                self.words = &self.words[2..];
                self.unary(operator, operand)
            }
            [word, ..] => {
                self.words = &self.words[1..];
                !word.is_empty()
            }
            [] => false,
        }
    }

    fn unary(&self, operator: &str, operand: &str) -> bool {
        match operator {
            "-n" => return !operand.is_empty(),
            "-z" => return operand.is_empty(),
            _ => {}
        }
        let Ok(file) = self.interpreter.file_name(operand) else { return false };
        match (operator, self.interpreter.volumes.found(&file)) {
            ("-d", found) => found == Some(Found::Directory),
            ("-e", found) => found.is_some(),
            ("-s", Some(Found::File { size_bytes })) => size_bytes > 0,
            ("-f", Some(Found::File { .. })) => true,
            _ => false,
        }
    }
}

fn compare(left: &str, operator: &str, right: &str) -> Option<bool> {
    let number = |text: &str| text.trim().parse::<i64>().unwrap_or(0);
    let numbers = (number(left), number(right));
    Some(match operator {
        "=" | "==" => left == right,
        "!=" => left != right,
        "<" => left < right,
        "<=" => left <= right,
        ">" => left > right,
        ">=" => left >= right,
        "-eq" => numbers.0 == numbers.1,
        "-ne" => numbers.0 != numbers.1,
        "-lt" => numbers.0 < numbers.1,
        "-le" => numbers.0 <= numbers.1,
        "-gt" => numbers.0 > numbers.1,
        "-ge" => numbers.0 >= numbers.1,
        _ => return None,
    })
}
